"""The published code's initialisation of a stack.

Every matrix is drawn from a truncated normal of variance ``scale / num_layers / fan_in`` (section 3 of the recipe: the
variance scale is .002 / K, although the text calls it a standard deviation). Biases and LayerNorm's offsets start at
zero, its scales at one. Learned positional codes, of which nothing is published, start with the mean square of
sinusoidal ones, 1/2. Keys derive from names, so that adding a part does not reshuffle the others.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from innerloop.keys import named_key
from innerloop.models.attention import AttentionWeights
from innerloop.models.embedding import EmbeddingWeights
from innerloop.models.mlp import MLPWeights
from innerloop.models.norm import LayerNormWeights
from innerloop.models.stack import StackConfig, StackWeights
from innerloop.tokens import Placement


def initialise(
    config: StackConfig,
    token_size: int,
    key: Key[Array, ""],
    *,
    scale: float = 0.002,
    dtype=jnp.float32,
    learned_codes: tuple[int, int] | None = None,
    placement: Placement = "concatenated",
) -> StackWeights:
    """Draws weights.

    Args:
        config: the architecture.
        token_size: width of a token, its positional code included.
        key: random key.
        scale: variance scale before the division by the number of layers.
        dtype: of the weights.
        learned_codes: number and size of learned positional codes; None means that there are none.
        placement: how tokens hold them.

    Returns:
        Weights whose leading axis has ``config.num_distinct_layers`` entries.
    """
    layers, heads = config.num_distinct_layers, config.num_heads
    width = token_size if config.embedding_size is None else config.embedding_size
    key_size = width if config.key_size is None else config.key_size

    def draw(name: str, shape: tuple[int, ...], *, of_fan_in: float = 1.0) -> Array:
        initialiser = jax.nn.initializers.variance_scaling(
            scale * of_fan_in / config.num_layers,
            "fan_in",
            "truncated_normal",
            in_axis=-1,
            out_axis=-2,
            batch_axis=tuple(range(len(shape) - 2)),
        )
        return initialiser(named_key(key, name), shape, dtype)

    def draw_mlp(name: str, *layers: int) -> MLPWeights:
        hidden = config.mlp_widening * width
        return MLPWeights(
            W_1=draw(f"{name}.W_1", (*layers, hidden, width)),
            W_2=draw(f"{name}.W_2", (*layers, width, hidden)),
            b_1=jnp.zeros((*layers, hidden), dtype) if config.mlp_bias else None,
            b_2=jnp.zeros((*layers, width), dtype) if config.mlp_bias else None,
        )

    def norm() -> LayerNormWeights:
        return LayerNormWeights(jnp.ones((layers, width), dtype), jnp.zeros((layers, width), dtype))

    attention = AttentionWeights(
        W_K=draw("W_K", (layers, heads, key_size, width)),
        W_Q=draw("W_Q", (layers, heads, key_size, width)),
        W_V=draw("W_V", (layers, heads, key_size, width)),
        # One projection reads the values of all heads together, so its fan-in is heads * key_size.
        P=draw("P", (layers, heads, width, key_size), of_fan_in=1 / heads),
        mixing=draw("mixing", (layers, 1, 1))[:, 0, 0] if "mixed" in config.attention else None,
    )
    embedding = None
    if config.embedding_size is not None or config.mlp == "input" or learned_codes is not None:
        codes = None
        if learned_codes is not None:
            codes = jax.random.normal(named_key(key, "codes"), learned_codes, dtype) / jnp.sqrt(jnp.asarray(2, dtype))
        embedding = EmbeddingWeights(
            W_E=None if config.embedding_size is None else draw("W_E", (width, token_size)),
            mlp=draw_mlp("input_mlp") if config.mlp == "input" else None,
            codes=codes,
            placement=placement,
        )
    has_norm = config.layer_norm != "none"
    return StackWeights(
        attention,
        mlp=draw_mlp("mlp", layers) if config.mlp == "block" else None,
        attention_norm=norm() if has_norm else None,
        mlp_norm=norm() if has_norm and config.mlp == "block" else None,
        embedding=embedding,
    )
