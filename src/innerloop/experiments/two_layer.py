"""Two weight-tied linear layers find GD++, not gradient descent (Fig 3 a, 6 b)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import xarray as xr

from innerloop.claims import Claim, Criterion, statistical
from innerloop.experiments.deep import (
    SIZES,
    STAGES,
    alignment_claims,
    loss_claims,
    measure,
    order_claims,
    reading_claims,
    shift_claims,
    training_figure,
    weights_figure,
)
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.shifts import shift_figure
from innerloop.plots import house_style
from innerloop.runs import Run
from innerloop.training import Recipe, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = Criterion(high=0.118)  # on a set where GD++ has about .111; the near miss has .126
COSINE = 0.995  # the near miss has .985
GAMMA = Criterion(0.16, 0.19)  # found by training in the paper: .179; the near miss has .158
_SHOWN = ("gradient descent", "gd++", "interpolated", "trained")


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published recipe: two tied layers, 5000 steps; a smoke run trains 300 steps on small batches."""
    recipe = published(num_layers=2, seeds=tuple(range(num_seeds or (2 if preset == "smoke" else 5))))
    if preset == "smoke":
        recipe = dataclasses.replace(recipe, num_steps=300, batch_size=256, evaluation_tasks=1000)
    return {"two tied layers": recipe}


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure(runs["two tied layers"], sizes=SIZES[preset], stage=stage)
    claims = [
        _loss_claim(data),
        *loss_claims(data, "Fig 3a", interpolates=True),
        *alignment_claims(data, "Fig 3a", cosine=COSINE),
        *order_claims(data, "Fig 3a"),
        *reading_claims(data, "Fig 3a, 13", gamma=GAMMA, published=0.179),
        *shift_claims(data, "Fig 6b"),
    ]
    return Results(data, claims, [])


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        see = "Two tied layers first do two steps of GD (they linger at its loss), then find GD++."
        return {
            "figure-3a": training_figure(data, title="two tied layers", see=see),
            "figure-6b": shift_figure(data, _SHOWN, "the trained stack does what GD++ does."),
            "weights": weights_figure(data, layer=0, what="Two tied layers"),
        }


def _loss_claim(data: xr.Dataset) -> Claim:
    loss = data["final_loss"]
    return statistical(
        "loss", "held-out loss of the trained stack", "Fig 3a", loss.sel(learner="trained").values, LOSS,
        published=".10 to .12", unit="half squared error", control="GD++ with gamma 10 % off",
        control_values=loss.sel(learner="control").values[:1],
    )  # fmt: skip


TWO_LAYER = Experiment(
    name="two-layer",
    question="Do two weight-tied layers perform two steps of gradient descent, or something better?",
    source="Fig 3a, Fig 6b",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=STAGES,
    analysis_seconds={"smoke": 25.0, "quick": 32.0, "paper": 32.0},
)
