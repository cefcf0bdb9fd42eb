"""The training loop: one compiled program per chunk, scanning over steps, with all seeds inside.

`train` is pure: it yields states and measurements and touches no disk. A batch depends only on (seed, step), so a loop
that starts from a stored state continues to the same bits. A seed whose loss, gradient or update stops being finite is
frozen at its last finite weights and reported with its step; the other seeds go on.

    >>> from innerloop.training.recipe import Recipe
    >>> recipe = Recipe(num_steps=20, evaluation_interval=10, batch_size=8, evaluation_tasks=8, seeds=(0,))
    >>> [int(measurement.step) for _, measurement in train(recipe)]
    [0, 10, 20]
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from innerloop.kernels import Kernel, expected_kernel, held_out_loss, training_kernel, training_path
from innerloop.keys import named_key, root_key
from innerloop.models import StackWeights
from innerloop.tasks import Batch, Task
from innerloop.tokens import ConcatenatedTokens
from innerloop.training.devices import Layout, layout, over_devices, over_seeds, share_tasks
from innerloop.training.optimizer import make_optimizer
from innerloop.training.parameters import Parameters, initial_parameters, stack_weights
from innerloop.training.recipe import Recipe


class TrainingState(eqx.Module):
    """All that a run needs to go on; every leaf but the step has a leading seed axis.

    Attributes:
        step: steps taken.
        parameters: what is trained, the stack's weights or the numbers that they follow from.
        optimizer: the optimiser's state.
        diverged_at: the step at which a seed's loss, gradient or update was not finite; -1 while all is well.
    """

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: PyTree
    diverged_at: Int[Array, " seeds"]


class Measurement(NamedTuple):
    """What is recorded at a chunk's end; losses are those of the task's family, NaN for seeds that have diverged.

    Attributes:
        step: steps taken.
        train_loss: mean over the chunk's steps, of the batch's loss or of the expected one, whichever is trained on
            (NaN at step 0, which has none).
        gradient_norm: mean over the chunk of the global norm before clipping (NaN at step 0).
        evaluation_loss: on the held-out tasks.
        weights: the stack's weights at this step.
    """

    step: Int[Array, ""]
    train_loss: Float[Array, " seeds"]
    gradient_norm: Float[Array, " seeds"]
    evaluation_loss: Float[Array, " seeds"]
    weights: StackWeights


def train(recipe: Recipe, state: TrainingState | None = None) -> Iterator[tuple[TrainingState, Measurement]]:
    """Trains all seeds of a recipe.

    Args:
        recipe: what to train.
        state: where to go on, as yielded before; None starts anew and yields the untrained state first.

    Yields:
        The state and a measurement at step 0 and at every chunk's end, until the last step or until every seed has
        diverged. The next chunk is already running while the caller handles this one.
    """
    with numerics(recipe):
        keys, evaluation_batch = _seed_keys(recipe), held_out_batch(recipe)
        if state is None:
            state = initial_state(recipe)
            current = state, _measure(recipe, state, evaluation_batch)
        else:
            current = _advance_from(recipe, state, keys, evaluation_batch)
    while current is not None:
        with numerics(recipe):
            following = _advance_from(recipe, current[0], keys, evaluation_batch)
        yield current
        current = following


@contextlib.contextmanager
def numerics(recipe: Recipe):
    """The precision that a recipe asks for, in force while its programs are traced and run."""
    with (
        jax.enable_x64(recipe.dtype == "float64"),
        jax.default_matmul_precision(recipe.matmul_precision),
    ):
        yield


def held_out_batch(recipe: Recipe) -> Batch:
    """The held-out tasks; call it under `numerics`."""
    return _compiled_held_out(recipe.task, recipe.evaluation_tasks)(
        named_key(root_key(recipe.evaluation_seed), "evaluation")
    )


@lru_cache(maxsize=64)
def _compiled_held_out(task: Task, num_tasks: int):
    return jax.jit(lambda key: task.sample_batch(key, num_tasks))


def initial_state(recipe: Recipe) -> TrainingState:
    """Untrained weights of every seed; call it under `numerics`."""
    parameters, optimizer_state = _compiled_initial_state(recipe)(_seed_keys(recipe))
    return TrainingState(
        jnp.zeros((), jnp.int32), parameters, optimizer_state, jnp.full(len(recipe.seeds), -1, jnp.int32)
    )


@lru_cache(maxsize=64)
def _compiled_initial_state(recipe: Recipe):
    optimizer = make_optimizer(recipe)

    def one_seed(key):
        parameters = initial_parameters(recipe, named_key(key, "initialisation"))
        return parameters, optimizer.init(eqx.filter(parameters, eqx.is_array))

    return jax.jit(partial(over_seeds, one_seed))


def recipe_kernel(recipe: Recipe) -> Kernel:
    """The kernel that trains a recipe."""
    if recipe.loss == "expected":
        tokens = recipe.tokens()
        assert isinstance(tokens, ConcatenatedTokens)
        return expected_kernel(recipe.model, tokens, recipe.linear_task())
    is_fixed = recipe.training_tasks is not None
    return training_kernel(recipe.model, recipe.tokens(), recipe.task, recipe.tasks_per_step, is_fixed=is_fixed)


def recipe_path(recipe: Recipe) -> str:
    """The `Kernel.path` that would train a recipe now, without building the kernel."""
    return (
        "exact"
        if recipe.loss == "expected"
        else training_path(recipe.model, recipe.tokens(), recipe.task.prediction_loss)
    )


def recipe_held_out_loss(recipe: Recipe) -> Callable[[StackWeights, Batch], Float[Array, ""]]:
    """``(weights, held-out tasks) -> loss`` of a recipe, by the path that would train it now."""
    return held_out_loss(recipe_path(recipe), recipe.model, recipe.tokens(), recipe.task, recipe.evaluation_tasks)


def _seed_keys(recipe: Recipe) -> Key[Array, " seeds"]:
    return jnp.stack([root_key(seed) for seed in recipe.seeds])


def _grid(recipe: Recipe) -> Layout:
    """The devices that train a recipe. The native code fills a CPU's cores with one batch: its tasks stay together."""
    return layout(
        num_devices=jax.device_count(),
        num_seeds=len(recipe.seeds),
        num_tasks=recipe.tasks_per_step if recipe_path(recipe) == "jax" else 1,
    )


