"""Plateaus of seed-dependent length with one head, none to speak of with two (Fig 15 left and centre).

The curves are those of *linear* attention on concatenated tokens: after the plateau they drop to the loss of one
gradient step, which one head of softmax attention never reaches (see `softmax`). The published code has no cell for
this figure; its one-layer recipe with one and with two heads gives it. Two softmax heads are shown beside, from the
runs of `softmax`.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr

from innerloop.analysis import Drop, find_drop
from innerloop.claims import Claim, Criterion, statistical
from innerloop.exact import optimal_learning_rate
from innerloop.experiments import softmax
from innerloop.experiments.against_descent import NEAR_MISS, descend
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage, Variables
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.experiments.one_layer import MAIN_LENGTH, equal_loss
from innerloop.models import StackConfig
from innerloop.plots import caption, house_style, learner_style
from innerloop.runs import Run
from innerloop.training import Recipe, held_out_batch, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, TWO, TWO_SOFTMAX = "one head", "two heads", "two softmax heads"

LATER = Criterion(low=0.1)  # log2 of the ratio of drop steps: 7 % later
SPREAD = Criterion(low=0.1)  # mean distance of log2 of the plateau's length from its median over seeds
SUDDEN = Criterion(high=400.0)  # steps from the plateau's end to .9 of the way to GD's loss
_SEEDS: dict[Preset, int] = {"smoke": 2, "quick": 30, "paper": 40}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published one-layer recipe with one head and with two, measured every 20 steps; and two softmax heads."""
    recipe = published(seeds=tuple(range(num_seeds or _SEEDS[preset])))
    recipe = dataclasses.replace(recipe, evaluation_interval=20)
    if preset == "quick":
        recipe = dataclasses.replace(recipe, num_steps=900)
    elif preset == "smoke":
        recipe = dataclasses.replace(recipe, num_steps=60, batch_size=64, evaluation_tasks=200)
    return {
        ONE: recipe,
        TWO: dataclasses.replace(recipe, model=StackConfig(num_heads=2)),
        TWO_SOFTMAX: softmax.recipes(preset, num_seeds)[softmax.TWO],
    }


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    stage("drops")
    task = runs[ONE].recipe.linear_task()
    rate = optimal_learning_rate(task)
    samples = held_out_batch(runs[ONE].recipe).samples()
    lineup = Lineup({"descent": descend(rate), "near miss": descend(NEAR_MISS * rate)}, {}, 1)
    target, near_miss = (float(loss) for loss in lineup.measure(mean_loss, samples)[:, 0])
    parts = [_measure(run, target).assign_coords(model=label) for label, run in runs.items()]
    data = cast(xr.Dataset, xr.concat(parts, "model", join="outer"))
    data = data.assign(
        descent_loss=((), target, {"units": "half squared error of one tuned GD step"}),
        near_miss_loss=((), near_miss, {"units": "half squared error, learning rate 10 % off"}),
        even_fall=((), _even_fall(runs[ONE], target), {"units": "steps", "of": "a loss that falls evenly"}),
    )
    return Results(data, _claims(data), _notes(preset, runs, data))


def _measure(run: Run, target: float) -> xr.Dataset:
    """Where every seed's loss lingers and drops."""
    steps, curves = run.metrics["step"].values, run.metrics["evaluation_loss"].values
    drops = [find_drop(steps, curve, target=target) for curve in curves.T]
    step = {"units": "training steps"}
    variables: Variables = {
        "loss": (("step", "seed"), curves, {"units": "half squared error"}),
        "final_loss": (("seed",), curves[-1], {"units": "half squared error"}),
        "drop_step": (("seed",), _of_drops(drops, "step"), step | {"of": "half-way to GD's loss; NaN for never"}),
        "plateau_begin": (("seed",), _of_drops(drops, "plateau_begin"), step),
        "plateau_length": (("seed",), _of_drops(drops, "plateau_length"), step),
        "fall_length": (("seed",), _of_drops(drops, "arrived") - _of_drops(drops, "plateau_end"), step),
        "diverged_at": (("seed",), run.metrics["diverged_at"].values.astype(float), step | {"of": "-1 for never"}),
        "last_step": ((), np.asarray(steps[-1]), step),
    }
    return xr.Dataset(variables, {"step": steps, "seed": np.asarray(run.recipe.seeds)})


def _of_drops(drops: list[Drop], name: str) -> np.ndarray:
    return np.array([getattr(drop, name) for drop in drops])


def _even_fall(run: Run, target: float) -> float:
    """The fall's length of a loss that goes down in a straight line, over the whole training: nothing sudden."""
    steps = run.metrics["step"].values
    start = float(run.metrics["evaluation_loss"].values[0].mean())
    drop = find_drop(steps, start + (target - start) * steps / steps[-1], target=target)
    return drop.arrived - drop.plateau_end


def _of(data: xr.Dataset, label: str, name: str) -> np.ndarray:
    """One measure of one model, by seed; seeds that only other models have are left out."""
    part = data.sel(model=label)
    return part[name].values[np.isfinite(part["diverged_at"].values)]


def _drop_steps(data: xr.Dataset, label: str) -> np.ndarray:
    """Drop steps; a seed that never drops counts as dropping at the last step, which is a lower bound."""
    steps = _of(data, label, "drop_step")
    return np.where(np.isnan(steps), float(data.sel(model=label)["last_step"]), steps)


def _spread(lengths: np.ndarray) -> np.ndarray:
    """Distance of the logarithm (base 2) of every length from its median; the grid's spacing at least."""
    logs = np.log2(np.maximum(lengths, 1.0))
    return np.abs(logs - np.median(logs))


