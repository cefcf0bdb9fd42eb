"""What is measured of grokking: loss curves, their rise and fall, and gradient descent beside them."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import xarray as xr

from innerloop.algorithms import Trivial
from innerloop.analysis import find_rise_and_fall
from innerloop.exact import optimal_learning_rate
from innerloop.experiments.against_descent import descend
from innerloop.experiments.experiment import Stage, Variables
from innerloop.experiments.lineup import mean_loss
from innerloop.runs import Run
from innerloop.training import held_out_batch

STAGES = ("curves", "gradient descent")
_LOSS = {"units": "half squared error, mean over tasks"}
_WINDOW = 5  # measurements
_STEP = {"units": "training steps"}


def measure(runs: Mapping[str, Run], *, stage: Stage) -> xr.Dataset:
    """All runs with the axis ``tasks`` in front; losses of algorithms are on the runs' own held-out tasks."""
    stage(STAGES[0])
    parts = [measure_curves(run).assign_coords(tasks=label) for label, run in runs.items()]
    data = cast(xr.Dataset, xr.concat(parts, "tasks", join="outer"))
    stage(STAGES[1])
    descent, zero = reference_losses(next(iter(runs.values())))
    return data.assign(descent_loss=((), np.asarray(descent), _LOSS), zero_loss=((), np.asarray(zero), _LOSS))


def reference_losses(run: Run) -> tuple[float, float]:
    """One optimal step of gradient descent, and predicting zero, on the run's held-out tasks."""
    rate = optimal_learning_rate(run.recipe.linear_task())
    samples = held_out_batch(run.recipe).samples()
    return float(mean_loss(descend(rate), samples)), float(mean_loss(Trivial(), samples))


def running_median(curves: xr.DataArray) -> xr.DataArray:
    """Medians over five measurements around each, fewer at the ends; same axes, one of which is ``step``."""
    return curves.rolling(step=_WINDOW, center=True, min_periods=1).median()


def measure_curves(run: Run) -> xr.Dataset:
    """One run: curves by step and seed, and where each seed's held-out loss rises and falls.

    Rise and fall are those of running medians over five measurements: at a high learning rate Adam's loss has spikes of
    one or two measurements, on fresh tasks too, which have nothing to do with memory.
    """
    steps, curves = run.metrics["step"].values, run.metrics["evaluation_loss"].values
    train = run.metrics["train_loss"].values
    smooth, smooth_train = (running_median(run.metrics[name]).values for name in ("evaluation_loss", "train_loss"))
    found = [find_rise_and_fall(steps, curve) for curve in smooth.T]
    variables: Variables = {
        "loss": (("step", "seed"), curves, _LOSS),
        "train_loss": (("step", "seed"), train, _LOSS | {"of": "the training tasks, mean over the interval"}),
        "smooth_loss": (("step", "seed"), smooth, _LOSS | {"of": "running median"}),
        "smooth_train_loss": (("step", "seed"), smooth_train, _LOSS | {"of": "the training tasks, running median"}),
        "peak_step": (("seed",), np.array([one.peak_step for one in found]), _STEP | {"of": "top of the largest fall"}),
        "peak_loss": (("seed",), np.array([one.peak for one in found]), _LOSS | {"of": "top of the largest fall"}),
        "lowest_step": (("seed",), np.array([one.lowest_step for one in found]), _STEP | {"of": "bottom of that fall"}),
        "lowest_loss": (("seed",), np.array([one.lowest for one in found]), _LOSS | {"of": "bottom of that fall"}),
        "diverged_at": (("seed",), run.metrics["diverged_at"].values.astype(float), _STEP | {"of": "-1 for never"}),
    }
    return xr.Dataset(variables, {"step": steps, "seed": np.asarray(run.recipe.seeds)})
