"""The seam between training and the code that computes a batch's loss and gradient.

Models are unbatched; training alone calls one batch-level function, ``(weights, seed stream, step) -> (loss,
gradient)``. It comes in two halves, because a loop that carries the next step's random numbers makes them once (see
`innerloop.tasks.Task.draw`):

    prepare(stream, step) -> draw
    loss_and_gradient(weights, draw) -> (loss, gradient)

The sum over tasks happens inside. `training_kernel` chooses the implementation; the native one lets ``prepare`` return
the key itself where it can, and makes its data inside the second call. `innerloop.kernels.expected_kernel` is of the
same kind but draws nothing: its loss is the expectation over all tasks.

With a fixed training set every step sees the same batch, that of step 0: it is made whole, once, and handed over as
data (`batch_source`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from innerloop.kernels.embedded_layer import embedded_layer_entries, serves_embedded_layer
from innerloop.kernels.general_stack import general_stack_entries
from innerloop.kernels.linear_stack import linear_stack_entries
from innerloop.kernels.softmax_layer import serves_softmax_layer, softmax_layer_entries
from innerloop.models import StackConfig, StackWeights, products
from innerloop.tasks import Batch, PredictionLoss, Task, prediction_loss
from innerloop.tokens import Tokens

# Blocks with an MLP take a batch in pieces of so many tasks, whose hidden units stay in a core's cache (measured at the
# sizes of Fig 15 right: half the time of the whole batch at once).
_TASKS_PER_PIECE = 256


class Kernel(NamedTuple):
    """Loss and gradient of a batch, in two halves.

    Attributes:
        path: which implementation this is; part of a run's name, since bits are promised per path.
        prepare: ``(stream key, step) -> draw``.
        loss_and_gradient: ``(weights, draw) -> (loss, gradient)``; the task family's loss, mean over tasks.
        loss: ``weights -> loss``, where the loss is the same function at every step, so that a line search may follow
            it; None for kernels that sample.
        is_fixed: ``prepare`` gives the same at every step, so that a loop may keep what it gave once.
    """

    path: str
    prepare: Callable[[Key[Array, ""], Int[Array, ""]], Any]
    loss_and_gradient: Callable[[StackWeights, Any], tuple[Float[Array, ""], StackWeights]]
    loss: Callable[[StackWeights], Float[Array, ""]] | None = None
    is_fixed: bool = False


def training_kernel(
    config: StackConfig, tokens: Tokens, task: Task, batch_size: int, *, is_fixed: bool = False
) -> Kernel:
    """Chooses the implementation for a model and a task.

    Args:
        config: the stack's architecture.
        tokens: the tokeniser.
        task: where batches come from.
        batch_size: tasks per step.
        is_fixed: every step sees the same tasks.
    """
    from innerloop.kernels.native import native_kernel  # here, because it needs `Kernel`

    native = native_kernel(config, tokens, task, batch_size, is_fixed=is_fixed)
    return jax_kernel(config, tokens, task, batch_size, is_fixed=is_fixed) if native is None else native


def held_out_loss(
    path: str, config: StackConfig, tokens: Tokens, task: Task, num_tasks: int
) -> Callable[[StackWeights, Batch], Float[Array, ""]]:
    """``(weights, tasks) -> loss``, the family's, mean over given tasks, by the code of a `Kernel.path`.

    The native code makes a gradient as well, and is still several times as fast as what XLA makes of the loss alone.
    All other paths are JAX's, the exact one too: their bits do not depend on what is built.

    Args:
        path: of the kernel that trains.
        config: the stack's architecture.
        tokens: the tokeniser.
        task: the family.
        num_tasks: how many tasks will be given.
    """
    from innerloop.kernels.native import native_kernel

    if path != "native":
        return lambda weights, batch: batch_loss(config, tokens, weights, batch, task.prediction_loss)
    native = native_kernel(config, tokens, task, num_tasks, is_fixed=True)
    assert native is not None
    return lambda weights, batch: native.loss_and_gradient(weights, batch)[0]


def training_path(config: StackConfig, tokens: Tokens, loss: PredictionLoss = "half_squared_error") -> str:
    """The `Kernel.path` that `training_kernel` would choose now for a family's loss, without building it."""
    from innerloop.kernels.native import is_chosen

    return "native" if is_chosen(config, tokens, loss) else "jax"


