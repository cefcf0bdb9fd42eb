"""Transformers: their parts, the stack of them, its initialisation, the products of its weights, the learner."""

from innerloop.models.attention import (
    AttentionKind,
    AttentionWeights,
    attention_of_scores,
    attention_scores,
    attention_update,
    softmax_share,
)
from innerloop.models.embedding import EmbeddingWeights, embed
from innerloop.models.initialise import initialise
from innerloop.models.mlp import MLPWeights, hidden_units, mlp
from innerloop.models.norm import LayerNormWeights, layer_norm
from innerloop.models.products import Products, products
from innerloop.models.stack import StackConfig, StackTrace, StackWeights, layer_segments, run_stack
from innerloop.models.transformer import Transformer

__all__ = [
    "AttentionKind",
    "AttentionWeights",
    "EmbeddingWeights",
    "LayerNormWeights",
    "MLPWeights",
    "Products",
    "StackConfig",
    "StackTrace",
    "StackWeights",
    "Transformer",
    "attention_of_scores",
    "attention_scores",
    "attention_update",
    "embed",
    "hidden_units",
    "initialise",
    "layer_norm",
    "layer_segments",
    "mlp",
    "products",
    "run_stack",
    "softmax_share",
]
