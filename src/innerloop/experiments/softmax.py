"""One and two heads of softmax attention against one step of gradient descent (Fig 11, 12, A.9)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from innerloop.algorithms import Centred
from innerloop.analysis import (
    FirstOrderSoftmax,
    align,
    combined_key_query,
    expansion_error,
    find_drop,
    head_steps,
    off_diagonal_share,
    over_learners,
    over_tasks,
)
from innerloop.claims import Claim, Criterion, statistical
from innerloop.exact import context_spectra, optimal_learning_rate
from innerloop.experiments.against_descent import (
    DESCENT,
    FirstPairs,
    descend,
    loss_panel,
    measure,
    relative_loss,
    rivals,
)
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage, Variables
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.keys import named_key, root_key
from innerloop.models import StackConfig, Transformer, products
from innerloop.plots import alignment_panel, caption, heat_map, house_style
from innerloop.runs import Run
from innerloop.tasks import LinearRegression, Sample
from innerloop.training import Recipe, held_out_batch, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, TWO = "one head", "two heads"
CENTRED = "centred gd"
"""One tuned step of gradient descent on inputs from which the context's mean is taken."""

ONE_HEAD_FAILS = Criterion(low=0.15)  # relative to GD; two heads have about .07
NEARLY_EQUAL = Criterion(high=0.09)
COSINE = Criterion(low=0.95)  # GD that sees 8 of the 10 context pairs has .94
NOT_QUITE = Criterion(low=0.02)  # a learning rate 10 % off costs .01
CENTRED_COSINE = Criterion(low=0.985)  # plain GD has .969
CENTRED_LOSS = Criterion(-0.035, 0.035)  # relative to centred GD; plain GD is .064 below
OFF_DIAGONAL = Criterion(high=0.1)  # single heads have .3 to 1
STEP_SIZE = Criterion(-0.08, 0.08)  # relative to centred GD's
FIRST_ORDER = Criterion(high=0.2)
"""Relative error of the first order of softmax; without the mean logit it is .27 (prediction) and .35 (attention)."""

