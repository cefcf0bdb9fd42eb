"""Figures of deep stacks, in the paper's axes; every number comes from the saved data."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.plots import alignment_panel, caption, heat_map, learner_style, line_with_band

_SHORT_NAMES = {"gradient descent": "GD", "gd++": "GD++", "gd++, per step": "GD++, numbers per step"}


def training_figure(data: xr.Dataset, *, title: str, see: str, band: bool = True) -> Figure:
    """Fig 3, 7 and 8: loss along training, and alignment with gradient descent, with GD++ and whom else there is.

    Args:
        data: as measured.
        title: what was trained.
        see: what to see, for the caption.
        band: False draws the loss without its band over seeds, for losses that have spikes.
    """
    algorithms = data["algorithm"].values
    figure = Figure(figsize=(4.7 * (1 + len(algorithms)), 3.9))
    loss, *panels = figure.subplots(1, 1 + len(algorithms))
    _loss_curves(loss, data, title, band=band)
    for axes, algorithm in zip(panels, algorithms, strict=True):
        words = f"alignment with {_SHORT_NAMES[algorithm]}"
        alignment_panel(axes, data.sel(algorithm=algorithm), x="curve_step", title=words)
    caption(figure, f"{see} Lines: mean over seeds, bands: 95 % interval (n = {data.sizes['seed']}); thin: each seed.")
    return figure


def _loss_curves(axes: Axes, data: xr.Dataset, title: str, *, band: bool) -> None:
    style: dict[str, Any] = learner_style("trained") | {"marker": ""}
    for seed in data["seed"].values:
        axes.plot(data["step"], data["loss"].sel(seed=seed), color=style["color"], alpha=0.3, linewidth=0.8)
    line_with_band(axes, data["loss"], x="step", over="seed", band=band, **style)
    final = data["final_loss"].isel(seed=0)
    for name in ("gradient descent", "gradient descent, per step", "gd++", "gd++, per step", "gd++, tuned exactly"):
        if name in final["learner"]:
            line: dict[str, Any] = learner_style(name) | {"marker": "", "linewidth": 2}
            axes.axhline(float(final.sel(learner=name)), **line)
    if "interpolated" in final["learner"]:
        interpolated: dict[str, Any] = learner_style("interpolated") | {"markersize": 8}
        mean = float(data["final_loss"].sel(learner="interpolated").mean())
        axes.plot(data["step"].values[-1:], [mean], **interpolated)
    lowest = float(min(final.min(), data["loss"].min()))
    highest = None if band else 2 * float(data["loss"][0].max())  # where the spikes end does not matter
    axes.set(title=title, xlabel="training steps", ylabel="half squared error")
    axes.set(yscale="log", ylim=(0.8 * lowest, highest))
    axes.legend(fontsize=7)


def weights_figure(data: xr.Dataset, *, layer: int, what: str) -> Figure:
    """Fig 9: one layer's products beside the construction's, first seed, in the gauge with mean diagonal 1."""
    figure = Figure(figsize=(8.6, 7.2))
    panels = figure.subplots(2, 2)
    one = data.isel(distinct_layer=layer, seed=0)
    scale = float(one["scale"])
    pairs = (
        (one["W_KQ"].values / scale, one["constructed_W_KQ"].values, "W_K^T W_Q"),
        (one["W_PV"].values * scale, one["constructed_W_PV"].values, "P W_V"),
    )
    for column, (trained, constructed, title) in enumerate(pairs):
        limit = float(np.abs(constructed).max())
        heat_map(figure, panels[0, column], trained, title=f"trained {title}", limit=limit)
        heat_map(figure, panels[1, column], constructed, title=f"GD++: {title}", limit=limit)
    gamma, c = float(one["curvature_correction"]), float(one["step_size"])
    caption(
        figure,
        f"{what}, seed {int(data['seed'][0])}, in the gauge where W_K^T W_Q has mean diagonal 1 (b = {scale:.3f}).\n"
        f"The diagonal of P W_V says -gamma and, last, -c: gamma = {gamma:.4f}, c = {c:.4f}.",
    )
    return figure
