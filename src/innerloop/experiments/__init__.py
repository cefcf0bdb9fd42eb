"""The paper's results, one experiment each: recipes, runs, results, claims, figures."""

from innerloop.experiments.classification import CLASSIFICATION
from innerloop.experiments.copying import COPYING
from innerloop.experiments.curvature import CURVATURE
from innerloop.experiments.experiment import Experiment, Preset, Results
from innerloop.experiments.finite_data import FINITE_DATA
from innerloop.experiments.five_layer import FIVE_LAYER
from innerloop.experiments.grokking import GROKKING
from innerloop.experiments.layernorm import LAYERNORM
from innerloop.experiments.noise import NOISE
from innerloop.experiments.one_layer import ONE_LAYER
from innerloop.experiments.plateaus import PLATEAUS
from innerloop.experiments.sine import SINE
from innerloop.experiments.softmax import SOFTMAX
from innerloop.experiments.ten_layer import TEN_LAYER
from innerloop.experiments.twelve_blocks import TWELVE_BLOCKS
from innerloop.experiments.two_layer import TWO_LAYER
from innerloop.experiments.weights import WEIGHTS

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        ONE_LAYER,
        TWO_LAYER,
        FIVE_LAYER,
        TEN_LAYER,
        CURVATURE,
        WEIGHTS,
        SINE,
        COPYING,
        TWELVE_BLOCKS,
        SOFTMAX,
        LAYERNORM,
        PLATEAUS,
        FINITE_DATA,
        GROKKING,
        NOISE,
        CLASSIFICATION,
    )
}

__all__ = [
    "CLASSIFICATION",
    "COPYING",
    "CURVATURE",
    "EXPERIMENTS",
    "FINITE_DATA",
    "FIVE_LAYER",
    "GROKKING",
    "LAYERNORM",
    "NOISE",
    "ONE_LAYER",
    "PLATEAUS",
    "SINE",
    "SOFTMAX",
    "TEN_LAYER",
    "TWELVE_BLOCKS",
    "TWO_LAYER",
    "WEIGHTS",
    "Experiment",
    "Preset",
    "Results",
]