_FEWER_PAIRS = 8
_FAR_RATE = 0.65
_TUNING_CONTEXTS = 50_000
_CURVE_TASKS: dict[Preset, int] = {"smoke": 200, "quick": 2000, "paper": 10_000}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published one-layer recipe with softmax: one head for 5000 steps, two for 10 000.

    `plateaus` looks at the same runs.
    """
    recipe = published(seeds=tuple(range(num_seeds or (2 if preset == "smoke" else 10))))
    recipe = dataclasses.replace(recipe, model=StackConfig(attention=("softmax",)), evaluation_interval=50)
    if preset == "smoke":
        recipe = dataclasses.replace(recipe, num_steps=100, batch_size=64, evaluation_tasks=200)
    two = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_heads=2))
    if preset == "quick":
        recipe, two = (dataclasses.replace(one, num_steps=3000) for one in (recipe, two))
    elif preset == "paper":
        two = dataclasses.replace(two, num_steps=10_000)
    return {ONE: recipe, TWO: two}


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    task = runs[TWO].recipe.linear_task()
    centred_rate = centred_learning_rate(task)
    parts = []
    for label, run in runs.items():
        stage(label)
        here = rivals(run, others={CENTRED: Centred(descend(centred_rate))})
        part = measure(run, here, curve_tasks=_CURVE_TASKS[preset])
        part = part.assign(_heads(run)).assign(_expansion(run, here.held_out)).assign(_drops(run, part))
        entries, heads = np.arange(run.recipe.token_size), np.arange(run.recipe.model.num_heads) + 1
        parts.append(part.assign_coords({"model": label, "head": heads, "row": entries, "column": entries}))
    data = cast(xr.Dataset, xr.concat(parts, "model", join="outer"))
    stage("controls")
    samples = held_out_batch(runs[TWO].recipe).samples()
    data = data.assign(_controls(task, samples, centred_rate)).assign(_maps(runs[TWO], samples))
    data = data.assign_coords(reader=np.arange(data.sizes["reader"]) + 1, key=np.arange(data.sizes["key"]) + 1)
    return Results(data, _claims(data), _notes(preset, data))


def centred_learning_rate(task: LinearRegression, *, num_contexts: int = _TUNING_CONTEXTS) -> float:
    """The learning rate eta whose single step on centred inputs has the smallest expected loss, from spectra.

    With l the eigenvalues of the centred inputs' scatter and q the query's moments along their directions, the loss is
    s^2 / 2 sum q (1 - c l)^2: the best c is the mean of sum q l over that of sum q l^2.
    """
    contexts = task.samples(named_key(root_key(0), "centred"), num_contexts).problem.context_inputs
    centred = contexts - jnp.mean(contexts, axis=1, keepdims=True)
    spectra = context_spectra(centred, jnp.asarray(task.input_moments().second))
    eigenvalues, moments = np.asarray(spectra.eigenvalues), np.asarray(spectra.query_moments)
    return float(task.context_length * (moments * eigenvalues).sum() / (moments * eigenvalues**2).sum())


def _heads(run: Run) -> Variables:
    """Fig 12: products of every head, their steps, and the sum that should be a multiple of the identity."""
    stack, input_size = products(run.weights), run.recipe.linear_task().input_size
    steps, combined = np.asarray(head_steps(stack))[:, 0], np.asarray(combined_key_query(stack))[:, 0]
    weighted = steps[:, :, None, None] * np.asarray(stack.W_KQ)[:, 0]
    key_size = run.weights.attention.W_K.shape[-2]
    diagonal = np.diagonal(combined, axis1=-2, axis2=-1)[:, :input_size].mean(axis=-1)
    matrix = ("row", "column")
    return {
        "head_step": (("seed", "head"), steps, {"units": "eta_h, last entry of P W_V"}),
        "head_key_query": (("seed", "head", *matrix), weighted, {"units": "eta_h W_h,KQ"}),
        "combined_key_query": (("seed", *matrix), combined, {"units": "sum over heads of eta_h W_h,KQ"}),
        "head_off_diagonal": (
            ("seed", "head"),
            np.asarray(off_diagonal_share(jnp.asarray(weighted), input_size)),
            {"units": "off-diagonal norm over diagonal norm, one head"},
        ),
        "combined_off_diagonal": (
            ("seed",),
            np.asarray(off_diagonal_share(jnp.asarray(combined), input_size)),
            {"units": "off-diagonal norm over diagonal norm, the sum"},
        ),
        "learning_rate": (("seed",), -diagonal / key_size**0.5, {"units": "eta, to first order in the logits"}),
    }


def _expansion(run: Run, samples: Sample) -> Variables:
    """A.9: how much of the attention and of the prediction the first order of softmax explains."""
    variables: Variables = {}
    for prefix, is_centred in (("", True), ("uncentred_", False)):
        errors = _expansion_errors(run.transformers(), is_centred, samples)
        attention = np.asarray(errors.attention)
        variables |= {
            f"{prefix}attention_error": (("seed", "head"), attention, {"units": "relative to 1/N's own error"}),
            f"{prefix}prediction_error": (("seed",), np.asarray(errors.prediction), {"units": "relative"}),
        }
    return variables


@eqx.filter_jit
def _expansion_errors(transformers: Transformer, is_centred: bool, samples: Sample):
    return over_learners(lambda one: expansion_error(FirstOrderSoftmax(one, is_centred), samples), transformers)


def _drops(run: Run, part: xr.Dataset) -> Variables:
    """The step at which every seed's loss drops; NaN for seeds that are still on the plateau."""
    target = float(part["final_loss"].sel(learner=DESCENT)[0])
    curves = run.metrics["evaluation_loss"].values
    drops = [find_drop(run.metrics["step"].values, curve, target=target).step for curve in curves.T]
    return {"drop_step": (("seed",), np.asarray(drops), {"units": "training step, half-way to GD's loss"})}


def _controls(task: LinearRegression, samples: Sample, centred_rate: float) -> Variables:
    """What the claims must not accept: GD on fewer pairs, with a learning rate far off, and in place of centred GD."""
    rate = optimal_learning_rate(task)
    descent, centred = descend(rate), Centred(descend(centred_rate))
    losses = Lineup({"far": descend(_FAR_RATE * rate), DESCENT: descent}, {}, 1).measure(mean_loss, samples)[:, 0]
    fewer = align(FirstPairs(descent, _FEWER_PAIRS), descent, samples)
    return {
        "far_rate_loss": ((), np.asarray(losses[0] / losses[1] - 1), {"units": "relative", "of": "rate 35 % off"}),
        "fewer_pairs_cosine": ((), np.asarray(fewer.cosine), {"of": f"GD on {_FEWER_PAIRS} pairs, with GD"}),
        "descent_centred_cosine": ((), np.asarray(align(descent, centred, samples).cosine), {"of": "GD, centred GD"}),
        "centred_learning_rate": ((), np.asarray(centred_rate), {"units": "eta of centred GD"}),
    }


