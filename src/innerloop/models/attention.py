"""One layer of attention: weights, the map, the update that it adds to the tokens.

For tokens e_i as rows of E, with keys and values from the first ``num_keys`` tokens (Eq. 3 of the paper):

    update_i = sum over heads of P W_V sum_j e_j a_ij,    a_ij = (W_K e_j) . (W_Q e_i)

Only the products W_K^T W_Q and P W_V matter for linear attention; see `innerloop.models.products`. Softmax attention
will be a second ``scores -> attention`` function next to `linear_map`.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class AttentionWeights(eqx.Module):
    """Weights of a stack's attention layers, in the paper's orientation (matrices act on column tokens).

    The leading axis counts distinct layers: 1 for a tied stack, whose one leaf is used at every layer.

    Attributes:
        W_K: keys.
        W_Q: queries.
        W_V: values; every head has the full key size, not a share of it.
        P: projection of the values back to the token.
    """

    W_K: Float[Array, "*layers heads key_size token_size"]
    W_Q: Float[Array, "*layers heads key_size token_size"]
    W_V: Float[Array, "*layers heads key_size token_size"]
    P: Float[Array, "*layers heads token_size key_size"]


def linear_map(
    weights: AttentionWeights, tokens: Float[Array, "tokens token_size"], num_keys: int
) -> Float[Array, "heads tokens keys"]:
    """Attention a_ij of every token i to the first ``num_keys`` tokens j: the scores themselves, no softmax."""
    queries = jnp.einsum("hkd,td->htk", weights.W_Q, tokens)
    keys = jnp.einsum("hkd,nd->hnk", weights.W_K, tokens[:num_keys])
    return jnp.einsum("htk,hnk->htn", queries, keys)


def attention_update(
    weights: AttentionWeights,
    tokens: Float[Array, "tokens token_size"],
    attention: Float[Array, "heads tokens keys"],
) -> Float[Array, "tokens token_size"]:
    """What the heads add to every token, given their attention."""
    values = jnp.einsum("hkd,nd->hnk", weights.W_V, tokens[: attention.shape[-1]])
    return jnp.einsum("hdk,htn,hnk->td", weights.P, attention, values)
