"""Ridge regression, the Bayes-optimal learner of linear regression.

With W ~ N(0, s^2) per entry and noise of standard deviation sigma, the posterior mean of W is the ridge solution with
penalty sigma^2 / s^2, and predicting with it minimises the expected squared error. Without noise that is the
minimum-norm interpolant.
"""

from numbers import Real

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import finite_number
from innerloop.problem import Prediction, Problem
from innerloop.tasks import LinearRegression


class Ridge(eqx.Module):
    """A learner that minimises sum_j |W x_j - y_j|^2 + penalty |W|^2.

    Attributes:
        penalty: weight of |W|^2, in units of the un-normalised sum over the context; 0 gives the minimum-norm solution.

    Example:
        >>> problem = Problem(jnp.eye(2), jnp.array([[2.0], [4.0]]), jnp.array([1.0, 1.0]))
        >>> round(float(Ridge(penalty=1.0)(problem).value[0]), 6)
        3.0
    """

    penalty: float | Float[Array, ""] = 0.0

    def __check_init__(self):
        if isinstance(self.penalty, Real):  # inside a transformation it may be traced
            finite_number("penalty", self.penalty, minimum=0.0)

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts with the ridge solution; the trajectory starts at zero, the prior mean."""
        inputs, targets = problem.context_inputs, problem.context_targets
        # The pseudo-inverse of the inputs above sqrt(penalty) I solves both cases, a penalty of zero with a
        # rank-deficient context included, and has a derivative where singular values coincide (an SVD's has not).
        root = jnp.sqrt(jnp.asarray(self.penalty, dtype=inputs.dtype))
        rows = jnp.concatenate([inputs, root * jnp.eye(inputs.shape[1], dtype=inputs.dtype)])
        padded = jnp.concatenate([targets, jnp.zeros((inputs.shape[1], targets.shape[1]), dtype=targets.dtype)])
        weights = (jnp.linalg.pinv(rows) @ padded).T
        value = weights @ problem.query_input
        context = inputs @ weights.T
        return Prediction(
            value, jnp.stack([jnp.zeros_like(value), value]), jnp.stack([jnp.zeros_like(context), context])
        )


def bayes_optimal(task: LinearRegression) -> Ridge:
    """The Bayes-optimal learner of a linear-regression task: ridge with penalty (noise_std / target_scale)^2."""
    return Ridge((task.noise_std / task.target_scale) ** 2)
