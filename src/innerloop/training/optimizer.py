"""The optimiser of a recipe: AdamW as published, or L-BFGS for exact training.

L-BFGS works on *whitened* weights, with which every token entry has variance one: W_K, W_Q and W_V times the root of
E e e^T, and P divided by the targets' standard deviation. The loss and the initial weights are the same functions and
numbers as before; only the metric differs. Without it the loss is as ill-conditioned as powers of the inputs' moments
are (measured for n_i = N = 10, steps to 1e-6 of the optimum over five seeds: for uniform inputs 80 to more than 180
without, 40 to 80 with; for a Gaussian covariance of condition 30, no seed within 200 without, 80 to 200 with).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from innerloop.models import AttentionWeights, StackWeights
from innerloop.tasks import LinearRegression
from innerloop.training.recipe import OptimizerConfig, Recipe

# Pairs that L-BFGS remembers: with 10, the default, some seeds need half as many steps again.
_MEMORY = 40


def make_optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """AdamW behind a clip of the global norm, as the published code chains them; or L-BFGS on whitened weights.

    L-BFGS's ``update`` also needs the ``value``, the ``grad`` and the loss as a function of the parameters,
    ``value_fn``, for its line search; AdamW's passes them by. Call it under `innerloop.training.numerics`.
    """
    config = recipe.optimizer
    return (
        _whitened(optax.lbfgs(memory_size=_MEMORY), recipe.linear_task())
        if config.method == "lbfgs"
        else _adamw(config)
    )


def _adamw(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    adamw = optax.adamw(
        config.learning_rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    if config.gradient_clip is None:
        return optax.with_extra_args_support(adamw)
    return optax.with_extra_args_support(optax.chain(optax.clip_by_global_norm(config.gradient_clip), adamw))


class _Metric(eqx.Module):
    """The symmetric linear map T from whitened to plain weights, and its inverse.

    Attributes:
        root: of the second moment of a token, or of its inverse.
        target_scale: the targets' standard deviation, or its inverse.
    """

    root: Float[np.ndarray, "token_size token_size"]
    target_scale: float

    def __call__(self, parameters: PyTree[Array]) -> PyTree[Array]:
        """Applies the map to weights (or a gradient: T is its own transpose); the numbers of GD++ stay as they are."""
        if not isinstance(parameters, StackWeights):
            return parameters
        attention = parameters.attention
        root = jnp.asarray(self.root, dtype=attention.W_K.dtype)
        return StackWeights(
            AttentionWeights(
                W_K=attention.W_K @ root,
                W_Q=attention.W_Q @ root,
                W_V=attention.W_V @ root,
                P=attention.P * self.target_scale,
            )
        )


def _metrics(task: LinearRegression) -> tuple[_Metric, _Metric]:
    """The maps from and to whitened weights."""
    second = task.input_moments().second
    values, vectors = np.linalg.eigh(second)
    scales = np.sqrt(np.maximum(values, 1e-10 * values.max()))  # directions without inputs have no scale of their own
    target_scale = float(np.sqrt(task.target_scale**2 * np.trace(second) + task.noise_std**2))

    def root(power: int) -> np.ndarray:
        result = target_scale**power * np.eye(task.input_size + task.output_size)
        result[: task.input_size, : task.input_size] = (vectors * scales**power) @ vectors.T
        return result

    return _Metric(root(-1), target_scale), _Metric(root(1), 1 / target_scale)


def _whitened(
    optimizer: optax.GradientTransformationExtraArgs, task: LinearRegression
) -> optax.GradientTransformationExtraArgs:
    """Runs an optimiser with a line search on whitened weights."""
    plain, whitened = _metrics(task)

    def init(params):
        return optimizer.init(whitened(params))

    def update(updates, state, params=None, **search):
        value, grad, value_fn = search["value"], search["grad"], search["value_fn"]
        here = whitened(params)

        def whitened_loss(parameters):
            return value_fn(plain(parameters))

        updates, moved = optimizer.update(
            plain(updates), state, here, value=value, grad=plain(grad), value_fn=whitened_loss
        )
        # At the optimum, where differences of the loss are rounding errors, a line search can end anywhere (measured:
        # at gradients of 1e12). A step that does not descend is not taken, and the memory that led to it is forgotten.
        descends = whitened_loss(eqx.apply_updates(here, updates)) <= value
        updates = jax.tree.map(lambda update: jnp.where(descends, update, jnp.zeros_like(update)), updates)
        state = jax.tree.map(lambda new, first: jnp.where(descends, new, first), moved, optimizer.init(here))
        return plain(updates), state

    return optax.GradientTransformationExtraArgs(init, update)
