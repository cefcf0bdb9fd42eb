"""Everything that the one-layer experiment measures, as labelled arrays.

Losses are half squared errors. ``learner`` runs over gradient descent, the trained transformers, the interpolated ones
(A.3) and the control, gradient descent with its learning rate 10 % off; learners without seeds are repeated over seeds.
"""

from collections.abc import Callable, Mapping
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from innerloop.analysis import (
    align,
    interpolate,
    over_learners,
    read_layers,
    roll_out,
    trajectory_losses,
)
from innerloop.exact import context_spectra, gradient_descent_losses, one_step_loss, trivial_loss
from innerloop.experiments.along_training import align_seeds, alignment_curves, snapshot
from innerloop.experiments.experiment import Variables
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.experiments.one_layer.setting import MAIN, Setting, descend, setting
from innerloop.experiments.shifts import SHIFT_COORDINATES, shift_losses
from innerloop.models import Transformer, products
from innerloop.problem import Learner
from innerloop.runs import Run
from innerloop.tasks import Sample

LEARNERS = ("gradient descent", "control", "trained", "interpolated")
APPLICATIONS = 50
DAMPINGS = (1.0, 0.875, 0.75)
STABLE_FRACTION = 0.9
"""Means over applications are taken on tasks whose largest eigenvalue is below this share of the stability limit."""
LARGEST_LOSS = 1e30
"""Losses are capped here in means, so that a task that diverges beyond float32 counts as this."""

_HALF_SQUARED_ERROR = {"units": "half squared error, mean over tasks"}
_ALIGNMENT_UNITS = {
    "cosine": "mean cosine of sensitivities",
    "model_difference": "mean norm of the sensitivities' difference",
    "prediction_difference": "mean absolute difference of predictions",
}


def training_curves(run: Run, here: Setting, num_tasks: int) -> Variables:
    """Fig 2 a and b: loss and alignment with gradient descent along training."""
    tasks = jax.tree.map(lambda leaf: leaf[:num_tasks], here.held_out)
    snapshots = (snapshot(run, index) for index in range(run.metrics.sizes["step"]))
    curves = alignment_curves(snapshots, [here.descent], tasks)
    axes = ("step", "seed")
    variables: Variables = {"loss": (axes, run.metrics["evaluation_loss"].values, _HALF_SQUARED_ERROR)}
    for name, units in _ALIGNMENT_UNITS.items():
        variables[name] = (axes, curves[name][:, 0], {"units": units})
    return variables


def final_comparison(here: Setting) -> Variables:
    """Per seed, on all held-out tasks: losses of everything, alignment, and the same for controls."""
    losses = lineup(here).measure(mean_loss, here.held_out)
    final = align_seeds(here.trained, here.descent, here.held_out)
    near_miss = align(here.near_miss, here.descent, here.held_out)
    two_steps = align(descend(here.learning_rate, 2), here.descent, here.held_out)
    off_target = interpolate_seeds(here, constructed=here.far_constructed)
    variables: Variables = {
        "final_loss": (("learner", "seed"), losses, _HALF_SQUARED_ERROR),
        "off_target_interpolation_loss": (
            ("seed",),
            Lineup({}, {"off target": off_target}, losses.shape[1]).measure(mean_loss, here.held_out)[0],
            _HALF_SQUARED_ERROR,
        ),
        "exact_loss": ((), np.asarray(one_step_loss(here.task, here.learning_rate)), _HALF_SQUARED_ERROR),
        "trivial_loss": ((), np.asarray(trivial_loss(here.task)), _HALF_SQUARED_ERROR),
        "learning_rate": ((), np.asarray(here.learning_rate), {"units": "eta"}),
    }
    for name in ("cosine", "model_difference", "prediction_difference"):
        variables[f"final_{name}"] = (("seed",), np.asarray(getattr(final, name)), {})
        variables[f"control_{name}"] = ((), np.asarray(getattr(near_miss, name)), {"of": "learning rate 10 % off"})
    variables["two_steps_cosine"] = ((), np.asarray(two_steps.cosine), {"of": "two gradient steps"})
    return variables


