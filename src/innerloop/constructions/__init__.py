"""Weights written by hand: with them, a transformer performs a known algorithm exactly."""

from innerloop.constructions.classification import (
    classification_descent_transformer,
    classification_descent_weights,
)
from innerloop.constructions.copying import alternating_descent_transformer, copying_error, copying_weights
from innerloop.constructions.deep_features import (
    feature_descent_transformer,
    feature_descent_weights,
    feature_embedding,
)
from innerloop.constructions.gradient_descent import gradient_descent_transformer, gradient_descent_weights
from innerloop.constructions.gradient_descent_plus_plus import (
    gradient_descent_plus_plus_transformer,
    gradient_descent_plus_plus_weights,
)
from innerloop.constructions.weight_decay import weight_decay_transformer

__all__ = [
    "alternating_descent_transformer",
    "classification_descent_transformer",
    "classification_descent_weights",
    "copying_error",
    "copying_weights",
    "feature_descent_transformer",
    "feature_descent_weights",
    "feature_embedding",
    "gradient_descent_plus_plus_transformer",
    "gradient_descent_plus_plus_weights",
    "gradient_descent_transformer",
    "gradient_descent_weights",
    "weight_decay_transformer",
]
