"""Linear classification: a label drawn from softmax(W x) with a fresh W per task, as one-hot targets.

With W ~ N(0, target_scale^2) per entry this is multinomial logistic regression with its own prior, so that the
regularised fit and the Bayes-optimal predictor are known algorithms (`innerloop.algorithms`). Labels are drawn, not the
argmax of W x: then log-probabilities are what a learner should predict, and their cross-entropy has a floor. A large
``target_scale`` comes as close to the argmax as one likes.

As in the other families, the query's target is free of noise: the probabilities softmax(W x_q), not one label drawn
from them. Cross-entropy is linear in its target, so its mean over tasks is that of drawn labels, with less scatter.

    >>> import jax
    >>> sample = LinearClassification(output_size=3).sample(jax.random.key(0))
    >>> sample.problem.context_targets.sum(axis=1).tolist()[:3], round(float(sample.query_target.sum()), 5)
    ([1.0, 1.0, 1.0], 1.0)
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from innerloop.checks import positive_int
from innerloop.keys import named_key
from innerloop.tasks.input_task import InputTask, apply_weights
from innerloop.tasks.inputs import InputDistribution, Uniform
from innerloop.tasks.prediction_loss import PredictionLoss
from innerloop.tasks.task import Batch


class Draw(NamedTuple):
    """The random numbers of a batch; tasks last.

    Attributes:
        inputs: unscaled context inputs and, last along the token axis, the query's.
        weights: W before it is scaled.
        uniform: in [0, 1), what decides between the classes: the label is the first whose cumulative probability
            under softmax(W x) exceeds it.
    """

    inputs: Float[Array, "input_size tokens batch"]
    weights: Float[Array, "output_size input_size batch"]
    uniform: Float[Array, "context batch"]


class LinearClassification(InputTask):
    """Targets one-hot of a label ~ softmax(W x), W ~ N(0, target_scale^2); the query's are its probabilities."""

    prediction_loss: ClassVar[PredictionLoss] = "cross_entropy"

    input_size: int = eqx.field(default=5, static=True)
    """Number of input dimensions n_i."""
    output_size: int = eqx.field(default=2, static=True)
    """Number of classes C, at least 2; each has its own row of W."""
    context_length: int = eqx.field(default=20, static=True)
    """Number of context pairs N."""
    input_scale: float = 1.0
    """Factor on every input; 2 turns the default U(-1/2, 1/2) into U(-1, 1)."""
    target_scale: float = 5.0
    """Standard deviation of the entries of W: how sharply inputs decide labels."""
    inputs: InputDistribution = eqx.field(default_factory=Uniform)
    """Distribution of an input vector before scaling: uniform, normal, exponential, laplace, or a covariance."""

    def __check_init__(self):
        positive_int("task.output_size (of classification)", self.output_size, minimum=2)

    def draw(self, key: Key[Array, ""], batch_size: int) -> Draw:
        """Draws inputs, weights and what decides the labels, each from a stream of its own."""
        inputs = self.draw_inputs(key, batch_size)
        weights = jax.random.normal(named_key(key, "weights"), (self.output_size, self.input_size, batch_size))
        uniform = jax.random.uniform(named_key(key, "labels"), (self.context_length, batch_size))
        return Draw(inputs, weights, uniform)

    def assemble(self, draw: Draw) -> Batch:
        """Scales the inputs, draws the context's labels from softmax(W x), and gives the query its probabilities."""
        inputs = self.input_scale * draw.inputs
        weights = self.target_scale * draw.weights
        logits = apply_weights(weights, inputs)
        labels = _drawn_classes(logits[:, :-1], draw.uniform)
        context = jax.nn.one_hot(labels, self.output_size, axis=0, dtype=logits.dtype)
        return Batch(inputs, jnp.concatenate([context, jax.nn.softmax(logits[:, -1:], axis=0)], axis=1))


def _drawn_classes(
    logits: Float[Array, "classes context batch"], uniform: Float[Array, "context batch"]
) -> Int[Array, "context batch"]:
    """The class of the softmax that each uniform number falls on, by inversion of the cumulative sums."""
    likelihoods = jnp.exp(logits - jnp.max(logits, axis=0))
    place = uniform * jnp.sum(likelihoods, axis=0)
    labels, reached = jnp.zeros(uniform.shape, jnp.int32), jnp.zeros_like(uniform)
    for likelihood in likelihoods[:-1]:  # what is left belongs to the last class, whatever rounding says
        reached = reached + likelihood
        labels = labels + (place >= reached).astype(jnp.int32)
    return labels
