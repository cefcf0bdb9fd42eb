"""Some of the context's targets replaced by noise: how the published code makes targets noisy at test time.

Of every context, ``count`` targets at random places are N(0, 1) draws that say nothing of W; the others and the query's
are as before. An out-of-distribution variant of any family, for learners that were trained without it:

    >>> import jax
    >>> from innerloop.tasks import LinearRegression
    >>> noisy = ReplacedTargets(LinearRegression(), count=8)
    >>> noisy.sample(jax.random.key(0)).problem.context_targets.shape
    (10, 1)
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from innerloop.checks import positive_int
from innerloop.keys import named_key
from innerloop.tasks.task import Batch, Task


class ReplacedDraw(NamedTuple):
    """The random numbers of a batch; tasks last.

    Attributes:
        task: of the tasks as they would be.
        order: uniform numbers; the ``count`` smallest of a context say whose targets are replaced.
        noise: N(0, 1), what they are replaced by.
    """

    task: PyTree[Array]
    order: Float[Array, "context batch"]
    noise: Float[Array, "output_size context batch"]


class ReplacedTargets(Task):
    """A task with ``count`` of its N context targets replaced by N(0, 1) draws; not a family to train on."""

    task: Task
    """What is spoilt. With ``count`` 0 the samples are its own, for the same key."""
    count: int = eqx.field(static=True)
    """Number m of replaced targets, from 0 to N."""
    input_size: int = eqx.field(static=True)
    output_size: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)

    def __init__(self, task: Task, count: int):
        positive_int("count", count, minimum=0, maximum=task.context_length)
        self.task, self.count = task, count
        self.input_size, self.output_size = task.input_size, task.output_size
        self.context_length = task.context_length

    def draw(self, key: Key[Array, ""], batch_size: int) -> ReplacedDraw:
        """Draws the task from ``key`` itself, so that problems with different counts differ in the replaced alone."""
        shape = (self.context_length, batch_size)
        return ReplacedDraw(
            self.task.draw(key, batch_size),
            jax.random.uniform(named_key(key, "replaced"), shape),
            jax.random.normal(named_key(key, "replacements"), (self.output_size, *shape)),
        )

    def assemble(self, draw: ReplacedDraw) -> Batch:
        """Replaces targets; which ones is the same for all outputs of a pair."""
        batch = self.task.assemble(draw.task)
        rank = jnp.argsort(jnp.argsort(draw.order, axis=0), axis=0)  # ties, if any, are ordered too
        context = jnp.where(rank < self.count, draw.noise, batch.targets[:, :-1])
        return Batch(batch.inputs, batch.targets.at[:, :-1].set(context))
