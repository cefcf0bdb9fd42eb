"""Claims about grokking. Bars were set before any run of the seeds that they judge (see ``docs/deviations.md``)."""

import numpy as np
import xarray as xr

from innerloop.claims import Claim, Criterion, statistical
from innerloop.experiments.grokking.setting import FRESH, MAIN

RISES = Criterion(low=1.5)  # "far": half as much again as predicting zero
FALLS = Criterion(high=0.10)  # "almost": as in `finite-data`
OVERFITS = Criterion(high=0.75)


def judge(data: xr.Dataset) -> list[Claim]:
    """The rise, the fall, and that the rise is overfitting."""
    fixed = data.sel(tasks=MAIN)
    descent = float(data["descent_loss"])
    return [
        statistical(
            "rises", "before it falls, the held-out loss rises to 1.5 times that of predicting zero, or more",
            "Fig 15 right", rise(data, MAIN), RISES, published="rises far", unit="ratio of losses",
            control=FRESH, control_values=rise(data, FRESH),
        ),
        statistical(
            "falls", "it then falls to at most 10 % above the loss of one GD step", "Fig 15 right",
            fixed["lowest_loss"].values / descent - 1, FALLS, published="almost GD's .2",
            unit="relative difference of losses", control="the same seeds at their peak",
            control_values=fixed["peak_loss"].values / descent - 1,
        ),
        statistical(
            "overfits", "at the peak, the training loss is at most three quarters of the held-out loss: memorised, not "
            "diverged", "Fig 15 right", train_share(data, MAIN), OVERFITS, published="overfits",
            unit="ratio of losses", control=f"{FRESH} at the same step", control_values=train_share(data, FRESH),
        ),
    ]  # fmt: skip


def trained(data: xr.Dataset, tasks: str) -> xr.Dataset:
    """One kind of tasks, with the seeds that were trained on it."""
    part = data.sel(tasks=tasks)
    return part.sel(seed=part["diverged_at"].notnull())


def rise(data: xr.Dataset, tasks: str) -> np.ndarray:
    """The peak over the loss of predicting zero, or over the first loss where that is higher, by seed.

    An untrained model that is far off and then learns has not risen.
    """
    part = trained(data, tasks)
    return part["peak_loss"].values / np.maximum(part["loss"].isel(step=0).values, float(data["zero_loss"]))


def train_share(data: xr.Dataset, tasks: str) -> np.ndarray:
    """Training loss over held-out loss in the interval that ends at the peak of the fixed tasks' curve, by seed.

    The training loss is recorded as a mean over the interval; the mean of both ends stands for the held-out one. NaN
    for a seed whose peak is at the start.
    """
    part, steps = trained(data, tasks), data["step"].values
    ends = np.searchsorted(steps, data["peak_step"].sel(tasks=MAIN, seed=part["seed"]).values)
    seeds = np.arange(ends.size)
    held_out = part["smooth_loss"].transpose("step", "seed").values
    train = part["smooth_train_loss"].transpose("step", "seed").values
    return train[ends, seeds] / (0.5 * (held_out[ends, seeds] + held_out[np.maximum(ends - 1, 0), seeds]))


def curve_note(data: xr.Dataset) -> str:
    """What every seed's curve does, in numbers."""
    part, parts = data.sel(tasks=MAIN), []
    for seed in part["seed"].values:
        one = part.sel(seed=seed)
        parts.append(
            f"seed {seed} {float(one['loss'][0]):.3f}, peak {float(one['peak_loss']):.3f} at step "
            f"{float(one['peak_step']):.0f}, then {float(one['lowest_loss']):.3f} at {float(one['lowest_step']):.0f}, "
            f"in the end {float(one['loss'][-1]):.3f} (on its training set {float(one['train_loss'][-1]):.3f})"
        )
    fresh = trained(data, FRESH)["loss"].isel(step=-1)
    return (
        f"Held-out losses (GD {float(data['descent_loss']):.3f}, zero {float(data['zero_loss']):.3f}): "
        f"{'; '.join(parts)}. On fresh tasks {float(fresh.mean()):.3f} in the end."
    )


def proportion_note(data: xr.Dataset) -> str:
    """The rise and what is left above GD, both relative: they go together."""
    part = data.sel(tasks=MAIN)
    left = part["lowest_loss"].values / float(data["descent_loss"]) - 1
    return (
        f"Rise above predicting zero {100 * (rise(data, MAIN).mean() - 1):.0f} %, left above GD after the fall "
        f"{100 * left.mean():.0f} %: what the MLP memorises of the targets before, it memorises of GD's errors after."
    )
