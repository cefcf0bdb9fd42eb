"""Losses away from the training distribution (Fig 2 d, 6 a): scaled inputs, scaled targets, other input laws."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from innerloop.analysis.evaluation import task_losses
from innerloop.problem import Learner
from innerloop.tasks import LinearRegression


@eqx.filter_jit
def scale_sweep(
    learner: Learner,
    task: LinearRegression,
    scale: Literal["input_scale", "target_scale"],
    values: Float[Array, " points"],
    key: Key[Array, ""],
    num_tasks: int,
) -> Float[Array, " points"]:
    """Mean half squared error of a learner as one scale of its task is varied, on the same random numbers throughout.

    Args:
        learner: any learner.
        task: the task whose scale is varied; its other fields stay.
        scale: which scale.
        values: of the scale, replacing the task's own.
        key: of the tasks; learners compared on one key see the same tasks.
        num_tasks: per point.
    """

    def loss(value):
        varied = eqx.tree_at(lambda task: getattr(task, scale), task, value)
        return jnp.mean(task_losses(learner, varied.samples(key, num_tasks)))

    return jax.lax.map(loss, values)
