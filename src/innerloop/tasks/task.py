"""What every task family offers: a sampler of problems whose query target is known.

Tasks are made in whole batches, with the tasks along the *last* axis: that is the layout in which training on a CPU is
fast, and slicing it gives single problems. A new family is one file with a subclass and one entry in
`innerloop.tasks.TASKS`.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Key, PyTree

from innerloop.problem import Problem
from innerloop.tasks.prediction_loss import PredictionLoss


class Sample(eqx.Module):
    """A problem together with the target that the learner has to predict.

    Attributes:
        problem: what the learner sees.
        query_target: the noiseless target of the query.
    """

    problem: Problem
    query_target: Float[Array, " output_size"]


class Batch(eqx.Module):
    """Many samples with the tasks along the last axis, features first: the layout of the training kernels.

    Attributes:
        inputs: x_1..x_N and, last along the token axis, x_q.
        targets: y_1..y_N and, last, the query's noiseless target.
    """

    inputs: Float[Array, "input_size tokens batch"]
    targets: Float[Array, "output_size tokens batch"]

    def samples(self) -> Sample:
        """The same tasks as a `Sample` whose arrays have a leading batch axis, ready for ``jax.vmap``."""

        def one_task(inputs: Float[Array, "input_size tokens"], targets: Float[Array, "output_size tokens"]) -> Sample:
            return Sample(Problem(inputs[:, :-1].T, targets[:, :-1].T, inputs[:, -1]), targets[:, -1])

        return jax.vmap(one_task, in_axes=-1)(self.inputs, self.targets)


class Task(eqx.Module):
    """A distribution over problems. Families say their sizes; sampling one problem follows from sampling a batch.

    Attributes:
        prediction_loss: what training and evaluation measure predictions by; a family may have another one.
    """

    prediction_loss: ClassVar[PredictionLoss] = "half_squared_error"

    input_size: eqx.AbstractVar[int]
    output_size: eqx.AbstractVar[int]
    context_length: eqx.AbstractVar[int]

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], batch_size: int) -> PyTree[Array]:
        """Draws all random numbers of ``batch_size`` independent tasks, and does as little else as it can.

        Training carries a draw from one step to the next: XLA's CPU backend fuses random numbers into whatever reads
        them and makes them anew for each reader, unless they cross the boundary of a loop's body (measured at the
        paper's sizes: .3 ms against 9 ms a batch).
        """

    @abc.abstractmethod
    def assemble(self, draw: PyTree[Array]) -> Batch:
        """Computes the tasks from their random numbers."""

    def sample_batch(self, key: Key[Array, ""], batch_size: int) -> Batch:
        """Draws ``batch_size`` independent tasks."""
        return self.assemble(self.draw(key, batch_size))

    def sample(self, key: Key[Array, ""]) -> Sample:
        """Draws one task."""
        return jax.tree.map(lambda leaf: leaf[0], self.samples(key, 1))

    def samples(self, key: Key[Array, ""], num_tasks: int) -> Sample:
        """Draws ``num_tasks`` tasks with a leading batch axis."""
        return _samples(self, key, num_tasks)


@eqx.filter_jit  # one program; step by step, every operation is a program of its own to compile
def _samples(task: Task, key: Key[Array, ""], num_tasks: int) -> Sample:
    return task.sample_batch(key, num_tasks).samples()
