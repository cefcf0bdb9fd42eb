"""Proposition 2: an MLP below a linear layer performs one step of gradient descent on the features that it computes.

A residual MLP maps tokens (x, y) to (m(x), y); Proposition 1 on top of it is a gradient step of linear regression on
m(x), whose prediction for W0 = 0 is that of kernel regression with k(x, x') = m(x) . m(x'):

    yhat = (eta / N) sum_i y_i m(x_i) . m(x_q)

Two parts are written here. `feature_descent_weights` puts Proposition 1 on top of *any* embedding, trained or not: the
paper's control, a meta-learned MLP below one constructed step, is this. `feature_embedding` writes an embedding down
that computes a *given* feature map m exactly and passes the targets on.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.checks import positive_int
from innerloop.constructions.gradient_descent import gradient_descent_weights
from innerloop.models import EmbeddingWeights, MLPWeights, StackConfig, StackWeights, Transformer


def feature_descent_weights(
    embedding: EmbeddingWeights,
    *,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""],
) -> StackWeights:
    """One gradient step on the features of an embedding: all entries of an embedded token but the targets.

    Args:
        embedding: maps a token to (features, targets).
        output_size: n_o, the number of target entries at the end of an embedded token.
        context_length: N, which the gradient's mean divides by.
        learning_rate: eta.

    Raises:
        ValueError: if the embedding changes no token's width and so cannot tell it, or leaves no features.
    """
    if embedding.W_E is not None:
        width = embedding.W_E.shape[-2]
    elif embedding.mlp is not None:
        width = embedding.mlp.W_2.shape[-2]
    else:
        raise ValueError(
            "embedding must have a W_E or an MLP, got neither; use gradient_descent_weights for raw tokens"
        )
    positive_int("number of features (embedding size - output_size)", width - output_size)
    layer = gradient_descent_weights(
        input_size=width - output_size,
        output_size=output_size,
        context_length=context_length,
        learning_rate=learning_rate,
    )
    return StackWeights(layer.attention, embedding=embedding)


def feature_embedding(feature_map: MLPWeights, *, output_size: int = 1) -> EmbeddingWeights:
    """An embedding from tokens (x, y) to (m(x), y), for m(x) = W_2 gelu(W_1 x + b_1) + b_2 of any sizes.

    The residual stream holds x where m(x) is to stand (padded with zeros, or m(x) with zeros, to the larger of both).
    Further hidden units take it away again: gelu(x) - gelu(-x) = x holds exactly.

    Args:
        feature_map: m, from n_i inputs to d features.
        output_size: n_o.

    Returns:
        Weights of a linear embedding to max(n_i, d) + n_o entries and of a residual MLP on top.
    """
    W_1, W_2 = feature_map.W_1, feature_map.W_2
    (hidden_size, input_size), num_features = W_1.shape, W_2.shape[0]
    width = max(input_size, num_features)
    eye = jnp.eye(input_size, dtype=W_1.dtype)
    W_E = jnp.zeros((width + output_size, input_size + output_size), W_1.dtype)
    W_E = W_E.at[:input_size, :input_size].set(eye)
    W_E = W_E.at[width:, input_size:].set(jnp.eye(output_size, dtype=W_1.dtype))
    into = jnp.zeros((hidden_size + 2 * input_size, width + output_size), W_1.dtype)
    into = into.at[:, :input_size].set(jnp.concatenate([W_1, eye, -eye]))
    out = jnp.zeros((width + output_size, hidden_size + 2 * input_size), W_1.dtype)
    out = out.at[:num_features, :hidden_size].set(W_2)
    out = out.at[:input_size, hidden_size:].set(jnp.concatenate([-eye, eye], axis=1))
    b_1, b_2 = jnp.zeros(into.shape[0], W_1.dtype), jnp.zeros(width + output_size, W_1.dtype)
    if feature_map.b_1 is not None:
        b_1 = b_1.at[:hidden_size].set(feature_map.b_1)
    if feature_map.b_2 is not None:
        b_2 = b_2.at[:num_features].set(feature_map.b_2)
    return EmbeddingWeights(W_E, MLPWeights(into, out, b_1, b_2))


def feature_descent_transformer(
    embedding: EmbeddingWeights,
    *,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""],
) -> Transformer:
    """A transformer that performs one gradient step on an embedding's features; arguments as for the weights."""
    weights = feature_descent_weights(
        embedding, output_size=output_size, context_length=context_length, learning_rate=learning_rate
    )
    config = StackConfig(
        embedding_size=None if embedding.W_E is None else embedding.W_E.shape[-2],
        mlp="none" if embedding.mlp is None else "input",
        mlp_bias=embedding.mlp is not None and embedding.mlp.b_1 is not None,
    )
    return Transformer(config, weights)
