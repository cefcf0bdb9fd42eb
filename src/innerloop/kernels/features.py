"""One linear layer on embedded tokens, written on features: the form that the native kernel takes.

With an embedding W_E and an MLP, everything is linear in the features of a token t,

    f = (gelu(W_1 B t + b_1), t, 1),    B = W_E or I,

because the embedded token is e = R f with R = (W_2, B, b_2). So with Q_h = W_KQ^T R and V_ho = R^T (row o of W_PV),

    score_j = (Q_h^T e_q) . f_j,    value_j = V_ho . f_j,

and only the query is ever embedded. What is missing of embedding, MLP and biases is no hidden units, or zeros.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import StackConfig, StackWeights, products


class FeatureWeights(NamedTuple):
    """The weights on features; the target entries come last in an embedded token.

    Attributes:
        into_hidden: (W_1 B, b_1)^T: from a token and a constant 1 to the hidden units.
        embedding: R.
        queries: Q_h, the heads between its axes.
        values: V_ho for every target entry o, times the damping.
    """

    into_hidden: Float[Array, "token_size_plus_1 hidden_size"]
    embedding: Float[Array, "width features"]
    queries: Float[Array, "width heads features"]
    values: Float[Array, "heads num_targets features"]


def feature_weights(config: StackConfig, weights: StackWeights, token_size: int, num_targets: int) -> FeatureWeights:
    """The weights on features of a layer for which `innerloop.kernels.embedded_layer.serves_embedded_layer` holds.

    Args:
        config: the architecture.
        weights: its parameters.
        token_size: width of a token before the embedding.
        num_targets: number of target entries at the end of an embedded token.
    """
    assert weights.embedding is not None
    W_KQ, W_PV = (leaf[0] for leaf in (products(weights).W_KQ, products(weights).W_PV))
    mlp, B = weights.embedding.mlp, weights.embedding.W_E
    if B is None:
        B = jnp.eye(token_size, dtype=W_KQ.dtype)
    zeros = jnp.zeros((B.shape[0], 1), B.dtype)
    if mlp is None:
        into_hidden = jnp.zeros((token_size + 1, 0), B.dtype)
        embedding = jnp.concatenate([B, zeros], axis=1)
    else:
        b_1 = jnp.zeros((mlp.W_1.shape[0], 1), B.dtype) if mlp.b_1 is None else mlp.b_1[:, None]
        b_2 = zeros if mlp.b_2 is None else mlp.b_2[:, None]
        into_hidden = jnp.concatenate([mlp.W_1 @ B, b_1], axis=1).T
        embedding = jnp.concatenate([mlp.W_2, B, b_2], axis=1)
    return FeatureWeights(
        into_hidden,
        embedding,
        jnp.einsum("hde,df->ehf", W_KQ, embedding),
        config.damping * jnp.einsum("hod,df->hof", W_PV[:, -num_targets:], embedding),
    )
