"""Figures of the softmax experiment: losses and alignment (Fig 11), weights (Fig 12), attention."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from innerloop.experiments.against_descent import DESCENT, loss_panel
from innerloop.experiments.softmax.measure import CENTRED
from innerloop.experiments.softmax.setting import ONE, TWO
from innerloop.plots import alignment_panel, caption, heat_map, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-11": _figure_11(data), "figure-12": _figure_12(data), "attention": _attention_figure(data)}


def _figure_11(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.4))
    rows = figure.subplots(2, 3)
    for row, label in zip(rows, (ONE, TWO), strict=True):
        part = data.sel(model=label)
        loss_panel(row[0], part, title=f"{label}: loss", learners=(DESCENT, CENTRED))
        for axes, algorithm, what in ((row[1], DESCENT, "GD"), (row[2], CENTRED, "centred GD")):
            curves = part.sel(algorithm=algorithm).dropna("curve_step", how="all", subset=["cosine"])
            alignment_panel(axes, curves, x="curve_step", title=f"{label}: alignment with {what}")
    caption(
        figure,
        "One softmax head stays near the loss of predicting zero; two nearly reach one GD step, and align with a GD "
        f"step on centred inputs. Mean and 95 % band over seeds (n = {data.sizes['seed']}), thin: each seed.",
    )
    return figure


def _figure_12(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.0))
    part = data.sel(model=TWO).isel(seed=0)
    matrices = [part["head_key_query"].isel(head=head).values for head in range(part.sizes["head"])]
    titles = [f"eta_{head + 1} W_{head + 1},KQ" for head in range(len(matrices))]
    matrices, titles = [*matrices, part["combined_key_query"].values], [*titles, "sum over heads"]
    limit = max(float(np.abs(matrix).max()) for matrix in matrices)
    for axes, matrix, title in zip(figure.subplots(1, len(matrices)), matrices, titles, strict=True):
        heat_map(figure, axes, matrix, title=title, limit=limit)
    caption(
        figure,
        f"Two softmax heads, seed {int(part['seed'])}: each has off-diagonal entries "
        f"({', '.join(f'{value:.2f}' for value in part['head_off_diagonal'].values)} of its diagonal's norm), their sum"
        f" has almost none ({float(part['combined_off_diagonal']):.3f}).",
    )
    return figure


def _attention_figure(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    heads = data["head"].values
    figure = Figure(figsize=(9.5, 7.6))
    rows = figure.subplots(2, len(heads))
    for row, name, what in ((rows[0], "attention_one_task", "one task"), (rows[1], "attention_mean", "mean")):
        for axes, head in zip(row, heads, strict=True):
            matrix = data[name].sel(head=head).values
            limit = float(np.abs(data[name]).max())
            corners = (0.5, matrix.shape[1] + 0.5, matrix.shape[0] + 0.5, 0.5)
            image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, extent=corners)
            axes.grid(visible=False)
            axes.set(title=f"head {head}, {what}", xlabel="key", ylabel="reading token (last: query)")
            figure.colorbar(image, ax=axes, shrink=0.8)
    caption(
        figure,
        "Attention minus 1/N of two softmax heads, first seed. Above: one task. Below: the mean over tasks, where\n"
        "only tokens' attention to themselves is left: below 1/N for one head, above for the other, whose eta has the "
        "opposite sign.",
    )
    return figure
