"""Linear attention with LayerNorm, one and two layers (Fig 14, A.9).

Two stacks of two layers are trained: two untied layers with LayerNorm between them, and two tied ones, where the one
LayerNorm comes before both. The published code builds the first where layers are untied, the second where they are
tied.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import xarray as xr

from innerloop.analysis import align
from innerloop.claims import Claim, Criterion, statistical
from innerloop.exact import optimal_learning_rate
from innerloop.experiments.against_descent import (
    CONTROL,
    DESCENT,
    PLUS_PLUS,
    FirstPairs,
    descend,
    loss_panel,
    measure,
    relative_loss,
    rivals,
)
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.shifts import INPUTS_AXIS, shift_panel
from innerloop.models import StackConfig
from innerloop.plots import alignment_panel, caption, house_style
from innerloop.runs import Run
from innerloop.training import Recipe, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, UNTIED, TIED = "one layer", "two layers, norm between", "two tied layers, norm before"

WORSE = Criterion(low=0.05)  # a learning rate 10 % off costs .014 (one step) and .021 (two)
LESS_ALIGNED = Criterion(high=0.95)  # GD that sees 9 of the 10 context pairs has .97
ALIGNED = Criterion(low=0.9)  # one GD step has less, with two steps of GD++
FAR_BETTER = Criterion(high=-1.0)  # log2 of the loss over GD's, inputs scaled by two: at most half of it

_FEWER_PAIRS = 9
_TASKS: dict[Preset, tuple[int, int]] = {"smoke": (200, 200), "quick": (1000, 4000), "paper": (10_000, 10_000)}
_CONTEXTS: dict[Preset, int] = {"smoke": 2000, "quick": 20_000, "paper": 50_000}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published recipes for one layer and two, with LayerNorm: 5000 steps for tied layers, 10 000 for untied."""

    def recipe(num_layers: int, is_tied: bool, preset_seeds: int) -> Recipe:
        seeds = tuple(range(num_seeds or (2 if preset == "smoke" else preset_seeds)))
        model = StackConfig(num_layers=num_layers, tied=is_tied, layer_norm="before" if is_tied else "between")
        return dataclasses.replace(published(num_layers=num_layers, tied=is_tied, seeds=seeds), model=model)

    # Untied layers all get off the plateau, so that six seeds, the fewest for a median's interval, are enough.
    untied = dataclasses.replace(recipe(2, False, 6), num_steps=10_000, evaluation_interval=500)
    all_recipes = {ONE: recipe(1, True, 10), UNTIED: untied, TIED: recipe(2, True, 10)}
    if preset == "quick":
        short = {"num_steps": 1500, "evaluation_interval": 100}
    elif preset == "smoke":
        short = {"num_steps": 60, "evaluation_interval": 20, "batch_size": 64, "evaluation_tasks": 200}
    else:
        return all_recipes
    return {label: dataclasses.replace(recipe, **short) for label, recipe in all_recipes.items()}


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    curve_tasks, sweep_tasks = _TASKS[preset]
    parts = []
    for label, run in runs.items():
        stage(label)
        here = rivals(run, num_contexts=_CONTEXTS[preset])
        part = measure(run, here, curve_tasks=curve_tasks, sweep_tasks=sweep_tasks)
        descent = descend(optimal_learning_rate(here.task))
        if label == ONE:
            part["fewer_pairs_cosine"] = align(FirstPairs(descent, _FEWER_PAIRS), descent, here.held_out).cosine
        else:
            part["one_step_cosine"] = align(descent, here.algorithms[PLUS_PLUS], here.held_out).cosine
        parts.append(part.assign_coords(model=label))
    data = cast(xr.Dataset, xr.concat(parts, "model", join="outer"))
    claims = [*_one_layer_claims(data.sel(model=ONE)), *_two_layer_claims(data, UNTIED), *_two_layer_claims(data, TIED)]
    return Results(data, claims, _notes(preset, runs, data))


def _one_layer_claims(part: xr.Dataset) -> list[Claim]:
    loss = part["input_scale_loss"].isel(input_scale=-1)
    scale = float(part["input_scale"][-1])
    far = cast(xr.DataArray, np.log2(loss / loss.sel(swept=DESCENT)))
    return [
        statistical(
            "one-layer-worse", "one layer with LayerNorm is worse than one GD step (median over seeds)", "Fig 14",
            relative_loss(part), WORSE, published="worse", unit="relative difference of losses",
            control="GD with its learning rate 10 % off", control_values=relative_loss(part, CONTROL)[:1],
            centre="median",
        ),
        statistical(
            "one-layer-alignment", "and less aligned with it: cosine (median over seeds)", "Fig 14",
            part["final_cosine"].sel(algorithm=DESCENT).values, LESS_ALIGNED, published="less aligned", unit="cosine",
            control=f"GD on {_FEWER_PAIRS} of the 10 context pairs",
            control_values=[float(part["fewer_pairs_cosine"])], centre="median",
        ),
        statistical(
            "one-layer-far", f"but better far out of distribution: inputs scaled by {scale:g} (median over seeds)",
            "Fig 14", far.sel(swept="trained").values, FAR_BETTER, published="better",
            unit="log2 of the loss over GD's", control="GD with its learning rate 10 % off",
            control_values=far.sel(swept=CONTROL).values[:1], centre="median",
        ),
    ]  # fmt: skip


