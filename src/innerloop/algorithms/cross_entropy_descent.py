"""Gradient descent on the context's cross-entropy: what one linear layer does to one-hot targets, and what K cannot.

On L(W) = -(1/N) sum_j sum_c y_jc log softmax(W x_j)_c one step is

    W <- W + (eta / N) sum_j (y_j - softmax(W x_j)) x_j^T,

from W = 0. Predictions are logits W x_q. The first step is (eta / N) sum_j (y_j - 1/C) x_j^T, linear in the targets
(`innerloop.constructions.classification_descent_weights`); the others are not.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import positive_int
from innerloop.problem import Learner, Prediction, Problem


class CrossEntropyDescent(eqx.Module):
    """A learner that takes gradient steps on the cross-entropy from zero weights and predicts logits.

    Attributes:
        learning_rate: eta, the same in all steps.
        num_steps: number of steps K.

    Example:
        >>> problem = Problem(jnp.eye(2), jnp.eye(2), jnp.array([1.0, 0.0]))
        >>> CrossEntropyDescent(learning_rate=1.0)(problem).value.tolist()    # (1 / 2) (1 - 1/2) and its negative
        [0.25, -0.25]
    """

    learning_rate: float | Float[Array, ""]
    num_steps: int = eqx.field(default=1, static=True)

    def __check_init__(self):
        positive_int("num_steps", self.num_steps, minimum=0)

    def __call__(self, problem: Problem) -> Prediction:
        """Runs the steps; the trajectories hold the logits under the weights before and after every step."""
        weights = self.weights(problem)
        trajectory = weights @ problem.query_input
        context = jnp.einsum("kci,ni->knc", weights, problem.context_inputs)
        return Prediction(trajectory[-1], trajectory, context)

    def weights(self, problem: Problem) -> Float[Array, "steps_plus_1 output_size input_size"]:
        """W_0 = 0, W_1, .., W_K."""
        inputs, targets = problem.context_inputs, problem.context_targets
        step_size = jnp.asarray(self.learning_rate, dtype=inputs.dtype) / inputs.shape[0]

        def step(weights, _):
            residuals = targets - jax.nn.softmax(inputs @ weights.T, axis=-1)  # (context, output_size)
            weights = weights + step_size * residuals.T @ inputs
            return weights, weights

        initial = jnp.zeros((targets.shape[-1], inputs.shape[-1]), dtype=inputs.dtype)
        _, weights = jax.lax.scan(step, initial, length=self.num_steps)
        return jnp.concatenate([initial[None], weights])


class CentredLogits(eqx.Module):
    """A learner's logits less their mean over classes, which softmax and cross-entropy do not see.

    Attributes:
        learner: any learner that predicts logits.

    Example:
        >>> problem = Problem(jnp.eye(2), jnp.eye(2), jnp.array([1.0, 0.0]))
        >>> from innerloop.algorithms import GradientDescent
        >>> CentredLogits(GradientDescent(1.0))(problem).value.tolist()    # of .5 and 0
        [0.25, -0.25]
    """

    learner: Learner

    def __call__(self, problem: Problem) -> Prediction:
        """The learner's prediction, centred; so are its trajectories."""
        return jax.tree.map(lambda leaf: leaf - jnp.mean(leaf, axis=-1, keepdims=True), self.learner(problem))
