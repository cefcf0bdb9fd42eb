"""Numbers of the classification experiment, as labelled arrays.

``model`` runs over what was trained, ``learner`` over everyone whose loss is measured on all held-out tasks,
``floor_learner`` over those on the first of them, where the Bayes-optimal learner is affordable, ``algorithm`` over
what alignment is measured with. Losses are cross-entropies in nats; alignment is that of centred logits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from innerloop.algorithms import (
    BayesianLogisticRegression,
    CentredLogits,
    CrossEntropyDescent,
    KernelSmoothing,
    Trivial,
    prior_penalty,
)
from innerloop.analysis import align, best_numbers, key_query_scale, task_accuracies, trajectory_losses
from innerloop.experiments.against_descent import FirstPairs
from innerloop.experiments.along_training import alignment_curves, alignments, curve_points, snapshot
from innerloop.experiments.classification.setting import LINEAR
from innerloop.experiments.experiment import Preset, Stage, Variables
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.keys import named_key, root_key
from innerloop.models import products
from innerloop.problem import Learner
from innerloop.runs import Run
from innerloop.tasks import LinearClassification, Sample
from innerloop.training import held_out_batch

DESCENT, TWO_STEPS, FIVE_STEPS, SMOOTHING = "gradient descent", "two steps", "five steps", "kernel smoothing"
FAR, FLAT = "learning rate 20 % off", "smoothing 30 % off"
LOGISTIC, BAYES = "logistic regression", "bayes"
ALGORITHMS = (DESCENT, SMOOTHING)
FAR_RATE = 1.2
EARLY = 0.1
"""Share of training after which the early checkpoint was taken."""

_NATS = {"units": "cross-entropy in nats, mean over tasks"}
_LOSS = "cross_entropy"


class Sizes(NamedTuple):
    """How much is computed.

    Attributes:
        tuning_tasks: on which algorithms are tuned; not the held-out ones.
        curve_tasks: of every point of the alignment curves.
        floor_tasks: on which logistic regression and the Bayes-optimal learner are measured.
        posterior_samples: of the latter, per task.
    """

    tuning_tasks: int
    curve_tasks: int
    floor_tasks: int
    posterior_samples: int


SIZES: dict[Preset, Sizes] = {
    "smoke": Sizes(200, 200, 20, 50),  # as many as there are held-out tasks: programs are shared
    "quick": Sizes(10_000, 500, 1000, 500),
    "paper": Sizes(20_000, 2000, 5000, 1000),
}


def measure(runs: Mapping[str, Run], *, sizes: Sizes, stage: Stage) -> xr.Dataset:
    """Measures everything.

    Args:
        runs: by model.
        sizes: on how many tasks.
        stage: told what comes next.
    """
    rivals: dict[LinearClassification, dict[str, Learner]] = {}
    parts = []
    for label, run in runs.items():
        stage(label)
        task = run.recipe.task
        assert isinstance(task, LinearClassification)
        if task not in rivals:
            rivals[task] = tuned(task, sizes.tuning_tasks)
        held_out = held_out_batch(run.recipe).samples()
        part = xr.Dataset(
            _losses(run, rivals[task], held_out)
            | _permuted(run, held_out)
            | _alignment(run, rivals[task], held_out, sizes)
            | (_of_linear(run, rivals[task], held_out, sizes) if label in LINEAR else {}),
            {
                "step": run.metrics["step"].values,
                "curve_step": run.metrics["step"].values[curve_points(run)],
                "seed": np.asarray(run.recipe.seeds),
                "algorithm": list(ALGORITHMS),
                "learner": [*rivals[task], "trained"],
                "floor_learner": [DESCENT, LOGISTIC, BAYES, "trained"],
            },
        )
        parts.append(part.assign_coords(model=label))
    return cast(xr.Dataset, xr.concat(parts, "model", join="outer"))


def tuned(task: LinearClassification, num_tasks: int) -> dict[str, Learner]:
    """Algorithms with their best numbers on tasks of their own, and the near misses of two of them."""
    samples = task.samples(named_key(root_key(0), "classification tuning"), num_tasks)

    def best(make, *start: float) -> list[Any]:
        numbers, _ = best_numbers(make, start, samples, _LOSS)
        return [jnp.asarray(number, jnp.float32) for number in numbers]

    rates = {steps: best(lambda rate, steps=steps: CrossEntropyDescent(rate, steps), 25.0)[0] for steps in (1, 2, 5)}
    scale, sharpness = best(KernelSmoothing, 3.0, 9.0)
    return {
        DESCENT: CrossEntropyDescent(rates[1]),
        TWO_STEPS: CrossEntropyDescent(rates[2], 2),
        FIVE_STEPS: CrossEntropyDescent(rates[5], 5),
        SMOOTHING: KernelSmoothing(scale, sharpness),
        FAR: CrossEntropyDescent(FAR_RATE * rates[1]),
        FLAT: KernelSmoothing(scale, 0.7 * sharpness),
    }


@eqx.filter_jit
def _loss_and_accuracy(learner: Learner, samples: Sample) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return mean_loss(learner, samples, _LOSS), jnp.mean(task_accuracies(learner, samples))


def _losses(run: Run, algorithms: dict[str, Learner], held_out: Sample) -> Variables:
    """Losses and accuracies in the end, losses along training, and what knowing W would give."""
    lineup = Lineup(algorithms, {"trained": run.transformers()}, len(run.recipe.seeds))
    probabilities = held_out.query_target
    entropy = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), axis=-1))
    steps = run.metrics["step"].values
    early = int(np.searchsorted(steps, EARLY * steps[-1]))
    curves = run.metrics["evaluation_loss"].values
    losses, accuracies = lineup.measure(_loss_and_accuracy, held_out)
    return {
        "loss": (("step", "seed"), curves, _NATS),
        "early_loss": (("seed",), curves[early], _NATS | {"of": f"the checkpoint after {EARLY:.0%} of training"}),
        "final_loss": (("learner", "seed"), losses, _NATS),
        "accuracy": (
            ("learner", "seed"),
            accuracies,
            {"units": "probability that a drawn label is the likeliest class"},
        ),
        "zero_loss": ((), np.asarray(mean_loss(Trivial(), held_out, _LOSS)), _NATS | {"of": "equal probabilities"}),
        "entropy": ((), np.asarray(entropy), _NATS | {"of": "the true probabilities"}),
    }


def _permuted(run: Run, held_out: Sample) -> Variables:
    """Losses where every label stands beside the next input of its context, so that inputs say nothing of labels."""
    targets = jnp.roll(held_out.problem.context_targets, 1, axis=1)
    permuted = eqx.tree_at(lambda one: one.problem.context_targets, held_out, targets)
    lineup = Lineup({}, {"trained": run.transformers()}, len(run.recipe.seeds))
    return {"permuted_loss": (("seed",), lineup.measure(_loss_and_accuracy, permuted)[0][0], _NATS)}


def _alignment(run: Run, algorithms: dict[str, Learner], held_out: Sample, sizes: Sizes) -> Variables:
    """Cosines of centred logits' sensitivities with the algorithms, along training and in the end."""
    others, few = [algorithms[name] for name in ALGORITHMS], _first(held_out, sizes.curve_tasks)
    snapshots = (CentredLogits(snapshot(run, int(index))) for index in curve_points(run))
    units = {"units": "cosine of sensitivities, mean over tasks"}
    return {
        "cosine": (("curve_step", "algorithm", "seed"), alignment_curves(snapshots, others, few)["cosine"], units),
        "final_cosine": (
            ("algorithm", "seed"),
            alignments(CentredLogits(run.transformers()), others, held_out)["cosine"],
            units,
        ),
    }


