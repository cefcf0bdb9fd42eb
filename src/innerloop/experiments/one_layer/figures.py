"""Figures of the one-layer experiment, in the paper's axes; every number comes from the saved data."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.experiments.shifts import INPUTS_AXIS, shift_figure, shift_panel
from innerloop.plots import (
    alignment_panel,
    caption,
    heat_map,
    house_style,
    learner_lines,
    learner_style,
    line_with_band,
)

_SHOWN = ("gradient descent", "interpolated", "trained")


def draw(data: xr.Dataset) -> dict[str, Figure]:
    """All figures by file name."""
    with house_style():
        return {
            "figure-2": _figure_2(data),
            "figure-6a": shift_figure(data, _SHOWN, "the trained layer does the same gradient step."),
            "figure-1-right": _figure_1_right(data),
            "figure-10": _figure_10(data),
            "figure-9": _figure_9(data),
        }


def _figure_2(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(15, 3.7))
    loss, alignment, lengths, inputs = figure.subplots(1, 4)
    _loss_curves(loss, data)
    alignment_panel(alignment, data, x="step", title="(b) alignment with GD")
    learner_lines(lengths, data["sweep_loss"], _SHOWN, x="context_length", over="sweep_seed", by="learner")
    lengths.set(title="(c) several N = n_i", xlabel="N = n_i", xticks=data["context_length"].values)
    lengths.set(ylabel="loss", yscale="log")  # a seed in another solution may have a hundred times the loss
    lengths.legend()
    shift_panel(inputs, data["input_scale_loss"], _SHOWN, "input_scale", "(d) scaled inputs", INPUTS_AXIS)
    seeds, sweep = data.sizes["seed"], data.sizes["sweep_seed"]
    caption(
        figure,
        f"One trained layer does what one tuned gradient step does. Lines: mean over seeds, bands: 95 % interval "
        f"(n = {seeds}; panel c: up to {sweep}). Grey vertical line: where it was trained.",
    )
    return figure


def _loss_curves(axes: Axes, data: xr.Dataset) -> None:
    for seed in data["seed"].values:
        axes.plot(
            data["step"], data["loss"].sel(seed=seed), color=learner_style("trained")["color"], alpha=0.3, linewidth=1
        )
    trained: dict[str, Any] = learner_style("trained") | {"marker": ""}
    line_with_band(axes, data["loss"], x="step", over="seed", **trained)
    descent = learner_style("gradient descent") | {"marker": "", "linewidth": 2}
    axes.axhline(float(data["final_loss"].sel(learner="gradient descent")[0]), **descent)
    axes.axhline(float(data["trivial_loss"]), linewidth=1.2, **learner_style("trivial"))
    axes.set(title="(a) loss", xlabel="training steps", ylabel="half squared error", ylim=(0.18, None))
    axes.legend()


def _roll(axes: Axes, data: xr.Dataset, name: str, damping: float, *, band: bool = True) -> None:
    losses = data[name].sel(damping=damping)
    learner_lines(axes, losses, ("gradient descent", "trained"), x="application", over="seed", by="rolled", band=band)
    axes.set(xlabel="GD steps / layers applied", title=f"damping {damping:g}")


def _figure_1_right(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(5.2, 3.6))
    axes = figure.subplots()
    _roll(axes, data, "rollout_stable_mean", 0.75)
    axes.set(ylabel="half squared error", ylim=(0, None))
    axes.legend()
    count = int(data["rollout_stable_tasks"].sel(damping=0.75))
    caption(figure, f"One trained layer, applied again and again, goes on descending.\nMean over {count} stable tasks.")
    return figure


def _figure_10(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(12, 6.6))
    rows = figure.subplots(2, 3)
    for column, damping in enumerate(data["damping"].values):
        _roll(rows[0, column], data, "rollout_median", damping)
        rows[0, column].set(ylabel="median loss", yscale="log")
        _roll(rows[1, column], data, "rollout_mean", damping, band=False)
        rows[1, column].set(ylabel="mean loss", yscale="log", ylim=(1e-2, 1e3))
        rows[0, column].legend()
    caption(
        figure,
        "Above: medians over all tasks. Below: means over all tasks, which the few tasks beyond GD's stability limit "
        f"carry away (mean over seeds, no band). n = {data.sizes['seed']} seeds.",
    )
    return figure


def _figure_9(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(8.6, 7.2))
    panels = figure.subplots(2, 2)
    scale = float(data["scale"][0])
    trained_KQ, trained_PV = data["W_KQ"][0].values / scale, data["W_PV"][0].values * scale
    pairs = (
        (trained_KQ, data["constructed_W_KQ"].values, "W_K^T W_Q"),
        (trained_PV, data["constructed_W_PV"].values, "P W_V"),
    )
    for column, (trained, constructed, title) in enumerate(pairs):
        limit = float(np.abs(constructed).max())
        heat_map(figure, panels[0, column], trained, title=f"trained {title}", limit=limit)
        heat_map(figure, panels[1, column], constructed, title=f"Proposition 1: {title}", limit=limit)
    caption(
        figure,
        f"Seed {int(data['seed'][0])}, in the gauge where W_K^T W_Q has mean diagonal 1 (b = {scale:.3f}). The last "
        f"entry of P W_V is -c: trained {-trained_PV[-1, -1]:.4f}, "
        f"exact optimum {-data['constructed_W_PV'].values[-1, -1]:.4f}.",
    )
    return figure
