"""Figures of the copying experiment; every number comes from the saved data."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.experiments.copying.judge import PUBLISHED_SENSITIVITIES
from innerloop.experiments.copying.measure import REACHED
from innerloop.experiments.copying.setting import LINEAR, MAIN, PERMUTED
from innerloop.plots import caption, house_style, learner_style, line_with_band

_STACKS: dict[str, dict[str, Any]] = {
    MAIN: {"color": "#0072B2"},
    LINEAR: {"color": "#E69F00"},
    PERMUTED: {"color": "#999999"},
}
_SHARES: dict[str, dict[str, Any]] = {
    "own": {"color": "#0072B2", "label": "own token"},
    "next": {"color": "#D55E00", "label": "next token"},
    "other": {"color": "#009E73", "label": "others (next included)"},
}


def draw(data: xr.Dataset) -> dict[str, Figure]:
    """All figures by file name."""
    with house_style():
        return {
            "figure-5": _training(data),
            "figure-5-attention": _attention(data),
            "figure-5-weights": _weights(data),
        }


def _training(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(14, 4.2))
    loss, sensitivity, net = figure.subplots(1, 3)
    _losses(loss, data)
    for name, style in _SHARES.items():
        _every_seed(sensitivity, data["sensitivity"].sel(share=name), "curve_step", style)
        sensitivity.axhline(PUBLISHED_SENSITIVITIES[name], color=style["color"], linestyle=":", linewidth=1)
    sensitivity.set(
        title="sensitivity of layer 1 (sum over outputs)", xlabel="training steps", ylabel="norm of gradient"
    )
    sensitivity.set_ylim(0, 1.15 * max(float(data["sensitivity"].max()), PUBLISHED_SENSITIVITIES["own"]))
    sensitivity.legend(fontsize=7, loc="upper right")
    shares = data["sensitivity"]
    difference = shares.sel(share="next") - shares.sel(share="other_than_next")
    _every_seed(net, difference, "curve_step", {"color": "#D55E00", "label": "next minus others"})
    for seed in data["seed"].values:
        drop = float(data["drop_step"].sel(seed=seed, way=0.5))
        if np.isfinite(drop):
            net.axvline(drop, color="#0072B2", linewidth=0.8, linestyle="--")
    net.set(title="next minus others; dashed: loss half-way down", xlabel="training steps", ylabel="norm of gradient")
    net.set_ylim(float(difference.min()) - 0.05, 1.15 * float(difference.max()) + 0.05)
    net.legend(fontsize=7)
    caption(
        figure,
        "Where layer 1 learns to read the next token, the loss falls to that of one gradient step; without softmax "
        f"or without positions it does not.\nThin: each of {data.sizes['seed']} seeds; thick: mean, with a 95 % band. "
        "Dotted: published values.",
    )
    return figure


def _losses(axes: Axes, data: xr.Dataset) -> None:
    for name, style in _STACKS.items():
        _every_seed(axes, data["loss"].sel(stack=name), "step", style | {"label": name}, band=False)
    descent: dict[str, Any] = learner_style("gradient descent") | {"marker": "", "linewidth": 2}
    axes.axhline(float(data["gradient_descent_loss"]), **descent)
    axes.axhline(float(data["gradient_descent_loss"]) + REACHED, color="#D55E00", linestyle=":", linewidth=1)
    axes.axhline(float(data["trivial_loss"]), **learner_style("trivial"))
    top = 1.15 * float(data["trivial_loss"])
    axes.set(title="loss of every seed", xlabel="training steps", ylabel="half squared error", ylim=(None, top))
    axes.legend(fontsize=7, loc=(0.01, 0.2))


def _every_seed(axes: Axes, data: xr.DataArray, x: str, style: dict[str, Any], *, band: bool = True) -> None:
    for seed in data["seed"].values:
        axes.plot(data[x], data.sel(seed=seed), color=style["color"], alpha=0.45, linewidth=0.8)
    line_with_band(axes, data, x=x, over="seed", band=band, **(style | {"linewidth": 2}))


def _shown_seed(data: xr.Dataset) -> int:
    """The first seed that reached the gradient step, else the first of all."""
    reached = np.isfinite(data["reached_step"].sel(stack=MAIN).values)
    return int(data["seed"].values[reached.argmax()])


def _attention(data: xr.Dataset) -> Figure:
    seed = _shown_seed(data)
    figure = Figure(figsize=(9.2, 8.2))
    panels = figure.subplots(2, 2)
    for row, layer in enumerate(data["layer"].values[:2]):
        single = data["single_attention"].sel(seed=seed, layer=layer).values
        mean = data["attention"].sel(copying_stack=MAIN, seed=seed, layer=layer).values
        for axes, attention, what in ((panels[row, 0], single, "one task"), (panels[row, 1], mean, "mean over tasks")):
            _map(figure, axes, attention, f"layer {layer}: {what}", ("key", "reading token"))
    caption(
        figure,
        f"Seed {seed}. Layer 1 reads the {data['direction'].sel(copying_stack=MAIN, seed=seed).values} token: "
        "a sharp diagonal beside the main one. Odd tokens are x, even ones y, the last is the query.",
    )
    return figure


def _weights(data: xr.Dataset) -> Figure:
    seed = _shown_seed(data)
    figure = Figure(figsize=(9.2, 8.2))
    panels = figure.subplots(2, 2)
    for row, layer in enumerate(data["layer"].values[:2]):
        for axes, name, what in ((panels[row, 0], "W_KQ", "W_K^T W_Q"), (panels[row, 1], "W_PV", "P W_V")):
            _map(figure, axes, data[name].sel(seed=seed, layer=layer).values, f"layer {layer}: {what}", ("", ""))
    size = data.sizes["row"] - data.attrs["input_size"]
    caption(
        figure,
        f"Seed {seed}. Products of the trained weights; the last {size} rows and columns belong to the positions.",
    )
    return figure


def _map(figure: Figure, axes: Axes, matrix: np.ndarray, title: str, labels: tuple[str, str]) -> None:
    """A matrix with zero in white; not square, unlike `innerloop.plots.heat_map`."""
    limit = float(np.abs(matrix).max())
    image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(visible=False)
    for axis, count in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
        ticks = np.arange(4, count, 5)
        axis.set_ticks(ticks, [str(tick + 1) for tick in ticks])
    figure.colorbar(image, ax=axes, shrink=0.8)
