"""Figures of the sine experiment: losses and alignment (Fig 4), and the functions themselves."""

from typing import TYPE_CHECKING, Any

import xarray as xr

from innerloop.experiments.sine.judge import PUBLISHED_LOSS
from innerloop.experiments.sine.measure import MOMENTS
from innerloop.experiments.sine.setting import LEARNERS, VARIANTS
from innerloop.plots import MEASURES, caption, house_style, learner_style, line_with_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-4": _figure_4(data)} | {
            f"functions-{variant}": _functions_figure(data.sel(variant=variant), variant) for variant in VARIANTS
        }


def _figure_4(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4))
    rows = figure.subplots(2, 2)
    for row, variant in zip(rows, VARIANTS, strict=True):
        part = data.sel(variant=variant)
        for name in LEARNERS:
            style: dict[str, Any] = learner_style(name) | {"marker": ""}
            for seed in part["seed"].values:
                row[0].plot(part["step"], part["loss"].sel(learner=name, seed=seed), color=style["color"], alpha=0.25)
            line_with_band(row[0], part["loss"].sel(learner=name), x="step", over="seed", **style)
            if variant == "reference":
                row[0].axhline(PUBLISHED_LOSS[name], color=style["color"], linestyle=":", linewidth=1)
        lowest = 0.7 * float(part["loss"].min())
        row[0].set(title=f"{variant}: loss", xlabel="training steps", ylabel="half squared error")
        row[0].set(yscale="log", ylim=(lowest, None))
        row[0].legend()
        _alignment_panel(row[1], part, f"{variant}: transformer against MLP + GD, after the step")
    caption(
        figure,
        "A linear layer above an MLP does one gradient step on deep features. Dotted: published losses after 20 000 "
        f"steps. Lines: mean over seeds, bands: 95 % interval (n = {data.sizes['seed']}).",
    )
    return figure


def _alignment_panel(axes: "Axes", part: xr.Dataset, title: str) -> None:
    right = axes.twinx()
    for name, style in MEASURES.items():
        words = {"cosine": "partial cosine", "model_difference": "partial difference"}
        named: dict[str, Any] = style | {"label": words.get(name, style["label"])}
        line_with_band(right if name == "cosine" else axes, part[name], x="curve_step", over="seed", **named)
    right.set(ylim=(0, 1.05), ylabel="partial cosine")
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    axes.set(title=title, xlabel="training steps", ylabel="L2 norm", ylim=(0, 0.12))
    handles = [*right.get_lines(), *axes.get_lines()]
    axes.legend(handles, [str(handle.get_label()) for handle in handles], loc="center right")


def _functions_figure(data: xr.Dataset, variant: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.9))
    for axes, task in zip(figure.subplots(1, data.sizes["task"], sharey=True), data["task"].values, strict=True):
        one = data.sel(task=task)
        axes.plot(one["query"], one["wave"], color="#999999", linewidth=5, alpha=0.4, label="the wave")
        for name in LEARNERS:
            style: dict[str, Any] = learner_style(name) | {"marker": "", "linewidth": 1.8}
            label = style.pop("label")
            for moment, linestyle in zip(MOMENTS, ("--", "-"), strict=True):
                values = one["prediction"].sel(learner=name, moment=moment)
                axes.plot(one["query"], values, **(style | {"linestyle": linestyle}), label=f"{label}, {moment}")
        axes.plot(one["context_input"], one["context_target"], "o", color="#000000", markersize=5, label="context")
        axes.set(title=f"task {int(task) + 1}", xlabel="query x")
    axes = figure.axes[0]
    axes.set(ylabel="prediction")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    caption(
        figure,
        f"{variant.capitalize()} waves, seed {int(data['seed'][0])}: both start from one function (dashed) and the "
        "step bends it onto the context (solid).",
    )
    return figure
