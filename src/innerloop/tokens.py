"""How a problem becomes tokens, and how a prediction is read off them.

Concatenated tokens (paper, section 2): e_j = (x_j, y_j) for the context and (x_q, -W0 x_q) for the query, with W0 the
initial weights of the regression (zero by default). A layer that performs gradient descent moves the target entries:
y_j becomes y_j - (W - W0) x_j and the query's entry becomes -W x_q, so predictions are read off with a minus sign.

    >>> import jax.numpy as jnp
    >>> problem = Problem(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.ones(2))
    >>> ConcatenatedTokens().encode(problem).shape
    (4, 3)

Tokens that alternate x and y, with positional codes, are a second class of this file's kind: encode, then read out.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.problem import Problem
from innerloop.tasks import Batch


class ConcatenatedTokens(eqx.Module):
    """Tokens (x, y), the query last, with its target entries set to the initial prediction.

    Attributes:
        initial_weights: W0; None means zero.
    """

    initial_weights: Float[Array, "output_size input_size"] | None = None

    def encode(self, problem: Problem) -> Float[Array, "tokens token_size"]:
        """Tokens (x_1, y_1) .. (x_N, y_N), (x_q, -W0 x_q)."""
        context = jnp.concatenate([problem.context_inputs, problem.context_targets], axis=-1)
        query = jnp.concatenate([problem.query_input, -self._initial(problem.query_input, problem)])
        return jnp.concatenate([context, query[None]])

    def encode_batch(self, batch: Batch) -> Float[Array, "token_size tokens batch"]:
        """The same tokens for a batch, in the layout of the training kernels: features first, tasks last."""
        query_input = batch.inputs[:, -1]  # (input_size, batch)
        if self.initial_weights is None:
            query_entry = jnp.zeros_like(batch.targets[:, -1])
        else:
            query_entry = -self.initial_weights @ query_input
        targets = jnp.concatenate([batch.targets[:, :-1], query_entry[:, None]], axis=1)
        return jnp.concatenate([batch.inputs, targets])

    def query_prediction(
        self, tokens: Float[Array, "*layers tokens token_size"], problem: Problem
    ) -> Float[Array, "*layers output_size"]:
        """Minus the target entries of the query token."""
        return -tokens[..., -1, problem.query_input.shape[0] :]

    def context_prediction(
        self, tokens: Float[Array, "*layers tokens token_size"], problem: Problem
    ) -> Float[Array, "*layers context output_size"]:
        """What the tokens say of the context's targets: W0 x_j + y_j minus the token's target entries."""
        moved = tokens[..., :-1, problem.query_input.shape[0] :]
        return self._initial(problem.context_inputs, problem) + problem.context_targets - moved

    def _initial(
        self, inputs: Float[Array, "*shape input_size"], problem: Problem
    ) -> Float[Array, "*shape output_size"]:
        if self.initial_weights is None:
            return jnp.zeros((*inputs.shape[:-1], problem.context_targets.shape[-1]), dtype=inputs.dtype)
        return inputs @ self.initial_weights.T
