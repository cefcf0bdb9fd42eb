"""Transformers: attention, the stack, its initialisation, the products of its weights, and the learner made of them."""

from innerloop.models.attention import AttentionWeights, attention_update, linear_map
from innerloop.models.initialise import initialise
from innerloop.models.products import Products, products
from innerloop.models.stack import StackConfig, StackTrace, StackWeights, run_stack
from innerloop.models.transformer import Transformer

__all__ = [
    "AttentionWeights",
    "Products",
    "StackConfig",
    "StackTrace",
    "StackWeights",
    "Transformer",
    "attention_update",
    "initialise",
    "linear_map",
    "products",
    "run_stack",
]
