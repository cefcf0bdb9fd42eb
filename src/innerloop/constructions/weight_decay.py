"""Gradient descent with weight decay as weights: Proposition 1 on a context with n_i constant tokens more.

A step W <- (1 - eta lambda) W - (eta / N) sum_j (W x_j - y_j) x_j^T scales every prediction, the query's too. A layer
that writes to targets alone cannot do that: its tokens hold y_j - W x_j, not the two apart, and adding a multiple of a
token's own entry, whatever the context is, takes a key that is the same in every context. So such keys are given to it:
the tokens (sqrt(N lambda) u_i, 0), u_i the unit vectors. Their residuals are -W sqrt(N lambda) u_i, and their part of
the summed gradient is N lambda W, the decay. The weights are those of Proposition 1.

*Without* such tokens no stack of Proposition 1's kind or of GD++'s does K > 1 steps with decay, 0 < eta lambda < 1,
whatever its depth and its numbers per layer. For W0 = 0 it leaves the fraction r(l) of what is to be learned along an
eigenvector of X X^T with eigenvalue l: a product of factors 1 - c_k l prod_{i<k} (1 - gamma_i l)^2 of odd degree, each
with a real zero. With decay r(l) = 1 - c l sum_{k<K} v^k, v = 1 - eta lambda - c l, has no real zero for even K, and a
single one for odd K. Then one factor is left, and sum v^k would have to be a square with real zeros; it has none.
Negative decay (growth) can be within reach: with K = 2 it is gradient descent with two different rates.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.algorithms import WithPriorPairs
from innerloop.checks import finite_number, positive_int
from innerloop.constructions.gradient_descent import gradient_descent_transformer


def weight_decay_transformer(
    *,
    input_size: int,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""] | Float[Array, " layers"],
    weight_decay: float,
    num_layers: int = 1,
    initial_weights: Float[Array, "output_size input_size"] | None = None,
) -> WithPriorPairs:
    """A transformer that performs ``num_layers`` gradient steps with weight decay, and the tokens that it needs.

    Args:
        input_size: n_i, also the number of further tokens.
        output_size: n_o.
        context_length: N, without the further tokens.
        learning_rate: eta; a number or one per layer.
        weight_decay: lambda, of the weights towards zero.
        num_layers: K.
        initial_weights: W0; None means zero.

    Returns:
        The transformer of Proposition 1, shown the further pairs.

    Raises:
        ValueError: for a negative decay, for which there are no real tokens.

    Example:
        >>> from innerloop.problem import Problem
        >>> problem = Problem(jnp.eye(2), jnp.array([[2.0], [4.0]]), jnp.array([1.0, 1.0]))
        >>> sizes = dict(input_size=2, context_length=2, num_layers=2)
        >>> round(float(weight_decay_transformer(**sizes, learning_rate=1.0, weight_decay=0.5)(problem).value[0]), 6)
        3.0
    """
    positive_int("context_length", context_length)
    finite_number("weight_decay", weight_decay, minimum=0.0)
    transformer = gradient_descent_transformer(
        input_size=input_size,
        output_size=output_size,
        context_length=context_length,
        learning_rate=learning_rate,
        num_layers=num_layers,
        initial_weights=initial_weights,
    )
    dtype = jnp.result_type(float)
    pairs = math.sqrt(context_length * weight_decay) * jnp.eye(input_size, dtype=dtype)
    return WithPriorPairs(transformer, pairs, jnp.zeros((input_size, output_size), dtype=dtype))
