"""What is measured of softmax heads: losses, alignment, their weights, and how linear their attention is (A.9)."""

from collections.abc import Mapping
from typing import cast

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
from innerloop.exact import context_spectra, optimal_learning_rate
from innerloop.experiments.against_descent import DESCENT, FirstPairs, descend, measure, rivals
from innerloop.experiments.experiment import Preset, Stage, Variables
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.experiments.softmax.setting import TWO
from innerloop.keys import named_key, root_key
from innerloop.models import Transformer, products
from innerloop.runs import Run
from innerloop.tasks import LinearRegression, Sample
from innerloop.training import held_out_batch

CENTRED = "centred gd"
"""One tuned step of gradient descent on inputs from which the context's mean is taken."""
FEWER_PAIRS = 8
_FAR_RATE = 0.65
_TUNING_CONTEXTS = 50_000
_CURVE_TASKS: dict[Preset, int] = {"smoke": 200, "quick": 2000, "paper": 10_000}


def measure_runs(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> xr.Dataset:
    """All numbers of both models, of the controls, and attention maps."""
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
    return data.assign_coords(reader=np.arange(data.sizes["reader"]) + 1, key=np.arange(data.sizes["key"]) + 1)


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
    fewer = align(FirstPairs(descent, FEWER_PAIRS), descent, samples)
    return {
        "far_rate_loss": ((), np.asarray(losses[0] / losses[1] - 1), {"units": "relative", "of": "rate 35 % off"}),
        "fewer_pairs_cosine": ((), np.asarray(fewer.cosine), {"of": f"GD on {FEWER_PAIRS} pairs, with GD"}),
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
