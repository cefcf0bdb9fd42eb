"""A stack of attention, written in the arrays that the native kernel takes.

Scores and updates depend on weights only through the products W_KQ and W_PV; mixed attention adds softmax's share m per
layer, LayerNorm its scale and offset. What a stack lacks is an array without entries. Options are numbers: an attribute
of the call has no other form.
"""

import math
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.models import AttentionKind, StackConfig, StackWeights, products, softmax_share

# The native code numbers the kinds in this order.
_KINDS = {kind: str(number) for number, kind in enumerate(get_args(AttentionKind))}


class StackArrays(NamedTuple):
    """The weights.

    Attributes:
        W_KQ: W_K^T W_Q.
        W_PV: P W_V.
        shares: softmax's shares in mixed attention.
        norm_scale: LayerNorm's factors.
        norm_offset: LayerNorm's offsets.
    """

    W_KQ: Float[Array, "layers heads token_size token_size"]
    W_PV: Float[Array, "layers heads token_size token_size"]
    shares: Float[Array, " layers_or_0"]
    norm_scale: Float[Array, "layers_or_0 token_size"]
    norm_offset: Float[Array, "layers_or_0 token_size"]


def stack_arrays(weights: StackWeights) -> StackArrays:
    """The arrays of weights without embedding and MLPs."""
    reduced, mixing, norm = products(weights), weights.attention.mixing, weights.attention_norm
    none = jnp.zeros((0, reduced.W_KQ.shape[-1]), reduced.W_KQ.dtype)
    return StackArrays(
        reduced.W_KQ,
        reduced.W_PV,
        none[:, 0] if mixing is None else softmax_share(mixing),
        none if norm is None else norm.scale,
        none if norm is None else norm.offset,
    )


def serves_stack(config: StackConfig) -> bool:
    """Whether an architecture is attention alone, with or without LayerNorm, on the tokens as they are."""
    return config.embedding_size is None and config.mlp == "none"


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
        "damping": np.float32(config.damping),
        "token_clip": np.float32(math.inf if config.token_clip is None else config.token_clip),
        "logit_scale": np.float32(key_size**-0.5),
    }
