"""What the tests of the native kernels share: running them, and the same in double precision."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_difference

from innerloop.kernels import batch_loss, native, native_library
from innerloop.keys import root_key

PROBLEM = native_library.library_problem()
needs_native = pytest.mark.skipif(
    os.environ.get("INNERLOOP_NATIVE") != "required" and PROBLEM is not None, reason=f"no native kernels: {PROBLEM}"
)
STREAM, STEP = root_key(7), jnp.asarray(3, jnp.int32)
# Largest difference of a gradient's entries over its largest entry. With an active clip, an entry that rounding takes
# across the edge switches a derivative, so the results differ more.
TOLERANCE, TOLERANCE_WHEN_CLIPPED = 1e-5, 2e-4


def run(config, tokens, task, batch_size, weights, **options):
    """Loss and gradient by the native kernel."""
    kernel = native.native_kernel(config, tokens, task, batch_size, **options)
    assert kernel is not None
    assert kernel.path == "native"
    return jax.jit(lambda weights: kernel.loss_and_gradient(weights, kernel.prepare(STREAM, STEP)))(weights)


def reference(config, tokens, task, batch_size, weights):
    """The same in double precision, on the batch that JAX samples in single precision."""
    batch = task.sample_batch(jax.random.fold_in(STREAM, STEP), batch_size)
    with jax.enable_x64(True):
        tokens, weights, batch = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (tokens, weights, batch)
        )
        value_and_gradient = jax.value_and_grad(batch_loss, argnums=2)
        loss, gradient = jax.jit(lambda *arrays: value_and_gradient(config, *arrays))(tokens, weights, batch)
        return float(loss), jax.tree.map(np.asarray, gradient)


def assert_correct(config, tokens, task, batch_size, weights, **options):
    loss, gradient = run(config, tokens, task, batch_size, weights, **options)
    expected_loss, expected = reference(config, tokens, task, batch_size, weights)
    tolerance = TOLERANCE if config.token_clip is None else TOLERANCE_WHEN_CLIPPED
    np.testing.assert_allclose(loss, expected_loss, rtol=tolerance)
    gradient = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradient)
    assert relative_difference(gradient, expected) < tolerance


def native_words(key, count, instruction_set="best"):
    """Words of a key's stream by the native code."""
    call = jax.ffi.ffi_call("innerloop_words", jax.ShapeDtypeStruct((count,), jnp.uint32))
    return np.asarray(call(jax.random.key_data(key), instruction_set=instruction_set))


def require(instruction_set):
    """Skips where the machine lacks an instruction set."""
    try:
        native_words(root_key(0), 1, instruction_set)
    except jax.errors.JaxRuntimeError:
        pytest.skip(f"this machine cannot run {instruction_set}")
