"""Gradient descent on the context's regression loss, the algorithm that the paper finds inside transformers.

On L(W) = 1/(2N) sum_j |W x_j - y_j|^2 one step is

    W <- W - damping * (eta / N) sum_j (W x_j - y_j) x_j^T.

With weight decay lambda the loss is L(W) + lambda / 2 |W|^2, so a step also takes damping * eta lambda W off. It tends
to the ridge solution with penalty N lambda on the un-normalised sum. From W0 = 0 the first step has nothing to decay:
decay starts to matter with the second.

Where sources disagree: the paper's equations divide by N as here; its tables and the published code print eta / N. Our
``learning_rate`` is eta throughout.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import positive_int
from innerloop.problem import Prediction, Problem


class GradientDescent(eqx.Module):
    """A learner that takes gradient steps from the initial weights and predicts with the result.

    Attributes:
        learning_rate: eta, one for all steps or one per step.
        num_steps: number of steps K.
        damping: factor on every step.
        initial_weights: W0; None means zero.
        weight_decay: lambda, in units of 1 / learning rate; a negative one lets the weights grow.

    Example:
        >>> problem = Problem(jnp.eye(2), jnp.array([[2.0], [4.0]]), jnp.array([1.0, 1.0]))
        >>> float(GradientDescent(learning_rate=1.0)(problem).value[0])   # (eta / N) (2 + 4)
        3.0
        >>> float(GradientDescent(1.0, num_steps=2, weight_decay=0.5)(problem).value[0])   # 3 + 3 / 2 - 3 / 2
        3.0
    """

    learning_rate: float | Float[Array, ""] | Float[Array, " num_steps"]
    num_steps: int = eqx.field(default=1, static=True)
    damping: float | Float[Array, ""] = 1.0
    initial_weights: Float[Array, "output_size input_size"] | None = None
    weight_decay: float | Float[Array, ""] = 0.0

    def __check_init__(self):
        positive_int("num_steps", self.num_steps, minimum=0)
        shape = jnp.shape(self.learning_rate)
        if shape not in ((), (self.num_steps,)):
            raise ValueError(
                f"learning_rate must be a number or have shape (num_steps,) = ({self.num_steps},), got shape {shape}"
            )

    def __call__(self, problem: Problem) -> Prediction:
        """Runs the steps; the trajectories hold the prediction under the weights before and after every step."""
        weights = self.weights(problem)  # (steps + 1, output_size, input_size)
        trajectory = weights @ problem.query_input
        context_trajectory = jnp.einsum("koi,ni->kno", weights, problem.context_inputs)
        return Prediction(trajectory[-1], trajectory, context_trajectory)

    def weights(self, problem: Problem) -> Float[Array, "steps_plus_1 output_size input_size"]:
        """W_0, W_1, .., W_K."""
        inputs, targets = problem.context_inputs, problem.context_targets
        num_context, input_size = inputs.shape
        initial = self.initial_weights
        if initial is None:
            initial = jnp.zeros((targets.shape[-1], input_size), dtype=inputs.dtype)
        rates = jnp.broadcast_to(jnp.asarray(self.learning_rate, dtype=inputs.dtype), (self.num_steps,))

        def step(weights, rate):
            residuals = inputs @ weights.T - targets  # (context, output_size)
            decayed = self.damping * rate * self.weight_decay * weights
            weights = weights - self.damping * (rate / num_context) * residuals.T @ inputs - decayed
            return weights, weights

        _, weights = jax.lax.scan(step, initial, rates)
        return jnp.concatenate([initial[None], weights])
