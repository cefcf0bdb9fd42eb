"""Distributions over in-context problems: samplers, exact moments, out-of-distribution variants. No learners here."""

from innerloop.tasks.inputs import (
    INPUT_DISTRIBUTIONS,
    Exponential,
    Gaussian,
    IndependentInputs,
    InputDistribution,
    Laplace,
    Normal,
    Uniform,
)
from innerloop.tasks.linear_regression import (
    InputMoments,
    LinearRegression,
    other_input_distributions,
    typical_context_norm,
)
from innerloop.tasks.task import Batch, Sample, Task

TASKS: dict[str, type[Task]] = {"linear_regression": LinearRegression}

__all__ = [
    "INPUT_DISTRIBUTIONS",
    "TASKS",
    "Batch",
    "Exponential",
    "Gaussian",
    "IndependentInputs",
    "InputDistribution",
    "InputMoments",
    "Laplace",
    "LinearRegression",
    "Normal",
    "Sample",
    "Task",
    "Uniform",
    "other_input_distributions",
    "typical_context_norm",
]
