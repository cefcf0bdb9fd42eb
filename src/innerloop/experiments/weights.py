"""Trained weights beside the construction's: one layer, and three tied ones (Fig 9, A.4)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import equinox as eqx
import jax
import numpy as np
import xarray as xr

from innerloop.analysis import compare_layers, over_learners, read_layers
from innerloop.claims import Claim, Criterion, statistical
from innerloop.constructions import gradient_descent_plus_plus_weights
from innerloop.exact import optimal_learning_rate, tune, tuning_spectra
from innerloop.experiments import one_layer
from innerloop.experiments.deep import SIZES, weights_figure
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage, Variables
from innerloop.models import products
from innerloop.plots import house_style
from innerloop.runs import Run
from innerloop.training import Recipe, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, THREE = "one layer", "three tied layers"
DISTANCE = Criterion(high=0.15)
"""Of the outer product of W_KQ and P W_V from the construction's, relative; the construction's numbers are tuned."""
_FIELDS = ("scale", "step_size", "curvature_correction", "key_query_error", "plus_plus_value_error")


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The one-layer experiment's main recipe, and the published one for three tied layers."""
    one = one_layer.recipes(preset, num_seeds)[one_layer.MAIN]
    three = published(num_layers=3, seeds=tuple(range(num_seeds or {"smoke": 2, "quick": 3, "paper": 5}[preset])))
    if preset == "quick":
        three = dataclasses.replace(three, num_steps=3000)
    elif preset == "smoke":
        three = dataclasses.replace(three, num_steps=300, batch_size=256, evaluation_tasks=1000)
    return {ONE: one, THREE: three}


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    stage("reading weights")
    parts = {label: _read(run, num_contexts=SIZES[preset].tuning_contexts) for label, run in runs.items()}
    joined = cast(xr.Dataset, xr.concat(list(parts.values()), "stack", join="outer"))
    data = joined.assign_coords(stack=list(parts))
    claims = [claim for label, part in parts.items() for claim in _claims(label, part)]
    notes = []
    if preset == "quick":
        recipe = runs[THREE].recipe
        notes.append(f"quick trains the three tied layers for {recipe.num_steps} steps, --preset paper for 5000.")
    return Results(data, claims, notes)


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {
            f"figure-9-{label.replace(' ', '-')}": weights_figure(
                data.sel(stack=label).dropna("seed", how="all"), layer=0, what=label.capitalize()
            )
            for label in data["stack"].values
        }


def _read(run: Run, *, num_contexts: int) -> xr.Dataset:
    """One run's products beside those of the construction with tuned numbers; one distinct layer each."""
    task, config = run.recipe.linear_task(), run.recipe.model
    if config.num_layers == 1:
        learning_rate, correction = optimal_learning_rate(task), 0.0
    else:
        tuned = tune(task, config.num_layers, spectra=tuning_spectra(task, num_contexts=num_contexts))
        learning_rate, correction = float(tuned.learning_rates[0]), float(tuned.curvature_corrections[0])

    def construct(correction: float):
        weights = gradient_descent_plus_plus_weights(
            input_size=task.input_size,
            context_length=task.context_length,
            learning_rate=learning_rate,
            curvature_correction=correction,
        )
        return products(weights)

    constructed, plain = construct(correction), construct(0.0)
    early = jax.tree.map(lambda leaf: leaf[_early(run)], eqx.filter(run.snapshots, eqx.is_array))
    trained = products(run.weights)

    def distance(stack):
        return compare_layers(stack, constructed, config, input_size=task.input_size).distance

    reading = read_layers(trained, task.input_size)
    variables: Variables = {
        "W_KQ": (("seed", "distinct_layer", "row", "column"), np.asarray(trained.W_KQ)[:, :, 0], {}),
        "W_PV": (("seed", "distinct_layer", "row", "column"), np.asarray(trained.W_PV)[:, :, 0], {}),
        "constructed_W_KQ": (("distinct_layer", "row", "column"), np.asarray(constructed.W_KQ)[:, 0], {}),
        "constructed_W_PV": (("distinct_layer", "row", "column"), np.asarray(constructed.W_PV)[:, 0], {}),
        "distance": (("seed",), np.asarray(over_learners(distance, trained))[:, 0, 0], {"units": "relative"}),
        "early_distance": (("seed",), np.asarray(over_learners(distance, products(early)))[:, 0, 0], {}),
        "plain_distance": ((), np.asarray(distance(plain))[0, 0], {"of": "Proposition 1"}),
        "early_step": ((), np.asarray(int(run.metrics["step"][_early(run)])), {"units": "training step"}),
        "learning_rate": ((), np.asarray(learning_rate), {"units": "eta, tuned exactly"}),
        "exact_curvature_correction": ((), np.asarray(correction), {"units": "gamma, tuned exactly"}),
    }
    for name in _FIELDS:
        variables[name] = (("seed", "distinct_layer"), np.asarray(getattr(reading, name))[:, :, 0], {})
    coordinates = {
        "seed": np.asarray(run.recipe.seeds),
        "distinct_layer": np.arange(1) + 1,
        "row": np.arange(run.recipe.token_size),
        "column": np.arange(run.recipe.token_size),
    }
    return xr.Dataset(variables, coordinates)


def _early(run: Run) -> int:
    return max(1, round(0.04 * (run.metrics.sizes["step"] - 1)))


def _claims(label: str, part: xr.Dataset) -> list[Claim]:
    slug = label.replace(" ", "-")
    claims = [
        statistical(
            f"{slug}-distance", f"{label}: what predictions determine of the weights is the construction's", "Fig 9",
            part["distance"].values, DISTANCE, published="as in the figure", unit="relative Frobenius norm",
            control=f"the weights after {int(part['early_step'])} steps", control_values=part["early_distance"].values,
        )
    ]  # fmt: skip
    best = float(part["exact_curvature_correction"])
    if best > 0:
        gamma = part["curvature_correction"].isel(distinct_layer=0).values
        claims.append(
            statistical(
                f"{slug}-gamma", f"{label}: gamma is the tuned GD++'s {best:.4f}: relative difference", "Fig 9",
                gamma / best - 1, Criterion(-0.1, 0.1), published="as in the figure", unit="relative difference",
                control="Proposition 1 (gamma = 0)", control_values=[-1.0],
            )
        )  # fmt: skip
    return claims


WEIGHTS = Experiment(
    name="weights",
    question="Do trained weights look like the ones written by hand?",
    source="Fig 9, A.4",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=("reading weights",),
    analysis_seconds={"smoke": 8.0, "quick": 10.0, "paper": 14.0},
)
