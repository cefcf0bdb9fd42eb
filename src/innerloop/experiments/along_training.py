"""Alignment of trained learners with algorithms, in the end and along training (Fig 2 b, 3, 7, 11, 14, 16).

Measures are arrays (algorithm, seed): cosine and difference of sensitivities, difference of predictions.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from innerloop.analysis import Alignment, Linearisation, align_with, linearisations, over_learners
from innerloop.experiments.experiment import Variables
from innerloop.models import Transformer
from innerloop.problem import Learner
from innerloop.runs import Run
from innerloop.tasks import Sample

MEASURES = ("cosine", "model_difference", "prediction_difference")
_MOST_CURVE_POINTS = 25


def snapshot(run: Run, index: int) -> Transformer:
    """The transformers of all seeds as they were at one measurement."""
    return run.transformers(jax.tree.map(lambda leaf: leaf[index], eqx.filter(run.snapshots, eqx.is_array)))


def curve_points(run: Run) -> np.ndarray:
    """Indices of the measurements at which alignment is measured: early ones closer together."""
    last = run.metrics.sizes["step"] - 1
    share = np.linspace(0, 1, _MOST_CURVE_POINTS) ** 1.5
    return np.unique(np.round(share * last).astype(int))


def align_seeds(learners: Any, other: Learner, samples: Sample) -> Alignment:
    """Alignment of every learner along the leading axis with another one."""
    (alignment,) = _align_seeds(learners, [linearisations(other, samples)], samples)
    return alignment


def alignments(learners: Any, algorithms: Sequence[Learner], samples: Sample) -> Mapping[str, np.ndarray]:
    """Measures by name, each (algorithm, seed)."""
    return _measures(learners, [linearisations(one, samples) for one in algorithms], samples)


def alignment_curves(
    snapshots: Iterable[Any], algorithms: Sequence[Learner], samples: Sample
) -> Mapping[str, np.ndarray]:
    """Measures by name, each (snapshot, algorithm, seed), of learners at several moments."""
    others = [linearisations(one, samples) for one in algorithms]
    measured = [_measures(learners, others, samples) for learners in snapshots]
    return {name: np.stack([one[name] for one in measured]) for name in MEASURES}


def training_curves(run: Run, algorithms: Sequence[Learner], samples: Sample) -> Variables:
    """Loss at every measurement, and alignment with the algorithms at the `curve_points`."""
    curves = alignment_curves((snapshot(run, int(index)) for index in curve_points(run)), algorithms, samples)
    variables: Variables = {
        "loss": (("step", "seed"), run.metrics["evaluation_loss"].values, {"units": "half squared error"})
    }
    for name, values in curves.items():
        variables[name] = (("curve_step", "algorithm", "seed"), values, {"units": f"{name} of sensitivities, mean"})
    return variables


@eqx.filter_jit
def _align_seeds(learners: Any, others: Sequence[Linearisation], samples: Sample) -> list[Alignment]:
    return over_learners(lambda one: align_with(others, one, samples), learners)


def _measures(learners: Any, others: Sequence[Linearisation], samples: Sample) -> Mapping[str, np.ndarray]:
    measured = _align_seeds(learners, others, samples)
    return {name: np.stack([np.asarray(getattr(one, name)) for one in measured]) for name in MEASURES}
