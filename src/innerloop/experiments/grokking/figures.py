"""The figure of grokking; every number comes from the saved data."""

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from innerloop.experiments.grokking.setting import FRESH, MAIN
from innerloop.plots import caption, house_style, learner_style, line_with_band

_TRAIN: dict[str, Any] = {"color": "#56B4E9", "linestyle": "--", "label": "training tasks"}
_TITLES = {MAIN: "8192 fixed tasks", FRESH: "the same on fresh tasks"}


def draw(data: xr.Dataset) -> dict[str, Figure]:
    """All figures by file name."""
    with house_style():
        return {"figure-15-right": _curves(data)}


def _curves(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(11, 4.2))
    panels = figure.subplots(1, data.sizes["tasks"], sharey=True)
    for axes, tasks in zip(panels, data["tasks"].values, strict=True):
        _panel(axes, data, str(tasks))
    panels[0].set(ylabel="half squared error")
    panels[0].legend()
    caption(
        figure,
        "One block of attention and MLP. While attention is held back the MLP memorises its fixed training tasks: the "
        "loss on held-out\ntasks (blue) rises, that on the training tasks (dashes) falls. Then attention breaks "
        f"through and both fall. Thick: running medians, mean and 95 % band over seeds (n = {data.sizes['seed']});\n"
        "thin: each seed, as far as the frame goes, twice the loss of predicting zero.",
    )
    return figure


def _panel(axes: Axes, data: xr.Dataset, tasks: str) -> None:
    held_out: dict[str, Any] = learner_style("trained") | {"marker": "", "label": "held-out tasks"}
    part = data.sel(tasks=tasks)
    styles = {"loss": held_out, "train_loss": _TRAIN}
    for name, style in styles.items():
        curves = part[name].dropna("step", how="all").dropna("seed", how="all")
        for seed in curves["seed"].values:
            axes.plot(curves["step"], curves.sel(seed=seed), color=style["color"], alpha=0.3, linewidth=0.8)
        smooth = part[f"smooth_{name}"].sel(step=curves["step"], seed=curves["seed"])
        line_with_band(axes, smooth, x="step", over="seed", **style)
    axes.axhline(float(data["descent_loss"]), **_line("gradient descent"))
    axes.axhline(float(data["zero_loss"]), **_line("trivial"))
    axes.set(title=_TITLES[tasks], xlabel="training steps", ylim=(0, 2 * float(data["zero_loss"])))


def _line(name: str) -> dict[str, Any]:
    return learner_style(name) | {"marker": "", "linewidth": 1.5}
