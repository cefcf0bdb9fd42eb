"""What the noise experiment trains, and the algorithms, tuned on the noisy task, that it compares stacks with."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.algorithms import GradientDescent, GradientDescentPlusPlus, Ridge, bayes_optimal
from innerloop.exact import (
    Tuned,
    TuningSpectra,
    filter_losses,
    optimal_learning_rate,
    ridge_filter,
    tune,
    tune_stopping,
    tune_weight_decay,
    tuning_spectra,
)
from innerloop.experiments.against_descent import DESCENT, NEAR_MISS, PLUS_PLUS, FirstPairs
from innerloop.experiments.experiment import Preset
from innerloop.problem import Learner
from innerloop.tasks import LinearRegression
from innerloop.training import Recipe, expected, published

NOISE_LEVELS = (0.3, 0.7)
"""Standard deviations sigma of the context targets' noise; without it targets have variance 10 / 12."""
ONE, TWO, FIVE = "one layer", "two tied layers", "five untied layers"
STACKS = {ONE: (1, True), TWO: (2, True), FIVE: (5, False)}
NOISELESS = "one layer, no noise"
DECAYS = (0.1, 1.0)
"""AdamW's weight decays of the further one-layer runs, at the first noise level."""
DECAY, STOPPING, RIDGE = "weight decay", "early stopping", "ridge"
ALGORITHMS = (DESCENT, DECAY, STOPPING, PLUS_PLUS, RIDGE)
WRONG_RIDGE, NEAR, FEWER = "wrong ridge", "control", "fewer pairs"
"""Near misses: ridge for noise 10 % too large, learning rates 10 % off, 9 of the 10 context pairs."""
REDUCED, PLAIN = "four numbers", "without target key"
"""Trained stacks reduced to four numbers per layer, and to the three of GD++."""

_WRONG_NOISE = 1.1
# Of two and five layers. The published 5000 of two are too few in strong noise: pilots (seeds 1000 and 1001) stood
# still from about step 12 000 on. The published 50 000 of five were cut for their cost (docs/deviations.md).
_DEEP_STEPS = 20_000
_SMALL_STEP = 0.1
"""Early stopping takes steps of this share of the best single step's size."""


def label(stack: str, noise_std: float) -> str:
    """Name of a stack's run at a noise level."""
    return f"{stack}, noise {noise_std:g}"


def exact_label(noise_std: float) -> str:
    """Name of the run of one layer that is trained on the exact expected loss."""
    return label(f"{ONE}, expected loss", noise_std)


def decay_label(weight_decay: float) -> str:
    """Name of the one-layer run with weight decay in AdamW."""
    return label(f"{ONE}, weight decay {weight_decay:g}", NOISE_LEVELS[0])


def noise_levels(preset: Preset) -> tuple[float, ...]:
    """A smoke run looks at the first level only."""
    return NOISE_LEVELS[:1] if preset == "smoke" else NOISE_LEVELS


