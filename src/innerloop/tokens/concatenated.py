"""A token per pair, as the paper has it nearly everywhere.

Concatenated tokens (paper, section 2): e_j = (x_j, y_j) for the context and (x_q, -W0 x_q) for the query, with W0 the
initial weights of the regression (zero by default). A layer that performs gradient descent moves the target entries:
y_j becomes y_j - (W - W0) x_j and the query's entry becomes -W x_q, so predictions are read off with a minus sign.

    >>> import jax.numpy as jnp
    >>> problem = Problem(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.ones(2))
    >>> ConcatenatedTokens().encode(problem).shape
    (4, 3)
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
        targets_hold_residuals: context tokens are (x_j, y_j - W0 x_j) in place of (x_j, y_j), for a stack that carries
            residuals along (see `innerloop.algorithms.GradientDescentPlusPlus`). The same for W0 = 0.
    """

    initial_weights: Float[Array, "output_size input_size"] | None = None
    targets_hold_residuals: bool = eqx.field(default=False, static=True)

    def shape(self, *, input_size: int, output_size: int, context_length: int) -> tuple[int, int]:
        """How many tokens a problem has, and the size of each."""
        return context_length + 1, input_size + output_size

    def encode(self, problem: Problem) -> Float[Array, "tokens token_size"]:
        """Tokens (x_1, y_1) .. (x_N, y_N), (x_q, -W0 x_q)."""
        targets = problem.context_targets - self._left_out(problem.context_inputs, problem)
        context = jnp.concatenate([problem.context_inputs, targets], axis=-1)
        query = jnp.concatenate([problem.query_input, -self._initial(problem.query_input, problem)])
        return jnp.concatenate([context, query[None]])

    def encode_batch(self, batch: Batch) -> Float[Array, "token_size tokens batch"]:
        """The same tokens for a batch, in the layout of the training kernels: features first, tasks last."""
        context_targets = batch.targets[:, :-1]  # (output_size, context, batch)
        if self.initial_weights is None:
            query_entry = jnp.zeros_like(batch.targets[:, -1])
        else:
            query_entry = -self.initial_weights @ batch.inputs[:, -1]
            if self.targets_hold_residuals:
                guesses = jnp.einsum("oi,inb->onb", self.initial_weights, batch.inputs[:, :-1])
                context_targets = context_targets - guesses
        targets = jnp.concatenate([context_targets, query_entry[:, None]], axis=1)
        return jnp.concatenate([batch.inputs, targets])

    def query_prediction(
        self, tokens: Float[Array, "*layers tokens token_size"], problem: Problem
    ) -> Float[Array, "*layers output_size"]:
        """Minus the target entries of the query token, which are its last ones, embedded or not."""
        return -tokens[..., -1, tokens.shape[-1] - problem.context_targets.shape[-1] :]

    def context_prediction(
        self, tokens: Float[Array, "*layers tokens token_size"], problem: Problem
    ) -> Float[Array, "*layers context output_size"]:
        """What the tokens say of the context's targets: W0 x_j plus what has been taken off their target entries."""
        moved = tokens[..., :-1, problem.query_input.shape[0] :]
        initial = self._initial(problem.context_inputs, problem)
        return initial + problem.context_targets - self._left_out(problem.context_inputs, problem) - moved

    def _left_out(
        self, inputs: Float[Array, "context input_size"], problem: Problem
    ) -> Float[Array, "context output_size"] | float:
        """The part of the context's targets that its tokens do not hold."""
        return self._initial(inputs, problem) if self.targets_hold_residuals else 0.0

    def _initial(
        self, inputs: Float[Array, "*shape input_size"], problem: Problem
    ) -> Float[Array, "*shape output_size"]:
        if self.initial_weights is None:
            return jnp.zeros((*inputs.shape[:-1], problem.context_targets.shape[-1]), dtype=inputs.dtype)
        return inputs @ self.initial_weights.T
