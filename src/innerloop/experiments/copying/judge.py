"""Claims about copying. Criteria were fixed before the runs that they judge; how, says ``docs/deviations.md``.

What needs copies is judged on the seeds that reach the gradient step's loss, since the others may have none.
"""

import numpy as np
import xarray as xr

from innerloop.claims import Claim, Criterion, exact, statistical
from innerloop.experiments.copying.measure import REACHED
from innerloop.experiments.copying.setting import LINEAR, MAIN, PERMUTED

FRACTION = Criterion(low=0.8)  # four of five seeds; the paper shows one
AT_DESCENT = Criterion(high=REACHED)
NONE = Criterion(high=0.0)
ATTENTION = Criterion(low=0.4)  # attention on all tokens alike is 1 / (2 N): .05 for N = 10
JACOBIAN_RATIO = Criterion(low=5.0)
PUBLISHED_SENSITIVITIES = {"own": 3.40, "next": 1.01, "other": 0.07}


def judge(data: xr.Dataset) -> list[Claim]:
    """Every claim, from the measured data."""
    return [*_loss_claims(data), *_copying_claims(data), *_lag_claims(data)]


def sensitivity_note(data: xr.Dataset) -> str:
    """The final sums over outputs of every seed beside the published ones, which no criterion can hold them to."""
    final = data["sensitivity"].isel(curve_step=-1)
    published = ", ".join(f"{name} {value:g}" for name, value in PUBLISHED_SENSITIVITIES.items())
    seeds = "; ".join(
        f"seed {seed} "
        + ", ".join(f"{name} {float(final.sel(seed=seed, share=name)):.2f}" for name in ("own", "next", "other"))
        for seed in data["seed"].values
    )
    return (
        f"Sensitivities of layer 1 in the end (published: {published}): {seeds}. They are norms of gradients of sums "
        "over outputs, so they depend on the basis in which a seed writes its copies, and are not judged."
    )


def reached_note(data: xr.Dataset) -> str:
    """When each seed reached the gradient step's loss, and which neighbour it reads."""
    steps = data["reached_step"].sel(stack=MAIN)
    parts = []
    for seed in data["seed"].values:
        step = float(steps.sel(seed=seed))
        direction = str(data["direction"].sel(copying_stack=MAIN, seed=seed).values)
        when = "never" if np.isnan(step) else f"at step {step:.0f}"
        parts.append(f"seed {seed} {when} (reads the {direction} token)")
    return f"Within {REACHED:g} of one gradient step's loss: {', '.join(parts)}."


def _loss_claims(data: xr.Dataset) -> list[Claim]:
    excess = data["loss"].isel(step=-1) - data["gradient_descent_loss"]
    fraction = data["reached_step"].notnull().mean("seed")
    claims = [
        exact(
            "reaches-gd", f"share of seeds that come within {REACHED:g} of one gradient step's loss", "Fig 5 left",
            float(fraction.sel(stack=MAIN)), FRACTION, published="the seed shown does", unit="share of seeds",
            control="permuted positions", control_measured=float(fraction.sel(stack=PERMUTED)),
        ),
        statistical(
            "stays-at-gd", "final loss of the seeds that get there, above one gradient step on the same tasks",
            "Fig 5 left", _of_reached(data, excess.sel(stack=MAIN)), AT_DESCENT, published="equal",
            unit="half squared error", control="permuted positions", control_values=excess.sel(stack=PERMUTED).values,
        ),
    ]  # fmt: skip
    for slug, stack, source in (("linear", LINEAR, "section 4"), ("permuted", PERMUTED, "control")):
        claims.append(
            exact(
                f"{slug}-fails", f"{stack}: share of seeds that come within {REACHED:g} of one gradient step's loss",
                source, float(fraction.sel(stack=stack)), NONE,
                published="cannot be trained to it" if stack == LINEAR else None, unit="share of seeds",
                control=MAIN, control_measured=float(fraction.sel(stack=MAIN)),
            )
        )  # fmt: skip
    return claims


def _copying_claims(data: xr.Dataset) -> list[Claim]:
    attention = _to_neighbour(data, "attention_share")
    ratio = _to_neighbour(data, "jacobian_share") / _beside_neighbour(data, "jacobian_share")
    directions = sorted({str(one) for one in _of_reached(data, data["direction"].sel(copying_stack=MAIN))} - {"nan"})
    which = " or ".join(directions) or "next or previous"
    return [
        statistical(
            "attention", f"layer 1 attends to the {which} token: attention on it", "Fig 5 right",
            _of_reached(data, attention.sel(copying_stack=MAIN)), ATTENTION, published="a sharp off-diagonal",
            unit="mean over tasks and tokens", control="permuted positions",
            control_values=attention.sel(copying_stack=PERMUTED).values,
        ),
        statistical(
            "jacobian", f"layer 1 depends on the {which} token: Jacobian to it, relative to the other tokens'",
            "Fig 5 centre", _of_reached(data, ratio.sel(copying_stack=MAIN)), JACOBIAN_RATIO,
            published="1.01 to .07 (sums)", unit="ratio of Frobenius norms", control="permuted positions",
            control_values=ratio.sel(copying_stack=PERMUTED).values,
        ),
    ]  # fmt: skip


def _lag_claims(data: xr.Dataset) -> list[Claim]:
    earlier = Criterion(low=float(data.attrs["interval"]))
    return [
        statistical(
            f"{slug}-{100 * way:.0f}",
            f"{what} has gone {100 * way:.0f} % of its way before the loss has: by how many steps", "Fig 5",
            _of_reached(data, (data["drop_step"] - data[name]).sel(way=way)), earlier, published="before",
            unit="training steps", control="the loss itself, which is not before itself", control_values=[0.0],
        )
        for slug, name, what in (
            ("lag", "raw_rise_step", "sensitivity to the next token"),
            ("net-lag", "net_rise_step", "that minus the sensitivity to the others"),
        )
        for way in data["way"].values
    ]  # fmt: skip


def _to_neighbour(data: xr.Dataset, name: str) -> xr.DataArray:
    """(copying stack, seed): the share of the neighbour that a stack attends to more."""
    shares = data[name]
    return xr.where(data["direction"] == "next", shares.sel(share="next"), shares.sel(share="previous"))


def _beside_neighbour(data: xr.Dataset, name: str) -> xr.DataArray:
    """(copying stack, seed): the mean share of all context tokens but the own one and that neighbour."""
    shares = data[name]
    return xr.where(
        data["direction"] == "next", shares.sel(share="other_than_next"), shares.sel(share="other_than_previous")
    )


def _of_reached(data: xr.Dataset, values: xr.DataArray) -> np.ndarray:
    """Of the seeds that come to the gradient step's loss; a single NaN, which meets nothing, where none does."""
    kept = values.values[np.isfinite(data["reached_step"].sel(stack=MAIN).values)]
    return kept if kept.size else np.array([np.nan])
