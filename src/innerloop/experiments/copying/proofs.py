"""Proposition 3 checked in float64 on random problems; each check beside a near miss that must not pass."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.algorithms import GradientDescent
from innerloop.claims import Claim, Criterion, exact
from innerloop.constructions import alternating_descent_transformer, copying_error, copying_weights
from innerloop.keys import named_key, root_key
from innerloop.models import Transformer
from innerloop.tasks import LinearRegression, Sample

EXACT = Criterion(high=1e-12)
# Of the prediction in units of the attention's error; contents, sums over the context and eta / N are of order 1.
SOFTMAX = Criterion(high=10.0)

_LEARNING_RATE = 0.7
_LOGIT_FACTOR = 15.0
_NUM_PROBLEMS = 16


def proof_claims() -> list[Claim]:
    """Both checks as exact claims."""
    with jax.enable_x64(True):
        task = LinearRegression(input_size=5, output_size=3, context_length=7)
        samples = task.samples(named_key(root_key(0), "proofs"), _NUM_PROBLEMS)
        descent = jax.vmap(lambda sample: GradientDescent(_LEARNING_RATE)(sample.problem).value)(samples)

        def error(transformer: Transformer) -> float:
            return float(jnp.abs(_values(transformer, samples) - descent).max())

        linear, softmax, weak = (_construction(task, factor) for factor in (None, _LOGIT_FACTOR, 1.0))
        printed = _with_printed_shift(linear, task)
        stated = copying_error(2 * task.context_length, _LOGIT_FACTOR)
        errors = {"linear": error(linear), "printed": error(printed), "softmax": error(softmax), "weak": error(weak)}
    return [
        exact(
            "prop-3", "Prop 3, then Prop 1, on alternating tokens: one gradient step", "Prop 3, A.5", errors["linear"],
            EXACT, published="exact", unit="largest |difference|", control="the shift as printed",
            control_measured=errors["printed"],
        ),
        exact(
            "prop-3-softmax", f"the same with softmax copying, logit factor {_LOGIT_FACTOR:g}: error in units of its "
            f"attention's, {stated:.1e}", "Prop 3, A.5", errors["softmax"] / stated, SOFTMAX,
            unit="largest |difference| / error of attention", control="logit factor 1",
            control_measured=errors["weak"] / stated,
        ),
    ]  # fmt: skip


def _construction(task: LinearRegression, logit_factor: float | None) -> Transformer:
    return alternating_descent_transformer(
        input_size=task.input_size,
        output_size=task.output_size,
        context_length=task.context_length,
        learning_rate=_LEARNING_RATE,
        logit_factor=logit_factor,
    )


def _with_printed_shift(stack: Transformer, task: LinearRegression) -> Transformer:
    """The construction with its first layer's shift the other way: x_j meets the target before its own."""
    printed = copying_weights(
        content_size=task.input_size + task.output_size, num_tokens=2 * task.context_length + 1, copies="previous"
    )
    weights = jax.tree.map(lambda layers, first: layers.at[0].set(first[0]), stack.weights, printed)
    return Transformer(stack.config, weights, stack.tokens)


@eqx.filter_jit
def _values(transformer: Transformer, samples: Sample) -> Float[Array, "tasks output_size"]:
    return jax.vmap(lambda sample: transformer(sample.problem).value)(samples)
