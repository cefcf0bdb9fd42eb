"""Ten weight-tied linear layers: GD++ again, with one pair of numbers, and less than five untied layers (Fig 7)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from innerloop.claims import Claim, Criterion, statistical
from innerloop.experiments import five_layer
from innerloop.experiments.deep import (
    SIZES,
    STAGES,
    alignment_claims,
    exact_claims,
    loss_claims,
    loss_note,
    measure,
    reading_claims,
    shortened_note,
    training_figure,
    weights_figure,
)
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.plots import house_style
from innerloop.runs import Run
from innerloop.training import Recipe, held_out_batch, published, published_tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STACK, TUNING = "ten tied layers", "GD++ by training"

# See `innerloop.experiments.five_layer`: the same line search for ten steps.
COUPLED_LEARNING_RATE = 21.4

GAMMA = Criterion(0.1946, 0.2150)  # 5 % around the exact optimum, .2048
WORSE = Criterion(low=0.5)
"""Relative to the mean of five untied stacks, which themselves differ by a quarter."""


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published recipes, shortened where a preset has to be quick, and the five layers of the other experiment."""
    stack = published(num_layers=10, num_steps=20_000, seeds=tuple(range(num_seeds or (5 if preset == "paper" else 2))))
    stack = dataclasses.replace(stack, evaluation_interval=200)
    tuning = published_tuning(num_layers=10, learning_rate=COUPLED_LEARNING_RATE)
    if preset == "quick":
        stack = dataclasses.replace(stack, num_steps=2500, batch_size=512, evaluation_interval=100)
        tuning = dataclasses.replace(tuning, num_steps=500)
    elif preset == "smoke":
        stack = dataclasses.replace(stack, num_steps=100, batch_size=64, evaluation_tasks=500, evaluation_interval=50)
        tuning = dataclasses.replace(tuning, num_steps=50, batch_size=64, evaluation_tasks=500)
    five = five_layer.recipes(preset, num_seeds)[five_layer.STACK]
    # Five layers come first: an experiment beside this one that needs them too must not wait for the others.
    return {five_layer.STACK: five, STACK: stack, TUNING: tuning}


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure(runs[STACK], runs[TUNING], sizes=SIZES[preset], stage=stage, with_shifts=False)
    five = runs[five_layer.STACK]
    samples = held_out_batch(runs[STACK].recipe).samples()
    losses = Lineup({}, {"five": five.transformers()}, len(five.recipe.seeds)).measure(mean_loss, samples)[0]
    data = data.assign_coords(five_seed=np.asarray(five.recipe.seeds))
    data["five_untied_loss"] = (("five_seed",), losses, {"units": "half squared error, mean over tasks"})
    claims = [
        *loss_claims(data, "Fig 7", interpolates=True),
        *alignment_claims(data, "Fig 7"),
        *exact_claims(data, "beyond the paper"),
        *reading_claims(data, "Fig 7", gamma=GAMMA, published="as GD++"),
        _five_layers_claim(data),
    ]
    return Results(data, claims, _notes(preset, runs, data))


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        see = "Ten tied layers against ten steps of GD and of GD++, tuned by training and exactly."
        return {
            "figure-7": training_figure(data, title="ten tied layers", see=see),
            "weights": weights_figure(data, layer=0, what="Ten tied layers"),
        }


def _five_layers_claim(data: xr.Dataset) -> Claim:
    five = data["five_untied_loss"].values
    ten = data["final_loss"].sel(learner="trained").values
    return statistical(
        "worse-than-five-untied", "ten tied layers are worse than five untied ones", "Fig 7", ten / five.mean() - 1,
        WORSE, published="worse", unit="relative difference of losses", control="the five untied layers' own mean",
        control_values=[0.0],
    )  # fmt: skip


def _notes(preset: Preset, runs: Mapping[str, Run], data: xr.Dataset) -> list[str]:
    notes = [loss_note(data)]
    if preset == "quick":
        notes.append(shortened_note(runs[STACK].recipe, runs[TUNING].recipe))
    return notes


TEN_LAYER = Experiment(
    name="ten-layer",
    question="Do ten weight-tied layers perform GD++, and are they better than five untied ones?",
    source="Fig 7",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=STAGES[:-1],
    analysis_seconds={"smoke": 35.0, "quick": 35.0, "paper": 35.0},
)
