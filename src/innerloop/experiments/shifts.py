"""Losses away from the training distribution (Fig 2 d, 6): scaled inputs, scaled targets, other input distributions."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.analysis import draw_tasks, scaled_samples
from innerloop.experiments.experiment import Variables
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.keys import named_key, root_key
from innerloop.plots import caption, learner_lines
from innerloop.tasks import LinearRegression, other_input_distributions

INPUT_SCALES = np.linspace(0.5, 2.0, 16)
TARGET_SCALES = np.linspace(0.5, 5.0, 10)
# Normal, exponential and Laplace inputs have variances 12 to 24 times the training inputs', so the text's plain scaling
# starts at .1; the code's sets divide by the context's norm first, and the published axis .5 to 5 fits.
TEXT_SCALES = np.linspace(0.1, 1.0, 10)
CODE_SCALES = np.linspace(0.5, 5.0, 10)

SHIFT_COORDINATES: dict[str, np.ndarray | list[str]] = {
    "distribution": ["normal", "exponential", "laplace"],
    "input_scale": INPUT_SCALES,
    "target_scale": TARGET_SCALES,
    "text_scale": TEXT_SCALES,
    "code_scale": CODE_SCALES,
}
_UNITS = {"units": "half squared error, mean over tasks"}


def shift_losses(
    lineup: Lineup, task: LinearRegression, *, num_tasks: int, target_lineup: Lineup | None = None
) -> Variables:
    """Mean losses along every sweep; one random stream per sweep, the same for all learners.

    Args:
        lineup: whom to measure.
        task: that they were trained on.
        num_tasks: per point.
        target_lineup: whom to measure on scaled targets, if others (another control, say).
    """
    variants = {kind: other_input_distributions(task, normalise_context=kind == "code") for kind in ("text", "code")}
    # Both kinds of variants of a distribution are the same tasks before they are scaled.
    draws = {name: _draw(variant, name, num_tasks) for name, variant in variants["text"].items()}

    def others(kind: str, values) -> Float[np.ndarray, "distribution learner seed points"]:
        swept = variants[kind].items()
        return np.stack([_sweep(lineup, variant, "input_scale", values, draws[name]) for name, variant in swept])

    draw = _draw(task, "targets", num_tasks)
    targets = _sweep(target_lineup or lineup, task, "target_scale", TARGET_SCALES, draw)
    return {
        **input_losses(lineup, task, num_tasks=num_tasks),
        "target_scale_loss": (("swept", "seed", "target_scale"), targets, _UNITS),
        "text_scale_loss": (("distribution", "swept", "seed", "text_scale"), others("text", TEXT_SCALES), _UNITS),
        "code_scale_loss": (("distribution", "swept", "seed", "code_scale"), others("code", CODE_SCALES), _UNITS),
    }


def input_losses(lineup: Lineup, task: LinearRegression, *, num_tasks: int) -> Variables:
    """Mean losses as inputs are scaled (Fig 2 d), as in `shift_losses`."""
    losses = _sweep(lineup, task, "input_scale", INPUT_SCALES, _draw(task, "inputs", num_tasks))
    return {"input_scale_loss": (("swept", "seed", "input_scale"), losses, _UNITS)}


def _draw(task: LinearRegression, name: str, num_tasks: int) -> PyTree[Array]:
    key = named_key(named_key(root_key(0), "out of distribution"), name)
    return draw_tasks(task, key, num_tasks)


def _sweep(
    lineup: Lineup,
    task: LinearRegression,
    scale: Literal["input_scale", "target_scale"],
    values: Float[np.ndarray, " points"],
    draw: PyTree[Array],
) -> Float[np.ndarray, "learner seed points"]:
    points = scaled_samples(task, scale, values, draw)
    return np.stack([lineup.measure(mean_loss, samples) for samples in points], axis=-1)


INPUTS_AXIS = "a, where x ~ U(-a/2, a/2)"


def shift_figure(data: xr.Dataset, learners: Sequence[str], see: str) -> Figure:
    """Fig 6: every sweep. ``see`` ends the caption's first sentence."""
    figure = Figure(figsize=(15, 6.8))
    rows = figure.subplots(2, 4)
    shift_panel(rows[0, 0], data["input_scale_loss"], learners, "input_scale", "scaled inputs", INPUTS_AXIS)
    targets = data["target_scale_loss"]
    shift_panel(rows[1, 0], targets, learners, "target_scale", "scaled targets", "a, where W ~ N(0, a^2)")
    for column, name in enumerate(data["distribution"].values, start=1):
        for row, kind, axis in ((rows[0], "text", "a, inputs a x"), (rows[1], "code", "a, inputs a x / |X|")):
            loss = data[f"{kind}_scale_loss"].sel(distribution=name)
            shift_panel(row[column], loss, learners, f"{kind}_scale", f"{name} ({kind})", axis, None)
    caption(
        figure,
        f"Away from the training distribution {see} 'text' scales inputs, 'code' divides them by the context's "
        f"Frobenius norm first. Mean and 95 % band, n = {data.sizes['seed']}.",
    )
    return figure


def shift_panel(
    axes: Axes,
    loss: xr.DataArray,
    learners: Sequence[str],
    x: str,
    title: str,
    label: str,
    trained_at: float | None = 1.0,
) -> None:
    """One sweep; a grey line marks the training distribution."""
    learner_lines(axes, loss, learners, x=x, over="seed", by="swept")
    if trained_at is not None:
        axes.axvline(trained_at, color="#bbbbbb", linewidth=1)
    axes.set(title=title, xlabel=label, ylabel="loss", yscale="log")
    axes.legend()
