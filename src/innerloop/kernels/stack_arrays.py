"""A stack of attention, written in the arrays that the native kernel takes.

Scores and updates depend on weights only through the products W_KQ and W_PV; mixed attention adds softmax's share m per
layer, LayerNorm its scale and offset, and a block's MLP moves a token e by

    e <- e + (gelu((r, 1) into_hidden), 1) out_of_hidden,    r = e, or e after LayerNorm,

so that the last rows of both arrays are its biases, or zeros. What a stack lacks is an array without entries. Options
are numbers: an attribute of the call has no other form.
"""

import math
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.models import (
    AttentionKind,
    LayerNormWeights,
    MLPWeights,
    StackConfig,
    StackWeights,
    products,
    softmax_share,
)

# The native code numbers the kinds in this order.
_KINDS = {kind: str(number) for number, kind in enumerate(get_args(AttentionKind))}


class StackArrays(NamedTuple):
    """The weights.

    Attributes:
        W_KQ: W_K^T W_Q.
        W_PV: P W_V.
        shares: softmax's shares in mixed attention.
        norm_scale: factors of LayerNorm before attention.
        norm_offset: its offsets.
        into_hidden: of the block MLPs, (W_1, b_1)^T.
        out_of_hidden: of the block MLPs, (W_2, b_2)^T times the damping; zero in columns that no layer may write.
        mlp_norm_scale: factors of LayerNorm before the MLPs.
        mlp_norm_offset: its offsets.
    """

    W_KQ: Float[Array, "layers heads token_size token_size"]
    W_PV: Float[Array, "layers heads token_size token_size"]
    shares: Float[Array, " mixed_layers"]
    norm_scale: Float[Array, "norm_layers token_size"]
    norm_offset: Float[Array, "norm_layers token_size"]
    into_hidden: Float[Array, "mlp_layers token_size_plus_1 hidden_size"]
    out_of_hidden: Float[Array, "mlp_layers hidden_size_plus_1 token_size"]
    mlp_norm_scale: Float[Array, "mlp_norm_layers token_size"]
    mlp_norm_offset: Float[Array, "mlp_norm_layers token_size"]


def stack_arrays(config: StackConfig, weights: StackWeights, num_targets: int) -> StackArrays:
    """The arrays of weights without embedding.

    Args:
        config: the architecture.
        weights: its parameters.
        num_targets: number of target entries at the end of a token.
    """
    reduced, mixing = products(weights), weights.attention.mixing
    none = jnp.zeros((0, reduced.W_KQ.shape[-1]), reduced.W_KQ.dtype)

    def of_norm(norm: LayerNormWeights | None):
        return (none, none) if norm is None else (norm.scale, norm.offset)

    return StackArrays(
        reduced.W_KQ,
        reduced.W_PV,
        none[:, 0] if mixing is None else softmax_share(mixing),
        *of_norm(weights.attention_norm),
        *_mlp_arrays(config, weights.mlp, reduced.W_KQ.shape[-1], num_targets),
        *of_norm(weights.mlp_norm),
    )


def _mlp_arrays(config: StackConfig, mlp: MLPWeights | None, token_size: int, num_targets: int):
    """Weights into and out of the hidden units, of which there are none without an MLP."""
    if mlp is None:
        return jnp.zeros((0, token_size + 1, 0), jnp.float32), jnp.zeros((0, 1, token_size), jnp.float32)
    is_written = np.arange(token_size) >= (token_size - num_targets if config.update == "targets" else 0)
    factor = jnp.asarray(config.damping * is_written, mlp.W_2.dtype)
    return _with_biases(mlp.W_1, mlp.b_1), factor * _with_biases(mlp.W_2, mlp.b_2)


def _with_biases(
    matrix: Float[Array, "layers out in"], biases: Float[Array, "layers out"] | None
) -> Float[Array, "layers in_plus_1 out"]:
    biases = jnp.zeros_like(matrix[..., 0]) if biases is None else biases
    return jnp.concatenate([matrix, biases[..., None]], axis=-1).mT


def serves_stack(config: StackConfig) -> bool:
    """Whether an architecture is blocks of attention and MLPs, with or without LayerNorm, on the tokens as they are."""
    return config.embedding_size is None and config.mlp != "input"


def stack_options(config: StackConfig, *, key_size: int) -> dict[str, Any]:
    """The architecture's part of the call's options.

    Args:
        config: the architecture.
        key_size: of the weights; its root divides the logits of softmax.
    """
    first_norm = {"none": config.num_layers, "before": 0, "between": 1}[config.layer_norm]
    return {
        "attention": "".join(_KINDS[config.attention_kind(layer)] for layer in range(config.num_layers)),
        "query_in_keys": np.int32(config.query_in_keys),
        "writes_targets_only": np.int32(config.update == "targets"),
        "is_causal": np.int32(config.causal),
        "first_norm": np.int32(first_norm),
        "has_norms": np.int32(config.layer_norm != "none"),
        "has_mlps": np.int32(config.mlp == "block"),
        "damping": np.float32(config.damping),
        "token_clip": np.float32(math.inf if config.token_clip is None else config.token_clip),
        "logit_scale": np.float32(key_size**-0.5),
    }
