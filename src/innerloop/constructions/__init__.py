"""Weights written by hand: with them, a transformer performs a known algorithm exactly."""

from innerloop.constructions.gradient_descent import gradient_descent_transformer, gradient_descent_weights
from innerloop.constructions.gradient_descent_plus_plus import (
    gradient_descent_plus_plus_transformer,
    gradient_descent_plus_plus_weights,
)

__all__ = [
    "gradient_descent_plus_plus_transformer",
    "gradient_descent_plus_plus_weights",
    "gradient_descent_transformer",
    "gradient_descent_weights",
]