def path_instruction_set(path: str) -> str:
    """The instruction set that a `Kernel.path` runs with here: the native code's, ``none`` for what XLA compiles.

    Args:
        path: which implementation; the native one must be usable.
    """
    from innerloop.kernels.native_library import instruction_set

    return instruction_set() if path == "native" else "none"


def jax_kernel(config: StackConfig, tokens: Tokens, task: Task, batch_size: int, *, is_fixed: bool = False) -> Kernel:
    """The implementation in JAX, which serves everything; arguments as for `training_kernel`."""
    source = batch_source(task, batch_size, is_fixed=is_fixed)

    def loss_and_gradient(weights, draw):
        def of_tasks(batch):
            return jax.value_and_grad(batch_loss, argnums=2)(config, tokens, weights, batch, task.prediction_loss)

        batch = source.assemble(draw)
        in_pieces = _goes_in_pieces(config, batch.targets.shape[-1])
        return _mean_over_pieces(of_tasks, batch) if in_pieces else of_tasks(batch)

    return Kernel("jax", source.prepare, loss_and_gradient, is_fixed=is_fixed)


def _goes_in_pieces(config: StackConfig, num_tasks: int) -> bool:
    """Whether hidden units are made piece by piece: on a CPU, whose cache does not hold those of a whole batch."""
    return config.mlp == "block" and num_tasks % _TASKS_PER_PIECE == 0 and jax.default_backend() == "cpu"


def _mean_over_pieces(loss_and_gradient: Callable[[Batch], Any], batch: Batch) -> Any:
    """Loss and gradient of a batch, whose pieces are taken one after the other."""

    def of_piece(first):
        def cut(leaf):
            return jax.lax.dynamic_slice_in_dim(leaf, first, _TASKS_PER_PIECE, axis=-1)

        return loss_and_gradient(jax.tree.map(cut, batch))

    of_pieces = jax.lax.map(of_piece, jnp.arange(0, batch.targets.shape[-1], _TASKS_PER_PIECE))
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), of_pieces)


class BatchSource(NamedTuple):
    """Where a kernel that reads a whole batch gets it from.

    Attributes:
        prepare: ``(stream key, step) -> draw``, as in `Kernel`.
        assemble: ``draw -> batch``.
    """

    prepare: Callable[[Key[Array, ""], Int[Array, ""]], Any]
    assemble: Callable[[Any], Batch]


def batch_source(task: Task, batch_size: int, *, is_fixed: bool) -> BatchSource:
    """Fresh tasks at every step, or those of step 0 at all of them; the latter are drawn as finished batches."""
    if is_fixed:
        return BatchSource(
            lambda stream, step: task.sample_batch(jax.random.fold_in(stream, 0), batch_size), lambda batch: batch
        )
    return BatchSource(lambda stream, step: task.draw(jax.random.fold_in(stream, step), batch_size), task.assemble)


def batch_loss(
    config: StackConfig,
    tokens: Tokens,
    weights: StackWeights,
    batch: Batch,
    loss: PredictionLoss = "half_squared_error",
) -> Float[Array, ""]:
    """Loss of the query's prediction, mean over tasks.

    Args:
        config: architecture of the stack.
        tokens: the tokeniser.
        weights: the stack's parameters.
        batch: the tasks.
        loss: the task family's (`innerloop.tasks.Task`).
    """
    query_targets = batch.targets[:, -1]  # (output_size, batch)
    entries = query_target_entries(config, weights, tokens.encode_batch(batch), query_targets.shape[0])
    return jnp.mean(prediction_loss(loss, -entries, query_targets))


def query_target_entries(
    config: StackConfig, weights: StackWeights, tokens: Float[Array, "token_size tokens batch"], num_targets: int
) -> Float[Array, "num_targets batch"]:
    """Target entries of the query token after the last layer (minus the prediction), by the code made for the stack.

    Args:
        config: architecture of the stack.
        weights: its parameters.
        tokens: the tokens of every task, the query last.
        num_targets: number of target entries at the end of a token.
    """
    # Learned positional codes are not in the configuration, but no less an embedding.
    has_codes = weights.embedding is not None and weights.embedding.codes is not None
    if config.is_linear and not has_codes:
        return linear_stack_entries(config, products(weights), tokens, num_targets)
    if serves_embedded_layer(config) and not has_codes:
        return embedded_layer_entries(config, weights, tokens, num_targets)
    if serves_softmax_layer(config) and not has_codes:
        return softmax_layer_entries(config, weights, tokens, num_targets)
    return general_stack_entries(config, weights, tokens, num_targets)
