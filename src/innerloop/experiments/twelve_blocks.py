"""Twelve untied blocks with MLPs and four heads stay close to twelve steps of GD++ (Fig 8)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from innerloop.algorithms import GradientDescent, GradientDescentPlusPlus
from innerloop.analysis import align
from innerloop.claims import Claim, Criterion, statistical
from innerloop.exact import tune, tuning_spectra
from innerloop.experiments.along_training import MEASURES, alignments, curve_points, training_curves
from innerloop.experiments.deep import training_figure
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.plots import house_style
from innerloop.problem import Learner
from innerloop.runs import Run
from innerloop.training import Recipe, held_out_batch, published_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = "twelve blocks"
STEPS = 12
CLOSER = Criterion(high=0.5)
"""Distance to GD++ over the distance between GD and GD++: less than half of the way."""
PER_STEP = "gd++, per step"
"""Beyond the paper, which gives GD++ one pair of numbers: blocks that are not tied may have numbers of their own."""

_ALGORITHMS = ("gradient descent", "gd++", PER_STEP)
_TUNING_CONTEXTS: dict[Preset, int] = {"smoke": 2000, "quick": 20_000, "paper": 50_000}
_TASKS: dict[Preset, int] = {"smoke": 200, "quick": 2000, "paper": 10_000}
_CURVE_TASKS = 500


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """As published for deep stacks, 50 000 steps; quick trains far fewer on smaller batches."""
    seeds = tuple(range(num_seeds or {"smoke": 2, "quick": 2, "paper": 3}[preset]))
    recipe = published_blocks(num_layers=STEPS, seeds=seeds)
    if preset == "quick":
        recipe = dataclasses.replace(recipe, num_steps=1500, batch_size=256, evaluation_tasks=2000)
    elif preset == "smoke":
        recipe = dataclasses.replace(recipe, num_steps=20, batch_size=32, evaluation_tasks=200, evaluation_interval=10)
    return {BLOCKS: recipe}


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    run = runs[BLOCKS]
    stage("tuning")
    algorithms = _tuned_algorithms(run, num_contexts=_TUNING_CONTEXTS[preset])
    samples = jax.tree.map(lambda leaf: leaf[: _TASKS[preset]], held_out_batch(run.recipe).samples())
    stage("alignment along training")
    few = jax.tree.map(lambda leaf: leaf[:_CURVE_TASKS], samples)
    compared = [algorithms[name] for name in _ALGORITHMS]
    variables = training_curves(run, compared, few)
    stage("comparison")
    lineup = Lineup(algorithms, {"trained": run.transformers()}, len(run.recipe.seeds))
    final = alignments(run.transformers(), compared, samples)
    near_misses = [align(algorithms["gradient descent"], one, samples) for one in compared]
    losses = {"units": "half squared error, mean over tasks"}
    variables["final_loss"] = (("learner", "seed"), lineup.measure(mean_loss, samples), losses)
    for measure in MEASURES:
        units = {"units": f"{measure} of sensitivities, mean"}
        variables[f"final_{measure}"] = (("algorithm", "seed"), final[measure], units)
        variables[f"gd_{measure}"] = (
            ("algorithm",),
            np.asarray([getattr(one, measure) for one in near_misses]),
            units | {"of": "gradient descent"},
        )
    coordinates = {
        "step": run.metrics["step"].values,
        "curve_step": run.metrics["step"].values[curve_points(run)],
        "seed": np.asarray(run.recipe.seeds),
        "learner": lineup.names(),
        "algorithm": list(_ALGORITHMS),
    }
    data = xr.Dataset(variables, coordinates)
    claims = [*_claims(data, "gd++", "Fig 8", "close"), *_claims(data, PER_STEP, "beyond the paper", None)]
    return Results(data, claims, _notes(preset, run))


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        see = "Twelve blocks with MLPs and four heads become GD++ with numbers of its own for each of twelve steps."
        return {"figure-8": training_figure(data, title="twelve blocks", see=see, band=False)}


def _tuned_algorithms(run: Run, *, num_contexts: int) -> dict[str, Learner]:
    """Twelve steps with shared numbers, as the paper's baselines, and with numbers per step."""
    task = run.recipe.linear_task()
    spectra = tuning_spectra(task, num_contexts=num_contexts)
    descent = tune(task, STEPS, algorithm="gd", spectra=spectra)
    per_step = tune(task, STEPS, algorithm="gd", per_step=True, spectra=spectra)
    plus_plus = tune(task, STEPS, algorithm="gd++", spectra=spectra)
    plus_plus_per_step = tune(task, STEPS, algorithm="gd++", per_step=True, spectra=spectra)
    dtype = run.recipe.dtype
    return {
        "gradient descent": GradientDescent(jnp.asarray(descent.learning_rates[0], dtype), STEPS),
        "gradient descent, per step": GradientDescent(jnp.asarray(per_step.learning_rates, dtype), STEPS),
        "gd++": GradientDescentPlusPlus(
            jnp.asarray(plus_plus.learning_rates[0], dtype),
            jnp.asarray(plus_plus.curvature_corrections[0], dtype),
            STEPS,
        ),
        PER_STEP: GradientDescentPlusPlus(
            jnp.asarray(plus_plus_per_step.learning_rates, dtype),
            jnp.asarray(plus_plus_per_step.curvature_corrections, dtype),
            STEPS,
        ),
    }


def _claims(data: xr.Dataset, algorithm: str, source: str, published: str | None) -> list[Claim]:
    """How close the blocks come to an algorithm, in loss and as functions, in units of GD's distance to it."""
    suffix = algorithm.replace(", ", "-").replace(" ", "-")
    loss = data["final_loss"]
    own, descent = (float(loss.sel(learner=name)[0]) for name in (algorithm, "gradient descent"))
    excess = (loss.sel(learner="trained").values - own) / (descent - own)
    claims = [
        statistical(
            f"loss-near-{suffix}", f"excess of the loss over that of {algorithm}, in units of GD's excess", source,
            excess, CLOSER, published=published, unit="share of GD's excess", control="12 steps of GD",
            control_values=[1.0],
        )
    ]  # fmt: skip
    words = {
        "cosine": "angle (1 - cosine)",
        "model_difference": "model difference",
        "prediction_difference": "prediction difference",
    }
    for measure, what in words.items():
        trained = data[f"final_{measure}"].sel(algorithm=algorithm).values
        near_miss = float(data[f"gd_{measure}"].sel(algorithm=algorithm))
        if measure == "cosine":
            trained, near_miss = 1 - trained, 1 - near_miss
        claims.append(
            statistical(
                f"{measure.replace('_', '-')}-{suffix}", f"{what} to {algorithm}, in units of GD's", source,
                trained / near_miss, CLOSER, published=published, unit="share of GD's", control="12 steps of GD",
                control_values=[1.0],
            )
        )  # fmt: skip
    return claims


def _notes(preset: Preset, run: Run) -> list[str]:
    if preset != "quick":
        return []
    recipe = run.recipe
    return [
        f"quick trains {recipe.num_steps} steps of {recipe.batch_size} tasks; --preset paper 50 000 of 2048. "
        "That is far too few for twelve blocks to learn what they can."
    ]


TWELVE_BLOCKS = Experiment(
    name="twelve-blocks",
    question="Do twelve blocks with MLPs and several heads still perform GD++?",
    source="Fig 8",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=("tuning", "alignment along training", "comparison"),
    analysis_seconds={"smoke": 12.0, "quick": 15.0, "paper": 20.0},
)
