"""The training loss of a whole batch for stacks of linear attention, in JAX.

Same mathematics as `innerloop.models.run_stack` under ``vmap``, arranged for speed; in the last layer only the query's
target entries are computed.

- *One* layer keeps the tasks along the last axis: sums over tokens are unrolled into elementwise products, which become
  vector code, and products with weights are single matrix products over all tasks.
- *Several* layers put the tasks first and go through S = sum_j e_j e_j^T, formed anew from every layer's tokens, so
  that clips and partial updates stay exact. (Tasks last was 3 to 8 times slower there: XLA's CPU backend fuses unrolled
  sums into their readers and computes them again and again.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import Products, StackConfig

# Longer sums are left to XLA's reduction, so that the program's size does not grow with the context.
_LONGEST_UNROLLED_SUM = 64


def query_target_entries(
    config: StackConfig,
    products: Products,
    tokens: Float[Array, "token_size tokens batch"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """Target entries of the query token after the last layer (minus the prediction).

    Args:
        config: architecture of the stack.
        products: W_KQ and W_PV per distinct layer and head.
        tokens: the tokens of every task, the query last.
        num_targets: number of target entries at the end of a token.
    """
    if config.num_layers == 1:
        return _single_layer(config, _layer(products, config, 0), tokens, num_targets)
    tokens = jnp.moveaxis(tokens, -1, 0)  # (batch, token_size, tokens)
    for layer in range(config.num_layers - 1):
        tokens = _full_layer(config, _layer(products, config, layer), tokens, num_targets)
    return _last_layer(config, _layer(products, config, config.num_layers - 1), tokens, num_targets)


def _layer(products: Products, config: StackConfig, layer: int) -> Products:
    index = 0 if config.tied else layer
    return Products(products.W_KQ[index], products.W_PV[index])


def _full_layer(config, products, tokens, num_targets):
    """Updates all tokens of all tasks, tasks first."""
    gram = _gram(config, tokens)
    update = jnp.zeros_like(tokens)
    for W_KQ, W_PV in zip(products.W_KQ, products.W_PV, strict=True):
        queried = jnp.einsum("de,ben->bdn", W_KQ, tokens)
        update = update + jnp.einsum("de,ben->bdn", W_PV, gram @ queried)
    if config.update == "targets":
        update = update.at[:, :-num_targets].set(0.0)
    return _clip(config, tokens + config.damping * update)


def _last_layer(config, products, tokens, num_targets):
    """Updates the query's target entries alone, tasks first; returns them tasks last."""
    gram, query = _gram(config, tokens), tokens[..., -1]  # (batch, token_size, token_size), (batch, token_size)
    entries = query[:, -num_targets:]
    for W_KQ, W_PV in zip(products.W_KQ, products.W_PV, strict=True):
        read = jnp.einsum("bde,be->bd", gram, query @ W_KQ.T)
        entries = entries + config.damping * read @ W_PV[-num_targets:].T
    return _clip(config, entries).T


def _gram(config, tokens):
    """S of every task, over the tokens that are keys."""
    keys = tokens if config.query_in_keys else tokens[..., :-1]
    return keys @ keys.mT


def _single_layer(config, products, tokens, num_targets):
    """Updates the query's target entries of a one-layer stack, tasks last."""
    query = tokens[:, -1]  # (token_size, batch)
    keys = tokens if config.query_in_keys else tokens[:, :-1]
    entries = []
    for target in range(-num_targets, 0):
        entry = query[target]
        for W_KQ, W_PV in zip(products.W_KQ, products.W_PV, strict=True):
            values = W_PV[target] @ keys.reshape(keys.shape[0], -1)
            read = _sum_over_tokens(keys, values.reshape(keys.shape[1:]))  # (token_size, batch)
            entry = entry + config.damping * jnp.sum(read * (W_KQ @ query), axis=0)
        entries.append(entry)
    return _clip(config, jnp.stack(entries))


def _clip(config, entries):
    return entries if config.token_clip is None else jnp.clip(entries, -config.token_clip, config.token_clip)


def _sum_over_tokens(
    tokens: Float[Array, "token_size tokens batch"], weights: Float[Array, "tokens batch"]
) -> Float[Array, "token_size batch"]:
    """Sums tokens with a weight each, tasks last."""
    num_tokens = tokens.shape[1]
    if num_tokens > _LONGEST_UNROLLED_SUM:
        return jnp.sum(tokens * weights, axis=1)
    total = tokens[:, 0] * weights[0]
    for index in range(1, num_tokens):
        total = total + tokens[:, index] * weights[index]
    return total
