"""GD++ improves conditioning, and training finds its gamma for every context length (Fig 13, A.10)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from innerloop.analysis import condition_gamma, condition_numbers, corrected_eigenvalues, read_layers
from innerloop.claims import Claim, Criterion, exact, statistical
from innerloop.exact import sample_spectra, tune, tuning_spectra
from innerloop.experiments import two_layer
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage, Variables
from innerloop.keys import named_key, root_key
from innerloop.models import products
from innerloop.plots import caption, house_style
from innerloop.runs import Run
from innerloop.tasks import LinearRegression
from innerloop.training import Recipe, published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTEXT_LENGTHS = (10, 25, 50, 100)
PUBLISHED_GAMMA = {10: 0.179, 25: 0.099, 50: 0.056, 100: 0.029}
PUBLISHED_LARGEST = {10: 4.6, 25: 7.7, 50: 10.8, 100: 17.2}
PUBLISHED_SMALLEST = {10: 0.0, 25: 0.097, 50: 0.666, 100: 2.87}
"""Extreme eigenvalues of X X^T over a sample of contexts whose size the paper does not give."""

TUNED_GAMMA = Criterion(-0.03, 0.03)  # relative to the published one; printed with two or three digits
TRAINED_GAMMA = Criterion(-0.10, 0.10)
LARGEST = Criterion(-0.15, 0.15)  # the largest of a sample of unknown size; other context lengths are 30 % or more off
BETTER_CONDITIONED = Criterion(high=0.9)
CLAIMED_LENGTHS = (10, 25)
"""Where training has to find gamma; beyond, what it gives is reported without a bar."""

_NUM_SETS, _CONTEXTS_PER_SET = 5, 10_000
_TUNING_CONTEXTS: dict[Preset, int] = {"smoke": 2000, "quick": 20_000, "paper": 20_000}
_HISTOGRAM_BINS = 60


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """Two tied layers for every context length, input size 10; N = 10 is the two-layer experiment's run."""
    all_recipes = {"N10": two_layer.recipes(preset, num_seeds)["two tied layers"]}
    for length in CONTEXT_LENGTHS[1:2] if preset == "smoke" else CONTEXT_LENGTHS[1:]:
        task = LinearRegression(context_length=length)
        seeds = tuple(range(num_seeds or (5 if preset == "paper" else 2)))
        recipe = published(num_layers=2, task=task, seeds=seeds)
        if preset == "quick":
            recipe = dataclasses.replace(recipe, num_steps=2500)
        elif preset == "smoke":
            recipe = dataclasses.replace(recipe, num_steps=100, batch_size=64, evaluation_tasks=500)
        all_recipes[f"N{length}"] = recipe
    return all_recipes


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    parts = []
    for label, run in runs.items():
        stage(label)
        length = run.recipe.task.context_length
        part = _measure(run, num_contexts=_TUNING_CONTEXTS[preset])
        parts.append(part.assign_coords(context_length=length))
    data = cast(xr.Dataset, xr.concat(parts, "context_length", join="outer"))
    claims = [claim for length in _lengths(data) for claim in _claims(data.sel(context_length=length), length)]
    return Results(data, claims, _notes(preset, runs, data))


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-13": _figure_13(data), "gamma": _gamma_figure(data)}


