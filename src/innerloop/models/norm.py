"""LayerNorm (Ba et al. 2016): every token is centred, divided by its standard deviation, scaled and shifted.

The variance is the mean of squares over a token's entries; 1e-5 is added to it, as in the published code.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPSILON = 1e-5


class LayerNormWeights(eqx.Module):
    """Weights of LayerNorm, with a leading axis of distinct layers.

    Attributes:
        scale: factor per entry, ones at first.
        offset: added per entry, zeros at first.
    """

    scale: Float[Array, "*layers token_size"]
    offset: Float[Array, "*layers token_size"]


def layer_norm(
    weights: LayerNormWeights, tokens: Float[Array, "*tokens token_size"]
) -> Float[Array, "*tokens token_size"]:
    """Normalised tokens."""
    centred = tokens - jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return weights.scale * (centred * jax.lax.rsqrt(variance + _EPSILON)) + weights.offset