def _two_layer_claims(data: xr.Dataset, label: str) -> list[Claim]:
    part = data.sel(model=label).dropna("seed", how="all", subset=["final_loss"])
    slug = "untied" if label == UNTIED else "tied"
    unit, near = "relative difference of losses", "GD with its learning rate 10 % off"
    return [
        statistical(
            f"{slug}-worse-than-gd", f"{label}: worse than two GD steps (median over seeds)", "Fig 14",
            relative_loss(part), WORSE,
            published="worse", unit=unit, control=near, control_values=relative_loss(part, CONTROL)[:1],
            centre="median",
        ),
        statistical(
            f"{slug}-worse-than-gd++", f"{label}: worse than two steps of GD++ (median over seeds)", "Fig 14",
            relative_loss(part, to=PLUS_PLUS), WORSE, published="worse", unit=unit, control="GD++ itself",
            control_values=[0.0], centre="median",
        ),
        statistical(
            f"{slug}-aligned", f"{label}: yet aligned with GD++ (median over seeds)", "Fig 14",
            part["final_cosine"].sel(algorithm=PLUS_PLUS).values, ALIGNED, published="aligned", unit="cosine",
            control="one GD step", control_values=[float(part["one_step_cosine"])], centre="median",
        ),
    ]  # fmt: skip


def _notes(preset: Preset, runs: Mapping[str, Run], data: xr.Dataset) -> list[str]:
    notes = []
    for label in runs:
        part = data.sel(model=label).dropna("seed", how="all", subset=["final_loss"])
        loss = part["final_loss"]
        trained, descent = loss.sel(learner="trained").values, float(loss.sel(learner=DESCENT)[0])
        middle = (float(part["zero_loss"]) + descent) / 2
        rivals_say = f"GD {descent:.4f}"
        if label != ONE:
            rivals_say += f", GD++ {float(loss.sel(learner=PLUS_PLUS)[0]):.4f}"
        cosines = ", ".join(
            f"{name} {', '.join(f'{value:.3f}' for value in part['final_cosine'].sel(algorithm=name).values)}"
            for name in ([DESCENT] if label == ONE else [DESCENT, PLUS_PLUS])
        )
        notes.append(
            f"{label}: losses {', '.join(f'{value:.4f}' for value in trained)} ({rivals_say}); "
            f"{int((trained > middle).sum())} of {trained.size} seeds are still nearer to predicting zero than to GD; "
            f"cosines: {cosines}."
        )
    if preset == "quick":
        notes.append(
            "quick trains 1500 steps, --preset paper 5000 (one layer, tied) and 50 000 (untied), "
            "in which two untied layers go on improving."
        )
    return notes


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-14": _figure_14(data)}


def _figure_14(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 10))
    counts = data["final_loss"].sel(learner="trained").notnull().sum("seed").values
    rows = figure.subplots(3, 4)
    for row, label in zip(rows, data["model"].values, strict=True):
        part = data.sel(model=label).dropna("seed", how="all", subset=["final_loss"])
        learners = (DESCENT,) if label == ONE else (DESCENT, PLUS_PLUS)
        loss_panel(row[0], part, title=label, learners=learners)
        for axes, algorithm, what in zip(row[1:3], (DESCENT, PLUS_PLUS), ("GD", "GD++"), strict=True):
            if algorithm not in learners:
                axes.set_axis_off()
                continue
            curves = part.sel(algorithm=algorithm).dropna("curve_step", how="all", subset=["cosine"])
            alignment_panel(axes, curves, x="curve_step", title=f"alignment with {what}")
        shift_panel(
            row[3], part["input_scale_loss"], (*learners, "trained"), "input_scale", "scaled inputs", INPUTS_AXIS
        )
        row[3].set_ylim(1e-2, 1e3)
    caption(
        figure,
        "With LayerNorm a layer loses its inputs' size: one layer is worse than a GD step where it was trained and "
        "better far out. Mean and 95 % band over seeds, thin: each seed. "
        f"n = {', '.join(str(int(count)) for count in counts)} from above.",
    )
    return figure


LAYERNORM = Experiment(
    name="layernorm",
    question="What does LayerNorm do to the steps of gradient descent?",
    source="Fig 14, A.9",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=(ONE, UNTIED, TIED),
    analysis_seconds={"smoke": 25.0, "quick": 58.0, "paper": 58.0},
)
