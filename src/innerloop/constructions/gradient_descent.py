"""Proposition 1: weights with which K linear layers perform K steps of gradient descent.

One head per layer, acting on tokens (x_j, y_j), query token (x_q, -W0 x_q):

    W_K = W_Q = [[I, 0], [0, 0]],   W_V = [[0, 0], [W0, -I]],   P = (eta / N) I

moves every target by -dW x with dW the gradient step from W0; stacking layers with the *same* W0 continues from there,
because the context's targets hold the residuals by then. Any number of inputs and outputs, any W0.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.checks import positive_int
from innerloop.models import AttentionWeights, StackConfig, StackWeights, Transformer
from innerloop.tokens import ConcatenatedTokens


def gradient_descent_weights(
    *,
    input_size: int,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""] | Float[Array, " layers"],
    initial_weights: Float[Array, "output_size input_size"] | None = None,
) -> StackWeights:
    """Writes Proposition 1 down.

    Args:
        input_size: n_i.
        output_size: n_o.
        context_length: N, which the gradient's mean divides by.
        learning_rate: eta; a number gives one (tied) layer, an array one layer per entry.
        initial_weights: W0; None means zero.

    Returns:
        Weights of a stack with one head and the token's width as key size.
    """
    for name, value in (("input_size", input_size), ("output_size", output_size), ("context_length", context_length)):
        positive_int(name, value)
    rates = jnp.atleast_1d(jnp.asarray(learning_rate, dtype=jnp.result_type(float)))
    token_size = input_size + output_size
    # NumPy as far as it goes: outside of a compiled program every JAX operation is one of its own to compile.
    selector = np.diag([1.0] * input_size + [0.0] * output_size)
    values = np.diag([0.0] * input_size + [-1.0] * output_size)
    if initial_weights is not None:
        values = jnp.asarray(values, dtype=rates.dtype).at[input_size:, :input_size].set(initial_weights)

    def per_layer(matrix):
        return jnp.broadcast_to(jnp.asarray(matrix, dtype=rates.dtype), (rates.shape[0], 1, token_size, token_size))

    projection = (rates / context_length)[:, None, None, None] * np.eye(token_size, dtype=rates.dtype)
    return StackWeights(
        AttentionWeights(W_K=per_layer(selector), W_Q=per_layer(selector), W_V=per_layer(values), P=projection)
    )


def gradient_descent_transformer(
    *,
    input_size: int,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""] | Float[Array, " layers"],
    num_layers: int = 1,
    initial_weights: Float[Array, "output_size input_size"] | None = None,
) -> Transformer:
    """A transformer that performs ``num_layers`` gradient steps: Proposition 1 with its tokeniser.

    Takes the arguments of `gradient_descent_weights`; a single learning rate gives a tied stack.

    Raises:
        ValueError: if there are several learning rates but not one per layer.
    """
    if jnp.shape(learning_rate) not in ((), (num_layers,)):
        raise ValueError(
            f"learning_rate must be a number or have one entry per layer, num_layers={num_layers}, "
            f"got shape {jnp.shape(learning_rate)}"
        )
    weights = gradient_descent_weights(
        input_size=input_size,
        output_size=output_size,
        context_length=context_length,
        learning_rate=learning_rate,
        initial_weights=initial_weights,
    )
    config = StackConfig(num_layers=num_layers, tied=jnp.ndim(learning_rate) == 0)
    return Transformer(config, weights, ConcatenatedTokens(initial_weights))
