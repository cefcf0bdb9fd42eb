"""The training loss of a whole batch for one layer of softmax attention, in JAX.

Same mathematics as `innerloop.models.run_stack` under ``vmap``, tasks along the last axis: only the query moves,
so a head is a sum over features, a softmax over keys and a sum over keys, which become vector code (measured at the
paper's sizes with two heads: half the time of `innerloop.kernels.general_stack`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import StackConfig, StackWeights, products

# Longer sums are left to XLA's reduction, so that the program's size does not grow with the token.
_LONGEST_UNROLLED_SUM = 64


def serves_softmax_layer(config: StackConfig) -> bool:
    """Whether an architecture is one layer of softmax attention on the tokens as they are."""
    return (
        config.num_layers == 1
        and config.attention == ("softmax",)
        and not config.causal
        and config.embedding_size is None
        and config.mlp == "none"
        and config.layer_norm == "none"
    )


def softmax_layer_entries(
    config: StackConfig,
    weights: StackWeights,
    tokens: Float[Array, "token_size tokens batch"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """Target entries of the query token after the layer; arguments as for `query_target_entries`."""
    reduced = products(weights)
    W_KQ, W_PV = reduced.W_KQ[0], reduced.W_PV[0, :, -num_targets:]  # the other rows of W_PV are not read
    token_size, num_tokens, batch_size = tokens.shape
    keys, query = tokens[:, : config.num_keys(num_tokens)], tokens[:, -1]
    values = W_PV.reshape(-1, token_size) @ keys.reshape(token_size, -1)
    values = values.reshape(*W_PV.shape[:2], keys.shape[1], batch_size)  # (heads, num_targets, keys, batch)
    entries = query[-num_targets:]
    for head in range(config.num_heads):
        scores = _dot_products(keys, W_KQ[head] @ query)
        attention = jax.nn.softmax(scores / weights.attention.W_K.shape[-2] ** 0.5, axis=0)  # (keys, batch)
        entries = entries + config.damping * jnp.sum(attention * values[head], axis=1)
    return entries if config.token_clip is None else jnp.clip(entries, -config.token_clip, config.token_clip)


def _dot_products(
    keys: Float[Array, "token_size keys batch"], vectors: Float[Array, "token_size batch"]
) -> Float[Array, "keys batch"]:
    """Of every key with its task's vector."""
    if keys.shape[0] > _LONGEST_UNROLLED_SUM:
        return jnp.sum(keys * vectors[:, None], axis=0)
    total = keys[0] * vectors[0]
    for index in range(1, keys.shape[0]):
        total = total + keys[index] * vectors[index]
    return total
