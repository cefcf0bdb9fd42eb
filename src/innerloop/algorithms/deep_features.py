"""Algorithms on features of the inputs: regression on m(x) in place of x, and its kernel form (A.8 of the paper)."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.problem import Learner, Prediction, Problem

FeatureMap = Callable[[Float[Array, " input_size"]], Float[Array, " num_features"]]
KernelFunction = Callable[[Float[Array, " input_size"], Float[Array, " input_size"]], Float[Array, ""]]


class OnFeatures(eqx.Module):
    """A learner that applies another one to the problem with inputs m(x).

    Attributes:
        feature_map: m, of one input; an Equinox module or any function of JAX arrays.
        learner: learns from (m(x_j), y_j) and predicts at m(x_q).

    Example:
        >>> from innerloop.algorithms import GradientDescent
        >>> problem = Problem(jnp.array([[2.0]]), jnp.array([[1.0]]), jnp.array([3.0]))
        >>> float(OnFeatures(jnp.square, GradientDescent(learning_rate=1.0))(problem).value[0])   # 1 * 2^2 * 3^2
        36.0
    """

    feature_map: FeatureMap
    learner: Learner

    def __call__(self, problem: Problem) -> Prediction:
        """The learner's prediction on the features."""
        context = jax.vmap(self.feature_map)(problem.context_inputs)
        return self.learner(Problem(context, problem.context_targets, self.feature_map(problem.query_input)))


class KernelGradientDescent(eqx.Module):
    """One gradient step from W0 = 0 by kernels: yhat = (eta / N) sum_i y_i k(x_i, x_q).

    Attributes:
        kernel: k of two inputs; m(x) . m(x') makes this `GradientDescent` on the features m.
        learning_rate: eta.
    """

    kernel: KernelFunction
    learning_rate: float | Float[Array, ""]

    def __call__(self, problem: Problem) -> Prediction:
        """The step's prediction for query and context, from zero."""
        inputs, targets = problem.context_inputs, problem.context_targets
        step = self.learning_rate / inputs.shape[0]

        def predict(query: Float[Array, " input_size"]) -> Float[Array, " output_size"]:
            return step * jax.vmap(self.kernel, in_axes=(0, None))(inputs, query) @ targets

        value, context = predict(problem.query_input), jax.vmap(predict)(inputs)
        return Prediction(
            value, jnp.stack([jnp.zeros_like(value), value]), jnp.stack([jnp.zeros_like(context), context])
        )
