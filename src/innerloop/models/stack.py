"""The stack: an embedding, then layers of attention on a residual stream, tied or untied, with optional parts.

Per layer, tokens move by

    E <- clip(E + damping * attention_update(norm(E)))
    E <- clip(E + damping * mlp(norm(E)))                  where blocks have an MLP

`StackConfig` is the architecture, `StackWeights` its parameters; the same weights can run under another configuration,
which is how a trained layer is applied fifty times:

    >>> import dataclasses
    >>> config = StackConfig()
    >>> dataclasses.replace(config, num_layers=50, damping=0.75, update="targets").num_layers
    50
"""

import dataclasses
import itertools
from functools import partial
from operator import itemgetter
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import finite_number, one_of, positive_int
from innerloop.models.attention import (
    AttentionKind,
    AttentionWeights,
    attention_of_scores,
    attention_scores,
    attention_update,
)
from innerloop.models.embedding import EmbeddingWeights, embed
from innerloop.models.mlp import MLPWeights, mlp
from innerloop.models.norm import LayerNormWeights, layer_norm

Update = Literal["all", "targets"]
MLPPlace = Literal["none", "input", "block"]
LayerNormPlace = Literal["none", "before", "between"]


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Architecture of the stack."""

    num_layers: int = 1
    """Number of layers K."""
    tied: bool = True
    """Share one layer's weights among all layers (the paper's recurrent transformer)."""
    num_heads: int = 1
    """Attention heads per layer."""
    key_size: int | None = None
    """Width of keys, queries and values of each head; None means the token's width after embedding."""
    attention: tuple[AttentionKind, ...] = ("linear",)
    """Kind of attention: one for all layers, or one per layer."""
    causal: bool = False
    """Let a token attend to itself and tokens before it only."""
    query_in_keys: bool = False
    """Let the query token be a key and value too (the paper's default leaves it out)."""
    embedding_size: int | None = None
    """Width of a linear embedding of the tokens, without bias; None means no embedding."""
    mlp: MLPPlace = "none"
    """A residual MLP: on the (embedded) tokens before the first layer, or in every block after attention."""
    mlp_widening: int = 4
    """Hidden units of a new MLP per entry of a token."""
    mlp_bias: bool = True
    """Give a new MLP biases."""
    layer_norm: LayerNormPlace = "none"
    """LayerNorm before every attention and block MLP, or before all of them but the first attention (between)."""
    damping: float = 1.0
    """Factor on every update of attention and block MLPs."""
    update: Update = "all"
    """Which entries of a token a layer may change: all of them, or only the targets."""
    token_clip: float | None = None
    """Clip every token entry to plus or minus this after each update; None means no clip."""

    def __post_init__(self):
        positive_int("model.num_layers", self.num_layers)
        positive_int("model.num_heads", self.num_heads)
        for name in ("key_size", "embedding_size"):
            if getattr(self, name) is not None:
                positive_int(f"model.{name}", getattr(self, name))
        if len(self.attention) not in (1, self.num_layers):
            raise ValueError(
                f"model.attention must have one kind, or one per layer (num_layers={self.num_layers}), "
                f"got {len(self.attention)}: {self.attention!r}"
            )
        for kind in self.attention:
            one_of("model.attention", kind, get_args(AttentionKind))
        one_of("model.mlp", self.mlp, get_args(MLPPlace))
        positive_int("model.mlp_widening", self.mlp_widening)
        one_of("model.layer_norm", self.layer_norm, get_args(LayerNormPlace))
        finite_number("model.damping", self.damping)
        one_of("model.update", self.update, get_args(Update))
        if self.token_clip is not None:
            finite_number("model.token_clip", self.token_clip, above=0.0)

    @property
    def num_distinct_layers(self) -> int:
        """Layers with weights of their own: 1 when tied."""
        return 1 if self.tied else self.num_layers

    @property
    def is_linear(self) -> bool:
        """Whether the stack is linear attention alone, on the tokens as they are: what Gram forms and proofs need."""
        return (
            set(self.attention) == {"linear"}
            and not self.causal
            and self.embedding_size is None
            and self.mlp == "none"
            and self.layer_norm == "none"
        )

    def attention_kind(self, layer: int) -> AttentionKind:
        """The kind of attention of a layer, counted from 0."""
        return self.attention[0 if len(self.attention) == 1 else layer]

    def normalises_attention(self, layer: int) -> bool:
        """Whether LayerNorm comes before the attention of a layer, counted from 0."""
        return self.layer_norm == "before" or (self.layer_norm == "between" and layer > 0)

    def num_keys(self, num_tokens: int) -> int:
        """How many tokens are keys and values: all but the query, or all."""
        return num_tokens if self.query_in_keys else num_tokens - 1


class StackWeights(eqx.Module):
    """All trainable parameters of a stack. All but the embedding have a leading axis of distinct layers.

    Attributes:
        attention: weights of the attention layers.
        mlp: of the block MLPs; None without them.
        attention_norm: of LayerNorm before attention; None without it.
        mlp_norm: of LayerNorm before the block MLPs; None without it.
        embedding: of what happens before the first layer; None where nothing does.
    """

    attention: AttentionWeights
    mlp: MLPWeights | None = None
    attention_norm: LayerNormWeights | None = None
    mlp_norm: LayerNormWeights | None = None
    embedding: EmbeddingWeights | None = None

    def layers(self) -> "StackWeights":
        """The weights that have a layer axis: without the embedding."""
        return dataclasses.replace(self, embedding=None)


