"""The sine experiment's criteria, claims and notes."""

import xarray as xr

from innerloop.claims import Claim, Criterion, statistical
from innerloop.experiments.sine.measure import MOMENTS
from innerloop.experiments.sine.setting import LEARNERS

PUBLISHED_LOSS = {"trained": 0.00105, "mlp and gd": 0.0014}
"""After 20 000 steps, read off Fig 4, for the reference variant."""
LOSS = Criterion(0.65, 1.35)  # relative to the published one
AS_GOOD = Criterion(high=1.0)  # the transformer's loss over that of MLP and GD
COSINE = Criterion(low=0.9)
DIFFERENCE = Criterion(high=0.03)


def published_claims(data: xr.Dataset) -> list[Claim]:
    """Losses beside the published ones, on the published family."""
    names = {"trained": "the transformer", "mlp and gd": "the meta-learned MLP with one GD step"}
    early = data["early_loss"].values
    return [
        statistical(
            f"loss-{name.replace(' ', '-')}", f"held-out loss of {names[name]}, relative to the published one", "Fig 4",
            data["final_loss"].sel(learner=name).values / PUBLISHED_LOSS[name], LOSS, published=PUBLISHED_LOSS[name],
            unit="ratio of losses", control=f"the transformer after {int(data['early_step'])} steps",
            control_values=early / PUBLISHED_LOSS[name],
        )
        for name in LEARNERS
    ]  # fmt: skip


def same_function_claims(data: xr.Dataset, variant: str) -> list[Claim]:
    """That transformer and MLP with GD are the same function, before and after the step."""
    loss, early_loss = data["final_loss"], data["early_loss"].values
    claims = [
        statistical(
            f"as-good-{variant}", f"{variant}: the transformer's loss is not above MLP and one GD step's", "Fig 4",
            loss.sel(learner="trained").values / loss.sel(learner="mlp and gd").values, AS_GOOD, published="lower",
            unit="ratio of losses", control=f"the transformer after {int(data['early_step'])} steps",
            control_values=early_loss / loss.sel(learner="mlp and gd").values,
        )
    ]  # fmt: skip
    bars = {
        "cosine": ("partial cosine", COSINE, 0.95),
        "model_difference": ("partial difference", DIFFERENCE, 0.021),
        "prediction_difference": ("prediction difference", DIFFERENCE, 0.021),
    }
    for moment, other in zip(MOMENTS, reversed(MOMENTS), strict=True):
        at_moment = data.sel(moment=moment)
        for measure, (words, criterion, published) in bars.items():
            claims.append(
                statistical(
                    f"{words.replace(' ', '-')}-{moment}-{variant}", f"{variant}: {words} {moment} the step",
                    "Fig 4",
                    at_moment[f"final_{measure}"].values, criterion,
                    published=published if (variant, moment) == ("reference", "after") else None,
                    unit="mean over tasks", control=f"MLP and GD {other} its step",
                    control_values=at_moment[f"crossed_{measure}"].values,
                )
            )  # fmt: skip
    return claims


def median_note(data: xr.Dataset) -> str:
    """Losses as the published figure would show them."""
    losses = data["final_loss"].sel(variant="reference").median("seed")
    said = ", ".join(f"{name} {float(losses.sel(learner=name)):.5f}" for name in LEARNERS)
    return f"Median losses over seeds, reference variant: {said} (published: .00105 and .0014)."
