"""The training loss of a whole batch for stacks of linear attention, in JAX.

Same mathematics as `innerloop.models.run_stack` under ``vmap``, arranged for speed: tasks along the last axis, only the
query's target entries computed in the last layer, and no batched matrix product anywhere, because XLA's CPU backend is
slow at many tiny ones. Contractions over tokens are unrolled sums of elementwise products, which become vector code;
contractions with weights are single matrix products over all tasks at once.
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
    for layer in range(config.num_layers - 1):
        tokens = _full_layer(config, _layer(products, config, layer), tokens, num_targets)
    return _last_layer(config, _layer(products, config, config.num_layers - 1), tokens, num_targets)


def _layer(products: Products, config: StackConfig, layer: int) -> Products:
    index = 0 if config.tied else layer
    return Products(products.W_KQ[index], products.W_PV[index])


def _full_layer(config, products, tokens, num_targets):
    keys = tokens if config.query_in_keys else tokens[:, :-1]
    gram = _sum_of_products(keys[:, None], keys[None], axis=2)  # (token_size, token_size, batch)
    update = jnp.zeros_like(tokens)
    for W_KQ, W_PV in zip(products.W_KQ, products.W_PV, strict=True):
        queried = _apply(W_KQ, tokens)  # (token_size, tokens, batch)
        update = update + _apply(W_PV, _sum_of_products(gram[:, :, None], queried[None], axis=1))
    if config.update == "targets":
        update = update.at[:-num_targets].set(0.0)
    return _clip(config, tokens + config.damping * update)


def _last_layer(config, products, tokens, num_targets):
    query = tokens[:, -1]  # (token_size, batch)
    keys = tokens if config.query_in_keys else tokens[:, :-1]
    entries = []
    for target in range(-num_targets, 0):
        entry = query[target]
        for W_KQ, W_PV in zip(products.W_KQ, products.W_PV, strict=True):
            values = _apply(W_PV[target][None], keys)  # (1, keys, batch)
            read = _sum_of_products(keys, values, axis=1)  # (token_size, batch)
            entry = entry + config.damping * jnp.sum(read * (W_KQ @ query), axis=0)
        entries.append(entry)
    return _clip(config, jnp.stack(entries))


def _clip(config, entries):
    return entries if config.token_clip is None else jnp.clip(entries, -config.token_clip, config.token_clip)


def _apply(matrix: Float[Array, "out features"], tokens: Float[Array, "features tokens batch"]):
    """One matrix on every token of every task, as one matrix product."""
    return (matrix @ tokens.reshape(tokens.shape[0], -1)).reshape(matrix.shape[0], *tokens.shape[1:])


def _sum_of_products(left: Array, right: Array, *, axis: int) -> Array:
    """Sums ``left * right`` (broadcast against each other) over one axis."""
    size = left.shape[axis]
    if size > _LONGEST_UNROLLED_SUM:
        return jnp.sum(left * right, axis=axis)
    left_terms, right_terms = jnp.moveaxis(left, axis, 0), jnp.moveaxis(right, axis, 0)
    total = left_terms[0] * right_terms[0]
    for index in range(1, size):
        total = total + left_terms[index] * right_terms[index]
    return total
