"""What one trained layer is measured on: replaced targets, its loss in closed form, weight decay in the optimiser."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float

from innerloop.analysis import read_layers
from innerloop.exact import one_layer_loss, optimal_layer, optimal_learning_rate
from innerloop.experiments.against_descent import DESCENT, NEAR_MISS, FirstPairs, descend
from innerloop.experiments.along_training import MEASURES
from innerloop.experiments.experiment import Variables
from innerloop.experiments.lineup import Lineup
from innerloop.experiments.noise.setting import (
    DECAYS,
    FEWER,
    NEAR,
    NOISE_LEVELS,
    ONE,
    decay_label,
    exact_label,
    label,
)
from innerloop.experiments.responses import responses
from innerloop.keys import named_key, root_key
from innerloop.models import Products, products
from innerloop.problem import Learner
from innerloop.runs import Run
from innerloop.tasks import ReplacedTargets, Sample

REPLACED = (0, 2, 4, 6, 8)
"""Numbers m of replaced targets, as published."""
REPLACED_LEARNERS = (DESCENT, NEAR, FEWER, "trained")
_LOSS = {"units": "half squared error, mean over tasks"}


def replaced_targets(run: Run, num_tasks: int) -> Variables:
    """The noiseless layer and one gradient step, tested where some targets are N(0, 1) draws (published code)."""
    task = run.recipe.linear_task()
    eta = optimal_learning_rate(task)
    plain: dict[str, Learner] = {
        DESCENT: descend(eta),
        NEAR: descend(NEAR_MISS * eta),
        FEWER: FirstPairs(descend(eta), task.context_length - 1),
    }
    lineup = Lineup(plain, {"trained": run.transformers()}, len(run.recipe.seeds))
    key = named_key(root_key(0), "replaced targets")
    measured = [responses(lineup, ReplacedTargets(task, count).samples(key, num_tasks)) for count in REPLACED]
    variables: Variables = {
        "replaced_loss": (("replaced", "replaced_learner", "seed"), np.stack([one.losses() for one in measured]), _LOSS)
    }
    for name in MEASURES:
        values = [[one.alignment(learner, DESCENT)[name] for learner in REPLACED_LEARNERS] for one in measured]
        variables[f"replaced_{name}"] = (
            ("replaced", "replaced_learner", "seed"),
            np.array(values),
            {"units": f"{name} with one gradient step, mean over tasks"},
        )
    return variables


def closed_form(runs: Mapping[str, Run], levels: tuple[float, ...]) -> Variables:
    """Expected losses of trained layers, from their weights, beside the least that a layer can have."""
    excess, step_sizes, near, noiseless = [], [], [], []
    with jax.enable_x64(True):
        for level in levels:
            trained = [runs[name] for name in (label(ONE, level), exact_label(level)) if name in runs]
            task = trained[0].recipe.linear_task()
            loss, best = one_layer_loss(task), optimal_layer(task)
            least = float(loss(best))
            weights = [_in_double(products(run.weights)) for run in trained]
            excess.append([np.asarray(jax.vmap(loss)(one)) / least - 1 for one in weights])
            near.append(float(loss(Products(NEAR_MISS * best.W_KQ, best.W_PV))) / least - 1)
            best_step = optimal_learning_rate(task) / task.context_length
            without = optimal_learning_rate(dataclasses.replace(task, noise_std=0.0)) / task.context_length
            noiseless.append(without / best_step - 1)
            step_sizes.append([_step_sizes(one, task.input_size) / best_step - 1 for one in weights])
    return {
        "excess": (
            ("noise", "training", "seed"),
            np.array(excess),
            {"units": "expected loss above the optimal layer's, relative"},
        ),
        "near_excess": (("noise",), np.array(near), {"units": "the same for the optimal layer's step 10 % off"}),
        "noiseless_step_size_error": (("noise",), np.array(noiseless), {"units": "of the optimum without noise"}),
        "step_size_error": (
            ("noise", "training", "seed"),
            np.array(step_sizes),
            {"units": "c = eta / N of the weights, relative to the optimum"},
        ),
    }


def decayed_layers(runs: Mapping[str, Run], samples: Sample) -> Variables:
    """One layer with weight decay in AdamW: the step that it takes, and whether it is still a gradient step."""
    all_runs = [runs[name] for name in (label(ONE, NOISE_LEVELS[0]), *map(decay_label, DECAYS))]
    recipe = all_runs[0].recipe
    task = recipe.linear_task()
    eta = optimal_learning_rate(task)
    plain: dict[str, Learner] = {DESCENT: descend(eta), FEWER: FirstPairs(descend(eta), task.context_length - 1)}
    seeded = {str(index): run.transformers() for index, run in enumerate(all_runs)}
    measured = responses(Lineup(plain, seeded, len(recipe.seeds)), samples)
    cosines = [measured.alignment(name, DESCENT)["cosine"] for name in (FEWER, *seeded)]
    steps = np.stack([_step_sizes(products(run.weights), task.input_size) for run in all_runs])
    return {
        "decayed_step_size": (
            ("optimizer_decay", "seed"),
            steps / (eta / task.context_length),
            {"units": "c of the weights over the optimal c"},
        ),
        "decayed_cosine": (("optimizer_decay", "seed"), np.stack(cosines[1:]), {"units": "cosine with a GD step"}),
        "decayed_control_cosine": (("seed",), cosines[0], {"of": "a step on 9 of the 10 pairs"}),
        "decayed_loss": (("optimizer_decay", "seed"), measured.losses()[len(plain) :], _LOSS),
    }


def _step_sizes(weights: Products, input_size: int) -> Float[np.ndarray, " seed"]:
    return np.asarray(read_layers(weights, input_size).step_size, dtype=np.float64)[:, 0, 0]


def _in_double(weights: Products) -> Products:
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype=np.float64), weights)
