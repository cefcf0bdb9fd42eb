"""Expected losses and optima in closed form or from spectra: no samples of targets, no noise in the answer."""

from innerloop.exact.filters import (
    Stopping,
    TunedDecay,
    decay_filter,
    filter_losses,
    ridge_filter,
    tune_stopping,
    tune_weight_decay,
)
from innerloop.exact.one_layer import OneLayerLoss, check_one_layer, one_layer_loss, optimal_layer
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
    "OneLayerLoss",
    "OneStepLoss",
    "Spectra",
    "Stopping",
    "Tuned",
    "TunedDecay",
    "TuningSpectra",
    "check_one_layer",
    "context_spectra",
    "decay_filter",
    "filter_losses",
    "gradient_descent_losses",
    "one_layer_loss",
    "one_step_loss",
    "one_step_parabola",
    "optimal_layer",
    "optimal_learning_rate",
    "pool",
    "ridge_filter",
    "sample_spectra",
    "trivial_loss",
    "tune",
    "tune_stopping",
    "tune_weight_decay",
    "tuning_spectra",
]
