"""What learners say of the same tasks: predictions and sensitivities, from which all comparisons of pairs follow.

>>> from innerloop.algorithms import GradientDescent, Ridge
>>> from innerloop.keys import root_key
>>> from innerloop.tasks import LinearRegression
>>> samples = LinearRegression().samples(root_key(0), 100)
>>> measured = responses(Lineup({"one": GradientDescent(6.0), "other": Ridge(0.1)}, {}, num_seeds=1), samples)
>>> measured.losses().shape, round(float(measured.alignment("one", "one")["cosine"][0]), 4)
((2, 1), 1.0)
"""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from innerloop.analysis import Alignment, Linearisation, compare, linearisations
from innerloop.experiments.along_training import MEASURES
from innerloop.experiments.lineup import Lineup
from innerloop.tasks import Sample


class Responses(NamedTuple):
    """What learners say of the same tasks.

    Attributes:
        names: of the learners.
        linearisations: predictions and their derivatives by the query, (learner, seed, tasks, ..).
        targets: what there was to predict.
    """

    names: list[str]
    linearisations: Linearisation
    targets: Float[np.ndarray, "tasks output_size"]

    def losses(self) -> Float[np.ndarray, "learner seed"]:
        """Half squared errors, mean over tasks."""
        errors = self.linearisations.prediction - self.targets
        return 0.5 * np.mean(np.sum(np.asarray(errors) ** 2, axis=-1), axis=-1)

    def alignment(self, one: str, other: str) -> dict[str, Float[np.ndarray, " seed"]]:
        """The measures of `innerloop.analysis.alignment` between two of the learners, seed by seed."""
        measured = _compare_seeds(*(self._of(name) for name in (one, other)))
        return {name: np.asarray(getattr(measured, name)) for name in MEASURES}

    def _of(self, name: str) -> Linearisation:
        index = self.names.index(name)
        return jax.tree.map(lambda leaf: leaf[index], self.linearisations)


def responses(lineup: Lineup, samples: Sample) -> Responses:
    """Measures everyone in a lineup on the same tasks; for learners that are differentiable in the query."""
    return Responses(lineup.names(), lineup.measure(linearisations, samples), np.asarray(samples.query_target))


@eqx.filter_jit
def _compare_seeds(ours: Linearisation, theirs: Linearisation) -> Alignment:
    return jax.vmap(compare)(ours, theirs)
