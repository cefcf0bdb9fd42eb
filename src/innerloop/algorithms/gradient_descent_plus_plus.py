"""GD++: gradient descent that also improves the conditioning of its problem between the steps (section 4, A.10).

Together with every gradient step on the current inputs, all inputs move by

    x <- (I - gamma X X^T) x,    X X^T = sum over the context of x_j x_j^T (not divided by N),

which shrinks the large eigenvalues of X X^T towards the small ones: l becomes l (1 - gamma l)^2. With one step, or with
gamma = 0, it is plain gradient descent; the last step's gamma never has an effect.

Where sources disagree: with W0 not zero there are two definitions from the second step on. A layer that was built by
hand computes its residuals W0 x_j - y_j from the *moved* inputs ("recomputed"); the algorithm that was meant carries
the true residuals of the original inputs along ("carried"). For W0 = 0 they are one.
"""

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import one_of, positive_int
from innerloop.problem import Prediction, Problem

Residuals = Literal["carried", "recomputed"]
"""carried: of the original inputs, moved along; recomputed: W0 x_j - y_j with the moved inputs, at every step."""


class GradientDescentPlusPlus(eqx.Module):
    """A learner that takes gradient steps and corrects the curvature after each.

    Attributes:
        learning_rate: eta of L(W) = 1/(2N) sum |W x - y|^2, one for all steps or one per step.
        curvature_correction: gamma, one for all steps or one per step, in units of 1 / eigenvalue of X X^T.
        num_steps: number of steps K.
        initial_weights: W0; None means zero.
        residuals: which definition is meant where W0 is not zero.

    Example:
        >>> problem = Problem(jnp.eye(2), jnp.array([[2.0], [4.0]]), jnp.array([1.0, 1.0]))
        >>> float(GradientDescentPlusPlus(1.0, 0.5, num_steps=2)(problem).value[0])   # 3 + (1 - 1/2) (1 - 1/2)^2 3
        3.375
    """

    learning_rate: float | Float[Array, ""] | Float[Array, " num_steps"]
    curvature_correction: float | Float[Array, ""] | Float[Array, " num_steps"]
    num_steps: int = eqx.field(default=1, static=True)
    initial_weights: Float[Array, "output_size input_size"] | None = None
    residuals: Residuals = eqx.field(default="carried", static=True)

    def __check_init__(self):
        positive_int("num_steps", self.num_steps, minimum=0)
        one_of("residuals", self.residuals, get_args(Residuals))
        for name in ("learning_rate", "curvature_correction"):
            shape = jnp.shape(getattr(self, name))
            if shape not in ((), (self.num_steps,)):
                raise ValueError(
                    f"{name} must be a number or have shape (num_steps,) = ({self.num_steps},), got shape {shape}"
                )

    def __call__(self, problem: Problem) -> Prediction:
        """Runs the steps; the trajectories hold the predictions before and after every step."""
        inputs, targets, query = problem.context_inputs, problem.context_targets, problem.query_input
        num_context, input_size = inputs.shape
        initial = self.initial_weights
        if initial is None:
            initial = jnp.zeros((targets.shape[-1], input_size), dtype=inputs.dtype)

        def step(moved, rates):
            # Inputs and residual targets of all tokens, the query's last; row j says what is left to predict of y_j.
            learning_rate, correction = rates
            inputs, left = moved
            context, errors = inputs[:-1], left[:-1]
            if self.residuals == "recomputed":
                errors = errors - context @ initial.T
            descent = (learning_rate / num_context) * errors.T @ context  # (output_size, input_size)
            left = left - inputs @ descent.T
            inputs = inputs - correction * inputs @ (context.T @ context)
            return (inputs, left), left

        inputs = jnp.concatenate([inputs, query[None]])
        guesses = inputs @ initial.T
        left = jnp.concatenate([targets - (guesses[:-1] if self.residuals == "carried" else 0.0), -guesses[-1:]])
        rates = tuple(
            jnp.broadcast_to(jnp.asarray(rate, dtype=inputs.dtype), (self.num_steps,))
            for rate in (self.learning_rate, self.curvature_correction)
        )
        _, moved = jax.lax.scan(step, (inputs, left), rates)
        predictions = guesses + (left - jnp.concatenate([left[None], moved]))  # (steps + 1, context + 1, output_size)
        return Prediction(predictions[-1, -1], predictions[:, -1], predictions[:, :-1])
