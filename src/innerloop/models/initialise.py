"""The published code's initialisation of a stack.

Every matrix is drawn from a truncated normal of variance ``scale / num_layers / fan_in`` (section 3 of the recipe: the
variance scale is .002 / K, although the text calls it a standard deviation). Keys derive from names, so that adding a
part does not reshuffle the others.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from innerloop.keys import named_key
from innerloop.models.attention import AttentionWeights
from innerloop.models.stack import StackConfig, StackWeights


def initialise(
    config: StackConfig, token_size: int, key: Key[Array, ""], *, scale: float = 0.002, dtype=jnp.float32
) -> StackWeights:
    """Draws weights.

    Args:
        config: the architecture.
        token_size: width of a token.
        key: random key.
        scale: variance scale before the division by the number of layers.
        dtype: of the weights.

    Returns:
        Weights whose leading axis has ``config.num_distinct_layers`` entries.
    """
    layers, heads = config.num_distinct_layers, config.num_heads
    key_size = token_size if config.key_size is None else config.key_size

    def draw(name: str, shape: tuple[int, int], variance_scale: float) -> Array:
        initialiser = jax.nn.initializers.variance_scaling(
            variance_scale / config.num_layers, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2, batch_axis=(0, 1)
        )
        return initialiser(named_key(key, name), (layers, heads, *shape), dtype)

    attention = AttentionWeights(
        W_K=draw("W_K", (key_size, token_size), scale),
        W_Q=draw("W_Q", (key_size, token_size), scale),
        W_V=draw("W_V", (key_size, token_size), scale),
        # One projection reads the values of all heads together, so its fan-in is heads * key_size.
        P=draw("P", (token_size, key_size), scale / heads),
    )
    return StackWeights(attention)
