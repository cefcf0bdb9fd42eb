"""Kernel smoothing of targets (Nadaraya and Watson): a weighted mean of the context's targets, near inputs first.

    yhat = scale * sum_j a_j y_j,    a = softmax(sharpness * x_j . x_q over j).

One head of softmax attention whose key-query product is a multiple of the identity does exactly this: it averages
targets where gradient descent sums them, each with its own sign.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.problem import Prediction, Problem


class KernelSmoothing(eqx.Module):
    """A learner that averages the context's targets by exponential weights.

    Attributes:
        scale: factor on the mean; with one-hot targets it turns frequencies into logits.
        sharpness: of the weights, per unit of x_j . x_q; 0 gives the plain mean.

    Example:
        >>> problem = Problem(jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [5.0]]), jnp.array([0.0]))
        >>> float(KernelSmoothing(scale=2.0, sharpness=1.0)(problem).value[0])    # a query at 0 sees no difference
        6.0
    """

    scale: float | Float[Array, ""]
    sharpness: float | Float[Array, ""]

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts query and context, from zero."""
        inputs, targets = problem.context_inputs, problem.context_targets

        def predict(query: Float[Array, " input_size"]) -> Float[Array, " output_size"]:
            return self.scale * jax.nn.softmax(self.sharpness * (inputs @ query)) @ targets

        value, context = predict(problem.query_input), jax.vmap(predict)(inputs)
        return Prediction(
            value, jnp.stack([jnp.zeros_like(value), value]), jnp.stack([jnp.zeros_like(context), context])
        )
