"""Sine waves: a layer above an MLP does one gradient step on deep features (Fig 4, A.7)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from innerloop.analysis import Alignment, align, over_learners, task_losses
from innerloop.claims import Claim, Criterion, statistical
from innerloop.experiments.along_training import curve_points, snapshot
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage, Variables
from innerloop.keys import named_key, root_key
from innerloop.models import Transformer
from innerloop.plots import MEASURES, caption, house_style, learner_style, line_with_band
from innerloop.problem import Problem
from innerloop.runs import Run
from innerloop.tasks import Sample, SineWaves
from innerloop.training import Recipe, held_out_batch, published_sine, published_sine_control

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANTS = ("reference", "independent")
LEARNERS = ("trained", "mlp and gd")
PUBLISHED_LOSS = {"trained": 0.00105, "mlp and gd": 0.0014}
"""After 20 000 steps, read off Fig 4, for the reference variant."""

LOSS = Criterion(0.65, 1.35)  # relative to the published one
AS_GOOD = Criterion(high=1.0)  # the transformer's loss over that of MLP and GD
COSINE = Criterion(low=0.9)
DIFFERENCE = Criterion(high=0.03)
EARLY = 0.05
"""The control of losses is the transformer after this share of its training; that of functions, the wrong moment."""

_STEPS: dict[Preset, int] = {"smoke": 100, "quick": 3000, "paper": 20_000}
_CURVE_TASKS = 2000
_SHOWN_TASKS, _GRID = 4, np.linspace(-5, 5, 201)
_MOMENTS = ("before", "after")
_LOSS_UNITS = {"units": "half squared error, mean over tasks"}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """Transformer and control for both variants, as published; shorter in quick and smoke."""
    settings: dict[str, Any] = {
        "num_steps": _STEPS[preset],
        "seeds": tuple(range(num_seeds or (2 if preset == "smoke" else 3))),
    }
    built = {}
    for variant in VARIANTS:
        task = SineWaves(variant=variant)
        built[f"trained, {variant}"] = published_sine(task=task, **settings)
        built[f"mlp and gd, {variant}"] = published_sine_control(task=task, **settings)
    if preset == "smoke":
        return {
            name: dataclasses.replace(recipe, batch_size=64, evaluation_tasks=200, evaluation_interval=20)
            for name, recipe in built.items()
        }
    return built


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    parts = []
    for variant in VARIANTS:
        stage(variant)
        parts.append(_measure(runs[f"trained, {variant}"], runs[f"mlp and gd, {variant}"]))
    data = cast(xr.Dataset, xr.concat(parts, "variant")).assign_coords(variant=list(VARIANTS))
    claims = _published_claims(data.sel(variant="reference"))
    for variant in VARIANTS:
        claims += _same_function_claims(data.sel(variant=variant), variant)
    notes = [_median_note(data)]
    if preset == "quick":
        notes.append(f"quick trains for {_STEPS['quick']} steps of the published {_STEPS['paper']}: losses are higher.")
    return Results(data, claims, notes)


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-4": _figure_4(data)} | {
            f"functions-{variant}": _functions_figure(data.sel(variant=variant), variant) for variant in VARIANTS
        }


def _measure(trained: Run, control: Run) -> xr.Dataset:
    """One variant: losses and alignment along training, at the end, and of the early transformers; some functions."""
    samples = held_out_batch(trained.recipe).samples()
    few = jax.tree.map(lambda leaf: leaf[:_CURVE_TASKS], samples)
    steps = trained.metrics["step"].values
    points = curve_points(trained)
    early_point = max(1, round(EARLY * (len(steps) - 1)))
    learners = trained.transformers(), control.transformers()
    early = snapshot(trained, early_point)
    curves = []
    for point in map(int, points):
        pair = snapshot(trained, point), snapshot(control, point)
        curves.append(_alignment(pair, few, step=1, other_step=1))
    variables: Variables = {
        "loss": (
            ("learner", "step", "seed"),
            np.stack([run.metrics["evaluation_loss"].values for run in (trained, control)]),
            _LOSS_UNITS,
        ),
        "final_loss": (("learner", "seed"), np.stack([_losses(one, samples) for one in learners]), _LOSS_UNITS),
        "early_loss": (("seed",), np.asarray(_losses(early, samples)), _LOSS_UNITS),
        "early_step": ((), np.asarray(steps[early_point]), {"units": "training step"}),
    }
    for measure in MEASURES:
        units = {"units": f"{measure}, mean over tasks"}
        variables[measure] = (("curve_step", "seed"), np.stack([one[measure] for one in curves]), units)
    for prefix, other_steps in (("final", (0, 1)), ("crossed", (1, 0))):
        measured = [
            _alignment(learners, samples, step=step, other_step=other) for step, other in enumerate(other_steps)
        ]
        for measure in MEASURES:
            values = np.stack([one[measure] for one in measured])
            variables[f"{prefix}_{measure}"] = (("moment", "seed"), values, {"units": f"{measure}, mean over tasks"})
    coordinates = {
        "learner": list(LEARNERS),
        "step": steps,
        "curve_step": steps[points],
        "seed": np.asarray(trained.recipe.seeds),
        "moment": list(_MOMENTS),
        "task": np.arange(_SHOWN_TASKS),
        "query": _GRID,
        "context": np.arange(trained.recipe.task.context_length),
    }
    assert isinstance(trained.recipe.task, SineWaves)
    return xr.Dataset(variables | _functions(learners, trained.recipe.task), coordinates)


@eqx.filter_jit
def _losses(learners: Transformer, samples: Sample) -> Float[Array, " seeds"]:
    return over_learners(lambda one: jnp.mean(task_losses(one, samples)), learners)


@eqx.filter_jit
def _aligned(pairs: tuple[Transformer, Transformer], samples: Sample, step: int, other_step: int) -> Alignment:
    def one_pair(pair: tuple[Transformer, Transformer]) -> Alignment:
        trained, control = pair
        return align(trained, control, samples, step=step, other_step=other_step)

    return over_learners(one_pair, pairs)


def _alignment(
    pairs: tuple[Transformer, Transformer], samples: Sample, *, step: int, other_step: int
) -> dict[str, np.ndarray]:
    """Measures by name, one value per seed: transformer against MLP and GD of the same seed."""
    aligned = _aligned(pairs, samples, step, other_step)
    return {measure: np.asarray(getattr(aligned, measure)) for measure in MEASURES}


def _functions(learners: tuple[Transformer, Transformer], task: SineWaves) -> Variables:
    """The first seed's predictions on a grid of queries for a few tasks, before and after the step; and the waves."""
    draw = task.draw(named_key(root_key(0), "functions"), _SHOWN_TASKS)
    problems = task.assemble(draw).samples().problem
    grid = jnp.asarray(_GRID, dtype=draw.inputs.dtype)
    on_grid = jnp.broadcast_to(grid[None, :, None] / task.input_range, (1, len(_GRID), _SHOWN_TASKS))
    waves = task.assemble(draw._replace(inputs=on_grid)).targets[0].T  # (task, query)
    first_seeds = jax.tree.map(lambda leaf: leaf[0], learners)
    curves = [np.asarray(_curves(learner, problems, grid)) for learner in first_seeds]
    return {
        "prediction": (("learner", "task", "moment", "query"), np.stack(curves), {"units": "y"}),
        "wave": (("task", "query"), np.asarray(waves), {"units": "y"}),
        "context_input": (("task", "context"), np.asarray(problems.context_inputs)[..., 0], {"units": "x"}),
        "context_target": (("task", "context"), np.asarray(problems.context_targets)[..., 0], {"units": "y"}),
    }


