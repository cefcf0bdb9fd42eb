"""What an experiment is: recipes to train, an analysis that turns runs into results and claims, figures to draw.

An experiment is a hypothesis. Its criteria are constants in its code, committed before the long runs; every criterion
comes with a control that must miss it. A new experiment is one file (or folder) with an `Experiment`, and one entry in
`innerloop.experiments.EXPERIMENTS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from innerloop.claims import Claim
from innerloop.runs import Run
from innerloop.training import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Preset = Literal["smoke", "quick", "paper"]
"""smoke: to see that it runs; quick: minutes on two CPU cores, real verdicts; paper: the paper's own recipe."""

Variables = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]
"""Measured numbers by name: dimensions, values, and attributes such as units."""

Stage = Callable[[str], None]
"""Called with the name of what is being computed next."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What an analysis yields.

    Attributes:
        data: every plotted number, labelled, with units.
        claims: measured and judged.
        notes: facts that a reader of the table must know, one sentence each.
    """

    data: xr.Dataset
    claims: list[Claim]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: on the command line.
        question: what it asks, in one line.
        source: the part of the paper that it reproduces.
        recipes: ``(preset, number of seeds or None) -> recipes by label``; None means the preset's number.
        analyse: ``(preset, runs by label, stage) -> results``.
        draw: ``(results' data) -> figures by file name``.
        stages: names that ``analyse`` will announce, in order.
        analysis_seconds: about how long ``analyse`` and ``draw`` take on two quiet cores, for estimates.
    """

    name: str
    question: str
    source: str
    recipes: Callable[[Preset, int | None], dict[str, Recipe]]
    analyse: Callable[[Preset, Mapping[str, Run], Stage], Results]
    draw: "Callable[[xr.Dataset], dict[str, Figure]]"
    stages: tuple[str, ...]
    analysis_seconds: Mapping[Preset, float] = dataclasses.field(default_factory=dict)
