"""The one contract: a learner maps a problem to a prediction.

A *problem* is what a transformer sees in one sequence: context pairs (x_j, y_j) and a query input x_q. A *learner* is
anything that predicts the query's target from it: a trained transformer, a construction, gradient descent, ridge
regression, or a callable from another library. Metrics, sweeps and plots are written once, against this contract.

    >>> import jax.numpy as jnp
    >>> problem = Problem(jnp.eye(2), jnp.ones((2, 1)), jnp.array([0.5, 0.25]))
    >>> learner = from_callable(lambda inputs, targets, query: query @ inputs.T @ targets)
    >>> float(learner(problem).value[0])
    0.75
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.checks import finite_number


class Problem(eqx.Module):
    """One in-context regression problem.

    Attributes:
        context_inputs: x_1..x_N.
        context_targets: y_1..y_N.
        query_input: x_q, whose target is to be predicted.
    """

    context_inputs: Float[Array, "context input_size"]
    context_targets: Float[Array, "context output_size"]
    query_input: Float[Array, " input_size"]


class Prediction(eqx.Module):
    """What a learner says about a problem.

    Attributes:
        value: the predicted target of the query; always the last row of ``trajectory``.
        trajectory: the query's prediction before the first and after every layer or step.
        context_trajectory: the same for the context's targets; None where a learner has no such thing.
    """

    value: Float[Array, " output_size"]
    trajectory: Float[Array, "steps_plus_1 output_size"]
    context_trajectory: Float[Array, "steps_plus_1 context output_size"] | None


@runtime_checkable
class Learner(Protocol):
    """Anything that learns in context: unbatched, with ``jax.vmap`` outside."""

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts the query's target from the context."""
        ...


class CallableLearner(eqx.Module):
    """A learner made of a NumPy-style callable; build it with `from_callable`."""

    function: Callable[..., Any] = eqx.field(static=True)
    difference_step: float = eqx.field(static=True)

    def __call__(self, problem: Problem) -> Prediction:
        """Calls the function on the host; the trajectory starts at zero, the prediction without a context."""
        value = jnp.asarray(_call_on_host(self.function, self.difference_step, problem))
        return Prediction(value, jnp.stack([jnp.zeros_like(value), value]), None)


def from_callable(function: Callable[..., Any], *, difference_step: float = 1e-4) -> CallableLearner:
    """Makes a learner of any callable: a scikit-learn regressor, a PyTorch model, a NumPy formula.

    Args:
        function: called as ``function(context_inputs, context_targets, query_input)`` with float64 NumPy arrays of
            shapes (context, input_size), (context, output_size) and (input_size,); returns the query's target, a scalar
            or shape (output_size,).
        difference_step: relative step of the central differences that give derivatives (the callable is opaque to
            automatic differentiation). They are taken in float64.

    Returns:
        A learner that works under ``jit``, ``vmap`` and ``grad`` (reverse mode).

    Raises:
        ValueError: if ``function`` is not callable or ``difference_step`` is not positive. A function that returns a
            wrong number of values, or one that is not finite, fails when it is called: JAX reports the reason inside a
            ``jax.errors.JaxRuntimeError``.
    """
    if not callable(function):
        raise ValueError(f"function must be callable, got {function!r}; pass e.g. a scikit-learn fit-predict lambda")
    finite_number("difference_step", difference_step, above=0.0)
    return CallableLearner(function, difference_step)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call_on_host(
    function: Callable[..., Any], difference_step: float, problem: Problem
) -> Float[Array, " output_size"]:
    result = jax.ShapeDtypeStruct(problem.context_targets.shape[-1:], problem.query_input.dtype)
    leaves = jax.tree.leaves(problem)
    return jax.pure_callback(partial(_evaluate, function, result), result, *leaves, vmap_method="broadcast_all")


def _call_on_host_forward(function, difference_step, problem):
    return _call_on_host(function, difference_step, problem), problem


def _call_on_host_backward(function, difference_step, problem, cotangent):
    # One callback per leaf: XLA drops those whose derivative nobody reads.
    leaves, structure = jax.tree.flatten(problem)
    cotangents = []
    for index, leaf in enumerate(leaves):
        result = jax.ShapeDtypeStruct((*cotangent.shape, *leaf.shape), leaf.dtype)
        host = partial(_jacobian, function, difference_step, index, result)
        jacobian = jax.pure_callback(host, result, *leaves, vmap_method="broadcast_all")
        cotangents.append(jnp.tensordot(cotangent, jacobian, axes=1))
    return (jax.tree.unflatten(structure, cotangents),)


_call_on_host.defvjp(_call_on_host_forward, _call_on_host_backward)


def _over_leading_axes(host, result, *leaves):
    """Applies ``host`` to every element of the axes that ``vmap`` has put in front."""
    leaves = [np.asarray(leaf, dtype=np.float64) for leaf in leaves]
    query = leaves[2]
    outputs = np.empty((*query.shape[:-1], *result.shape), dtype=result.dtype)
    for index in np.ndindex(*query.shape[:-1]):
        outputs[index] = host(*(leaf[index] for leaf in leaves))
    return outputs


def _checked(function, output_size: int, *arrays) -> np.ndarray:
    value = np.asarray(function(*arrays), dtype=np.float64).reshape(-1)
    if value.size != output_size:
        raise ValueError(f"the callable must return {output_size} value(s), one per output, but returned {value.size}")
    if not np.isfinite(value).all():
        raise ValueError(f"the callable returned {value}, which is not finite")
    return value


def _evaluate(function, result, *leaves):
    return _over_leading_axes(partial(_checked, function, result.shape[0]), result, *leaves)


def _jacobian(function, difference_step, index, result, *leaves):
    def host(*arrays):
        jacobian = np.empty(result.shape)
        for entry in np.ndindex(*arrays[index].shape):
            step = difference_step * (1 + abs(arrays[index][entry]))
            shifted = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[index][entry] += sign * step
                shifted.append(_checked(function, result.shape[0], *moved))
            jacobian[(slice(None), *entry)] = (shifted[0] - shifted[1]) / (2 * step)
        return jacobian

    return _over_leading_axes(host, result, *leaves)