def context_lengths(runs: Mapping[str, Run]) -> xr.Dataset:
    """Fig 2 c: losses for every N = n_i, each on the held-out tasks of its own run."""
    parts = []
    for run in runs.values():
        here = setting(run)
        coordinates = {"learner": list(LEARNERS), "sweep_seed": np.asarray(run.recipe.seeds)}
        data: Variables = {
            "sweep_loss": (
                ("learner", "sweep_seed"),
                lineup(here).measure(mean_loss, here.held_out),
                _HALF_SQUARED_ERROR,
            ),
            "sweep_exact_loss": ((), np.asarray(one_step_loss(here.task, here.learning_rate)), _HALF_SQUARED_ERROR),
        }
        parts.append(xr.Dataset(data, coordinates).assign_coords(context_length=here.task.context_length))
    # Context lengths may have different numbers of seeds; the missing ones are NaN.
    joined = xr.concat(parts, "context_length", join="outer", coords="minimal", compat="equals")
    return cast(xr.Dataset, joined)


def distribution_shifts(here: Setting, num_tasks: int) -> Variables:
    """Fig 2 d and 6 a: scaled inputs, scaled targets, and three other input distributions in two normalisations."""
    # Every linear learner scales with its targets, so a learning rate 10 % off hardly shows there: 20 %.
    far_off = lineup(here, control=descend(0.8 * here.learning_rate))
    return shift_losses(lineup(here), here.task, num_tasks=num_tasks, target_lineup=far_off)


def roll_outs(here: Setting) -> Variables:
    """Fig 1 right and 10: one layer applied 50 times, damped, against damped gradient descent."""
    problem = here.held_out.problem
    second_moment = jnp.asarray(here.task.input_moments().second)
    spectra = context_spectra(problem.context_inputs, second_moment)
    largest = np.asarray(spectra.eigenvalues)[:, -1]
    step_size = here.learning_rate / here.task.context_length
    medians, stable_means, capped_means, exact_means, stable_counts = [], [], [], [], []
    for damping in DAMPINGS:
        is_stable = damping * step_size * largest < 2 * STABLE_FRACTION
        descent = descend(here.learning_rate, APPLICATIONS, damping)
        far_off = descend(0.7 * here.learning_rate, APPLICATIONS, damping)
        summarise = _roll_out_summary(jnp.asarray(is_stable), here.held_out)
        trained = _over_seeds(
            lambda one, damping=damping: roll_out(one, num_layers=APPLICATIONS, damping=damping),
            summarise,
            here.trained,
        )
        plain = [[np.broadcast_to(part, whole.shape) for part, whole in zip(summarise(one), trained, strict=True)]
                 for one in (descent, far_off)]  # fmt: skip
        by_statistic = [np.stack(parts) for parts in zip(plain[0], trained, plain[1], strict=True)]
        medians.append(by_statistic[0])
        stable_means.append(by_statistic[1])
        capped_means.append(by_statistic[2])
        rates = jnp.full(APPLICATIONS, here.learning_rate)
        exact = gradient_descent_losses(here.task, spectra, rates, damping=damping)
        exact_means.append(np.asarray(exact)[:, is_stable].mean(axis=1))
        stable_counts.append(int(is_stable.sum()))
    axes = ("damping", "rolled", "seed", "application")
    return {
        "rollout_median": (axes, np.stack(medians), {"units": "half squared error, median over tasks"}),
        "rollout_stable_mean": (axes, np.stack(stable_means), {"units": "half squared error, mean over stable tasks"}),
        "rollout_mean": (
            axes,
            np.stack(capped_means),
            {"units": f"half squared error capped at {LARGEST_LOSS:g}, mean"},
        ),
        "rollout_exact_stable_mean": (
            ("damping", "application"),
            np.stack(exact_means),
            {"units": "half squared error of gradient descent, expected given the stable contexts"},
        ),
        "rollout_stable_tasks": (("damping",), np.asarray(stable_counts), {"units": "tasks"}),
    }


