"""Tokens that take turns: x_1, y_1, x_2, y_2, .., x_N, y_N, x_q, each with a code of its position (Fig 5, A.5).

Nothing but the codes says which y belongs to which x; bringing them together is left to attention. A token's content
has as many entries as the larger of x and y needs: (x) or (0, .., 0, y). With ``separate_slots`` both have room of
their own, (x, 0) and (0, y), which the construction of Proposition 3 needs.

Predictions are read where the published code reads them: minus the last entries of the whole token. Where codes are
concatenated, these belong to the code. With the published sinusoidal code the entry starts near 1, so an untrained
stack predicts about -1, with a loss of (E y^2 + 1) / 2 = .92, and has to learn to cancel that first.

    >>> import jax.numpy as jnp
    >>> problem = Problem(jnp.ones((3, 2)), jnp.full((3, 1), 5.0), jnp.ones(2))
    >>> AlternatingTokens().content(problem)[:2].tolist()
    [[1.0, 1.0], [0.0, 5.0]]
    >>> AlternatingTokens().encode(problem).shape
    (7, 4)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from innerloop.problem import Problem
from innerloop.tasks import Batch
from innerloop.tokens.positions import Positions, place


class AlternatingTokens(eqx.Module):
    """Inputs and targets in tokens of their own, the query last.

    Attributes:
        positions: the positional codes. Learned ones belong to the weights; tokens then end with a one-hot vector per
            position in their place, and `innerloop.models.embed` puts the codes there.
        separate_slots: give x and y different entries of the content.
    """

    positions: Positions = eqx.field(default=Positions(), static=True)
    separate_slots: bool = eqx.field(default=False, static=True)

    def content_size(self, input_size: int, output_size: int) -> int:
        """Entries of a token without its code."""
        return input_size + output_size if self.separate_slots else max(input_size, output_size)

    def shape(self, *, input_size: int, output_size: int, context_length: int) -> tuple[int, int]:
        """How many tokens a problem has, and the size of each once it holds its code, learned or not."""
        num_tokens = 2 * context_length + 1
        return num_tokens, self.positions.token_size(num_tokens, self.content_size(input_size, output_size))

    def content(self, problem: Problem) -> Float[Array, "tokens content_size"]:
        """The tokens without codes: x at the start of its token, y at the end of its."""
        (context_length, input_size), output_size = problem.context_inputs.shape, problem.context_targets.shape[-1]
        size = self.content_size(input_size, output_size)
        inputs = jnp.concatenate([problem.context_inputs, problem.query_input[None]])
        inputs = jnp.pad(inputs, ((0, 0), (0, size - input_size)))
        targets = jnp.pad(problem.context_targets, ((0, 0), (size - output_size, 0)))
        pairs = jnp.stack([inputs[:-1], targets], axis=1)  # (context, 2, content_size)
        return jnp.concatenate([pairs.reshape(2 * context_length, size), inputs[-1:]])

    def encode(self, problem: Problem) -> Float[Array, "tokens token_size"]:
        """All tokens with their codes, the query last."""
        content = self.content(problem)
        codes = jnp.asarray(self.positions.fixed_codes(*content.shape), dtype=content.dtype)
        if self.positions.permuted:
            codes = jnp.concatenate([codes[_context_places(problem)], codes[-1:]])
        # A learned code's look-up vector has to stay apart from the content until the code is there.
        return place("concatenated" if self.positions.kind == "learned" else self.positions.placement, content, codes)

    def encode_batch(self, batch: Batch) -> Float[Array, "token_size tokens batch"]:
        """The same tokens for a batch, in the layout of the training kernels: features first, tasks last."""
        return jax.vmap(self.encode, out_axes=-1)(batch.samples().problem).swapaxes(0, 1)

    def query_prediction(
        self, tokens: Float[Array, "*layers tokens token_size"], problem: Problem
    ) -> Float[Array, "*layers output_size"]:
        """Minus the last entries of the query token, whatever they hold."""
        return -tokens[..., -1, tokens.shape[-1] - problem.context_targets.shape[-1] :]

    def context_prediction(self, tokens: Float[Array, "*layers tokens token_size"], problem: Problem) -> None:
        """None: no entry of these tokens is known to hold what is left of a context target."""
        return


def _context_places(problem: Problem) -> Int[Array, " context_tokens"]:
    """A permutation of the context's positions that looks random, and is the same whenever the problem is.

    The key of its random words is made of the bits of two context inputs, so neither a problem nor a task's draw has to
    carry a key: the streams of all other random numbers stay as they are, and training, evaluation and the learner
    agree by themselves.
    """
    ends = jnp.stack([problem.context_inputs[0, 0], problem.context_inputs[-1, 0]]).astype(jnp.float32)
    words = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(ends), jnp.uint32)
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    return _ranks(jax.random.bits(key, (2 * len(problem.context_inputs),), jnp.uint32))


def _ranks(words: UInt32[Array, " n"]) -> Int[Array, " n"]:
    """The place of every word in their order, equal ones in turn; XLA's sort takes ten times as long on CPUs."""
    tokens = jnp.arange(len(words))
    precedes = (words[:, None] < words) | ((words[:, None] == words) & (tokens[:, None] < tokens))
    return jnp.sum(precedes, axis=0)
