"""A perceptron with one hidden layer of GELU units, which adds its output to what it reads (residual).

    mlp(e) = W_2 gelu(W_1 e + b_1) + b_2

GELU is the tanh approximation, as in the published code. The same weights also describe feature maps,
whose output may be of another width (`innerloop.constructions.feature_embedding`).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SLOPE_AT_0, _CUBIC = math.sqrt(2 / math.pi), 0.044715


class MLPWeights(eqx.Module):
    """Weights of an MLP; per-block MLPs have a leading axis of distinct layers.

    Attributes:
        W_1: into the hidden layer.
        W_2: out of it.
        b_1: hidden bias; None without biases.
        b_2: output bias; None without biases.
    """

    W_1: Float[Array, "*layers hidden_size token_size"]
    W_2: Float[Array, "*layers output_width hidden_size"]
    b_1: Float[Array, "*layers hidden_size"] | None = None
    b_2: Float[Array, "*layers output_width"] | None = None


def mlp(weights: MLPWeights, tokens: Float[Array, "*tokens token_size"]) -> Float[Array, "*tokens output_width"]:
    """The MLP's output for every token, without the residual connection."""
    output = hidden_units(weights, tokens @ weights.W_1.T) @ weights.W_2.T
    return output if weights.b_2 is None else output + weights.b_2


def hidden_units(
    weights: MLPWeights, inputs: Float[Array, "*tokens hidden_size"]
) -> Float[Array, "*tokens hidden_size"]:
    """The hidden layer's output, given its inputs W_1 e without the bias."""
    return gelu(inputs if weights.b_1 is None else inputs + weights.b_1)


@jax.custom_jvp
def gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by its tanh approximation: x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + .044715 x^3).

    Its derivative is made with it, from the same tanh. JAX's own makes several arrays of this size for the way back.
    """
    return _gelu_and_slope(inputs)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (inputs,), (tangent,) = primals, tangents
    output, slope = _gelu_and_slope(inputs)
    return output, slope * tangent


def _gelu_and_slope(x):
    tanh = jnp.tanh(_SLOPE_AT_0 * (x + _CUBIC * x**3))
    share = 0.5 * (1 + tanh)
    return x * share, share + 0.5 * x * (1 - tanh**2) * _SLOPE_AT_0 * (1 + 3 * _CUBIC * x**2)