def _measure(run: Run, *, num_contexts: int) -> xr.Dataset:
    """One context length: gammas by tuning, by conditioning and by training; spectra before and after a step."""
    task = run.recipe.linear_task()
    tuned = tune(task, 2, spectra=tuning_spectra(task, num_contexts=num_contexts))
    gamma = float(tuned.curvature_corrections[0])
    reading = read_layers(products(run.weights), task.input_size)
    variables: Variables = {
        "exact_gamma": ((), np.asarray(gamma), {"units": "1 / eigenvalue of X X^T"}),
        "exact_learning_rate": ((), np.asarray(tuned.learning_rates[0]), {"units": "eta"}),
        "exact_loss": ((), np.asarray(tuned.loss), {"units": "expected half squared error"}),
        "trained_gamma": (("seed",), np.asarray(reading.curvature_correction)[:, 0, 0], {}),
        "trained_loss": (("seed",), run.metrics["evaluation_loss"].values[-1], {"units": "half squared error"}),
        "steps": ((), np.asarray(run.recipe.num_steps), {"units": "training steps"}),
    }
    key = named_key(root_key(0), "conditioning")
    with jax.enable_x64(True):
        sets = [sample_spectra(task, named_key(key, str(index)), _CONTEXTS_PER_SET) for index in range(_NUM_SETS)]
        before = np.stack([np.asarray(one.eigenvalues) for one in sets])  # (sets, contexts, input_size)
        after = np.asarray(corrected_eigenvalues(jnp.asarray(before), gamma))
        flat = [jnp.asarray(part.reshape(-1, task.input_size)) for part in (before, after)]
        medians = np.array([np.median(np.asarray(condition_numbers(part))) for part in flat])
        condition_gammas = np.array([condition_gamma(one) for one in sets])
    edges = np.linspace(0.0, before.max(), _HISTOGRAM_BINS + 1)
    variables |= {
        "condition_gamma": (("set",), condition_gammas, {"units": "gamma of smallest median condition number"}),
        "largest_eigenvalue": (("set",), before.max(axis=(1, 2)), {"units": f"of {_CONTEXTS_PER_SET} contexts"}),
        "smallest_eigenvalue": (("set",), before.min(axis=(1, 2)), {"units": f"of {_CONTEXTS_PER_SET} contexts"}),
        "condition_number": (("moment",), medians, {"units": "median over contexts"}),
        "bin_centre": (("bin",), (edges[1:] + edges[:-1]) / 2, {"units": "eigenvalue"}),
        "density": (
            ("moment", "bin"),
            np.stack([np.histogram(part, edges, density=True)[0] for part in (before, after)]),
            {"units": "density of eigenvalues"},
        ),
    }
    coordinates = {
        "seed": np.asarray(run.recipe.seeds),
        "set": np.arange(_NUM_SETS),
        "moment": ["before", "after"],
        "bin": np.arange(_HISTOGRAM_BINS),
    }
    return xr.Dataset(variables, coordinates)


def _lengths(data: xr.Dataset) -> list[int]:
    """Those that were trained, in order."""
    return data["context_length"].values.tolist()


def _claims(part: xr.Dataset, length: int) -> list[Claim]:
    gamma, published_gamma = float(part["exact_gamma"]), PUBLISHED_GAMMA[length]
    largest = part["largest_eigenvalue"].values / PUBLISHED_LARGEST[length] - 1
    other = 25 if length == 10 else CONTEXT_LENGTHS[CONTEXT_LENGTHS.index(length) - 1]
    before, after = (float(part["condition_number"].sel(moment=moment)) for moment in ("before", "after"))
    claims = [
        exact(
            f"gamma-N{length}", f"N = {length}: exactly tuned gamma, relative to the published {published_gamma:g}",
            "Fig 13", gamma / published_gamma - 1, TUNED_GAMMA, published=published_gamma, unit="relative difference",
            control="10 % below the exact optimum", control_measured=0.9 * gamma / published_gamma - 1,
        ),
        exact(
            f"conditioning-N{length}", f"N = {length}: one GD++ step lowers the median condition number of X X^T",
            "A.10", after / before, BETTER_CONDITIONED, published="lower", unit="ratio, after over before",
            control="gradient descent (gamma = 0)", control_measured=1.0,
        ),
        statistical(
            f"largest-eigenvalue-N{length}", f"N = {length}: largest eigenvalue of X X^T over 10 000 contexts, "
            "relative to the published one", "Fig 13", largest, LARGEST, published=PUBLISHED_LARGEST[length],
            unit="relative difference", control=f"N = {other}",
            control_values=[PUBLISHED_LARGEST[other] / PUBLISHED_LARGEST[length] - 1],
        ),
    ]  # fmt: skip
    if length in CLAIMED_LENGTHS:
        trained = part["trained_gamma"].dropna("seed").values
        claims.append(
            statistical(
                f"trained-gamma-N{length}", f"N = {length}: gamma of trained stacks, relative to the published one",
                "Fig 13", trained / published_gamma - 1, TRAINED_GAMMA, published=published_gamma,
                unit="relative difference", control="the gamma of smallest median condition number",
                control_values=part["condition_gamma"].values / published_gamma - 1,
            )
        )  # fmt: skip
    return claims