@eqx.filter_jit
def _curves(learner: Transformer, problems: Problem, grid: Float[Array, " query"]) -> Float[Array, "task moment query"]:
    def prediction(problem: Problem, query: Float[Array, ""]):
        return learner(Problem(problem.context_inputs, problem.context_targets, query[None])).trajectory[:, 0]

    over_grid = jax.vmap(prediction, in_axes=(None, 0), out_axes=-1)
    return jax.vmap(over_grid, in_axes=(0, None))(problems, grid)


def _published_claims(data: xr.Dataset) -> list[Claim]:
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


def _same_function_claims(data: xr.Dataset, variant: str) -> list[Claim]:
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
    for moment, other in zip(_MOMENTS, reversed(_MOMENTS), strict=True):
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


def _median_note(data: xr.Dataset) -> str:
    losses = data["final_loss"].sel(variant="reference").median("seed")
    said = ", ".join(f"{name} {float(losses.sel(learner=name)):.5f}" for name in LEARNERS)
    return f"Median losses over seeds, reference variant: {said} (published: .00105 and .0014)."


def _figure_4(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4))
    rows = figure.subplots(2, 2)
    for row, variant in zip(rows, VARIANTS, strict=True):
        part = data.sel(variant=variant)
        for name in LEARNERS:
            style: dict[str, Any] = learner_style(name) | {"marker": ""}
            for seed in part["seed"].values:
                row[0].plot(part["step"], part["loss"].sel(learner=name, seed=seed), color=style["color"], alpha=0.25)
            line_with_band(row[0], part["loss"].sel(learner=name), x="step", over="seed", **style)
            if variant == "reference":
                row[0].axhline(PUBLISHED_LOSS[name], color=style["color"], linestyle=":", linewidth=1)
        lowest = 0.7 * float(part["loss"].min())
        row[0].set(title=f"{variant}: loss", xlabel="training steps", ylabel="half squared error")
        row[0].set(yscale="log", ylim=(lowest, None))
        row[0].legend()
        _alignment_panel(row[1], part, f"{variant}: transformer against MLP + GD, after the step")
    caption(
        figure,
        "A linear layer above an MLP does one gradient step on deep features. Dotted: published losses after 20 000 "
        f"steps. Lines: mean over seeds, bands: 95 % interval (n = {data.sizes['seed']}).",
    )
    return figure