class StackTrace(eqx.Module):
    """What a stack did to its tokens.

    Attributes:
        tokens: the (embedded) tokens before the first and after every layer.
        attention: every layer's attention.
    """

    tokens: Float[Array, "layers_plus_1 tokens token_size"]
    attention: Float[Array, "layers heads tokens keys"]


class LayerSegment(NamedTuple):
    """Consecutive layers that are built alike.

    Attributes:
        layers: which, counted from 0.
        kind: of their attention.
        normalises: whether LayerNorm comes before their attention.
    """

    layers: range
    kind: AttentionKind
    normalises: bool


def layer_segments(config: StackConfig) -> list[LayerSegment]:
    """The stack as runs of layers that are built alike, each of which one loop can go through."""

    def build(layer: int):
        return config.attention_kind(layer), config.normalises_attention(layer)

    segments = []
    for (kind, normalises), group in itertools.groupby(range(config.num_layers), build):
        layers = list(group)
        segments.append(LayerSegment(range(layers[0], layers[-1] + 1), kind, normalises))
    return segments


def run_stack(
    config: StackConfig,
    weights: StackWeights,
    tokens: Float[Array, "tokens token_size"],
    *,
    num_targets: int,
) -> StackTrace:
    """Runs the tokens through the embedding and all layers.

    Args:
        config: the architecture.
        weights: parameters, with ``config.num_distinct_layers`` along their leading axis.
        tokens: e_1..e_N and the query token last.
        num_targets: how many entries at a token's end are targets (for ``update="targets"``).

    Raises:
        ValueError: if the weights do not fit the configuration.
    """
    _check_fit(config, weights)
    tokens = embed(weights.embedding, tokens)
    num_keys = config.num_keys(tokens.shape[0])
    first_updated = tokens.shape[-1] - num_targets if config.update == "targets" else 0
    is_updated = jnp.arange(tokens.shape[-1]) >= first_updated

    def moved(tokens, update):
        tokens = tokens + config.damping * jnp.where(is_updated, update, jnp.zeros_like(update))
        if config.token_clip is not None:
            tokens = jnp.clip(tokens, -config.token_clip, config.token_clip)
        return tokens

    layers = weights.layers()
    shared = jax.tree.map(itemgetter(0), layers)

    def layer(segment: LayerSegment, tokens, untied: StackWeights | None):
        own = shared if untied is None else untied
        read = tokens
        if segment.normalises:
            assert own.attention_norm is not None
            read = layer_norm(own.attention_norm, tokens)
        attention = attention_of_scores(
            segment.kind,
            attention_scores(own.attention, read, num_keys),
            key_size=own.attention.W_K.shape[-2],
            causal=config.causal,
            mixing=own.attention.mixing,
        )
        tokens = moved(tokens, attention_update(own.attention, read, attention))
        if own.mlp is not None:
            read = tokens if own.mlp_norm is None else layer_norm(own.mlp_norm, tokens)
            tokens = moved(tokens, mlp(own.mlp, read))
        return tokens, (tokens, attention)

    all_tokens, all_attention = [tokens[None]], []
    for segment in layer_segments(config):
        own = jax.tree.map(itemgetter(slice(segment.layers.start, segment.layers.stop)), layers)
        tokens, (passed, attention) = jax.lax.scan(
            partial(layer, segment),
            tokens,
            None if config.tied else own,
            length=len(segment.layers),
        )
        all_tokens.append(passed)
        all_attention.append(attention)
    return StackTrace(jnp.concatenate(all_tokens), jnp.concatenate(all_attention))


def _check_fit(config: StackConfig, weights: StackWeights) -> None:
    stored = weights.attention.W_K.shape[0]
    if stored != config.num_distinct_layers:
        raise ValueError(
            f"weights hold {stored} layer(s) but the configuration needs {config.num_distinct_layers} "
            f"(num_layers={config.num_layers}, tied={config.tied}); change one of them"
        )
    has_input_mlp = weights.embedding is not None and weights.embedding.mlp is not None
    has_embedding = weights.embedding is not None and weights.embedding.W_E is not None
    parts = {
        "embedding_size": (config.embedding_size is not None, has_embedding),
        'mlp="input"': (config.mlp == "input", has_input_mlp),
        'mlp="block"': (config.mlp == "block", weights.mlp is not None),
        "layer_norm": (config.layer_norm != "none", weights.attention_norm is not None),
        'attention="mixed"': ("mixed" in config.attention, weights.attention.mixing is not None),
    }
    for name, (is_asked, is_there) in parts.items():
        if is_asked != is_there:
            raise ValueError(
                f"model.{name} is {'set' if is_asked else 'not set'} but the weights "
                f"{'have' if is_there else 'lack'} that part; use weights and configuration that belong together"
            )