@lru_cache(maxsize=1)
def compiler_options() -> dict[str, str]:
    """On a CPU, makes XLA run a step's operations in order, where this version of XLA knows how to ask for it.

    By default it tries to overlap them, which for this program makes the time of a step depend on irrelevant details
    (measured: 1.9 ms in order; between 1.6 and 4.3 ms overlapped).
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _measure(recipe: Recipe, state: TrainingState, evaluation_batch: Batch) -> Measurement:
    unknown = jnp.full(len(recipe.seeds), jnp.nan, dtype=recipe.dtype)
    losses, weights = _compiled_evaluation(recipe, recipe_path(recipe))(state.parameters, evaluation_batch)
    return Measurement(state.step, unknown, unknown, losses, weights)


@lru_cache(maxsize=64)
def _compiled_evaluation(recipe: Recipe, path: str):
    """The measurement of untrained weights; ``path`` as for a chunk."""
    assert recipe_path(recipe) == path
    loss = recipe_held_out_loss(recipe)

    def one_seed(batch, parameters):
        weights = stack_weights(recipe, parameters)
        return loss(weights, batch), weights

    return jax.jit(lambda parameters, batch: over_seeds(partial(one_seed, batch), parameters))


def _advance_from(recipe: Recipe, state: TrainingState, keys: Key[Array, " seeds"], evaluation_batch: Batch):
    """Runs the next chunk; None after the last step, or once all seeds have diverged.

    Chunks end on multiples of the interval, and at the end.
    """
    step = int(state.step)
    if step >= recipe.num_steps or (np.asarray(state.diverged_at) >= 0).all():
        return None
    length = min(recipe.evaluation_interval - step % recipe.evaluation_interval, recipe.num_steps - step)
    return _compiled_chunk(recipe, length, recipe_path(recipe))(state, keys, evaluation_batch)


@lru_cache(maxsize=64)
def _compiled_chunk(recipe: Recipe, length: int, path: str):
    """One program: ``length`` steps of every seed, then the measurement.

    The kernel's ``path`` belongs to what is remembered, because ``INNERLOOP_NATIVE`` may change between calls.
    """
    grid = _grid(recipe)
    kernel = share_tasks(recipe_kernel(recipe), grid.tasks)
    assert kernel.path == path
    evaluation_loss = recipe_held_out_loss(recipe)
    optimizer = make_optimizer(recipe)

    def take_step(parameters: Any, optimizer_state, diverged_at, draw, step):
        weights, pull_back = jax.vjp(partial(stack_weights, recipe), parameters)
        loss, weights_gradient = kernel.loss_and_gradient(weights, draw)
        (gradient,) = pull_back(weights_gradient)
        norm = optax.tree.norm(gradient)
        search = {}
        if kernel.loss is not None:
            loss_at = kernel.loss
            search = {
                "value": loss,
                "grad": gradient,
                "value_fn": lambda parameters: loss_at(stack_weights(recipe, parameters)),
            }
        # Optax mixes dtypes in its scalars, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, new_optimizer_state = optimizer.update(cast(Any, gradient), optimizer_state, parameters, **search)
            new_parameters = eqx.apply_updates(parameters, updates)
        # A finite gradient can still give an update that is not (0 / 0 in Adam with eps = 0, an overflow).
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(new_parameters))
        diverged_at = jnp.where((diverged_at < 0) & ~is_finite, step, diverged_at)
        keep = partial(jnp.where, diverged_at < 0)
        parameters = jax.tree.map(keep, new_parameters, parameters)
        optimizer_state = jax.tree.map(keep, new_optimizer_state, optimizer_state)
        return parameters, optimizer_state, diverged_at, loss, norm

    def one_seed(shared, parameters, optimizer_state, diverged_at, key):
        first_step, evaluation_batch = shared
        stream = named_key(key, "training")

        def body(carry, step):
            parameters, optimizer_state, diverged_at, draw = carry
            parameters, optimizer_state, diverged_at, loss, norm = take_step(
                parameters, optimizer_state, diverged_at, draw, step
            )
            # The next step's random numbers are made here and carried, so that they are made once; see `Task.draw`.
            following = draw if kernel.is_fixed else kernel.prepare(stream, step + 1)
            return (parameters, optimizer_state, diverged_at, following), (loss, norm)

        steps = first_step + jnp.arange(length, dtype=jnp.int32)
        carry = (parameters, optimizer_state, diverged_at, kernel.prepare(stream, first_step))
        (parameters, optimizer_state, diverged_at, _), (losses, norms) = jax.lax.scan(body, carry, steps)
        weights = stack_weights(recipe, parameters)
        measured = jnp.stack([jnp.mean(losses), jnp.mean(norms), evaluation_loss(weights, evaluation_batch)])
        measured = jnp.where(diverged_at < 0, measured, jnp.nan)
        return parameters, optimizer_state, diverged_at, weights, measured

    @partial(jax.jit, compiler_options=compiler_options())
    def chunk(state, keys, evaluation_batch):
        parameters, optimizer_state, diverged_at, weights, measured = over_devices(
            one_seed,
            grid,
            (state.step, evaluation_batch),
            state.parameters,
            state.optimizer,
            state.diverged_at,
            keys,
        )
        step = state.step + length
        state = TrainingState(step, parameters, optimizer_state, diverged_at)
        return state, Measurement(step, measured[:, 0], measured[:, 1], measured[:, 2], weights)

    return chunk
