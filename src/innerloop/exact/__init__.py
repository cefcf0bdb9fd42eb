"""Expected losses and optima in closed form or from spectra: no samples of targets, no noise in the answer."""

from innerloop.exact.one_step import (
    OneStepLoss,
    one_step_loss,
    one_step_parabola,
    optimal_learning_rate,
    trivial_loss,
)
from innerloop.exact.spectrum import Spectra, context_spectra, gradient_descent_losses, pool, sample_spectra
from innerloop.exact.tuning import Tuned, TuningSpectra, tune, tuning_spectra

__all__ = [
    "OneStepLoss",
    "Spectra",
    "Tuned",
    "TuningSpectra",
    "context_spectra",
    "gradient_descent_losses",
    "one_step_loss",
    "one_step_parabola",
    "optimal_learning_rate",
    "pool",
    "sample_spectra",
    "trivial_loss",
    "tune",
    "tuning_spectra",
]