def _maps(run: Run, samples: Sample) -> Variables:
    """Attention of the first seed: one task's, and the mean over tasks, as deviations from uniform attention."""
    few = jax.tree.map(lambda leaf: leaf[:1000], samples)
    transformer = run.transformer(0)
    maps = np.asarray(over_tasks(lambda sample: transformer.attention_maps(sample.problem)[0], few))
    deviation = maps - 1 / maps.shape[-1]
    axes = ("head", "reader", "key")
    return {
        "attention_one_task": (axes, deviation[0], {"units": "attention minus 1/N"}),
        "attention_mean": (axes, deviation.mean(axis=0), {"units": "attention minus 1/N, mean over tasks"}),
    }


def _claims(data: xr.Dataset) -> list[Claim]:
    one, two = (data.sel(model=label) for label in (ONE, TWO))
    loss, cosine = relative_loss(two), two["final_cosine"].sel(algorithm=DESCENT).values
    to_centred = relative_loss(two, to=CENTRED)
    rate = float(data["centred_learning_rate"])
    heads = two["head_off_diagonal"].min("head").values
    unit, near = "relative difference of losses", "learning rate 10 % off"
    return [
        statistical(
            "one-head-fails", "one softmax head cannot match GD: its loss, relative to one GD step's", "Fig 11",
            relative_loss(one), ONE_HEAD_FAILS, published="above", unit=unit, control="two softmax heads",
            control_values=loss, centre="median",
        ),
        statistical(
            "two-heads-loss", "two softmax heads nearly match GD's loss (median over seeds)", "Fig 11", loss,
            NEARLY_EQUAL, published="nearly equal", unit=unit, control="GD with its learning rate 35 % off",
            control_values=[float(data["far_rate_loss"])], centre="median",
        ),
        statistical(
            "two-heads-cosine", "the sensitivities of two softmax heads point GD's way (median over seeds)", "Fig 11",
            cosine, COSINE, published="high", unit="cosine", control=f"GD on {_FEWER_PAIRS} of the 10 context pairs",
            control_values=[float(data["fewer_pairs_cosine"])], centre="median",
        ),
        statistical(
            "two-heads-above", "but they do not reach it (median over seeds)", "Fig 11", loss, NOT_QUITE,
            published="nearly", unit=unit, control=near, control_values=relative_loss(two, "control")[:1],
            centre="median",
        ),
        statistical(
            "off-diagonals", "the sum over heads of eta_h W_h,KQ has vanishing off-diagonals (median over seeds)",
            "Fig 12", two["combined_off_diagonal"].values, OFF_DIAGONAL, published="vanish",
            unit="off-diagonal norm over diagonal norm", control="the head nearer to a diagonal, alone",
            control_values=heads, centre="median",
        ),
        statistical(
            "first-order-attention", "softmax attention is its first order in the logits (median over seeds, worse "
            "head): error relative to the deviation from uniform attention", "A.9",
            two["attention_error"].max("head").values, FIRST_ORDER, published="approximately linear",
            unit="relative error", control="without the mean logit",
            control_values=two["uncentred_attention_error"].min("head").values, centre="median",
        ),
        statistical(
            "first-order-prediction", "so are the predictions (median over seeds)", "A.9",
            two["prediction_error"].values, FIRST_ORDER, published="approximately linear", unit="relative error",
            control="without the mean logit", control_values=two["uncentred_prediction_error"].values,
            centre="median",
        ),
        statistical(
            "centred-cosine", "what two heads do is a GD step on centred inputs: cosine (median over seeds)",
            "beyond the paper", two["final_cosine"].sel(algorithm=CENTRED).values, CENTRED_COSINE, unit="cosine",
            control="one plain GD step", control_values=[float(data["descent_centred_cosine"])], centre="median",
        ),
        statistical(
            "centred-loss", "and its loss is that step's (median over seeds)", "beyond the paper", to_centred,
            CENTRED_LOSS, unit=unit, control="one plain GD step",
            control_values=relative_loss(two, DESCENT, to=CENTRED)[:1], centre="median",
        ),
        statistical(
            "centred-step-size", f"and the weights say its learning rate, eta = {rate:.3f} (median over seeds)",
            "beyond the paper", two["learning_rate"].values / rate - 1, STEP_SIZE, unit="relative difference",
            control=near, control_values=[-0.1], centre="median",
        ),
    ]  # fmt: skip