def _notes(preset: Preset, runs: Mapping[str, Run], data: xr.Dataset) -> list[str]:
    notes = []
    for length in _lengths(data):
        part = data.sel(context_length=length)
        gammas = ", ".join(f"{value:.4f}" for value in part["trained_gamma"].dropna("seed").values)
        notes.append(
            f"N = {length}: trained gamma {gammas} (loss {float(part['trained_loss'].mean()):.5f} after "
            f"{int(part['steps'])} steps), tuned exactly {float(part['exact_gamma']):.4f} (expected loss "
            f"{float(part['exact_loss']):.5f}), published {PUBLISHED_GAMMA[length]:g}; smallest median condition "
            f"number at {float(part['condition_gamma'].mean()):.4f}; eigenvalues between "
            f"{float(part['smallest_eigenvalue'].mean()):.3g} and {float(part['largest_eigenvalue'].mean()):.3g} "
            f"(published {PUBLISHED_SMALLEST[length]:g} and {PUBLISHED_LARGEST[length]:g})."
        )
    notes.append(
        "The condition-number criterion of A.10 is measured as the gamma whose correction gives the smallest median "
        "over contexts of max f(l) / min f(l); it gives larger values than the loss does, and carries no bar."
    )
    return notes


def _figure_13(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.9))
    for axes, length in zip(figure.subplots(1, data.sizes["context_length"]), _lengths(data), strict=True):
        _spectrum_panel(axes, data.sel(context_length=length), length)
    caption(
        figure,
        "One correction maps an eigenvalue l of X X^T to f(l) = l (1 - gamma l)^2 (line, right axis): large ones come "
        f"down, small ones stay. Histograms over {_NUM_SETS * _CONTEXTS_PER_SET} contexts, gamma tuned exactly.",
    )
    return figure


def _spectrum_panel(axes: "Axes", part: xr.Dataset, length: int) -> None:
    centres, gamma = part["bin_centre"].values, float(part["exact_gamma"])
    width = centres[1] - centres[0]
    for moment, color in (("before", "#56B4E9"), ("after", "#E69F00")):
        density = part["density"].sel(moment=moment).values
        axes.bar(centres, density, width=width, color=color, alpha=0.6, label=moment)
    right = axes.twinx()
    right.plot(centres, np.asarray(corrected_eigenvalues(jnp.asarray(centres), gamma)), color="#D55E00", linewidth=2)
    right.axvline(1 / gamma, color="#999999", linestyle=":", linewidth=1)
    right.set(ylabel="f(l)", ylim=(0, None))
    right.grid(visible=False)
    axes.set(title=f"N = {length}, gamma = {gamma:.3f}", xlabel="eigenvalue l of X X^T", ylabel="density", yscale="log")
    axes.legend(loc="upper right")


def _gamma_figure(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.subplots()
    lengths = data["context_length"].values
    series = (
        ("published", [PUBLISHED_GAMMA[int(length)] for length in lengths], "o", "#000000"),
        ("tuned exactly", data["exact_gamma"].values, "D", "#56B4E9"),
        ("trained stacks", data["trained_gamma"].mean("seed").values, "+", "#0072B2"),
        ("best conditioning", data["condition_gamma"].mean("set").values, "x", "#999999"),
    )
    for label, values, marker, color in series:
        axes.plot(lengths, values, marker=marker, color=color, label=label, fillstyle="none", markersize=10)
    axes.set(xscale="log", yscale="log", xlabel="context length N", ylabel="gamma", xticks=lengths)
    axes.set_xticklabels([str(length) for length in lengths])
    axes.legend()
    caption(figure, "Training finds the gamma of lowest loss,\nwhich is smaller than the one of best conditioning.")
    return figure


CURVATURE = Experiment(
    name="curvature",
    question="Does GD++ improve the conditioning, and does training find its gamma?",
    source="Fig 13, A.10",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=tuple(f"N{length}" for length in CONTEXT_LENGTHS),
    analysis_seconds={"smoke": 20.0, "quick": 28.0, "paper": 28.0},
)
