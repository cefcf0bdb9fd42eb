"""Figures of the classification experiment; every number comes from the saved data."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.experiments.classification.measure import (
    BAYES,
    DESCENT,
    FIVE_STEPS,
    LOGISTIC,
    SMOOTHING,
    TWO_STEPS,
)
from innerloop.experiments.classification.setting import LINEAR, ONE_HEAD, SOFTMAX, THREE
from innerloop.plots import caption, house_style, learner_style, line_with_band


def draw(data: xr.Dataset) -> dict[str, Figure]:
    """All figures by file name."""
    with house_style():
        return {"training": _training(data), "learners": _learners(data)}


def _training(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(15, 7.2))
    rows = figure.subplots(2, 4)
    for column, model in enumerate([*LINEAR, *SOFTMAX]):
        part = data.sel(model=model)
        title = f"{model}, linear layer" if model in LINEAR else f"{model}, three classes"
        shown = (DESCENT, TWO_STEPS) if model in LINEAR else (DESCENT, SMOOTHING)
        _losses(rows[0, column], part, title, shown)
        _cosines(rows[1, column], part)
    caption(
        figure,
        "Above: a linear layer reaches the loss of one tuned gradient step on the cross-entropy and stops there; "
        "softmax stays with kernel smoothing. Below: whose logits\ndepend on the query as the trained layer's do. "
        f"Thin: each of {data.sizes['seed']} seeds; thick: mean, with a 95 % band.",
    )
    return figure


def _losses(axes: Axes, part: xr.Dataset, title: str, learners: tuple[str, ...]) -> None:
    style: dict[str, Any] = learner_style("trained") | {"marker": "", "zorder": 5}  # ends on a wide line
    curves = part["loss"].dropna("step", how="all")
    for seed in curves["seed"].values:
        axes.plot(curves["step"], curves.sel(seed=seed), color=style["color"], alpha=0.3, linewidth=0.8)
    line_with_band(axes, curves, x="step", over="seed", **style)
    for name in learners:
        line: dict[str, Any] = learner_style(name) | {"marker": "", "linewidth": 2}
        axes.axhline(float(part["final_loss"].sel(learner=name)[0]), **line)
    zero = float(part["zero_loss"])
    _chance(axes, zero)
    lowest = float(part["final_loss"].sel(learner=list(learners)).min())
    axes.set(title=title, xlabel="training steps", ylabel="cross-entropy (nats)", ylim=(0.95 * lowest, 1.03 * zero))
    axes.legend(fontsize=7)


def _cosines(axes: Axes, part: xr.Dataset) -> None:
    curves = part["cosine"].dropna("curve_step", how="all")
    for name in part["algorithm"].values:
        style: dict[str, Any] = learner_style(str(name)) | {"marker": "", "linewidth": 2}
        line_with_band(axes, curves.sel(algorithm=name), x="curve_step", over="seed", **style)
    axes.set(title="alignment of centred logits", xlabel="training steps", ylabel="cosine", ylim=(-0.1, 1.05))
    axes.legend(fontsize=7, loc="lower right")


def _learners(data: xr.Dataset) -> Figure:
    """Final losses side by side: what the layer has, and what more steps and inference have."""
    figure = Figure(figsize=(12, 4.6))
    panels = figure.subplots(1, 2)
    for axes, model in zip(panels, LINEAR, strict=True):
        part = data.sel(model=model)
        bars = {name: part["final_loss"].sel(learner=name) for name in (SMOOTHING, DESCENT, "trained")}
        if model == THREE:
            bars = {
                name: data["final_loss"].sel(model=name, learner="trained") for name in (ONE_HEAD, SOFTMAX[1])
            } | bars
        bars |= {name: part["final_loss"].sel(learner=name) for name in (TWO_STEPS, FIVE_STEPS)}
        # On fewer tasks: shifted by the difference that gradient descent has between the two sets.
        shift = float(part["final_loss"].sel(learner=DESCENT)[0] - part["floor_loss"].sel(floor_learner=DESCENT)[0])
        bars |= {name: part["floor_loss"].sel(floor_learner=name) + shift for name in (LOGISTIC, BAYES)}
        for place, (name, values) in enumerate(bars.items()):
            mean, style = float(values.mean()), learner_style("trained" if name in SOFTMAX else name)
            axes.plot(np.full(values.size, place), values, ".", color="black", markersize=4, zorder=3)
            axes.bar(
                place, mean - float(part["entropy"]), bottom=float(part["entropy"]), color=style["color"], alpha=0.6
            )
            axes.annotate(
                f"{mean:.3f}",
                (place, mean),
                ha="center",
                va="bottom",
                fontsize=8,
                xytext=(0, 3),
                textcoords="offset points",
            )
        labels = ["linear layer" if name == "trained" else _label(name) for name in bars]
        axes.set_xticks(range(len(bars)), labels, rotation=30, ha="right")
        _chance(axes, float(part["zero_loss"]))
        top = 1.06 * float(part["zero_loss"])
        axes.set(title=model, ylabel="cross-entropy (nats)", ylim=(None, top))
        axes.legend(fontsize=7)
    caption(
        figure,
        "A linear layer is as good as one tuned gradient step; two steps, or logistic regression, are nearer to the "
        "best possible learner.\nThe last two were measured on fewer tasks, and are shifted by what one step differs "
        "there. Bars start at the cross-entropy of the true probabilities. "
        f"Dots: seeds (n = {data.sizes['seed']}).",
    )
    return figure


def _chance(axes: Axes, loss: float) -> None:
    style: dict[str, Any] = learner_style("trivial") | {"label": "equal probabilities"}
    axes.axhline(loss, **style)


def _label(name: str) -> str:
    return {BAYES: "Bayes-optimal", DESCENT: "one step", TWO_STEPS: "two steps", FIVE_STEPS: "five steps"}.get(
        name, name
    )
