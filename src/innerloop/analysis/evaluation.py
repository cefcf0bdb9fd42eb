"""Running learners over many tasks: losses, trajectories of losses, and the loop over seeds.

Losses are half squared errors, summed over outputs, unless another one is asked for (a task family's
``prediction_loss``, say); the mean over tasks is the caller's, because medians and per-task pairs matter too.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from innerloop.kernels import stack_predictions
from innerloop.models import Transformer
from innerloop.problem import Learner, Problem
from innerloop.tasks import PredictionLoss, Sample, prediction_loss

_TASKS_AT_ONCE = 1000  # bounds memory; larger gains nothing on a CPU

T = TypeVar("T")


def over_tasks(function: Callable[[Any], T], samples: PyTree) -> T:
    """Applies a function of one sample (or problem) to all of them (leading axis), in blocks."""
    return jax.lax.map(function, samples, batch_size=_TASKS_AT_ONCE)


def over_blocks(function: Callable[[Any], T], problems: PyTree) -> T:
    """Applies a function of a block of tasks to all tasks (leading axis).

    The last block is filled up with tasks from the front, so that there is one program to compile.
    """
    count = jax.tree.leaves(problems)[0].shape[0]
    num_blocks = -(-count // _TASKS_AT_ONCE)
    if num_blocks == 1:
        return function(problems)
    size = -(-count // num_blocks)

    def into_blocks(leaf):
        filled = jnp.concatenate([leaf, leaf[: num_blocks * size - count]])
        return filled.reshape(num_blocks, size, *leaf.shape[1:])

    blocks = jax.lax.map(function, jax.tree.map(into_blocks, problems))
    return jax.tree.map(lambda leaf: leaf.reshape(num_blocks * size, *leaf.shape[2:])[:count], blocks)


def predictions(learner: Learner, problems: Problem) -> Float[Array, "tasks output_size"]:
    """What a learner predicts in every task; transformers by the code made for their architecture.

    Args:
        learner: who predicts.
        problems: the tasks' problems, along the leading axis.
    """
    if isinstance(learner, Transformer):
        stack = learner.config, learner.weights, learner.tokens
        return over_blocks(lambda block: stack_predictions(*stack, block), problems)
    return over_tasks(lambda problem: learner(problem).value, problems)


def over_learners(function: Callable[[Any], T], learners: PyTree) -> T:
    """Applies a function of one learner to learners stacked along their leading axis (seeds), one after the other."""
    arrays, static = eqx.partition(learners, eqx.is_array)
    return jax.lax.map(lambda leaves: function(eqx.combine(leaves, static)), arrays)


@eqx.filter_jit
def task_losses(
    learner: Learner, samples: Sample, loss: PredictionLoss = "half_squared_error"
) -> Float[Array, " tasks"]:
    """Loss of the query's prediction, per task."""
    return prediction_loss(loss, predictions(learner, samples.problem).T, samples.query_target.T)


@eqx.filter_jit
def trajectory_losses(
    learner: Learner, samples: Sample, loss: PredictionLoss = "half_squared_error"
) -> Float[Array, "steps_plus_1 tasks"]:
    """Loss of the query's prediction before the first and after every layer or step, per task."""

    def losses(sample: Sample):
        trajectory = learner(sample.problem).trajectory
        return jax.vmap(lambda value: prediction_loss(loss, value, sample.query_target))(trajectory)

    return over_tasks(losses, samples).T


@eqx.filter_jit
def task_accuracies(learner: Learner, samples: Sample) -> Float[Array, " tasks"]:
    """Probability that a label drawn from the query's target is the learner's most likely class, per task."""
    chosen = jnp.argmax(predictions(learner, samples.problem), axis=-1)
    return jnp.take_along_axis(samples.query_target, chosen[:, None], axis=-1)[:, 0]
