"""What learners say of the same tasks: predictions and sensitivities, from which all comparisons of pairs follow.

>>> from innerloop.algorithms import GradientDescent, Ridge
>>> from innerloop.keys import root_key
>>> from innerloop.tasks import LinearRegression
>>> samples = LinearRegression().samples(root_key(0), 100)
>>> measured = responses(Lineup({"one": GradientDescent(6.0), "other": Ridge(0.1)}, {}, num_seeds=1), samples)
>>> measured.losses().shape, round(float(measured.alignment(0, 0)["cosine"][0]), 4)
((2, 1), 1.0)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from innerloop.analysis import linearisations
from innerloop.experiments.along_training import MEASURES
from innerloop.experiments.lineup import Lineup
from innerloop.problem import Learner
from innerloop.tasks import Sample


class Responses(NamedTuple):
    """What learners say of the same tasks.

    Attributes:
        predictions: of the query's target.
        sensitivities: their derivatives by the query.
        targets: what there was to predict.
    """

    predictions: Float[np.ndarray, "learner seed tasks output_size"]
    sensitivities: Float[np.ndarray, "learner seed tasks output_size input_size"]
    targets: Float[np.ndarray, "tasks output_size"]

    def losses(self) -> Float[np.ndarray, "learner seed"]:
        """Half squared errors, mean over tasks."""
        return 0.5 * np.mean(np.sum((self.predictions - self.targets) ** 2, axis=-1), axis=-1)

    def alignment(self, one: int, other: int) -> dict[str, Float[np.ndarray, " seed"]]:
        """The measures of `innerloop.analysis.alignment` between two of the learners, seed by seed."""
        ours, theirs = self.sensitivities[one], self.sensitivities[other]
        norms = _norm(ours) * _norm(theirs)
        cosine = np.divide(np.sum(ours * theirs, axis=(-2, -1)), norms, out=np.zeros_like(norms), where=norms > 0)
        apart = np.linalg.norm(self.predictions[one] - self.predictions[other], axis=-1)
        values = (cosine, _norm(ours - theirs), apart)
        return {name: value.mean(axis=-1) for name, value in zip(MEASURES, values, strict=True)}


def responses(lineup: Lineup, samples: Sample) -> Responses:
    """Measures everyone in a lineup on the same tasks; for learners that are differentiable in the query."""
    predictions, sensitivities = lineup.measure(_respond, samples)
    return Responses(predictions, sensitivities, np.asarray(samples.query_target))


def _norm(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrices, axis=(-2, -1))


def _respond(learner: Learner, samples: Sample):
    found = linearisations(learner, samples)
    return found.prediction, found.sensitivity
