"""A trained stack reduced to four numbers per layer: what it would be if it were GD++ with a key on the target entry.

With W_KQ = diag(1, .., 1, beta) and P W_V = diag(-gamma, .., -gamma, -c), in the gauge where W_KQ begins with ones, a
layer of linear attention over context tokens (x_j, u_j) moves every token, the query's too, by

    u_i <- (1 - c beta sum_j u_j^2) u_i - c sum_j u_j x_j^T x_i,
    x_i <- x_i - gamma sum_j x_j (x_j^T x_i + beta u_j u_i).

For beta = 0 that is GD++. For gamma = 0, with u_j = t y_j - W x_j and -W x_q in the query's token, it is gradient
descent with weight decay d = c beta sum_j u_j^2, larger where targets are, on targets that shrink alike:

    W <- (1 - d) W - c sum_j (W x_j - t y_j) x_j^T,    t <- (1 - d) t.

So a layer can decay without the constant tokens of `innerloop.constructions.weight_decay`, in its own way. In the first
layer's query token u is zero: one layer cannot use beta.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.analysis import over_learners
from innerloop.models import Products, Transformer, products


def reduced(stacks: Transformer, input_size: int, *, with_target_key: bool) -> Transformer:
    """Every seed's linear stack with all but its four numbers per layer set to zero.

    Args:
        stacks: one output and one head, stacked along seeds.
        input_size: n_i.
        with_target_key: keep beta; without it the stack is GD++ with the numbers that it had.
    """

    def reduce(one: Transformer) -> Transformer:
        full = products(one.weights)
        kept = Products(
            _diagonal(full.W_KQ, input_size, last=with_target_key), _diagonal(full.W_PV, input_size, last=True)
        )
        return Transformer(one.config, kept.as_weights(), one.tokens)

    return over_learners(reduce, stacks)


def target_keys(stacks: Transformer, input_size: int) -> Float[Array, "seed layers"]:
    """Kappa of every seed and distinct layer."""
    matrix = products(stacks.weights).W_KQ[:, :, 0]
    scale = jnp.diagonal(matrix[..., :input_size, :input_size], axis1=-2, axis2=-1).mean(-1)
    return matrix[..., -1, -1] / scale


def _diagonal(
    matrix: Float[Array, "layers heads token_size token_size"], input_size: int, *, last: bool
) -> Float[Array, "layers heads token_size token_size"]:
    """The mean of the inputs' diagonal entries in each of them, and the target's entry or zero."""
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    mean = diagonal[..., :input_size].mean(-1, keepdims=True)
    inputs = jnp.broadcast_to(mean, (*mean.shape[:-1], input_size))
    entries = jnp.concatenate([inputs, diagonal[..., input_size:] * (1.0 if last else 0.0)], axis=-1)
    return entries[..., None] * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
