"""The training loss of a whole batch for any stack, in JAX: softmax, MLPs, LayerNorm, masks, embeddings.

Same mathematics as `innerloop.models.run_stack` under ``vmap``, tasks first and tokens as rows. Attention goes through
the products W_KQ and W_PV, layers that are built alike are one loop, and the last layer moves the query alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import (
    Products,
    StackConfig,
    StackWeights,
    attention_of_scores,
    embed,
    layer_norm,
    layer_segments,
    mlp,
    products,
)


def general_stack_entries(
    config: StackConfig,
    weights: StackWeights,
    tokens: Float[Array, "token_size tokens batch"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """Target entries of the query token after the last layer; arguments as for `query_target_entries`."""
    rows = embed(weights.embedding, jnp.moveaxis(tokens, -1, 0).mT)  # (batch, tokens, width)
    layers = weights.layers(), products(weights)
    shared = jax.tree.map(lambda leaf: leaf[0], layers)
    for segment in layer_segments(config):
        is_last = segment.layers.stop == config.num_layers
        in_loop = segment.layers[:-1] if is_last else segment.layers

        def body(rows, own, normalises=segment.normalises, kind=segment.kind):
            weights, reduced = shared if own is None else own
            return _layer(config, kind, normalises, weights, reduced, rows, rows.shape[1], num_targets), None

        own = None if config.tied else jax.tree.map(lambda leaf: leaf[in_loop.start : in_loop.stop], layers)  # noqa: B023
        rows, _ = jax.lax.scan(body, rows, own, length=len(in_loop))
    last = layer_segments(config)[-1]
    own_weights, own_products = shared if config.tied else jax.tree.map(lambda leaf: leaf[-1], layers)
    query = _layer(config, last.kind, last.normalises, own_weights, own_products, rows, 1, num_targets)
    return query[:, 0, -num_targets:].T


def _layer(
    config: StackConfig,
    kind,
    normalises: bool,
    weights: StackWeights,
    reduced: Products,
    tokens: Float[Array, "batch tokens width"],
    num_moved: int,
    num_targets: int,
) -> Float[Array, "batch moved width"]:
    """The last ``num_moved`` tokens of every task after one layer: all, or the query alone."""
    read = tokens
    if normalises:
        assert weights.attention_norm is not None
        read = layer_norm(weights.attention_norm, tokens)
    keys = read[:, : config.num_keys(tokens.shape[1])]
    queried = jnp.einsum("bte,hde->bhtd", read[:, -num_moved:], reduced.W_KQ)
    causal = config.causal and num_moved > 1  # the query comes last and sees all
    if kind == "linear" and not causal and _gram_is_cheaper(queried.shape, keys.shape[1]):
        gathered = jnp.einsum("bhtd,bde->bhte", queried, keys.mT @ keys)
    else:
        attention = attention_of_scores(
            kind,
            jnp.einsum("bhtd,bnd->bhtn", queried, keys),
            key_size=weights.attention.W_K.shape[-2],
            causal=causal,
            mixing=weights.attention.mixing,
        )
        gathered = jnp.einsum("bhtn,bnd->bhtd", attention, keys)
    moved = _move(config, tokens[:, -num_moved:], jnp.einsum("bhtd,hed->bte", gathered, reduced.W_PV), num_targets)
    if weights.mlp is not None:
        read = moved if weights.mlp_norm is None else layer_norm(weights.mlp_norm, moved)
        moved = _move(config, moved, mlp(weights.mlp, read), num_targets)
    return moved


def _gram_is_cheaper(queried: tuple[int, ...], num_keys: int) -> bool:
    """Whether linear attention costs less through S, which all heads share, than through their scores."""
    _, heads, moved, width = queried
    return num_keys * width**2 + heads * moved * width**2 < 2 * heads * moved * num_keys * width


def _move(config: StackConfig, tokens, update, num_targets: int):
    """Adds an update to the residual stream."""
    if config.update == "targets":
        update = update.at[..., :-num_targets].set(0.0)
    tokens = tokens + config.damping * update
    return tokens if config.token_clip is None else jnp.clip(tokens, -config.token_clip, config.token_clip)
