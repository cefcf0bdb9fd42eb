"""Figures of the noise experiment; every number comes from the saved data."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.claims import Measurement
from innerloop.experiments.against_descent import DESCENT, PLUS_PLUS
from innerloop.experiments.noise.setting import ALGORITHMS, DECAY, NEAR, PLAIN, REDUCED, RIDGE, STOPPING
from innerloop.plots import caption, house_style, learner_lines, learner_style

_LEVEL_STYLES: tuple[dict[str, Any], ...] = ({"color": "#0072B2", "marker": "o"}, {"color": "#D55E00", "marker": "s"})
_NAMES = {
    DESCENT: "GD",
    DECAY: "GD with\ndecay",
    STOPPING: "early\nstopping",
    PLUS_PLUS: "GD++",
    RIDGE: "ridge",
    "trained": "trained",
    REDUCED: "four\nnumbers",
    PLAIN: "without\ntarget key",
}


def draw(data: xr.Dataset) -> dict[str, Figure]:
    """All figures by file name."""
    with house_style():
        return {"losses": _losses(data), "alignment": _alignment(data), "one-layer": _one_layer(data)}


def _losses(data: xr.Dataset) -> Figure:
    """Excess over the Bayes-optimal loss, of every learner."""
    stacks = data["stack"].values
    figure = Figure(figsize=(5.2 * len(stacks), 4.4))
    for axes, stack in zip(np.atleast_1d(figure.subplots(1, len(stacks))), stacks, strict=True):
        loss = data["loss"].sel(stack=stack)
        excess = 100 * (loss / loss.sel(learner=RIDGE) - 1)
        names = [name for name in _NAMES if name != RIDGE]
        _points(axes, excess.sel(learner=names), "learner")
        axes.axhline(0, **_style("bayes"))
        axes.set(title=stack, ylabel="loss above the Bayes-optimal one (%)")
        axes.legend()
    caption(
        figure,
        "How much every learner loses beside ridge regression with the true noise, on the same tasks.\n"
        f"Means and 95 % intervals over seeds where they have any (n = {data.sizes['seed']}).",
    )
    return figure


def _alignment(data: xr.Dataset) -> Figure:
    """Trained stacks beside every algorithm."""
    stacks = data["stack"].values
    figure = Figure(figsize=(5.2 * len(stacks), 7.4))
    rows = figure.subplots(2, len(stacks), squeeze=False)
    for column, stack in enumerate(stacks):
        cell = data.sel(stack=stack, learner="trained", other=list(ALGORITHMS))
        for row, (name, label) in enumerate(
            (("cosine", "cosine of sensitivities"), ("model_difference", "difference of sensitivities (mean norm)"))
        ):
            _points(rows[row, column], cell[name], "other")
            rows[row, column].set(title=stack, ylabel=label)
            rows[row, column].legend()
    caption(
        figure,
        "Whom trained stacks follow: the algorithm with the highest cosine (above) and the least difference (below), "
        f"each tuned for the noisy task.\nMeans and 95 % intervals over seeds (n = {data.sizes['seed']}).",
    )
    return figure


def _points(axes: Axes, values: xr.DataArray, by: str) -> None:
    """Means with 95 % intervals over seeds, a column per learner and a colour per noise level."""
    names = [str(name) for name in values[by].values]
    levels = values["noise"].values
    for index, level in enumerate(levels):
        measured = [Measurement.over_seeds(values.sel({by: name, "noise": level}).values) for name in names]
        means = np.array([one.measured for one in measured])
        reach = [0.0 if one.high is None else one.high - one.measured for one in measured]
        x = np.arange(len(names)) + 0.24 * (index - (len(levels) - 1) / 2)
        style = _LEVEL_STYLES[index % len(_LEVEL_STYLES)]
        axes.errorbar(x, means, yerr=reach, linestyle="", capsize=3, label=f"noise {level:g}", **style)
    axes.set_xticks(np.arange(len(names)), [_NAMES[name] for name in names], fontsize=7.5)


def _one_layer(data: xr.Dataset) -> Figure:
    """Replaced targets, and weight decay in the optimiser."""
    figure = Figure(figsize=(15, 4.2))
    loss, relative, decay = figure.subplots(1, 3)
    losses = data["replaced_loss"]
    learner_lines(loss, losses, (DESCENT, NEAR, "trained"), x="replaced", over="seed", by="replaced_learner")
    loss.set(title="noiseless training, replaced targets", ylabel="half squared error")
    learner_lines(
        relative, 100 * (losses / losses.sel(replaced_learner=DESCENT) - 1), (DESCENT, NEAR, "trained"), x="replaced",
        over="seed", by="replaced_learner",
    )  # fmt: skip
    relative.set(title="the same, relative to one GD step", ylabel="difference of losses (%)")
    for axes in (loss, relative):
        axes.set_xlabel("m, context targets replaced by N(0, 1)")
        axes.legend()
    step = data["decayed_step_size"]
    places = np.arange(step.sizes["optimizer_decay"])
    for seed in data["seed"].values:
        decay.plot(places, step.sel(seed=seed), color="#0072B2", alpha=0.4, linewidth=0.8)
    means = [Measurement.over_seeds(values) for values in step.transpose("optimizer_decay", "seed").values]
    reach = [0.0 if one.high is None else one.high - one.measured for one in means]
    decay.errorbar(places, [one.measured for one in means], yerr=reach, color="#0072B2", marker="+", capsize=3)
    decay.axhline(1, **_style("bayes") | {"label": "optimal step"})
    decay.set_xticks(places, [f"{value:g}" for value in data["optimizer_decay"].values])
    decay.set(
        title=f"weight decay in AdamW, noise {data['noise'].values[0]:g}", xlabel="weight decay",
        ylabel="c of the weights / optimal c",
    )  # fmt: skip
    decay.legend()
    caption(
        figure,
        "A layer that was trained without noise does on noisy targets what one gradient step does (left, centre); "
        f"weight decay on its own weights shortens its step (right).\nMean and 95 % band, n = {data.sizes['seed']}.",
    )
    return figure


def _style(name: str) -> dict[str, Any]:
    return learner_style(name) | {"marker": ""}
