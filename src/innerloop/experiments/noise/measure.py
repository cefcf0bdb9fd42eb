"""Everything that is measured of stacks that are trained or tested on noisy targets, as labelled arrays.

Every learner's predictions and sensitivities are taken once per task; losses and alignments of all pairs follow from
them. ``learner`` runs over `LEARNERS`, ``other`` over those of them that are not trained, ``seed`` over trained stacks
(algorithms have none, and are repeated). ``replaced`` is the number of context targets that are replaced by N(0, 1).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr

from innerloop.experiments.along_training import MEASURES
from innerloop.experiments.experiment import Preset, Stage
from innerloop.experiments.lineup import Lineup
from innerloop.experiments.noise.one_layer import (
    REPLACED,
    REPLACED_LEARNERS,
    closed_form,
    decayed_layers,
    replaced_targets,
)
from innerloop.experiments.noise.reduction import reduced, target_keys
from innerloop.experiments.noise.setting import (
    ALGORITHMS,
    DECAYS,
    FEWER,
    NEAR,
    NOISE_LEVELS,
    NOISELESS,
    ONE,
    PLAIN,
    REDUCED,
    WRONG_RIDGE,
    Rivals,
    label,
    noise_levels,
    rivals,
    stacks,
)
from innerloop.experiments.responses import responses
from innerloop.runs import Run
from innerloop.tasks import LinearRegression, Sample
from innerloop.training import held_out_batch

OTHERS = (*ALGORITHMS, WRONG_RIDGE, NEAR, FEWER)
LEARNERS = (*OTHERS, "trained", REDUCED, PLAIN)
TRAINING = ("sampled loss", "expected loss")
_CELL = {
    "loss": (("learner", "seed"), "half squared error, mean over tasks"),
    "cosine": (("learner", "other", "seed"), "cosine of sensitivities, mean over tasks"),
    "model_difference": (("learner", "other", "seed"), "norm of the difference of sensitivities, mean over tasks"),
    "prediction_difference": (("learner", "other", "seed"), "norm of the difference of predictions, mean over tasks"),
    "expected_loss": (("algorithm",), "half squared error, expected, on spectra"),
    "tuned_decay": ((), "lambda, 1 / learning rate"),
    "target_key": (("seed",), "beta, mean over distinct layers"),
    "small_steps": ((), "steps of a tenth of the best single step"),
}
"""Dimensions and units of what is measured of every stack at every noise level."""
STAGES = ("tuned algorithms", "replaced targets", "one layer in closed form", "whom the layers follow")


class Sizes(NamedTuple):
    """How much is computed.

    Attributes:
        tasks: held-out tasks of every comparison.
        tuning_contexts: contexts in each of the three sets on which algorithms are tuned.
    """

    tasks: int
    tuning_contexts: int


SIZES: dict[Preset, Sizes] = {
    "smoke": Sizes(200, 2000),
    "quick": Sizes(5000, 20_000),
    "paper": Sizes(10_000, 50_000),
}


def measure(preset: Preset, runs: Mapping[str, Run], *, stage: Stage) -> xr.Dataset:
    """Measures everything.

    Args:
        preset: how much.
        runs: by label.
        stage: told what comes next.
    """
    sizes, levels, chosen = SIZES[preset], noise_levels(preset), stacks(preset)
    noiseless = runs[NOISELESS]
    stage(STAGES[0])
    tuned = {
        (stack, level): rivals(_task(runs[label(stack, level)]), stack, num_contexts=sizes.tuning_contexts)
        for stack in chosen
        for level in levels
    }
    stage(STAGES[1])
    variables = replaced_targets(noiseless, sizes.tasks)
    stage(STAGES[2])
    variables |= closed_form(runs, levels)
    variables |= decayed_layers(runs, _held_out(runs[label(ONE, NOISE_LEVELS[0])], sizes.tasks))
    stage(STAGES[3])
    cells = {cell: _compare(runs[label(*cell)], here, sizes.tasks) for cell, here in tuned.items()}
    for name, (dimensions, units) in _CELL.items():
        table = np.stack([np.stack([cells[stack, level][name] for level in levels]) for stack in chosen])
        variables[name] = (("stack", "noise", *dimensions), table, {"units": units})
    return xr.Dataset(
        variables,
        {
            "seed": np.asarray(noiseless.recipe.seeds),
            "stack": list(chosen),
            "noise": np.asarray(levels),
            "learner": list(LEARNERS),
            "other": list(OTHERS),
            "algorithm": list(ALGORITHMS),
            "replaced": np.asarray(REPLACED),
            "replaced_learner": list(REPLACED_LEARNERS),
            "training": list(TRAINING[: variables["excess"][1].shape[1]]),
            "optimizer_decay": np.asarray((0.0, *DECAYS)),
        },
    )


def _compare(run: Run, here: Rivals, num_tasks: int) -> dict[str, np.ndarray]:
    """One stack at one noise level: losses of all learners, and alignment of each with all that are not trained."""
    trained, size = run.transformers(), _task(run).input_size
    seeded = {
        "trained": trained,
        REDUCED: reduced(trained, size, with_target_key=True),
        PLAIN: reduced(trained, size, with_target_key=False),
    }
    measured = responses(Lineup(here.learners, seeded, len(run.recipe.seeds)), _held_out(run, num_tasks))
    table = [[measured.alignment(one, other) for other in OTHERS] for one in LEARNERS]
    return {
        "loss": measured.losses(),
        **{name: np.array([[cell[name] for cell in row] for row in table]) for name in MEASURES},
        "expected_loss": np.array([here.expected[name] for name in ALGORITHMS]),
        "tuned_decay": np.asarray(here.weight_decay),
        "small_steps": np.asarray(here.small_steps),
        "target_key": np.asarray(target_keys(trained, size)).mean(axis=1),
    }


def _task(run: Run) -> LinearRegression:
    return run.recipe.linear_task()


def _held_out(run: Run, count: int) -> Sample:
    """The first held-out tasks of a run."""
    return jax.tree.map(lambda leaf: leaf[:count], held_out_batch(run.recipe).samples())
