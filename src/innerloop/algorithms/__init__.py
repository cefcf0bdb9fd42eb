"""Reference learners: the known algorithms that trained transformers are compared with."""

from innerloop.algorithms.gradient_descent import GradientDescent
from innerloop.algorithms.gradient_descent_plus_plus import GradientDescentPlusPlus, Residuals
from innerloop.algorithms.ridge import Ridge, bayes_optimal
from innerloop.algorithms.trivial import Trivial

__all__ = ["GradientDescent", "GradientDescentPlusPlus", "Residuals", "Ridge", "Trivial", "bayes_optimal"]
