"""A transformer as a learner: tokeniser, stack, read-out.

Trained transformers and constructions are this one class with different weights:

    >>> import jax
    >>> from innerloop.models import StackConfig, initialise
    >>> config = StackConfig(num_layers=2)
    >>> transformer = Transformer(config, initialise(config, token_size=11, key=jax.random.key(0)))
"""

import equinox as eqx
from jaxtyping import Array, Float

from innerloop.models.stack import StackConfig, StackTrace, StackWeights, run_stack
from innerloop.problem import Prediction, Problem
from innerloop.tokens import ConcatenatedTokens, Tokens


class Transformer(eqx.Module):
    """A stack of attention layers that reads a problem as tokens and predicts the query's target.

    Attributes:
        config: the architecture.
        weights: the parameters.
        tokens: the tokeniser, which also reads predictions off the tokens.
    """

    config: StackConfig = eqx.field(static=True)
    weights: StackWeights
    tokens: Tokens = ConcatenatedTokens()

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts the query's target, with the trajectory over layers for query and context.

        Where tokens are embedded or alternate, nothing says which part of a context token is its target: no context
        trajectory then.
        """
        tokens = self.trace(problem).tokens
        trajectory = self.tokens.query_prediction(tokens, problem)
        has_targets = self.weights.embedding is None
        context = self.tokens.context_prediction(tokens, problem) if has_targets else None
        return Prediction(trajectory[-1], trajectory, context)

    def attention_maps(self, problem: Problem) -> Float[Array, "layers heads tokens keys"]:
        """Every layer's attention, rows for the reading token, columns for the token that is read."""
        return self.trace(problem).attention

    def trace(self, problem: Problem) -> StackTrace:
        """All tokens and attention maps on the way through the stack."""
        num_targets = problem.context_targets.shape[-1]
        return run_stack(self.config, self.weights, self.tokens.encode(problem), num_targets=num_targets)
