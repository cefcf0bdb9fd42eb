"""Losses away from the training distribution (Fig 2 d, 6 a): scaled inputs, scaled targets, other input laws."""

from collections.abc import Iterator, Sequence
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from innerloop.analysis.evaluation import task_losses
from innerloop.problem import Learner
from innerloop.tasks import LinearRegression, Sample

Scale = Literal["input_scale", "target_scale"]


def scale_sweep(
    learner: Learner,
    task: LinearRegression,
    scale: Scale,
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
    points = scaled_samples(task, scale, values, draw_tasks(task, key, num_tasks))
    return jnp.stack([jnp.mean(task_losses(learner, samples)) for samples in points])


@eqx.filter_jit
def draw_tasks(task: LinearRegression, key: Key[Array, ""], num_tasks: int) -> PyTree[Array]:
    """The random numbers of tasks, which depend neither on the scales nor on the normalisation."""
    return task.draw(key, num_tasks)


def scaled_samples(
    task: LinearRegression,
    scale: Scale,
    values: Sequence[float] | Float[Array | np.ndarray, " points"],
    draw: PyTree[Array],
) -> Iterator[Sample]:
    """The same tasks with one scale varied, point by point.

    Args:
        task: the task whose scale is varied; its other fields stay.
        scale: which scale.
        values: of the scale, replacing the task's own.
        draw: the tasks' random numbers, as by `draw_tasks`.

    Yields:
        The tasks of every point, along the leading axis.
    """
    for value in values:
        yield _assembled(eqx.tree_at(lambda task: getattr(task, scale), task, jnp.asarray(value, dtype=float)), draw)


@eqx.filter_jit
def _assembled(task: LinearRegression, draw: PyTree[Array]) -> Sample:
    return task.assemble(draw).samples()
