"""One layer's step on the cross-entropy, checked in float64 on random problems; each check beside a near miss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.algorithms import CrossEntropyDescent
from innerloop.analysis import task_losses
from innerloop.claims import Claim, Criterion, exact
from innerloop.constructions import classification_descent_transformer, gradient_descent_transformer
from innerloop.keys import named_key, root_key
from innerloop.models import Transformer
from innerloop.problem import Learner, Problem
from innerloop.tasks import LinearClassification, Sample

EXACT = Criterion(high=1e-12)
THIRD_ORDER = Criterion(2.8, 3.2)  # a linear layer that forgets softmax's slope 1/C is wrong in second order

_LEARNING_RATE = 0.7
_SMALL_RATE = 0.05  # where the expansion's next order is a few percent
_NUM_PROBLEMS = 16
_TASK = LinearClassification(input_size=5, output_size=3, context_length=11)


def proof_claims() -> list[Claim]:
    """The three checks as exact claims."""
    with jax.enable_x64(True):
        found = {name: float(value) for name, value in _measured().items()}
    order, wrong_order = (
        float(np.log2(found[f"{name} error"] / found[f"{name} error, half"])) for name in ("slope", "no slope")
    )
    return [
        exact(
            "construction", "one linear layer takes one gradient step on the cross-entropy from W = 0", "discussion",
            found["centred"], EXACT, unit="largest |difference| of logits", control="targets not centred",
            control_measured=found["uncentred"],
        ),
        exact(
            "centring-unseen", "no cross-entropy tells whether the layer centres its targets", "discussion",
            found["unseen"], EXACT, unit="largest |difference| of losses", control="only the first class centred",
            control_measured=found["seen"],
        ),
        exact(
            "second-step", "two linear layers miss the second step by a term of third order in eta", "discussion",
            order, THIRD_ORDER, unit="order", control="layers that forget softmax's slope 1/C",
            control_measured=wrong_order,
        ),
    ]  # fmt: skip


@jax.jit
def _measured() -> dict[str, Array]:
    """All largest differences by name, in one program: its small steps are not compiled one by one."""
    samples = _TASK.samples(named_key(root_key(0), "proofs"), _NUM_PROBLEMS)
    step = _step_by_autodiff(samples)
    centred, plain = _construction(True), _construction(False)
    loss, plain_loss, other_loss = (_losses(one, samples) for one in (centred, plain, _one_class_centred(plain)))
    differences = {
        "centred": _values(centred, samples) - step,
        "uncentred": _values(plain, samples) - step,
        "unseen": loss - plain_loss,
        "seen": loss - other_loss,
    }
    for name, has_slope in (("slope", True), ("no slope", False)):
        differences[f"{name} error"] = _second_step_error(_SMALL_RATE, samples, has_slope=has_slope)
        differences[f"{name} error, half"] = _second_step_error(_SMALL_RATE / 2, samples, has_slope=has_slope)
    return {name: jnp.abs(difference).max() for name, difference in differences.items()}


def _construction(centred: bool) -> Transformer:
    return classification_descent_transformer(
        input_size=_TASK.input_size,
        num_classes=_TASK.output_size,
        context_length=_TASK.context_length,
        learning_rate=_LEARNING_RATE,
        centred=centred,
    )


def _one_class_centred(plain: Transformer) -> Transformer:
    """The construction with 1/C taken off the first class alone."""
    row = _TASK.input_size
    values = plain.weights.attention.W_V.at[..., row, row:].add(1 / _TASK.output_size)
    return eqx.tree_at(lambda one: one.weights.attention.W_V, plain, values)


def _step_by_autodiff(samples: Sample) -> Float[Array, "tasks output_size"]:
    """W = -eta dL/dW at W = 0, with L's gradient by automatic differentiation, times the query."""

    def one_task(problem: Problem):
        def loss(weights):
            log_probabilities = jax.nn.log_softmax(problem.context_inputs @ weights.T, axis=-1)
            return -jnp.mean(jnp.sum(problem.context_targets * log_probabilities, axis=-1))

        shape = problem.context_targets.shape[-1], problem.context_inputs.shape[-1]
        return -_LEARNING_RATE * jax.grad(loss)(jnp.zeros(shape)) @ problem.query_input

    return jax.vmap(one_task)(samples.problem)


def _second_step_error(rate: float, samples: Sample, *, has_slope: bool) -> Float[Array, "tasks output_size"]:
    """Logits of two linear layers less those of two exact steps.

    With softmax's slope 1/C the layers see targets C y - 1 and take steps of eta / C; without, y - 1/C and eta.
    """
    classes = _TASK.output_size
    factor = classes if has_slope else 1
    layers = gradient_descent_transformer(
        input_size=_TASK.input_size,
        output_size=classes,
        context_length=_TASK.context_length,
        learning_rate=rate / factor,
        num_layers=2,
    )
    targets = factor * (samples.problem.context_targets - 1 / classes)
    centred = eqx.tree_at(lambda one: one.problem.context_targets, samples, targets)
    return _values(layers, centred) - _values(CrossEntropyDescent(rate, 2), samples)


def _losses(learner: Learner, samples: Sample) -> Float[Array, " tasks"]:
    return task_losses(learner, samples, "cross_entropy")


def _values(learner: Learner, samples: Sample) -> Float[Array, "tasks output_size"]:
    return jax.vmap(lambda sample: learner(sample.problem).value)(samples)