def _notes(preset: Preset, data: xr.Dataset) -> list[str]:
    notes = []
    for label in (ONE, TWO):
        part = data.sel(model=label)
        drops, loss = part["drop_step"].values, part["final_loss"].sel(learner="trained").values
        dropped = drops[np.isfinite(drops)]
        late = f"; loss drops at steps {dropped.min():.0f} to {dropped.max():.0f}" if dropped.size else ""
        notes.append(
            f"{label}: {int(np.isnan(drops).sum())} of {drops.size} seeds are still on the plateau at the end"
            f"{late}; losses {np.min(loss):.4f} to {np.max(loss):.4f}, median "
            f"{np.median(loss):.4f} (GD {float(part['final_loss'].sel(learner=DESCENT)[0]):.4f}, on centred inputs "
            f"{float(part['final_loss'].sel(learner=CENTRED)[0]):.4f})."
        )
    notes.append(
        "Two heads with eta_1 = -eta_2 cancel what a head would copy from its context whatever the logits are. What is "
        "left, to first order, is linear attention without its mean over keys: a GD step on centred inputs, which has "
        "one context pair less to learn from and about 7 % more loss."
    )
    if preset == "quick":
        notes.append("quick trains 3000 steps, --preset paper 5000 (one head) and 10 000 (two heads).")
    return notes


def draw(data: xr.Dataset) -> "dict[str, Figure]":
    """All figures by file name."""
    with house_style():
        return {"figure-11": _figure_11(data), "figure-12": _figure_12(data), "attention": _attention_figure(data)}


def _figure_11(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.4))
    rows = figure.subplots(2, 3)
    for row, label in zip(rows, (ONE, TWO), strict=True):
        part = data.sel(model=label)
        loss_panel(row[0], part, title=f"{label}: loss", learners=(DESCENT, CENTRED))
        for axes, algorithm, what in ((row[1], DESCENT, "GD"), (row[2], CENTRED, "centred GD")):
            curves = part.sel(algorithm=algorithm).dropna("curve_step", how="all", subset=["cosine"])
            alignment_panel(axes, curves, x="curve_step", title=f"{label}: alignment with {what}")
    caption(
        figure,
        "One softmax head stays near the loss of predicting zero; two nearly reach one GD step, and align with a GD "
        f"step on centred inputs. Mean and 95 % band over seeds (n = {data.sizes['seed']}), thin: each seed.",
    )
    return figure


def _figure_12(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.0))
    part = data.sel(model=TWO).isel(seed=0)
    matrices = [part["head_key_query"].isel(head=head).values for head in range(part.sizes["head"])]
    titles = [f"eta_{head + 1} W_{head + 1},KQ" for head in range(len(matrices))]
    matrices, titles = [*matrices, part["combined_key_query"].values], [*titles, "sum over heads"]
    limit = max(float(np.abs(matrix).max()) for matrix in matrices)
    for axes, matrix, title in zip(figure.subplots(1, len(matrices)), matrices, titles, strict=True):
        heat_map(figure, axes, matrix, title=title, limit=limit)
    caption(
        figure,
        f"Two softmax heads, seed {int(part['seed'])}: each has off-diagonal entries "
        f"({', '.join(f'{value:.2f}' for value in part['head_off_diagonal'].values)} of its diagonal's norm), their sum"
        f" has almost none ({float(part['combined_off_diagonal']):.3f}).",
    )
    return figure


def _attention_figure(data: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    heads = data["head"].values
    figure = Figure(figsize=(9.5, 7.6))
    rows = figure.subplots(2, len(heads))
    for row, name, what in ((rows[0], "attention_one_task", "one task"), (rows[1], "attention_mean", "mean")):
        for axes, head in zip(row, heads, strict=True):
            matrix = data[name].sel(head=head).values
            limit = float(np.abs(data[name]).max())
            corners = (0.5, matrix.shape[1] + 0.5, matrix.shape[0] + 0.5, 0.5)
            image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, extent=corners)
            axes.grid(visible=False)
            axes.set(title=f"head {head}, {what}", xlabel="key", ylabel="reading token (last: query)")
            figure.colorbar(image, ax=axes, shrink=0.8)
    caption(
        figure,
        "Attention minus 1/N of two softmax heads, first seed. Above: one task. Below: the mean over tasks, where\n"
        "only tokens' attention to themselves is left: below 1/N for one head, above for the other, whose eta has the "
        "opposite sign.",
    )
    return figure


SOFTMAX = Experiment(
    name="softmax",
    question="Do heads of softmax attention perform a step of gradient descent?",
    source="Fig 11, Fig 12, A.9",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=(ONE, TWO, "controls"),
    analysis_seconds={"smoke": 15.0, "quick": 35.0, "paper": 100.0},
)
