"""A perceptron with one hidden layer of GELU units, which adds its output to what it reads (residual).

    mlp(e) = W_2 gelu(W_1 e + b_1) + b_2

GELU is JAX's default, the tanh approximation, as in the published code. The same weights also describe feature maps,
whose output may be of another width (`innerloop.constructions.feature_embedding`).
"""

import equinox as eqx
import jax
from jaxtyping import Array, Float


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
    return jax.nn.gelu(inputs if weights.b_1 is None else inputs + weights.b_1)
