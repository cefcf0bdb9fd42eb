"""Lines with a 95 % band over seeds, and heat maps of weights: data in, artists on given axes out."""

from collections.abc import Sequence

import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.plots.style import MEASURES, learner_style


def line_with_band(axes: Axes, data: xr.DataArray, *, x: str, over: str, band: bool = True, **style) -> None:
    """Mean over seeds as a line, with the 95 % interval of Student's t around it.

    Args:
        axes: to draw on.
        data: with dimensions ``x`` and ``over``; NaN where a seed is missing.
        x: horizontal dimension.
        over: dimension that the mean and the band are taken over.
        band: False draws the mean alone, for values whose spread has no meaning (losses that diverge).
        **style: of the line; the band takes its colour.
    """
    values = data.transpose(over, x).values.astype(np.float64)
    horizontal = data[x].values
    count = np.isfinite(values).sum(axis=0)
    mean = np.nanmean(values, axis=0)
    (line,) = axes.plot(horizontal, mean, **style)
    if band and values.shape[0] > 1:
        error = np.nanstd(values, axis=0, ddof=1) / np.sqrt(count)
        reach = error * scipy.stats.t.ppf(0.975, np.maximum(count - 1, 1))
        axes.fill_between(horizontal, mean - reach, mean + reach, color=line.get_color(), alpha=0.2, linewidth=0)


def learner_lines(
    axes: Axes, data: xr.DataArray, learners: Sequence[str], *, x: str, over: str, by: str, band: bool = True
) -> None:
    """One line, with its band unless told otherwise, per learner, in the learners' own colours and markers."""
    for order, name in enumerate(learners):
        style = learner_style(name) | {"markevery": max(1, data.sizes[x] // 12), "zorder": 3 + order}
        line_with_band(axes, data.sel({by: name}), x=x, over=over, band=band, **style)


def alignment_panel(axes: Axes, data: xr.Dataset, *, x: str, title: str) -> None:
    """Cosine (right axis) and differences (left) along training, over the dimensions ``x`` and seed."""
    right = axes.twinx()
    for name, style in MEASURES.items():
        line_with_band(right if name == "cosine" else axes, data[name], x=x, over="seed", **style)
    right.set(ylim=(0, 1.05), ylabel="cosine")
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    axes.set(title=title, xlabel="training steps", ylabel="L2 norm", ylim=(0, None))
    handles = [*right.get_lines(), *axes.get_lines()]
    axes.legend(handles, [str(handle.get_label()) for handle in handles], loc="center right")


def heat_map(figure: Figure, axes: Axes, matrix: np.ndarray, *, title: str, limit: float) -> None:
    """A matrix of weights, zero in white, positive and negative in two colours, with its scale."""
    image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_title(title)
    axes.grid(visible=False)
    ticks = np.arange(matrix.shape[0])
    axes.set_xticks(ticks, ticks + 1, fontsize=7)
    axes.set_yticks(ticks, ticks + 1, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.8)


def caption(figure: Figure, text: str) -> None:
    """What to see, and how many seeds, below the panels."""
    figure.supxlabel(text, fontsize=8.5, color="#444444")
