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

from innerloop.problem import Learner
from innerloop.tasks import PredictionLoss, Sample, prediction_loss

_TASKS_AT_ONCE = 1000  # bounds memory; larger gains nothing on a CPU

T = TypeVar("T")


def over_tasks(function: Callable[[Sample], T], samples: Sample) -> T:
    """Applies a function of one sample to all samples (leading axis), in blocks."""
    return jax.lax.map(function, samples, batch_size=_TASKS_AT_ONCE)


def over_learners(function: Callable[[Any], T], learners: PyTree) -> T:
    """Applies a function of one learner to learners stacked along their leading axis (seeds), one after the other."""
    arrays, static = eqx.partition(learners, eqx.is_array)
    return jax.lax.map(lambda leaves: function(eqx.combine(leaves, static)), arrays)


@eqx.filter_jit
def task_losses(
    learner: Learner, samples: Sample, loss: PredictionLoss = "half_squared_error"
) -> Float[Array, " tasks"]:
    """Loss of the query's prediction, per task."""

    def one_task(sample: Sample):
        return prediction_loss(loss, learner(sample.problem).value, sample.query_target)

    return over_tasks(one_task, samples)


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

    def one_task(sample: Sample):
        return sample.query_target[jnp.argmax(learner(sample.problem).value)]

    return over_tasks(one_task, samples)
