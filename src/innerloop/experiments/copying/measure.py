"""Everything that is measured of stacks on alternating tokens, as labelled arrays.

``stack`` runs over what was trained, ``copying_stack`` over those whose final maps are measured, ``token`` and ``key``
over a sequence's tokens, ``share`` over the kinds of tokens that a token can depend on, ``way`` over the shares of a
curve's way at which it is said to move.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
import xarray as xr

from innerloop.algorithms import GradientDescent, Trivial
from innerloop.analysis import (
    jacobian_norms,
    mean_attention,
    neighbours,
    over_learners,
    strongest_neighbour,
    summed_sensitivities,
    task_losses,
)
from innerloop.exact import optimal_learning_rate
from innerloop.experiments.copying.setting import MAIN, PERMUTED
from innerloop.experiments.experiment import Preset, Stage, Variables
from innerloop.models import Transformer, products
from innerloop.runs import Run
from innerloop.tasks import Sample
from innerloop.training import held_out_batch, numerics

SHARES = ("own", "next", "previous", "other", "other_than_next", "other_than_previous")
WAYS = (0.1, 0.5)
"""Shares of its way at which a curve has begun to move, and is half-way; lags are taken at both."""
REACHED = 0.01
"""A stack is at the gradient step's loss when its loss on the same tasks is at most this much above it."""


class Sizes(NamedTuple):
    """How much is computed.

    Attributes:
        curve_points: most measurements of the sensitivities along training.
        curve_tasks: tasks of each.
        final_tasks: tasks of the final Jacobians and attention maps.
    """

    curve_points: int
    curve_tasks: int
    final_tasks: int


SIZES: dict[Preset, Sizes] = {
    "smoke": Sizes(5, 100, 100),
    "quick": Sizes(101, 500, 2000),
    "paper": Sizes(151, 1000, 2000),
}
COPYING_STACKS = (MAIN, PERMUTED)
"""Whose final attention and Jacobians are measured: the stack in question and its control."""
STAGES = ("losses", "sensitivities along training", "who copies whom in the end", "constructions")


def measure(runs: Mapping[str, Run], *, sizes: Sizes, stage: Stage) -> xr.Dataset:
    """Measures everything.

    Args:
        runs: by stack.
        sizes: on how many tasks.
        stage: told what comes next.
    """
    stage(STAGES[0])
    main = runs[MAIN]
    recipe = main.recipe
    with numerics(recipe):
        samples = held_out_batch(recipe).samples()
    variables = _losses(runs, samples)
    stage(STAGES[1])
    points = curve_points(main, sizes.curve_points)
    variables |= _sensitivity_curves(main, _first(samples, sizes.curve_tasks), points)
    stage(STAGES[2])
    variables |= _final_maps(runs, _first(samples, sizes.final_tasks))
    variables |= _weights(main)
    num_tokens, layers = recipe.num_tokens, recipe.model.num_layers
    coordinates = {
        "stack": list(runs),
        "copying_stack": list(COPYING_STACKS),
        "seed": np.asarray(recipe.seeds),
        "step": main.metrics["step"].values,
        "curve_step": main.metrics["step"].values[points],
        "share": list(SHARES),
        "way": list(WAYS),
        "token": np.arange(num_tokens) + 1,
        "key": np.arange(num_tokens - 1) + 1,
        "layer": np.arange(layers) + 1,
        "row": np.arange(recipe.token_size) + 1,
        "column": np.arange(recipe.token_size) + 1,
    }
    attrs = {
        "context_length": recipe.task.context_length,
        "input_size": recipe.task.input_size,
        "interval": recipe.evaluation_interval,
    }
    return xr.Dataset(variables, coordinates, attrs=attrs)


def curve_points(run: Run, most: int) -> np.ndarray:
    """Indices of the measurements at which sensitivities are taken, evenly spaced, with the first and the last."""
    last = run.metrics.sizes["step"] - 1
    return np.unique(np.linspace(0, last, min(most, last + 1)).round().astype(int))


def crossings(steps: np.ndarray, values: np.ndarray, threshold: np.ndarray | float, *, rising: bool) -> np.ndarray:
    """The first step at which a curve is at or beyond a threshold; NaN where it never is.

    Args:
        steps: of every point.
        values: (points, seeds).
        threshold: one for all seeds, or one per seed.
        rising: beyond means above, otherwise below.
    """
    beyond = values >= threshold if rising else values <= threshold
    first = np.asarray(steps, np.float64)[beyond.argmax(axis=0)]
    return np.where(beyond.any(axis=0), first, np.nan)