def _of_linear(run: Run, algorithms: dict[str, Learner], held_out: Sample, sizes: Sizes) -> Variables:
    """The step that a linear layer's weights say beside the tuned one, a near miss of its logits, and the floor.

    The layer adds b B to the logits per unit of sum_j y_j x_j . x_q, with B the target block of W_PV and b the mean
    diagonal of W_KQ. What multiples of 1 1^T in B do, no loss sees; centring takes them out: eta / N is minus b times
    the trace of (I - 1 1^T / C) B over C - 1.
    """
    descent, task, stack = algorithms[DESCENT], run.recipe.task, products(run.weights)
    assert isinstance(descent, CrossEntropyDescent)
    block = np.asarray(stack.W_PV)[:, 0, 0, task.input_size :, task.input_size :]
    scale = np.asarray(key_query_scale(stack, task.input_size))[:, 0, 0]
    trace = np.trace(block, axis1=-2, axis2=-1) - block.sum(axis=(-2, -1)) / task.output_size
    rate = -task.context_length * scale * trace / (task.output_size - 1)
    fewer = align(FirstPairs(descent, task.context_length - 1), descent, held_out)
    return {
        "tuned_rate": ((), np.asarray(descent.learning_rate), {"units": "eta"}),
        "rate": (("seed",), rate, {"units": "eta, as the weights say"}),
        "fewer_pairs_cosine": ((), np.asarray(fewer.cosine), {"of": "GD on all context pairs but the last, with GD"}),
        **_floor(run, algorithms, _first(held_out, sizes.floor_tasks), sizes),
    }


def _floor(run: Run, algorithms: dict[str, Learner], samples: Sample, sizes: Sizes) -> Variables:
    """Losses beside those of logistic regression with the prior as its penalty and of the Bayes-optimal learner.

    The latter's trajectory has them both, after one fit.
    """
    task, num_seeds = run.recipe.task, len(run.recipe.seeds)
    assert isinstance(task, LinearClassification)
    penalty = jnp.asarray(prior_penalty(task), jnp.float32)
    bayes = BayesianLogisticRegression(penalty, named_key(root_key(0), "posterior"), sizes.posterior_samples)
    floors = np.asarray(trajectory_losses(bayes, samples, _LOSS)).mean(axis=1)[1:]
    lineup = Lineup({DESCENT: algorithms[DESCENT]}, {"trained": run.transformers()}, num_seeds)
    step, trained = lineup.measure(mean_loss, samples, _LOSS)
    losses = np.stack([step, *(np.full(num_seeds, floor) for floor in floors), trained])
    return {"floor_loss": (("floor_learner", "seed"), losses, _NATS)}


def _first(samples: Sample, count: int) -> Sample:
    return jax.tree.map(lambda leaf: leaf[:count], samples)
