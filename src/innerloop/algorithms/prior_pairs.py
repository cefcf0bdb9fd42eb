"""Any learner that sees fixed pairs beside the context: a prompt of constant tokens, or weight decay as data.

A pair (x, 0) says that the target at x is zero. Gradient descent on the context and the n_i pairs
(sqrt(N lambda) u_i, 0), u_i the unit vectors, has N lambda W as the pairs' part of its summed gradient: it is gradient
descent with weight decay lambda. Ridge regression in the same way is least squares with sqrt(penalty) u_i.

    >>> from innerloop.algorithms import GradientDescent
    >>> problem = Problem(jnp.eye(2), jnp.array([[2.0], [4.0]]), jnp.array([1.0, 1.0]))
    >>> learner = WithPriorPairs(GradientDescent(2.0, num_steps=2), jnp.eye(2), jnp.zeros((2, 1)))
    >>> float(learner(problem).value[0])  # four pairs, so eta / 4; decay 1/2 for each of the two pairs of the context
    3.0
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.problem import Learner, Prediction, Problem


class WithPriorPairs(eqx.Module):
    """A learner whose context is prolonged by the same pairs in every problem.

    Attributes:
        learner: what sees them; an algorithm that divides by the context's length counts them.
        inputs: of the pairs.
        targets: of the pairs.
    """

    learner: Learner
    inputs: Float[Array, "pairs input_size"]
    targets: Float[Array, "pairs output_size"]

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts the query's target; the context's trajectory is of the problem's own pairs."""
        inputs = jnp.concatenate([problem.context_inputs, self.inputs])
        targets = jnp.concatenate([problem.context_targets, self.targets])
        prediction = self.learner(Problem(inputs, targets, problem.query_input))
        if prediction.context_trajectory is None:
            return prediction
        own = prediction.context_trajectory[:, : problem.context_inputs.shape[0]]
        return Prediction(prediction.value, prediction.trajectory, own)