def stacks(preset: Preset) -> tuple[str, ...]:
    """A smoke run leaves five layers out, which take longest to compile."""
    return (ONE, TWO) if preset == "smoke" else tuple(STACKS)


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published recipes on noisy tasks; the noiseless layer is the one that `one-layer` trains."""
    seeds = tuple(range(num_seeds or (2 if preset == "smoke" else 5)))
    chosen = {NOISELESS: published(seeds=seeds)}
    for noise_std in noise_levels(preset):
        task = LinearRegression(noise_std=noise_std)
        for stack in stacks(preset):
            num_layers, tied = STACKS[stack]
            chosen[label(stack, noise_std)] = published(num_layers=num_layers, tied=tied, task=task, seeds=seeds)
        if preset != "smoke":  # L-BFGS takes longer to compile than everything else there
            chosen[exact_label(noise_std)] = expected(task=task, seeds=seeds)
    plain = chosen[label(ONE, NOISE_LEVELS[0])]
    for decay in DECAYS:
        optimizer = dataclasses.replace(plain.optimizer, weight_decay=decay)
        chosen[decay_label(decay)] = dataclasses.replace(plain, optimizer=optimizer)
    return {name: _shortened(recipe, preset) for name, recipe in chosen.items()}


def _shortened(recipe: Recipe, preset: Preset) -> Recipe:
    """Fewer steps, or smaller batches, where a preset has to be quick."""
    if preset == "smoke":
        return dataclasses.replace(recipe, num_steps=20, batch_size=64, evaluation_interval=10, evaluation_tasks=200)
    num_layers = recipe.model.num_layers
    if num_layers == 1:
        return recipe
    recipe = dataclasses.replace(recipe, num_steps=_DEEP_STEPS, evaluation_interval=500)
    return dataclasses.replace(recipe, batch_size=512) if preset == "quick" and num_layers > 2 else recipe


class Rivals(NamedTuple):
    """Algorithms tuned for a task and a depth.

    Attributes:
        learners: by name: `ALGORITHMS`, then the near misses.
        expected: expected losses of `ALGORITHMS`, from spectra that took no part in their tuning.
        weight_decay: lambda of gradient descent with weight decay.
        small_steps: number of steps of early-stopped gradient descent.
    """

    learners: dict[str, Learner]
    expected: dict[str, float]
    weight_decay: float
    small_steps: int


def own_algorithm(stack: str) -> str:
    """What the paper says that such a stack does without noise: gradient descent, or GD++ from two layers on."""
    return DESCENT if stack == ONE else PLUS_PLUS


def rivals(task: LinearRegression, stack: str, *, num_contexts: int) -> Rivals:
    """Tunes everything on the same spectra.

    Args:
        task: noisy.
        stack: one of `STACKS`; steps are as many as its layers.
        num_contexts: in each set of spectra.
    """
    spectra = tuning_spectra(task, num_contexts=num_contexts)
    num_steps, tied = STACKS[stack]
    descent = tune(task, num_steps, algorithm="gd", spectra=spectra)
    plus_plus = tune(task, num_steps, algorithm="gd++", per_step=not tied, spectra=spectra)
    decayed = tune_weight_decay(task, num_steps, spectra=spectra)
    small = _SMALL_STEP * optimal_learning_rate(task)
    stopping = tune_stopping(task, small, spectra=spectra)
    # One step needs no spectra.
    eta = optimal_learning_rate(task) if num_steps == 1 else float(descent.learning_rates[0])
    penalty = float(bayes_optimal(task).penalty)
    own: Learner = _descend(eta, num_steps)
    near: Learner = _descend(NEAR_MISS * eta, num_steps)
    if own_algorithm(stack) == PLUS_PLUS:
        own, near = _plus_plus(plus_plus, tied=tied), _plus_plus(plus_plus, tied=tied, rate_factor=NEAR_MISS)
    learners: dict[str, Learner] = {
        DESCENT: _descend(eta, num_steps),
        DECAY: _descend(decayed.learning_rate, num_steps, decayed.weight_decay),
        STOPPING: _descend(small, stopping.num_steps),
        PLUS_PLUS: _plus_plus(plus_plus, tied=tied),
        RIDGE: Ridge(_numbers(penalty)),
        WRONG_RIDGE: Ridge(_numbers(_WRONG_NOISE**2 * penalty)),
        NEAR: near,
        FEWER: FirstPairs(own, task.context_length - 1),
    }
    losses = {
        DESCENT: descent.loss,
        DECAY: decayed.loss,
        STOPPING: stopping.loss,
        PLUS_PLUS: plus_plus.loss,
        RIDGE: _bayes_loss(task, spectra),
    }
    return Rivals(learners, losses, decayed.weight_decay, stopping.num_steps)


def _bayes_loss(task: LinearRegression, spectra: TuningSpectra) -> float:
    with jax.enable_x64(True):
        learned = ridge_filter(spectra.reported.eigenvalues, float(bayes_optimal(task).penalty))
        return float(filter_losses(task, spectra.reported, learned).mean())


def _descend(learning_rate: float, num_steps: int, weight_decay: float = 0.0) -> GradientDescent:
    return GradientDescent(_numbers(learning_rate), num_steps, _numbers(1.0), weight_decay=_numbers(weight_decay))


def _plus_plus(tuned: Tuned, *, tied: bool, rate_factor: float = 1.0) -> GradientDescentPlusPlus:
    """A number for all steps where layers are tied, one per step otherwise."""
    rates, corrections = rate_factor * tuned.learning_rates, tuned.curvature_corrections
    if tied:
        rates, corrections = rates[0], corrections[0]
    return GradientDescentPlusPlus(_numbers(rates), _numbers(corrections), tuned.learning_rates.size)


def _numbers(values: float | Float[np.ndarray, "*steps"]) -> Float[Array, "*steps"]:
    """Arrays, so that programs are compiled once for all values."""
    return jnp.asarray(values, dtype=jnp.float32)
