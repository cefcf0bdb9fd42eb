"""Positional codes: what tells a token's place in the sequence, and how a token holds it.

- *sinusoidal*: entry 2i of position t (from 0) is sin(t / 10000^(2i / width)), entry 2i + 1 the cosine.
- *one-hot*: entry t of position t is 1.
- *learned*: one trained vector per position (`innerloop.models.EmbeddingWeights.codes`).

    >>> Positions("one-hot").fixed_codes(3, content_size=2).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
"""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.checks import one_of, positive_int

PositionKind = Literal["sinusoidal", "one-hot", "learned"]
Placement = Literal["concatenated", "added"]

_LONGEST_WAVE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Positions:
    """Positional codes of alternating tokens."""

    kind: PositionKind = "sinusoidal"
    """Fixed waves, fixed one-hot vectors, or vectors that are trained."""
    width: int | None = None
    """Entries of a code; None means as many as the content has or, one-hot, as there are tokens."""
    placement: Placement = "concatenated"
    """After the content, or added to it (the narrower of both is padded with zeros at its end)."""
    permuted: bool = False
    """Shuffle the context's codes anew for every task, which hides what stands where: a control."""

    def __post_init__(self):
        one_of("positions.kind", self.kind, get_args(PositionKind))
        one_of("positions.placement", self.placement, get_args(Placement))
        if self.width is not None:
            positive_int("positions.width", self.width)

    def code_size(self, num_tokens: int, content_size: int) -> int:
        """Entries of a code.

        Raises:
            ValueError: if one-hot codes have fewer entries than there are tokens.
        """
        width = (num_tokens if self.kind == "one-hot" else content_size) if self.width is None else self.width
        if self.kind == "one-hot" and width < num_tokens:
            raise ValueError(
                f"positions.width must be at least the number of tokens, {num_tokens}, for one-hot codes, got {width}; "
                "leave it at None"
            )
        return width

    def token_size(self, num_tokens: int, content_size: int) -> int:
        """Entries of a token that holds content and code."""
        width = self.code_size(num_tokens, content_size)
        return content_size + width if self.placement == "concatenated" else max(content_size, width)

    def fixed_codes(self, num_tokens: int, content_size: int) -> Float[np.ndarray, "tokens code_size"]:
        """The code of every position; of learned ones, the one-hot vector that looks the code up.

        Args:
            num_tokens: length of the sequence.
            content_size: entries of a token's content.
        """
        if self.kind == "learned":
            return np.eye(num_tokens)
        width = self.code_size(num_tokens, content_size)
        if self.kind == "one-hot":
            return np.eye(num_tokens, width)
        angles = np.arange(num_tokens)[:, None] * _LONGEST_WAVE ** (-np.arange(0, width, 2) / width)
        return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(num_tokens, -1)[:, :width]


def place(
    placement: Placement, content: Float[Array, "*tokens content_size"], codes: Float[Array, "*tokens code_size"]
) -> Float[Array, "*tokens token_size"]:
    """Tokens that hold content and code."""
    if placement == "concatenated":
        return jnp.concatenate([content, codes], axis=-1)
    width = max(content.shape[-1], codes.shape[-1])

    def padded(entries):
        return jnp.pad(entries, [(0, 0)] * (entries.ndim - 1) + [(0, width - entries.shape[-1])])

    return padded(content) + padded(codes)
