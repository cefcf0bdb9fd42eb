"""Sine waves: a layer above an MLP does one gradient step on deep features (Fig 4, A.7)."""

from collections.abc import Mapping
from typing import cast

import xarray as xr

from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.sine.figures import draw
from innerloop.experiments.sine.judge import median_note, published_claims, same_function_claims
from innerloop.experiments.sine.measure import measure_variant
from innerloop.experiments.sine.setting import STEPS, VARIANTS, recipes
from innerloop.runs import Run


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    parts = []
    for variant in VARIANTS:
        stage(variant)
        parts.append(measure_variant(runs[f"trained, {variant}"], runs[f"mlp and gd, {variant}"]))
    data = cast(xr.Dataset, xr.concat(parts, "variant")).assign_coords(variant=list(VARIANTS))
    claims = published_claims(data.sel(variant="reference"))
    for variant in VARIANTS:
        claims += same_function_claims(data.sel(variant=variant), variant)
    notes = [median_note(data)]
    if preset == "quick":
        notes.append(f"quick trains for {STEPS['quick']} steps of the published {STEPS['paper']}: losses are higher.")
    return Results(data, claims, notes)


SINE = Experiment(
    name="sine",
    question="Does a linear layer above an MLP perform gradient descent on deep features?",
    source="Fig 4, A.7, A.8",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=VARIANTS,
    analysis_seconds={"smoke": 15.0, "quick": 22.0, "paper": 33.0},
)

__all__ = ["SINE", "analyse", "draw", "recipes"]
