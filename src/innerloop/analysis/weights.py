"""Reading an algorithm off the weights (Fig 9): what the products of a trained layer say.

GD++ has W_KQ = diag(1, .., 1, 0) and W_PV = diag(-gamma, .., -gamma, -c) with c = eta / N; Proposition 1 is gamma = 0.
A trained layer may have these up to the gauge, b and 1/b, whose sign depends on the seed. Free of the gauge:

    step size             c = -b * (mean diagonal of W_PV's target block), with b the mean of W_KQ's first n_i diagonals
    curvature correction  gamma = -b * (mean diagonal of W_PV's input block)
    key-query error       |W_KQ / b - diag(1, .., 1, 0)| / |diag(1, .., 1, 0)|
    value error           |W_PV without its target block's diagonal| / |that diagonal|
    GD++ value error      |W_PV - diag(-gamma, .., -gamma, -c) / b| / |diag(-gamma, .., -gamma, -c) / b|

with Frobenius norms. In a last layer of its own nothing reads W_PV's input rows (see
`innerloop.analysis.identifiability`), so its gamma says nothing.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import Products


class LayerReading(eqx.Module):
    """What each layer and head says; leading axes as in the products.

    Attributes:
        scale: b, which carries the gauge and its sign.
        step_size: c = eta / N of the gradient step that the layer performs.
        curvature_correction: gamma of the correction that the layer performs; meaningless in a last layer of its own.
        key_query_error: distance of W_KQ / b from the construction's, relative.
        value_error: size of all entries of W_PV that Proposition 1 has at zero, relative to those it has not.
        plus_plus_value_error: distance of W_PV from the closest GD++ construction's, relative to it.
    """

    scale: Float[Array, "*layers heads"]
    step_size: Float[Array, "*layers heads"]
    curvature_correction: Float[Array, "*layers heads"]
    key_query_error: Float[Array, "*layers heads"]
    value_error: Float[Array, "*layers heads"]
    plus_plus_value_error: Float[Array, "*layers heads"]


def key_query_scale(stack: Products, input_size: int) -> Float[Array, "*layers heads"]:
    """b: the mean of the first n_i diagonal entries of W_KQ."""
    return jnp.mean(jnp.diagonal(stack.W_KQ, axis1=-2, axis2=-1)[..., :input_size], axis=-1)


def read_layers(stack: Products, input_size: int) -> LayerReading:
    """Reads gradient descent and GD++ off a stack's products, layer by layer and head by head."""
    token_size = stack.W_KQ.shape[-1]
    scale = key_query_scale(stack, input_size)
    is_input = jnp.arange(token_size) < input_size
    ideal = jnp.diag(is_input.astype(stack.W_KQ.dtype))
    error = stack.W_KQ / scale[..., None, None] - ideal
    is_target_entry = jnp.diag(~is_input)
    kept = jnp.where(is_target_entry, stack.W_PV, jnp.zeros_like(stack.W_PV))
    mean_entry = jnp.sum(kept, axis=(-2, -1)) / (token_size - input_size)
    mean_input_entry = jnp.mean(jnp.diagonal(stack.W_PV, axis1=-2, axis2=-1)[..., :input_size], axis=-1)
    constructed = jnp.where(is_input, mean_input_entry[..., None], mean_entry[..., None])[..., None] * jnp.eye(
        token_size, dtype=stack.W_PV.dtype
    )
    return LayerReading(
        scale=scale,
        step_size=-scale * mean_entry,
        curvature_correction=-scale * mean_input_entry,
        key_query_error=_norm(error) / _norm(ideal),
        value_error=_norm(stack.W_PV - kept) / _norm(kept),
        plus_plus_value_error=_norm(stack.W_PV - constructed) / _norm(constructed),
    )


def _norm(matrix: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(jnp.sum(matrix**2, axis=(-2, -1)))
