"""One layer of attention: weights, the map from tokens to attention, the update that it adds to the tokens.

For tokens e_i as rows of E, with keys and values from the first ``num_keys`` tokens (Eq. 3 of the paper):

    update_i = sum over heads of P W_V sum_j e_j a_ij,    scores s_ij = (W_K e_j) . (W_Q e_i)

Three kinds of attention make a_ij of the scores:

- *linear*: a_ij = s_ij. Only the products W_K^T W_Q and P W_V matter; see `innerloop.models.products`.
- *softmax*: a_ij = softmax over j of s_ij / sqrt(key_size).
- *mixed*: a trained blend m softmax + (1 - m) linear with m = sigmoid(10 mixing), the published code's switch.

A causal mask lets token i attend to tokens up to i only: elsewhere linear attention is 0 and softmax leaves j out.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

AttentionKind = Literal["linear", "softmax", "mixed"]

_MIXING_SLOPE = 10.0


class AttentionWeights(eqx.Module):
    """Weights of a stack's attention layers, in the paper's orientation (matrices act on column tokens).

    The leading axis counts distinct layers: 1 for a tied stack, whose one leaf is used at every layer.

    Attributes:
        W_K: keys.
        W_Q: queries.
        W_V: values; every head has the full key size, not a share of it.
        P: projection of the values back to the token.
        mixing: logit of softmax's share divided by 10, for mixed attention; None in stacks without it.
    """

    W_K: Float[Array, "*layers heads key_size token_size"]
    W_Q: Float[Array, "*layers heads key_size token_size"]
    W_V: Float[Array, "*layers heads key_size token_size"]
    P: Float[Array, "*layers heads token_size key_size"]
    mixing: Float[Array, "*layers"] | None = None


def attention_scores(
    weights: AttentionWeights, tokens: Float[Array, "tokens token_size"], num_keys: int
) -> Float[Array, "heads tokens keys"]:
    """Scores s_ij of every token i and the first ``num_keys`` tokens j."""
    queries = jnp.einsum("hkd,td->htk", weights.W_Q, tokens)
    keys = jnp.einsum("hkd,nd->hnk", weights.W_K, tokens[:num_keys])
    return jnp.einsum("htk,hnk->htn", queries, keys)


def attention_of_scores(
    kind: AttentionKind,
    scores: Float[Array, "*heads tokens keys"],
    *,
    key_size: int,
    causal: bool = False,
    mixing: Float[Array, ""] | None = None,
) -> Float[Array, "*heads tokens keys"]:
    """Attention a_ij of the scores, by kind; see the module's docstring.

    Args:
        kind: linear, softmax or mixed.
        scores: s_ij, rows for the reading token.
        key_size: whose root divides the logits of softmax.
        causal: mask out tokens j after i.
        mixing: logit of softmax's share divided by 10; needed for the mixed kind.
    """
    tokens, keys = scores.shape[-2:]
    is_seen = jnp.arange(keys) <= jnp.arange(tokens)[:, None] if causal else jnp.ones((), bool)
    if kind == "linear":
        return jnp.where(is_seen, scores, jnp.zeros_like(scores))
    # Masked keys are left out after the shift by the row's largest score, so that no infinity is ever differentiated.
    softmax = jax.nn.softmax(scores / key_size**0.5, where=is_seen if causal else None, axis=-1)
    if kind == "softmax":
        return softmax
    assert mixing is not None, "mixed attention has weights for its mixing"
    share = softmax_share(mixing)
    return share * softmax + (1 - share) * jnp.where(is_seen, scores, jnp.zeros_like(scores))


def softmax_share(mixing: Float[Array, "*layers"]) -> Float[Array, "*layers"]:
    """Softmax's share m in mixed attention."""
    return jax.nn.sigmoid(_MIXING_SLOPE * mixing)


def attention_update(
    weights: AttentionWeights,
    tokens: Float[Array, "tokens token_size"],
    attention: Float[Array, "heads tokens keys"],
) -> Float[Array, "tokens token_size"]:
    """What the heads add to every token, given their attention."""
    values = jnp.einsum("hkd,nd->hnk", weights.W_V, tokens[: attention.shape[-1]])
    return jnp.einsum("hdk,htn,hnk->td", weights.P, attention, values)
