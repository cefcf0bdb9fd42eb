"""What is trained for the one-layer experiment, and on how many tasks it is measured, per preset."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from innerloop.algorithms import GradientDescent
from innerloop.constructions import gradient_descent_transformer
from innerloop.exact import optimal_learning_rate
from innerloop.experiments.experiment import Preset
from innerloop.models import Transformer
from innerloop.runs import Run
from innerloop.tasks import LinearRegression, Sample
from innerloop.training import Recipe, held_out_batch, published

MAIN_LENGTH = 10
MAIN = f"N{MAIN_LENGTH}"
"""Label of the run that everything but the sweep over N is measured on."""

NEAR_MISS = 0.9
"""Controls use gradient descent with its learning rate multiplied by this: 10 % off."""


class Sizes(NamedTuple):
    """How much a preset computes.

    Attributes:
        context_lengths: N = n_i of the sweep (Fig 2 c).
        num_seeds: of the main run.
        num_sweep_seeds: of the other context lengths.
        curve_tasks: tasks per point of the alignment curves.
        sweep_tasks: tasks per point of the out-of-distribution sweeps.
    """

    context_lengths: tuple[int, ...]
    num_seeds: int
    num_sweep_seeds: int
    curve_tasks: int
    sweep_tasks: int


SIZES: dict[Preset, Sizes] = {
    "smoke": Sizes((2, 10), num_seeds=2, num_sweep_seeds=2, curve_tasks=200, sweep_tasks=200),
    "quick": Sizes((2, 5, 10, 15, 20), num_seeds=5, num_sweep_seeds=3, curve_tasks=2000, sweep_tasks=4000),
    "paper": Sizes((2, 5, 10, 15, 20), num_seeds=5, num_sweep_seeds=5, curve_tasks=10_000, sweep_tasks=10_000),
}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published one-layer recipe for every context length; a smoke run trains 300 steps on small batches."""
    sizes = SIZES[preset]
    all_recipes = {}
    for length in sizes.context_lengths:
        label = f"N{length}"
        count = num_seeds or (sizes.num_seeds if label == MAIN else sizes.num_sweep_seeds)
        task = LinearRegression(input_size=length, context_length=length)
        recipe = dataclasses.replace(
            published(task=task, seeds=tuple(range(count))), evaluation_tasks=_held_out_tasks(length)
        )
        if preset == "smoke":
            recipe = dataclasses.replace(recipe, num_steps=300, batch_size=256, evaluation_tasks=1000)
        all_recipes[label] = recipe
    return all_recipes


def _held_out_tasks(length: int) -> int:
    """10 000 tasks, and more where N is small: there the cost of a near miss would drown in sampling noise."""
    return 10_000 * max(1, round((MAIN_LENGTH / length) ** 2))


class Setting(NamedTuple):
    """A run with the learners that it is compared with.

    Attributes:
        task: of the run.
        learning_rate: exact optimum of one gradient step.
        descent: one gradient step with it.
        near_miss: the same step 10 % short.
        constructed: the step as Proposition 1's weights.
        far_constructed: the same with its learning rate 20 % off; half of that remains when it is interpolated.
        trained: the trained transformers, stacked over seeds.
        held_out: the run's held-out tasks.
    """

    task: LinearRegression
    learning_rate: float
    descent: GradientDescent
    near_miss: GradientDescent
    constructed: Transformer
    far_constructed: Transformer
    trained: Transformer
    held_out: Sample


def setting(run: Run) -> Setting:
    """Prepares a run for measurement."""
    task = run.recipe.linear_task()
    learning_rate = optimal_learning_rate(task)

    def construct(learning_rate: float) -> Transformer:
        return gradient_descent_transformer(
            input_size=task.input_size, context_length=task.context_length, learning_rate=learning_rate
        )

    return Setting(
        task=task,
        learning_rate=learning_rate,
        descent=descend(learning_rate),
        near_miss=descend(NEAR_MISS * learning_rate),
        constructed=construct(learning_rate),
        far_constructed=construct(0.8 * learning_rate),
        trained=run.transformers(),
        held_out=held_out_batch(run.recipe).samples(),
    )


def descend(learning_rate: float, num_steps: int = 1, damping: float = 1.0) -> GradientDescent:
    """Gradient descent whose numbers are arrays, so that programs are compiled once for all of them."""
    return GradientDescent(jnp.asarray(learning_rate), num_steps, jnp.asarray(damping))
