"""Alignment of trained learners with algorithms, in the end and along training (Fig 2 b, 3, 7, 11, 14, 16).

Measures are arrays (algorithm, seed): cosine and difference of sensitivities, difference of predictions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from innerloop.analysis import Alignment, align, over_learners
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


@eqx.filter_jit
def align_seeds(learners: Any, other: Learner, samples: Sample) -> Alignment:
    """Alignment of every learner along the leading axis with another one."""
    return over_learners(lambda one: align(one, other, samples), learners)


def alignments(learners: Any, algorithms: Sequence[Learner], samples: Sample) -> Mapping[str, np.ndarray]:
    """Measures by name, each (algorithm, seed)."""
    measured = [align_seeds(learners, other, samples) for other in algorithms]
    return {name: np.stack([np.asarray(getattr(one, name)) for one in measured]) for name in MEASURES}


def training_curves(run: Run, algorithms: Sequence[Learner], samples: Sample) -> Variables:
    """Loss at every measurement, and alignment with the algorithms at the `curve_points`."""
    measured = [alignments(snapshot(run, int(index)), algorithms, samples) for index in curve_points(run)]
    variables: Variables = {
        "loss": (("step", "seed"), run.metrics["evaluation_loss"].values, {"units": "half squared error"})
    }
    for name in MEASURES:
        values = np.stack([one[name] for one in measured])
        variables[name] = (("curve_step", "algorithm", "seed"), values, {"units": f"{name} of sensitivities, mean"})
    return variables