def weight_readings(run: Run, here: Setting) -> Variables:
    """Fig 9: products of the trained weights, what they say, and the same early in training as control."""
    early_index = max(1, round(0.04 * (run.metrics.sizes["step"] - 1)))
    input_size = here.task.input_size
    trained, early = products(run.weights), products(snapshot(run, early_index).weights)
    constructed = products(here.constructed.weights)
    variables: Variables = {
        "W_KQ": (("seed", "row", "column"), np.asarray(trained.W_KQ)[:, 0, 0], {}),
        "W_PV": (("seed", "row", "column"), np.asarray(trained.W_PV)[:, 0, 0], {}),
        "constructed_W_KQ": (("row", "column"), np.asarray(constructed.W_KQ)[0, 0], {}),
        "constructed_W_PV": (("row", "column"), np.asarray(constructed.W_PV)[0, 0], {}),
        "early_step": (
            (),
            np.asarray(int(run.metrics["step"][early_index])),
            {"units": "training step of the control"},
        ),
    }
    for prefix, reading in (("", read_layers(trained, input_size)), ("early_", read_layers(early, input_size))):
        for name in ("scale", "step_size", "key_query_error", "value_error"):
            variables[f"{prefix}{name}"] = (("seed",), np.asarray(getattr(reading, name))[:, 0, 0], {})
    return variables


def lineup(here: Setting, *, control: Learner | None = None) -> Lineup:
    """Everyone who is compared, in the order of `LEARNERS`; the control is the near miss if none is given."""
    plain = {"gradient descent": here.descent, "control": here.near_miss if control is None else control}
    seeded = {"trained": here.trained, "interpolated": interpolate_seeds(here)}
    return Lineup(plain, seeded, here.trained.weights.attention.W_K.shape[0])


def interpolate_seeds(here: Setting, *, constructed: Transformer | None = None) -> Transformer:
    """Every seed's transformer interpolated with a construction, by default the tuned step's."""
    other = here.constructed if constructed is None else constructed
    return over_learners(lambda one: interpolate(one, other, input_size=here.task.input_size), here.trained)


def coordinates(main: Run) -> dict[str, np.ndarray | list[str]]:
    """Labels of every axis."""
    token_size = main.recipe.token_size
    return {
        "step": main.metrics["step"].values,
        "seed": np.asarray(main.recipe.seeds),
        "learner": list(LEARNERS),
        "swept": list(LEARNERS),
        "rolled": ["gradient descent", "trained", "control"],
        "damping": np.asarray(DAMPINGS),
        "application": np.arange(APPLICATIONS + 1),
        "row": np.arange(token_size),
        "column": np.arange(token_size),
        **SHIFT_COORDINATES,
    }


def measure(runs: Mapping[str, Run], *, curve_tasks: int, sweep_tasks: int, stage: Callable[[str], None]) -> xr.Dataset:
    """Measures everything.

    Args:
        runs: by label; `MAIN` among them.
        curve_tasks: tasks per point of the training curves.
        sweep_tasks: tasks per point of the out-of-distribution sweeps.
        stage: told what comes next.
    """
    main = runs[MAIN]
    here = setting(main)
    stage("alignment along training")
    variables = training_curves(main, here, curve_tasks)
    stage("trained against constructed")
    variables |= final_comparison(here)
    variables |= weight_readings(main, here)
    stage("out of distribution")
    variables |= distribution_shifts(here, sweep_tasks)
    stage("repeated application")
    variables |= roll_outs(here)
    stage("context lengths")
    return xr.merge([xr.Dataset(variables, coordinates(main)), context_lengths(runs)], compat="equals", join="outer")


def _roll_out_summary(is_stable: Array, samples: Sample):
    """Reduces a learner's trajectory losses to their median, mean over stable tasks, and capped mean."""

    @eqx.filter_jit
    def summarise(learner):
        losses = trajectory_losses(learner, samples)  # (applications + 1, tasks)
        # Beyond float32 a diverging task ends as inf - inf: that is a loss larger than any other.
        losses = jnp.where(jnp.isfinite(losses), losses, jnp.full_like(losses, LARGEST_LOSS))
        losses = jnp.minimum(losses, LARGEST_LOSS)
        stable_mean = jnp.mean(losses, axis=1, where=is_stable)
        return jnp.median(losses, axis=1), stable_mean, jnp.mean(losses, axis=1)

    return summarise


def _over_seeds(transform, function, learners) -> tuple[np.ndarray, ...]:
    mapped = eqx.filter_jit(lambda stacked: over_learners(lambda one: function(transform(one)), stacked))(learners)
    return tuple(np.asarray(part) for part in mapped)
