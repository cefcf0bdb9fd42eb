"""The trivial predictor: zero whatever the context, the prior mean. Nothing that learns may be worse."""

import equinox as eqx
import jax.numpy as jnp

from innerloop.problem import Prediction, Problem


class Trivial(eqx.Module):
    """A learner that predicts zero.

    Example:
        >>> float(Trivial()(Problem(jnp.eye(2), jnp.ones((2, 1)), jnp.ones(2))).value[0])
        0.0
    """

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts zero for the query and the context."""
        targets = problem.context_targets
        return Prediction(jnp.zeros_like(targets[0]), jnp.zeros_like(targets[:1]), jnp.zeros_like(targets)[None])