def _losses(runs: Mapping[str, Run], samples: Sample) -> Variables:
    """Losses along training beside those of one gradient step and of predicting zero, on the same tasks."""
    units = {"units": "half squared error, mean over tasks"}
    main = runs[MAIN]
    descent = float(task_losses(GradientDescent(optimal_learning_rate(main.recipe.linear_task())), samples).mean())
    trivial = float(task_losses(Trivial(), samples).mean())
    loss = np.stack([run.metrics["evaluation_loss"].values for run in runs.values()])
    steps = main.metrics["step"].values
    reached = np.stack([crossings(steps, one, descent + REACHED, rising=False) for one in loss])
    return {
        "loss": (("stack", "step", "seed"), loss, units),
        "gradient_descent_loss": ((), np.asarray(descent), units),
        "trivial_loss": ((), np.asarray(trivial), units),
        "reached_step": (
            ("stack", "seed"),
            reached,
            {"units": "training step; NaN for never", "margin": f"{REACHED:g}"},
        ),
        "drop_step": (
            ("way", "seed"),
            np.stack([crossings(steps, loss[0], trivial + way * (descent - trivial), rising=False) for way in WAYS]),
            {"units": "training step", "threshold": "share of the way from predicting zero to one gradient step"},
        ),
    }


def _sensitivity_curves(run: Run, tasks: Sample, points: np.ndarray) -> Variables:
    """The published sensitivities of the first layer along training, and when those to the next token rise."""
    curves = []
    for index in points:
        weights = jax.tree.map(lambda leaf, index=index: leaf[index], eqx.filter(run.snapshots, eqx.is_array))
        curves.append(_shares(np.asarray(_summed_of_all(run.transformers(weights), tasks))))
    values = np.stack(curves)  # (points, share, seed)
    steps = run.metrics["step"].values[points]
    variables: Variables = {
        "sensitivity": (
            ("curve_step", "share", "seed"),
            values,
            {"units": "norm of the task-mean gradient of the sum over outputs, layer 1"},
        )
    }
    following = values[:, SHARES.index("next")]
    others = values[:, SHARES.index("other_than_next")]
    for name, curve in (("raw", following), ("net", following - others)):
        variables[f"{name}_rise_step"] = (
            ("way", "seed"),
            np.stack([crossings(steps, curve, curve[0] + way * (curve[-1] - curve[0]), rising=True) for way in WAYS]),
            {"units": "training step", "threshold": "share of the way from the first to the last value"},
        )
    return variables


def _final_maps(runs: Mapping[str, Run], tasks: Sample) -> Variables:
    """Attention and Jacobians of trained stacks, and what both say of neighbours."""
    attention, jacobian, direction = [], [], []
    for stack in COPYING_STACKS:
        learners = runs[stack].transformers()
        attention.append(np.asarray(_attention_of_all(learners, tasks))[:, :, 0])  # (seed, layer, token, key)
        jacobian.append(np.asarray(_jacobians_of_all(learners, tasks)))  # (seed, token, key)
        direction.append([strongest_neighbour(one[0]) for one in attention[-1]])
    single = np.asarray(_attention_of_all(runs[MAIN].transformers(), _first(tasks, 1)))[:, :, 0]
    return {
        "attention": (
            ("copying_stack", "seed", "layer", "token", "key"),
            np.stack(attention),
            {"units": "mean over tasks"},
        ),
        "single_attention": (("seed", "layer", "token", "key"), single, {"units": "one task"}),
        "attention_share": (
            ("copying_stack", "share", "seed"),
            np.stack([_shares(one[:, 0]) for one in attention]),
            {"units": "layer 1, mean over reading tokens"},
        ),
        "jacobian": (
            ("copying_stack", "seed", "token", "key"),
            np.stack(jacobian),
            {"units": "Frobenius norm of the task-mean Jacobian, layer 1"},
        ),
        "jacobian_share": (("copying_stack", "share", "seed"), np.stack([_shares(one) for one in jacobian]), {}),
        "direction": (
            ("copying_stack", "seed"),
            np.asarray(direction),
            {"units": "neighbour that layer 1 attends to more"},
        ),
    }


def _weights(run: Run) -> Variables:
    stack = products(run.weights)
    return {
        "W_KQ": (("seed", "layer", "row", "column"), np.asarray(stack.W_KQ)[:, :, 0], {}),
        "W_PV": (("seed", "layer", "row", "column"), np.asarray(stack.W_PV)[:, :, 0], {}),
    }


def _shares(matrices: np.ndarray) -> np.ndarray:
    """(share, seed) of matrices (seed, token, key)."""
    found = neighbours(matrices)
    return np.stack([getattr(found, name) for name in SHARES])


def _first(samples: Sample, count: int) -> Sample:
    return jax.tree.map(lambda leaf: leaf[:count], samples)


@eqx.filter_jit
def _summed_of_all(learners: Transformer, tasks: Sample):
    return over_learners(lambda one: summed_sensitivities(one, tasks), learners)


@eqx.filter_jit
def _attention_of_all(learners: Transformer, tasks: Sample):
    return over_learners(lambda one: mean_attention(one, tasks), learners)


@eqx.filter_jit
def _jacobians_of_all(learners: Transformer, tasks: Sample):
    return over_learners(lambda one: jacobian_norms(one, tasks), learners)
