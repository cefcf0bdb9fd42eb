"""Reference learners: the known algorithms that trained transformers are compared with."""

from innerloop.algorithms.centred import Centred
from innerloop.algorithms.deep_features import FeatureMap, KernelFunction, KernelGradientDescent, OnFeatures
from innerloop.algorithms.gradient_descent import GradientDescent
from innerloop.algorithms.gradient_descent_plus_plus import GradientDescentPlusPlus, Residuals
from innerloop.algorithms.prior_pairs import WithPriorPairs
from innerloop.algorithms.ridge import Ridge, bayes_optimal
from innerloop.algorithms.trivial import Trivial

__all__ = [
    "Centred",
    "FeatureMap",
    "GradientDescent",
    "GradientDescentPlusPlus",
    "KernelFunction",
    "KernelGradientDescent",
    "OnFeatures",
    "Residuals",
    "Ridge",
    "Trivial",
    "WithPriorPairs",
    "bayes_optimal",
]
