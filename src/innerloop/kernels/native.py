"""The native kernel: loss and gradient of a batch in one call to C++ (its sources are in ``native/``).

It serves, in single precision on CPUs, stacks of attention of any kind with or without LayerNorm and MLPs in blocks
(`serves_stack`) on concatenated and alternating tokens, and for the half squared error one linear layer on embedded
tokens (`serves_embedded_layer`). For the former, linear regression on uniform inputs is sampled inside the call, from
the very words that `LinearRegression.draw` would use; otherwise, and for a fixed training set, the call is handed
batches that JAX made. See ``docs/native.md``.

The environment variable ``INNERLOOP_NATIVE`` says whether to use it: ``auto`` (the default) where it is built,
``required`` to fail where it is not, ``off`` to train in JAX.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.kernels.embedded_layer import serves_embedded_layer
from innerloop.kernels.features import FeatureWeights, feature_weights
from innerloop.kernels.kernel import Kernel, batch_source
from innerloop.kernels.native_library import ffi_call, is_wanted
from innerloop.kernels.stack_arrays import StackArrays, serves_stack, stack_arrays, stack_options
from innerloop.models import StackConfig
from innerloop.problem import Problem
from innerloop.tasks import LinearRegression, PredictionLoss, Task, Uniform
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens, Tokens

# The streams of `LinearRegression.draw`, hashed as `named_key` hashes them.
STREAM_NAMES = {name: np.uint32(zlib.crc32(name.encode())) for name in ("inputs", "weights", "noise")}


def native_kernel(
    config: StackConfig,
    tokens: Tokens,
    task: Task,
    batch_size: int,
    *,
    is_fixed: bool = False,
    instruction_set: str = "best",
    num_threads: int = 0,
) -> Kernel | None:
    """The native implementation for a model and a task; None where JAX has to do it.

    None means double precision, a backend other than the CPU, another kind of stack, tokens or loss, a library that is
    not built, or ``INNERLOOP_NATIVE=off``.

    Args:
        config: the stack's architecture.
        tokens: the tokeniser.
        task: where batches come from.
        batch_size: tasks per step.
        is_fixed: every step sees the same tasks.
        instruction_set: ``avx512``, ``avx2`` or ``portable``; ``best`` is the widest that the machine has.
        num_threads: the most threads to use, 0 for all of XLA's. The result has the same bits for any number.

    Raises:
        NativeModeError: if ``INNERLOOP_NATIVE`` has none of its three values.
        NativeUnavailableError: if it is ``required`` and the library cannot be used.
    """
    if not is_chosen(config, tokens, task.prediction_loss):
        return None
    if not serves_stack(config):
        assert isinstance(tokens, ConcatenatedTokens)
        return _embedded_layer(config, tokens, task, batch_size, is_fixed, instruction_set, num_threads)

    layout = _layout(tokens, task)
    if layout.kind != "given" and not is_fixed and isinstance(task, LinearRegression) and _can_sample(task, batch_size):
        prepare, call = _sampled(task, batch_size)
    else:
        prepare, call = _given(task, tokens, batch_size, is_fixed, layout)

    def loss_and_gradient(weights, draw):
        reduced, pull_back = jax.vjp(partial(stack_arrays, config, num_targets=task.output_size), weights)
        options = stack_options(config, key_size=weights.attention.W_K.shape[-2]) | {
            "layout": np.int32(_LAYOUTS[layout.kind]),
            "content_size": np.int32(layout.content_size),
            "is_permuted": np.int32(layout.is_permuted),
            "loss": np.int32(_LOSSES.index(task.prediction_loss)),
            "num_threads": np.int32(num_threads),
            "instruction_set": instruction_set,
        }
        loss, *gradients = call(reduced, (layout.initial_weights, layout.codes), draw, options)
        (gradient,) = pull_back(StackArrays(*gradients))
        return loss, gradient

    return Kernel("native", prepare, loss_and_gradient, is_fixed=is_fixed)


def is_chosen(config: StackConfig, tokens: Tokens, loss: PredictionLoss = "half_squared_error") -> bool:
    """Whether `native_kernel` would give a kernel now: what the user asks for, and whether the code serves the case.

    Raises:
        NativeModeError: if ``INNERLOOP_NATIVE`` has none of its three values.
        NativeUnavailableError: if it is ``required`` and the library cannot be used.
    """
    wanted = is_wanted()
    is_served = (
        jnp.result_type(float) == jnp.float32
        and (serves_stack(config) or loss == "half_squared_error")
        and jax.default_backend() == "cpu"
        and (_has_given_codes(tokens) if serves_stack(config) else serves_embedded_layer(config))
        and (serves_stack(config) or isinstance(tokens, ConcatenatedTokens))
    )
    return wanted and is_served


def _can_sample(task: LinearRegression, batch_size: int) -> bool:
    """Whether the C++ code draws what the task draws. A subclass may draw anything; word counts are 32 bits wide."""
    return (
        type(task) is LinearRegression
        and type(task.inputs) is Uniform
        and not task.normalise_context
        and max(task.input_size, task.output_size) * max(task.context_length + 1, task.input_size) * batch_size < 2**32
    )


class _Layout(NamedTuple):
    """How the native code makes tokens of pairs.

    Attributes:
        kind: a token per pair, tokens that take turns, or whatever JAX makes.
        initial_weights: W0, for pairs; zeros that tell their sizes otherwise.
        codes: of alternating tokens, laid out as these are.
        content_size: of alternating tokens.
        is_permuted: whether every task shuffles the codes of its context.
    """

    kind: Literal["pairs", "alternating", "given"]
    initial_weights: Float[Array, "output_size input_size"] | Float[np.ndarray, "output_size input_size"]
    codes: Float[np.ndarray, "tokens_or_0 token_size"]
    content_size: int = 0
    is_permuted: bool = False


# The native code's numbers.
_LAYOUTS = {"pairs": 0, "alternating": 1, "given": 2}
_LOSSES = get_args(PredictionLoss)


def _has_given_codes(tokens: Tokens) -> bool:
    """Whether tokens do not depend on weights."""
    return not (isinstance(tokens, AlternatingTokens) and tokens.positions.kind == "learned")


def _layout(tokens: Tokens, task: Task) -> _Layout:
    sizes = {"input_size": task.input_size, "output_size": task.output_size}
    num_tokens, token_size = tokens.shape(**sizes, context_length=task.context_length)
    no_weights, no_codes = (np.zeros(shape, np.float32) for shape in (tuple(sizes.values())[::-1], (0, token_size)))
    if isinstance(tokens, ConcatenatedTokens):
        if tokens.initial_weights is None:
            return _Layout("pairs", no_weights, no_codes)
        return _Layout("given" if tokens.targets_hold_residuals else "pairs", tokens.initial_weights, no_codes)
    shapes = (task.context_length, task.input_size), (task.context_length, task.output_size), (task.input_size,)
    with jax.ensure_compile_time_eval():  # the kernel may be built while a loop is traced
        in_order = AlternatingTokens(
            dataclasses.replace(tokens.positions, permuted=False), separate_slots=tokens.separate_slots
        )
        codes = np.asarray(in_order.encode(Problem(*(jnp.zeros(shape, jnp.float32) for shape in shapes))))
    assert codes.shape == (num_tokens, token_size)
    return _Layout("alternating", no_weights, codes, tokens.content_size(**sizes), tokens.positions.permuted)


# Both kinds of batches give (prepare, call): the halves of a Kernel, the second of (weights as arrays, those of the
# layout, draw, options).
_Halves = tuple[Callable[..., Any], Callable[..., Any]]


def _sampled(task: LinearRegression, batch_size: int) -> _Halves:
    """Batches made inside the call: the draw is the stream's key and the step."""
    scales = jnp.stack(
        [jnp.asarray(scale, jnp.float32) for scale in (task.input_scale, task.target_scale, task.noise_std)]
    )

    def prepare(stream, step):
        words = jax.random.key_data(stream)
        if words.shape != (2,):
            raise ValueError(f"a stream must be a threefry key of two words, got {stream}; use innerloop.keys.root_key")
        return words, jnp.asarray(step, jnp.int32)

    def call(weights, arrays, draw, options):
        return ffi_call("innerloop_sampled_batch", _results(weights))(
            *arrays,
            scales,
            *draw,
            *weights,
            options=options,
            names=STREAM_NAMES,
            num_pairs=np.int32(task.context_length + 1),
            batch_size=np.int32(batch_size),
        )

    return prepare, call


