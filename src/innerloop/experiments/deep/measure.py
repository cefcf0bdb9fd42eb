"""Everything that is measured of a deep stack, as labelled arrays.

``learner`` runs over the names of `DeepSetting.lineup`; learners without seeds are repeated over seeds. ``algorithm``
runs over gradient descent and GD++, with which alignment is measured.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr

from innerloop.analysis import compare_layers, over_learners, read_layers
from innerloop.experiments.along_training import MEASURES, curve_points, training_curves
from innerloop.experiments.deep.setting import DeepSetting, deep_setting
from innerloop.experiments.experiment import Preset, Variables
from innerloop.experiments.lineup import Lineup
from innerloop.experiments.responses import responses
from innerloop.experiments.shifts import SHIFT_COORDINATES, shift_losses
from innerloop.models import products
from innerloop.runs import Run

ALGORITHMS = ("gradient descent", "gd++")
_LOSS = {"units": "half squared error, mean over tasks"}


class Sizes(NamedTuple):
    """How much is computed.

    Attributes:
        curve_tasks: tasks per point of the alignment curves.
        sweep_tasks: tasks per point of the out-of-distribution sweeps.
        tuning_contexts: contexts in each of the three sets on which algorithms are tuned.
    """

    curve_tasks: int
    sweep_tasks: int
    tuning_contexts: int


SIZES: dict[Preset, Sizes] = {
    "smoke": Sizes(200, 200, 2000),
    "quick": Sizes(2000, 4000, 50_000),
    "paper": Sizes(10_000, 10_000, 50_000),
}
STAGES = ("tuned baselines", "alignment along training", "trained against constructed", "out of distribution")


def measure(
    run: Run,
    tuning: Run | None = None,
    *,
    sizes: Sizes,
    stage: Callable[[str], None],
    with_shifts: bool = True,
) -> xr.Dataset:
    """Measures everything.

    Args:
        run: the trained stacks.
        tuning: a run of the published tuning protocol whose GD++ they are compared with; None tunes it exactly.
        sizes: on how many tasks.
        stage: told what comes next.
        with_shifts: also sweep out of distribution.
    """
    stage("tuned baselines")
    here = deep_setting(run, tuning, num_contexts=sizes.tuning_contexts)
    stage("alignment along training")
    curve_tasks = jax.tree.map(lambda leaf: leaf[: sizes.curve_tasks], here.held_out)
    variables = training_curves(run, here.algorithms(), curve_tasks)
    stage("trained against constructed")
    variables |= final_comparison(here)
    variables |= weight_readings(run, here)
    shift_coordinates = {}
    if with_shifts:
        stage("out of distribution")
        stacks = here.stacks()
        variables |= shift_losses(stacks, here.task, num_tasks=sizes.sweep_tasks)
        shift_coordinates = {"swept": stacks.names(), **SHIFT_COORDINATES}
    token_size = run.recipe.token_size
    coordinates = {
        "step": run.metrics["step"].values,
        "curve_step": run.metrics["step"].values[curve_points(run)],
        "seed": np.asarray(run.recipe.seeds),
        "learner": here.lineup().names(),
        "algorithm": list(ALGORITHMS),
        "tuned": list(here.exact),
        "layer": np.arange(here.config.num_layers) + 1,
        "distinct_layer": np.arange(here.config.num_distinct_layers) + 1,
        "row": np.arange(token_size),
        "column": np.arange(token_size),
        **shift_coordinates,
    }
    return xr.Dataset(variables, coordinates, attrs={"context_length": here.task.context_length})


def final_comparison(here: DeepSetting) -> Variables:
    """On all held-out tasks: losses of everyone, alignment per seed, and the same for the controls."""
    lineup = here.lineup()
    # Half of what is wrong with a construction remains when it is interpolated: 40 % off, so that 20 % remain.
    far = here.interpolated(here.constructed(gamma_factor=0.6))
    seeded = {**lineup.seeded, "far": far}
    everyone = Lineup({**lineup.plain, "descent stack": here.descent_stack()}, seeded, here.num_seeds)
    measured = responses(everyone, here.held_out)
    losses = dict(zip(everyone.names(), measured.losses(), strict=True))
    exact = "gd++, tuned exactly"
    pairs = {
        "control": ("control", "gd++", "control with GD++"),
        "descent": ("descent stack", "gd++", "descent with GD++"),
        "exact_control": ("control, tuned exactly", exact, "gamma 10 % off"),
        "exact_published": ("gd++", exact, "published tuning"),
    }
    variables: Variables = {
        "final_loss": (("learner", "seed"), np.stack([losses[name] for name in lineup.names()]), _LOSS),
        "far_interpolation_loss": (("seed",), losses["far"], _LOSS),
        "tuned_loss": (("tuned",), np.array([one.loss for one in here.exact.values()]), {"units": "expected loss"}),
        "tuned_loss_error": (("tuned",), np.array([one.loss_standard_error for one in here.exact.values()]), {}),
        "tuned_fitted_loss": (("tuned",), np.array([one.fitted_loss for one in here.exact.values()]), {}),
        "tuned_learning_rate": (
            ("tuned", "layer"),
            np.stack([one.learning_rates for one in here.exact.values()]),
            {"units": "eta"},
        ),
        "tuned_curvature_correction": (
            ("tuned", "layer"),
            np.stack([one.curvature_corrections for one in here.exact.values()]),
            {"units": "gamma"},
        ),
    }
    final = [measured.alignment("trained", name) for name in ("descent stack", "gd++")]
    exactly = measured.alignment("trained", exact)
    for name in MEASURES:
        variables[f"final_{name}"] = (("algorithm", "seed"), np.stack([one[name] for one in final]), {})
        variables[f"exact_{name}"] = (("seed",), exactly[name], {"of": "GD++, tuned exactly"})
    for prefix, (one, other, what) in pairs.items():
        for name, values in measured.alignment(one, other).items():
            variables[f"{prefix}_{name}"] = ((), values[0], {"of": what})
    return variables


def weight_readings(run: Run, here: DeepSetting) -> Variables:
    """Products of the trained weights, the numbers that they say, and how far they are from a GD++ construction."""
    input_size = here.task.input_size
    trained, constructed = products(run.weights), products(here.constructed().weights)
    reading = read_layers(trained, input_size)

    def compare(one):
        return compare_layers(one, constructed, here.config, input_size=input_size)

    compared = over_learners(compare, trained)
    plain = compare(products(here.constructed(gamma_factor=0.0).weights))
    variables: Variables = {
        "W_KQ": (("seed", "distinct_layer", "row", "column"), np.asarray(trained.W_KQ)[:, :, 0], {}),
        "W_PV": (("seed", "distinct_layer", "row", "column"), np.asarray(trained.W_PV)[:, :, 0], {}),
        "constructed_W_KQ": (("distinct_layer", "row", "column"), np.asarray(constructed.W_KQ)[:, 0], {}),
        "constructed_W_PV": (("distinct_layer", "row", "column"), np.asarray(constructed.W_PV)[:, 0], {}),
        "weight_distance": (
            ("seed", "distinct_layer"),
            np.asarray(compared.distance)[:, :, 0],
            {"units": "distance of W_KQ x W_PV, relative"},
        ),
        "plain_weight_distance": (("distinct_layer",), np.asarray(plain.distance)[:, 0], {"of": "gamma = 0"}),
        "reference_learning_rate": (
            ("layer",),
            np.asarray(here.numbers[0]),
            {"units": "eta of the GD++ in question"},
        ),
        "reference_curvature_correction": (("layer",), np.asarray(here.numbers[1]), {"units": "gamma of the same"}),
    }
    for name in ("scale", "step_size", "curvature_correction", "key_query_error", "plus_plus_value_error"):
        variables[name] = (("seed", "distinct_layer"), np.asarray(getattr(reading, name))[:, :, 0], {})
    return variables
