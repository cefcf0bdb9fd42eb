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
from innerloop.tasks.linear_classification import LinearClassification
from innerloop.tasks.linear_regression import (
    InputMoments,
    LinearRegression,
    other_input_distributions,
    typical_context_norm,
)
from innerloop.tasks.prediction_loss import PredictionLoss, loss_unit, prediction_loss
from innerloop.tasks.random_network import RandomNetwork
from innerloop.tasks.replaced_targets import ReplacedTargets
from innerloop.tasks.sine_waves import SineWaves
from innerloop.tasks.task import Batch, Sample, Task

TASKS: dict[str, type[Task]] = {
    "linear_regression": LinearRegression,
    "sine_waves": SineWaves,
    "random_network": RandomNetwork,
    "linear_classification": LinearClassification,
}


def family_name(task: Task) -> str:
    """The name of a task's family in `TASKS`."""
    return next(name for name, family in TASKS.items() if family is type(task))


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
    "LinearClassification",
    "LinearRegression",
    "Normal",
    "PredictionLoss",
    "RandomNetwork",
    "ReplacedTargets",
    "Sample",
    "SineWaves",
    "Task",
    "Uniform",
    "family_name",
    "loss_unit",
    "other_input_distributions",
    "prediction_loss",
    "typical_context_norm",
]