def _given(task: Task, tokens: Tokens, batch_size: int, is_fixed: bool, layout: _Layout) -> _Halves:
    """Batches made by JAX, as pairs or as tokens."""
    source = batch_source(task, batch_size, is_fixed=is_fixed)

    def call(weights, arrays, draw, options):
        batch = source.assemble(draw)
        data = batch.inputs, batch.targets
        if layout.kind == "given":
            data = tokens.encode_batch(batch), batch.targets[:, -1:]
        return ffi_call("innerloop_given_batch", _results(weights))(*arrays, *data, *weights, options=options)

    return source.prepare, call


def _embedded_layer(
    config: StackConfig,
    tokens: ConcatenatedTokens,
    task: Task,
    batch_size: int,
    is_fixed: bool,
    instruction_set: str,
    num_threads: int,
) -> Kernel:
    """One layer on embedded tokens; batches made by JAX."""
    options = {
        "query_in_keys": np.int32(config.query_in_keys),
        "num_threads": np.int32(num_threads),
        "token_clip": np.float32(math.inf if config.token_clip is None else config.token_clip),
        "instruction_set": instruction_set,
    }

    source = batch_source(task, batch_size, is_fixed=is_fixed)

    def loss_and_gradient(weights, draw):
        batch = source.assemble(draw)
        encoded = tokens.encode_batch(batch)
        reduce = partial(feature_weights, config, token_size=encoded.shape[0], num_targets=task.output_size)
        reduced, pull_back = jax.vjp(reduce, weights)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in reduced]
        call = ffi_call("innerloop_embedded_batch", [jax.ShapeDtypeStruct((), jnp.float32), *shapes])
        loss, *gradients = call(*reduced, encoded, batch.targets[:, -1], options=options)
        (gradient,) = pull_back(FeatureWeights(*gradients))
        return loss, gradient

    return Kernel("native", source.prepare, loss_and_gradient, is_fixed=is_fixed)


def _results(weights: StackArrays):
    """Loss and the gradients with respect to the weights."""
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), *(array.shape for array in weights))]
