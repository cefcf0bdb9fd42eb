"""The paper's results, one experiment each: recipes, runs, results, claims, figures."""

from innerloop.experiments.experiment import Experiment, Preset, Results
from innerloop.experiments.one_layer import ONE_LAYER
from innerloop.experiments.two_layer import TWO_LAYER

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (ONE_LAYER, TWO_LAYER)}

__all__ = ["EXPERIMENTS", "ONE_LAYER", "TWO_LAYER", "Experiment", "Preset", "Results"]