def _claims(data: xr.Dataset) -> list[Claim]:
    target = float(data["descent_loss"])
    margin = equal_loss(MAIN_LENGTH)
    near_miss = [float(data["near_miss_loss"]) / target - 1]
    two = _drop_steps(data, TWO)
    falls = _of(data, ONE, "fall_length")
    falls = falls[np.isfinite(falls)]
    unit, near = "relative difference of losses", "learning rate 10 % off"
    return [
        statistical(
            "later-drop", "the loss drops later with one head than with two (median over seeds)", "Fig 15",
            np.log2(_drop_steps(data, ONE) / np.median(two)), LATER, published="later",
            unit="log2 of drop step over two heads' median", control="two heads' median against itself",
            control_values=[0.0], centre="median",
        ),
        statistical(
            "seed-dependent", "with one head, plateaus have lengths that depend on the seed", "Fig 15",
            _spread(_of(data, ONE, "plateau_length")), SPREAD, published="seed-dependent",
            unit="distance of log2 of the length from its median", control="two heads",
            control_values=_spread(_of(data, TWO, "plateau_length")),
        ),
        statistical(
            "sudden-drop", "once it falls, it falls fast: steps from the plateau's end to nine tenths of the way to "
            "GD's loss (median over seeds)", "Fig 15", falls if falls.size else [np.nan], SUDDEN, published="sudden",
            unit="training steps", control="a loss that falls evenly", control_values=[float(data["even_fall"])],
            centre="median",
        ),
        statistical(
            "one-head-loss", "one head ends at GD's loss (median over seeds)", "Fig 15",
            _of(data, ONE, "final_loss") / target - 1, margin, published="GD's loss", unit=unit, control=near,
            control_values=near_miss, centre="median",
        ),
        statistical(
            "two-heads-loss", "two heads are robust: all seeds end at GD's loss (mean over seeds)", "Fig 15",
            _of(data, TWO, "final_loss") / target - 1, margin, published="GD's loss", unit=unit, control=near,
            control_values=near_miss,
        ),
    ]  # fmt: skip


def _notes(preset: Preset, runs: Mapping[str, Run], data: xr.Dataset) -> list[str]:
    notes = []
    for label in runs:
        drops, lengths = _of(data, label, "drop_step"), _of(data, label, "plateau_length")
        stuck, dropped = int(np.isnan(drops).sum()), drops[np.isfinite(drops)]
        quartiles = ", ".join(f"{value:.0f}" for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]))
        when = f"drops at steps {dropped.min():.0f} to {dropped.max():.0f}; " if dropped.size else ""
        notes.append(
            f"{label}: {when}{stuck} of {drops.size} seeds are still on the plateau after "
            f"{int(data.sel(model=label)['last_step'])} steps; plateau lengths (least, quartiles, longest): "
            f"{quartiles}."
        )
    if preset == "quick":
        notes.append("quick trains 30 seeds for 900 steps, --preset paper 40 for 5000 (softmax: see that experiment).")
    return notes


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-15": _figure_15(data), "plateau-lengths": _lengths_figure(data)}


def _figure_15(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.0))
    descent: dict[str, Any] = learner_style("gradient descent") | {"marker": "", "linewidth": 2}
    panels = figure.subplots(1, data.sizes["model"], sharey=True)
    for axes, label in zip(panels, data["model"].values, strict=True):
        part = data.sel(model=label)
        curves = part["loss"].dropna("step", how="all").dropna("seed", how="all")
        axes.axhline(float(data["descent_loss"]), **descent)
        for seed in curves["seed"].values:
            color = learner_style("trained")["color"]
            axes.plot(curves["step"], curves.sel(seed=seed), color=color, alpha=0.5, linewidth=1)
        title = label if label == TWO_SOFTMAX else f"{label}, linear attention"
        axes.set(title=title, xlabel="training steps")
        axes.set_xlim(0, min(float(part["last_step"]), 3000.0))
    panels[0].set(ylabel="half squared error")
    panels[0].legend()
    counts = ", ".join(str(_of(data, label, "drop_step").size) for label in data["model"].values)
    caption(
        figure,
        "Every line is a seed. With one head some stay on a plateau, then drop within some 250 steps to the loss of "
        f"one GD step; with two all drop at once. n = {counts} seeds from the left.",
    )
    return figure


def _lengths_figure(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8))
    left, right = figure.subplots(1, 2)
    for axes, name, what in ((left, "plateau_length", "length of the plateau"), (right, "drop_step", "the loss drops")):
        for label, color in ((ONE, "#0072B2"), (TWO, "#E69F00"), (TWO_SOFTMAX, "#009E73")):
            values = np.sort(_of(data, label, name))
            values = values[np.isfinite(values)]
            share = np.arange(1, values.size + 1) / _of(data, label, name).size
            axes.step(values, share, where="post", color=color, marker="o", markersize=4, label=label)
        axes.set(xlabel=f"training steps: {what}", ylabel="share of seeds up to here", xscale="log", ylim=(0, 1.05))
        axes.legend(loc="lower right")
    caption(
        figure,
        "Share of seeds whose plateau is at most so long (left), and whose loss has dropped half-way by then (right;\n"
        "lines that end below 1: seeds still on the plateau at the end of training).",
    )
    return figure


PLATEAUS = Experiment(
    name="plateaus",
    question="How long does the loss linger before it drops, with one head and with two?",
    source="Fig 15 left and centre",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=("drops",),
    analysis_seconds={"smoke": 5.0, "quick": 6.0, "paper": 6.0},
)