def _alignment_panel(axes: "Axes", part: xr.Dataset, title: str) -> None:
    right = axes.twinx()
    for name, style in MEASURES.items():
        words = {"cosine": "partial cosine", "model_difference": "partial difference"}
        named: dict[str, Any] = style | {"label": words.get(name, style["label"])}
        line_with_band(right if name == "cosine" else axes, part[name], x="curve_step", over="seed", **named)
    right.set(ylim=(0, 1.05), ylabel="partial cosine")
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    axes.set(title=title, xlabel="training steps", ylabel="L2 norm", ylim=(0, 0.12))
    handles = [*right.get_lines(), *axes.get_lines()]
    axes.legend(handles, [str(handle.get_label()) for handle in handles], loc="center right")


def _functions_figure(data: xr.Dataset, variant: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.9))
    for axes, task in zip(figure.subplots(1, data.sizes["task"], sharey=True), data["task"].values, strict=True):
        one = data.sel(task=task)
        axes.plot(one["query"], one["wave"], color="#999999", linewidth=5, alpha=0.4, label="the wave")
        for name in LEARNERS:
            style: dict[str, Any] = learner_style(name) | {"marker": "", "linewidth": 1.8}
            label = style.pop("label")
            for moment, linestyle in zip(_MOMENTS, ("--", "-"), strict=True):
                values = one["prediction"].sel(learner=name, moment=moment)
                axes.plot(one["query"], values, **(style | {"linestyle": linestyle}), label=f"{label}, {moment}")
        axes.plot(one["context_input"], one["context_target"], "o", color="#000000", markersize=5, label="context")
        axes.set(title=f"task {int(task) + 1}", xlabel="query x")
    axes = figure.axes[0]
    axes.set(ylabel="prediction")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    caption(
        figure,
        f"{variant.capitalize()} waves, seed {int(data['seed'][0])}: both start from one function (dashed) and the "
        "step bends it onto the context (solid).",
    )
    return figure


SINE = Experiment(
    name="sine",
    question="Does a linear layer above an MLP perform gradient descent on deep features?",
    source="Fig 4, A.7, A.8",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=VARIANTS,
    analysis_seconds={"smoke": 15.0, "quick": 40.0, "paper": 45.0},
)
