"""The stack: layers of attention on a residual stream, tied or untied.

Per layer, tokens move by ``E <- clip(E + damping * update(E))``. `StackConfig` is the architecture, `StackWeights` its
parameters; the same weights can run under another configuration, which is how a trained layer is applied fifty times:

    >>> import dataclasses
    >>> config = StackConfig()
    >>> dataclasses.replace(config, num_layers=50, damping=0.75, update="targets").num_layers
    50
"""

import dataclasses
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import finite_number, one_of, positive_int
from innerloop.models.attention import AttentionWeights, attention_update, linear_map

Update = Literal["all", "targets"]


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Architecture of the attention stack."""

    num_layers: int = 1
    """Number of layers K."""
    tied: bool = True
    """Share one layer's weights among all layers (the paper's recurrent transformer)."""
    num_heads: int = 1
    """Attention heads per layer."""
    key_size: int | None = None
    """Width of keys, queries and values of each head; None means the token's width."""
    query_in_keys: bool = False
    """Let the query token be a key and value too (the paper's default leaves it out)."""
    damping: float = 1.0
    """Factor on every layer's update."""
    update: Update = "all"
    """Which entries of a token a layer may change: all of them, or only the targets."""
    token_clip: float | None = None
    """Clip every token entry to plus or minus this after each layer; None means no clip."""

    def __post_init__(self):
        positive_int("model.num_layers", self.num_layers)
        positive_int("model.num_heads", self.num_heads)
        if self.key_size is not None:
            positive_int("model.key_size", self.key_size)
        finite_number("model.damping", self.damping)
        one_of("model.update", self.update, get_args(Update))
        if self.token_clip is not None:
            finite_number("model.token_clip", self.token_clip, above=0.0)

    @property
    def num_distinct_layers(self) -> int:
        """Layers with weights of their own: 1 when tied."""
        return 1 if self.tied else self.num_layers


class StackWeights(eqx.Module):
    """All trainable parameters of a stack. Parts that come later (MLP, LayerNorm) are further fields here.

    Attributes:
        attention: weights of the attention layers.
    """

    attention: AttentionWeights


class StackTrace(eqx.Module):
    """What a stack did to its tokens.

    Attributes:
        tokens: the tokens before the first and after every layer.
        attention: every layer's attention.
    """

    tokens: Float[Array, "layers_plus_1 tokens token_size"]
    attention: Float[Array, "layers heads tokens keys"]


def run_stack(
    config: StackConfig,
    weights: StackWeights,
    tokens: Float[Array, "tokens token_size"],
    *,
    num_targets: int,
) -> StackTrace:
    """Runs the tokens through all layers.

    Args:
        config: the architecture.
        weights: parameters, with ``config.num_distinct_layers`` along their leading axis.
        tokens: e_1..e_N and the query token last.
        num_targets: how many entries at a token's end are targets (for ``update="targets"``).

    Raises:
        ValueError: if the weights' number of layers does not fit the configuration.
    """
    stored = weights.attention.W_K.shape[0]
    if stored != config.num_distinct_layers:
        raise ValueError(
            f"weights hold {stored} layer(s) but the configuration needs {config.num_distinct_layers} "
            f"(num_layers={config.num_layers}, tied={config.tied}); change one of them"
        )
    num_tokens, token_size = tokens.shape
    num_keys = num_tokens if config.query_in_keys else num_tokens - 1
    is_updated = jnp.arange(token_size) >= (token_size - num_targets if config.update == "targets" else 0)

    shared = jax.tree.map(lambda leaf: leaf[0], weights)

    def layer(tokens, own: StackWeights | None):
        layer_weights = shared if own is None else own
        attention = linear_map(layer_weights.attention, tokens, num_keys)
        update = attention_update(layer_weights.attention, tokens, attention)
        tokens = tokens + config.damping * jnp.where(is_updated, update, jnp.zeros_like(update))
        if config.token_clip is not None:
            tokens = jnp.clip(tokens, -config.token_clip, config.token_clip)
        return tokens, (tokens, attention)

    _, (moved, attention) = jax.lax.scan(layer, tokens, None if config.tied else weights, length=config.num_layers)
    return StackTrace(jnp.concatenate([tokens[None], moved]), attention)
