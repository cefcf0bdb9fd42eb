"""Reference learners: the known algorithms that trained transformers are compared with."""

from innerloop.algorithms.centred import Centred
from innerloop.algorithms.cross_entropy_descent import CentredLogits, CrossEntropyDescent
from innerloop.algorithms.deep_features import FeatureMap, KernelFunction, KernelGradientDescent, OnFeatures
from innerloop.algorithms.gradient_descent import GradientDescent
from innerloop.algorithms.gradient_descent_plus_plus import GradientDescentPlusPlus, Residuals
from innerloop.algorithms.kernel_smoothing import KernelSmoothing
from innerloop.algorithms.logistic_regression import (
    BayesianLogisticRegression,
    LogisticRegression,
    fitted_weights,
    prior_penalty,
)
from innerloop.algorithms.prior_pairs import WithPriorPairs
from innerloop.algorithms.ridge import Ridge, bayes_optimal
from innerloop.algorithms.trivial import Trivial

__all__ = [
    "BayesianLogisticRegression",
    "Centred",
    "CentredLogits",
    "CrossEntropyDescent",
    "FeatureMap",
    "GradientDescent",
    "GradientDescentPlusPlus",
    "KernelFunction",
    "KernelGradientDescent",
    "KernelSmoothing",
    "LogisticRegression",
    "OnFeatures",
    "Residuals",
    "Ridge",
    "Trivial",
    "WithPriorPairs",
    "bayes_optimal",
    "fitted_weights",
    "prior_penalty",
]
