"""GD++ as weights: K linear layers that perform K steps of gradient descent with curvature correction.

As Proposition 1, with a value matrix that also writes to the inputs:

    W_K = W_Q = [[I, 0], [0, 0]],   W_V = [[I, 0], [W0, -I]],   P = diag(-gamma I, (eta / N) I)

so that x_i <- x_i - gamma (sum_j x_j x_j^T) x_i at the same time as the gradient step. With W0 not zero there are two
definitions (see `innerloop.algorithms.GradientDescentPlusPlus`), each with its own construction:

    recomputed   these weights on tokens (x_j, y_j): every layer recomputes W0 x_j - y_j with the moved x_j
    carried      W0 left out of W_V, on tokens (x_j, y_j - W0 x_j), which carry the true residual
"""

from typing import get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.algorithms import Residuals
from innerloop.checks import one_of
from innerloop.constructions.gradient_descent import gradient_descent_weights
from innerloop.models import AttentionWeights, StackConfig, StackWeights, Transformer
from innerloop.tokens import ConcatenatedTokens


def gradient_descent_plus_plus_weights(
    *,
    input_size: int,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""] | Float[Array, " layers"],
    curvature_correction: float | Float[Array, ""] | Float[Array, " layers"],
    initial_weights: Float[Array, "output_size input_size"] | None = None,
) -> StackWeights:
    """Writes GD++ down.

    Args:
        input_size: n_i.
        output_size: n_o.
        context_length: N, which the gradient's mean divides by (the correction's sum is not divided).
        learning_rate: eta; a number or one per layer.
        curvature_correction: gamma; a number or one per layer. Two numbers give one (tied) layer.
        initial_weights: W0 in W_V; None means zero.

    Returns:
        Weights of a stack with one head and the token's width as key size.
    """
    num_layers = max(jnp.size(learning_rate), jnp.size(curvature_correction))
    rates = jnp.broadcast_to(jnp.asarray(learning_rate, dtype=jnp.result_type(float)), (num_layers,))
    descent = gradient_descent_weights(
        input_size=input_size,
        output_size=output_size,
        context_length=context_length,
        learning_rate=rates,
        initial_weights=initial_weights,
    ).attention
    is_input = jnp.arange(input_size + output_size) < input_size
    corrections = jnp.broadcast_to(jnp.asarray(curvature_correction, dtype=rates.dtype), (num_layers,))
    diagonal = jnp.where(is_input, -corrections[:, None], rates[:, None] / context_length)  # (layers, token_size)
    return StackWeights(
        AttentionWeights(
            W_K=descent.W_K,
            W_Q=descent.W_Q,
            W_V=descent.W_V + jnp.diag(is_input.astype(rates.dtype)),
            P=diagonal[:, None, :, None] * jnp.eye(input_size + output_size, dtype=rates.dtype),
        )
    )


def gradient_descent_plus_plus_transformer(
    *,
    input_size: int,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""] | Float[Array, " layers"],
    curvature_correction: float | Float[Array, ""] | Float[Array, " layers"],
    num_layers: int = 1,
    initial_weights: Float[Array, "output_size input_size"] | None = None,
    residuals: Residuals = "carried",
) -> Transformer:
    """A transformer that performs ``num_layers`` steps of GD++: the construction with its tokeniser.

    Takes the arguments of `gradient_descent_plus_plus_weights`; two numbers give a tied stack.

    Args:
        input_size: n_i.
        output_size: n_o.
        context_length: N.
        learning_rate: eta; a number or one per layer.
        curvature_correction: gamma; a number or one per layer.
        num_layers: K.
        initial_weights: W0; None means zero.
        residuals: which definition is meant where W0 is not zero.

    Raises:
        ValueError: if there are several learning rates or corrections but not one per layer.
    """
    one_of("residuals", residuals, get_args(Residuals))
    for name, value in (("learning_rate", learning_rate), ("curvature_correction", curvature_correction)):
        if jnp.shape(value) not in ((), (num_layers,)):
            raise ValueError(
                f"{name} must be a number or have one entry per layer, num_layers={num_layers}, "
                f"got shape {jnp.shape(value)}"
            )
    weights = gradient_descent_plus_plus_weights(
        input_size=input_size,
        output_size=output_size,
        context_length=context_length,
        learning_rate=learning_rate,
        curvature_correction=curvature_correction,
        initial_weights=initial_weights if residuals == "recomputed" else None,
    )
    is_tied = jnp.ndim(learning_rate) == 0 and jnp.ndim(curvature_correction) == 0
    config = StackConfig(num_layers=num_layers, tied=is_tied)
    return Transformer(
        config, weights, ConcatenatedTokens(initial_weights, targets_hold_residuals=residuals == "carried")
    )
