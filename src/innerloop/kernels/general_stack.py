"""The training loss of a whole batch for any stack, in JAX: softmax, MLPs, LayerNorm, masks, embeddings.

Same mathematics as `innerloop.models.run_stack` under ``vmap``, tasks first and tokens as rows. Attention goes through
the products W_KQ and W_PV, layers that are built alike are one loop, and the last layer moves the query alone. Where it
is linear, and nothing but attention is below it, the layer before moves the query alone, too. Of what an MLP in the
last block adds, only the target entries are formed.
"""

from operator import itemgetter

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import (
    MLPWeights,
    Products,
    StackConfig,
    StackWeights,
    attention_of_scores,
    embed,
    hidden_units,
    layer_norm,
    layer_segments,
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
    num_passed = config.num_layers - (2 if ends_in_dot_products(config) else 1)
    for segment in layer_segments(config):
        in_loop = range(segment.layers.start, min(segment.layers.stop, num_passed))
        if not in_loop:
            continue

        def body(rows, own, normalises=segment.normalises, kind=segment.kind):
            weights, reduced = shared if own is None else own
            rows = _attention_layer(config, kind, normalises, weights, reduced, rows, rows.shape[1], num_targets)
            return _mlp_layer(config, weights, rows, rows.shape[-1], num_targets), None

        own = None if config.tied else jax.tree.map(itemgetter(slice(in_loop.start, in_loop.stop)), layers)
        rows, _ = jax.lax.scan(body, rows, own, length=len(in_loop))

    def weights_of(layer: int):
        return shared if config.tied else jax.tree.map(lambda leaf: leaf[layer], layers)

    last = config.num_layers - 1
    if num_passed < last:
        return _two_layers_by_dot_products(config, weights_of(last - 1), weights_of(last)[1], rows, num_targets)
    kind, normalises = config.attention_kind(last), config.normalises_attention(last)
    own_weights, own_products = weights_of(last)
    query = _attention_layer(config, kind, normalises, own_weights, own_products, rows, 1, num_targets)
    return _mlp_layer(config, own_weights, query[:, 0], num_targets, num_targets).T


def ends_in_dot_products(config: StackConfig) -> bool:
    """Whether the last layer is linear attention, right on top of the attention of the layer before."""
    last = config.num_layers - 1
    return (
        config.num_layers > 1
        and config.attention_kind(last) == "linear"
        and not config.normalises_attention(last)
        and config.mlp != "block"
        and config.token_clip is None
    )


def _two_layers_by_dot_products(
    config: StackConfig,
    before: tuple[StackWeights, Products],
    last: Products,
    rows: Float[Array, "batch tokens width"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """The query's target entries after the last two layers.

    A last layer of linear attention needs nothing of a token but its dot products with W_KQ e_q and with the targets'
    rows of W_PV. So only the query is moved by the layer before; of the other tokens, attention gathers those dot
    products in place of values (measured for Fig 5 on a busy machine: three quarters of the time).
    """
    weights, reduced = before
    layer = config.num_layers - 2
    kind, normalises = config.attention_kind(layer), config.normalises_attention(layer)
    read = rows
    if normalises:
        assert weights.attention_norm is not None
        read = layer_norm(weights.attention_norm, rows)
    num_keys = config.num_keys(rows.shape[1])
    keys = read[:, :num_keys]
    # Head by head, (batch, tokens, keys): an axis of heads costs a fifth of the time, even when there is one.
    attention = [_attention(config, kind, weights, read @ W_KQ.T, keys) for W_KQ in reduced.W_KQ]
    update = jnp.zeros_like(rows[:, -1])
    for of_head, W_PV in zip(attention, reduced.W_PV, strict=True):
        update = update + jnp.einsum("bn,bnd->bd", of_head[:, -1], keys) @ W_PV.T
    query = _move(config, rows[:, -1], update, num_targets)

    # One vector per head of the last layer for its scores, then one per target for its values.
    heads, targets = last.W_KQ.shape[0], last.W_PV[:, -num_targets:]
    of_task = jnp.einsum("gde,be->bgd", last.W_KQ, query)  # (batch, vectors, width)
    of_all = targets.reshape(-1, targets.shape[-1])  # (vectors, width)

    def dot_products(tokens, of_task, of_all):  # (batch, tokens, vectors)
        return jnp.concatenate([jnp.einsum("btd,bgd->btg", tokens, of_task), tokens @ of_all.T], axis=-1)

    is_moved = jnp.arange(rows.shape[-1]) >= (rows.shape[-1] - num_targets if config.update == "targets" else 0)
    dots = dot_products(rows[:, :num_keys], of_task, of_all)
    for of_head, W_PV in zip(attention, reduced.W_PV, strict=True):
        W_PV = jnp.where(is_moved[:, None], W_PV, jnp.zeros_like(W_PV))
        of_keys = dot_products(keys, of_task @ W_PV, of_all @ W_PV)
        dots = dots + config.damping * of_head[:, :num_keys] @ of_keys
    scores, values = dots[..., :heads], dots[..., heads:].reshape(*dots.shape[:2], heads, num_targets)
    return (query[:, -num_targets:] + config.damping * jnp.einsum("btg,btgo->bo", scores, values)).T


def _attention_layer(
    config: StackConfig,
    kind,
    normalises: bool,
    weights: StackWeights,
    reduced: Products,
    tokens: Float[Array, "batch tokens width"],
    num_moved: int,
    num_targets: int,
) -> Float[Array, "batch moved width"]:
    """The last ``num_moved`` tokens of every task after one layer's attention: all, or the query alone."""
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
        gathered = jnp.einsum("bhtn,bnd->bhtd", _attention(config, kind, weights, queried, keys), keys)
    return _move(config, tokens[:, -num_moved:], jnp.einsum("bhtd,hed->bte", gathered, reduced.W_PV), num_targets)


def _mlp_layer(
    config: StackConfig,
    weights: StackWeights,
    tokens: Float[Array, "*tokens width"],
    num_moved: int,
    num_targets: int,
) -> Float[Array, "*tokens moved"]:
    """The last ``num_moved`` entries of every token after a block's MLP, if it has one: all, or the targets alone."""
    moved = tokens[..., -num_moved:]
    if weights.mlp is None:
        return moved
    read = tokens if weights.mlp_norm is None else layer_norm(weights.mlp_norm, tokens)
    return _move(config, moved, _mlp(weights.mlp, read, num_moved), num_targets)


def _mlp(
    weights: MLPWeights, tokens: Float[Array, "*tokens width"], num_entries: int
) -> Float[Array, "*tokens entries"]:
    """The last entries of `innerloop.models.mlp`."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    entries = hidden_units(weights, _into_hidden(weights.W_1, rows)) @ weights.W_2[-num_entries:].T
    entries = entries if weights.b_2 is None else entries + weights.b_2[-num_entries:]
    return entries.reshape(*tokens.shape[:-1], num_entries)


@jax.custom_vjp
def _into_hidden(
    W_1: Float[Array, "hidden_size width"], rows: Float[Array, "rows width"]
) -> Float[Array, "rows hidden_size"]:
    """The inputs of all tokens' hidden units."""
    return rows @ W_1.T


def _into_hidden_backward(residuals, by):
    W_1, rows = residuals
    # By^T rows would transpose the larger matrix, at three times the cost; the barrier keeps XLA from going back to it.
    return jax.lax.optimization_barrier(rows.T @ by).T, by @ W_1


_into_hidden.defvjp(lambda W_1, rows: (_into_hidden(W_1, rows), (W_1, rows)), _into_hidden_backward)


def _gram_is_cheaper(queried: tuple[int, ...], num_keys: int) -> bool:
    """Whether linear attention costs less through S, which all heads share, than through their scores."""
    _, heads, moved, width = queried
    return num_keys * width**2 + heads * moved * width**2 < 2 * heads * moved * num_keys * width


def _attention(config: StackConfig, kind, weights: StackWeights, queried, keys):
    """Attention of tokens that read, W_KQ e_i, to keys: (batch, .., read, keys); a token alone is the query."""
    return attention_of_scores(
        kind,
        jnp.einsum("b...td,bnd->b...tn", queried, keys),
        key_size=weights.attention.W_K.shape[-2],
        causal=config.causal and queried.shape[-2] > 1,  # the query comes last and sees all
        mixing=weights.attention.mixing,
    )


def _move(config: StackConfig, tokens, update, num_targets: int):
    """Adds an update to the residual stream."""
    if config.update == "targets":
        update = update.at[..., :-num_targets].set(0.0)
    tokens = tokens + config.damping * update
    return tokens if config.token_clip is None else jnp.clip(tokens, -config.token_clip, config.token_clip)
