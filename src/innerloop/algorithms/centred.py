"""Any learner on centred inputs: the mean of the context's inputs is subtracted from each of them.

One step of gradient descent on centred inputs predicts c sum_j y_j (x_j - mean x) . x_q. Targets and query stay as they
are. That is what two heads of softmax attention do to first order (see `innerloop.analysis.heads`).

    >>> import jax.numpy as jnp
    >>> from innerloop.algorithms import GradientDescent
    >>> problem = Problem(jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [3.0]]), jnp.array([2.0]))
    >>> float(Centred(GradientDescent(2.0, 1))(problem).value[0])  # inputs -1 and 1: 2 / 2 * (-1 + 3) * 2
    4.0
"""

import equinox as eqx
import jax.numpy as jnp

from innerloop.problem import Learner, Prediction, Problem


class Centred(eqx.Module):
    """A learner that sees centred context inputs.

    Attributes:
        learner: what sees them.
    """

    learner: Learner

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts the query's target."""
        centred = problem.context_inputs - jnp.mean(problem.context_inputs, axis=0)
        return self.learner(Problem(centred, problem.context_targets, problem.query_input))
