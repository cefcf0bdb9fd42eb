"""How alike two learners are, as functions (Fig 2 b).

The sensitivity g = d yhat / d x_q tells which linear model of the query a learner has formed from its context. Over
many tasks, for two learners with g, g' and predictions yhat, yhat':

    cosine                 mean <g, g'> / (|g| |g'|)
    model difference       mean |g - g'|
    prediction difference  mean |yhat - yhat'|

with Euclidean norms (over outputs and inputs together where there are several outputs). For learners that are not
linear in the query these are the first terms of the two functions' Taylor expansions at the query: the *partial* cosine
and the *partial* difference of Fig 4. With one input dimension the cosine is agreement in sign.

Every measure can be taken at any step of the trajectory: ``step=0`` compares what the learners predict before their
first layer, ``step=-1`` (the default) what they predict in the end.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.algorithms import CentredLogits
from innerloop.analysis.evaluation import over_blocks, over_tasks
from innerloop.kernels import stack_responses
from innerloop.models import Transformer
from innerloop.problem import Learner, Prediction, Problem
from innerloop.tasks import Sample


class Linearisation(eqx.Module):
    """What a learner says at the query of a task, and how that changes with the query.

    Attributes:
        prediction: yhat.
        sensitivity: g = d yhat / d x_q.
    """

    prediction: Float[Array, "*tasks output_size"]
    sensitivity: Float[Array, "*tasks output_size input_size"]


class Alignment(eqx.Module):
    """Means over tasks of the three measures; see the module's docstring."""

    cosine: Float[Array, "*batch"]
    model_difference: Float[Array, "*batch"]
    prediction_difference: Float[Array, "*batch"]


def linearise(learner: Learner, problem: Problem, *, step: int = -1) -> Linearisation:
    """Prediction and sensitivity in one problem, from one pass forward and one back per output.

    Args:
        learner: who predicts.
        problem: the problem.
        step: which entry of the learner's trajectory is meant.

    Raises:
        ValueError: if the trajectory has no such step.
    """

    def prediction(query_input):
        value = _at(step, learner(Problem(problem.context_inputs, problem.context_targets, query_input)))
        return value, value

    sensitivity, value = jax.jacrev(prediction, has_aux=True)(problem.query_input)
    return Linearisation(value, sensitivity)


def sensitivity(learner: Learner, problem: Problem, *, step: int = -1) -> Float[Array, "output_size input_size"]:
    """Derivative of the prediction with respect to the query input, after the given step of the trajectory.

    Raises:
        ValueError: if the trajectory has no such step.
    """
    return linearise(learner, problem, step=step).sensitivity


@eqx.filter_jit
def linearisations(learner: Learner, samples: Sample, *, step: int = -1) -> Linearisation:
    """A learner's linearisation in every task; what many others are to be compared with has to be found once only.

    Args:
        learner: who predicts.
        samples: the tasks, along the leading axis, which becomes that of the result.
        step: which entry of the learner's trajectory is meant.

    Raises:
        ValueError: if the trajectory has no such step.
    """
    if isinstance(learner, CentredLogits):  # centring is linear, and what it centres may have code of its own
        found = linearisations(learner.learner, samples, step=step)
        return jax.tree.map(lambda leaf: leaf - jnp.mean(leaf, axis=1, keepdims=True), found)
    if step == -1 and isinstance(learner, Transformer):
        stack = learner.config, learner.weights, learner.tokens
        return Linearisation(*over_blocks(lambda block: stack_responses(*stack, block), samples.problem))
    return over_tasks(lambda sample: linearise(learner, sample.problem, step=step), samples)


@eqx.filter_jit
def align(
    learner: Learner, other: Learner, samples: Sample, *, step: int = -1, other_step: int | None = None
) -> Alignment:
    """Compares two learners on the same tasks.

    Args:
        learner: one of them.
        other: the other.
        samples: the tasks, along the leading axis.
        step: which entry of the learner's trajectory to compare.
        other_step: which entry of the other's; None means the same.
    """
    theirs = linearisations(other, samples, step=step if other_step is None else other_step)
    (alignment,) = align_with([theirs], learner, samples, step=step)
    return alignment


@eqx.filter_jit
def align_with(
    others: Sequence[Linearisation], learner: Learner, samples: Sample, *, step: int = -1
) -> list[Alignment]:
    """Compares a learner with others, of whom the `linearisations` on the same tasks are known.

    Args:
        others: their linearisations.
        learner: who is compared with each of them.
        samples: the tasks, along the leading axis.
        step: which entry of the learner's trajectory to compare.

    Returns:
        One alignment for each of the others, in their order.

    Raises:
        ValueError: if the trajectory has no such step.
    """
    ours = linearisations(learner, samples, step=step)
    return [compare(ours, theirs) for theirs in others]


@eqx.filter_jit
def compare(ours: Linearisation, theirs: Linearisation) -> Alignment:
    """Compares two learners of whom the `linearisations` on the same tasks are known."""
    return jax.tree.map(jnp.mean, jax.vmap(_compare_task)(ours, theirs))


def _compare_task(ours: Linearisation, theirs: Linearisation) -> Alignment:
    """The three measures in one task."""
    norms = jnp.linalg.norm(ours.sensitivity) * jnp.linalg.norm(theirs.sensitivity)
    is_defined = norms > 0  # a learner that ignores the query is aligned with nothing
    product = jnp.sum(ours.sensitivity * theirs.sensitivity)
    return Alignment(
        jnp.where(is_defined, product / jnp.where(is_defined, norms, jnp.ones_like(norms)), 0),
        jnp.linalg.norm(ours.sensitivity - theirs.sensitivity),
        jnp.linalg.norm(ours.prediction - theirs.prediction),
    )


def _at(step: int, prediction: Prediction) -> Float[Array, " output_size"]:
    length = prediction.trajectory.shape[0]
    if not -length <= step < length:  # JAX would clamp it silently
        raise ValueError(f"step must be from {-length} to {length - 1} for this learner's trajectory, got {step}")
    return prediction.trajectory[step]
