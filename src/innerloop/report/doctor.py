"""What `innerloop doctor` says: which kernel trains on this machine and why, and whether everything computes correctly.

`facts` reads, `CHECKS` compute: each check is a function that returns an `Outcome`, and one that raises has failed.

    >>> error_outcome(1e-7, 1e-5)
    Outcome(verdict='ok', detail='error 1e-07, must be below 1e-05')
"""

import dataclasses
import os
import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.markup import escape
from rich.table import Table

from innerloop.algorithms import GradientDescent
from innerloop.constructions import gradient_descent_transformer
from innerloop.kernels import Kernel, batch_loss, jax_kernel, native, native_library, training_path
from innerloop.keys import named_key, root_key
from innerloop.models import StackConfig, StackWeights, initialise
from innerloop.report.estimate import speed
from innerloop.store import environment
from innerloop.tasks import LinearRegression
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens, Tokens
from innerloop.training import published

LARGEST_GRADIENT_ERROR = 1e-5  # relative to the gradient's largest entry
LARGEST_PROOF_ERROR = 1e-12

# Every arrangement of the loss: one layer, Gram form, token form, also with MLPs; attention of other kinds, with its
# last keys left in place and with all keys moved; one layer on embedded tokens.
CASES: dict[str, tuple[StackConfig, Tokens]] = {
    "one layer": (StackConfig(), ConcatenatedTokens()),
    "three layers": (StackConfig(num_layers=3), ConcatenatedTokens()),
    "token clip": (StackConfig(num_layers=2, tied=False, token_clip=10.0), ConcatenatedTokens()),
    "blocks with MLPs": (StackConfig(num_layers=2, tied=False, mlp="block", mlp_widening=2), ConcatenatedTokens()),
    "softmax, alternating tokens": (
        StackConfig(num_layers=2, tied=False, attention=("softmax", "linear")),
        AlternatingTokens(),
    ),
    "mixed, LayerNorm": (StackConfig(num_layers=2, attention=("mixed",), layer_norm="before"), ConcatenatedTokens()),
    "embedded tokens": (StackConfig(embedding_size=7, mlp="input", mlp_widening=2), ConcatenatedTokens()),
}
"""Architectures whose gradients are checked."""
_TASK = LinearRegression(input_size=3, output_size=2, context_length=7)
_SEED, _STEP = 7, 3
_BATCH_SIZE = 37  # no multiple of a vector's lanes
_COLOURS = {"ok": "green", "FAILED": "bold red", "skipped": "yellow"}


class Outcome(NamedTuple):
    """What a check found."""

    verdict: Literal["ok", "FAILED", "skipped"]
    detail: str


def facts() -> dict[str, str]:
    """The kernel in use and why, versions, devices.

    Raises:
        NativeModeError: if ``INNERLOOP_NATIVE`` has none of its three values.
    """
    found = {
        "training path": _path_and_reason(),
        "INNERLOOP_NATIVE": ("" if "INNERLOOP_NATIVE" in os.environ else "not set, so ") + native_library.mode(),
    }
    if native_library.library_problem() is None:
        found["native library"] = str(native_library.library_path())
        found["instruction set"] = native_library.instruction_set()
        found["threads"] = str(native_library.num_threads())
    else:
        found["native library"] = f"none: {native_library.library_problem()}"
    return found | environment() | {"platform": platform.platform()}


def examine() -> dict[str, Outcome]:
    """Runs all checks."""
    return {name: _guarded(check) for name, check in CHECKS.items()}


def table(known: dict[str, str], outcomes: dict[str, Outcome]) -> Table:
    """Facts, then checks."""
    result = Table(box=None, show_header=False, pad_edge=False)
    result.add_column(no_wrap=True)
    result.add_column(no_wrap=True)
    result.add_column(overflow="fold")
    for name, value in known.items():
        result.add_row(name, "", escape(value), end_section=name == list(known)[-1])
    for name, outcome in outcomes.items():
        colour = _COLOURS[outcome.verdict]
        result.add_row(name, f"[{colour}]{outcome.verdict}[/{colour}]", escape(outcome.detail))
    return result


def error_outcome(error: float, limit: float) -> Outcome:
    """Whether an error is below its limit; NaN is not."""
    return Outcome("ok" if error < limit else "FAILED", f"error {error:.1g}, must be below {limit:.0e}")


def library() -> Outcome:
    """Whether the library is there if it must be."""
    problem, mode = native_library.library_problem(), native_library.mode()
    if problem is None:
        return Outcome("ok", "found and loaded")
    if mode == "required":
        return Outcome("FAILED", f"INNERLOOP_NATIVE=required, but {problem}; reinstall where a C++ compiler is")
    return Outcome("skipped", f"training in JAX: {problem}")


def native_words(count: int = 1003) -> Outcome:
    """Random words of the native code against JAX's, bit for bit."""
    if skipped := _without_native():
        return skipped
    keys = [named_key(root_key(seed), "doctor") for seed in (0, 7)]
    same = all(np.array_equal(native_library.random_words(key, count), jax.random.bits(key, (count,))) for key in keys)
    return Outcome(
        "ok" if same else "FAILED", f"{len(keys)} x {count} words {'equal' if same else 'DIFFER from'} JAX's"
    )


def native_gradient() -> Outcome:
    """The native gradient against autodiff in double precision."""
    if skipped := _without_native():
        return skipped

    def build(config: StackConfig, tokens: Tokens) -> Kernel:
        with native_library.using("required"):
            kernel = native.native_kernel(config, tokens, _TASK, _BATCH_SIZE)
        if kernel is None:
            raise RuntimeError(f"no native kernel for {config}")
        return kernel

    return error_outcome(max(_gradient_error(case, build(*CASES[case])) for case in CASES), LARGEST_GRADIENT_ERROR)


def jax_gradient() -> Outcome:
    """JAX's gradient in single precision against double precision."""
    errors = [_gradient_error(case, jax_kernel(*CASES[case], _TASK, _BATCH_SIZE)) for case in CASES]
    return error_outcome(max(errors), LARGEST_GRADIENT_ERROR)


def proposition_1(num_layers: int = 3) -> Outcome:
    """Proposition 1's weights against gradient descent, in double precision."""
    with jax.enable_x64(True):
        sample = jax.jit(_TASK.samples, static_argnums=1)(named_key(root_key(0), "doctor"), 5)
        construction = gradient_descent_transformer(
            input_size=_TASK.input_size,
            output_size=_TASK.output_size,
            context_length=_TASK.context_length,
            learning_rate=0.7,
            num_layers=num_layers,
        )
        descent = GradientDescent(0.7, num_layers)

        @jax.jit
        def difference(problems):
            ours, theirs = jax.vmap(construction)(problems), jax.vmap(descent)(problems)
            return jnp.abs(ours.trajectory - theirs.trajectory).max()

        error = float(difference(sample.problem))
    return error_outcome(error, LARGEST_PROOF_ERROR)


def step_time(batch_size: int = 2048) -> Outcome:
    """Time of a whole training step of the one-layer recipe, on each path."""
    recipe = dataclasses.replace(published(seeds=(0,)), batch_size=batch_size)
    milliseconds = {}
    for path, mode in {"native": "required", "JAX": "off"}.items():
        if path == "native" and _without_native():
            continue
        with native_library.using(mode):
            milliseconds[path] = 1e3 * speed(recipe).step
    times = ", ".join(f"{path} {ms:.3f} ms" for path, ms in milliseconds.items())
    return Outcome("ok", f"{times} (1 layer, N = 10, batch {batch_size})")


CHECKS: dict[str, Callable[[], Outcome]] = {
    "native library": library,
    "native random words": native_words,
    "native gradient": native_gradient,
    "JAX gradient": jax_gradient,
    "Proposition 1": proposition_1,
    "time per training step": step_time,
}
"""By the name that the table shows."""


def _guarded(check: Callable[[], Outcome]) -> Outcome:
    try:
        return check()
    except Exception as error:  # a broken installation may raise anything; the other checks go on
        return Outcome("FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _path_and_reason() -> str:
    problem, mode = native_library.library_problem(), native_library.mode()
    if mode == "off":
        return "JAX, because INNERLOOP_NATIVE=off"
    if problem is not None:
        return "none: native code is required and missing" if mode == "required" else f"JAX, because {problem}"
    if jax.default_backend() != "cpu":
        return f"JAX, because native code serves CPUs and the backend is {jax.default_backend()}"
    if training_path(StackConfig(), ConcatenatedTokens()) != "native":
        return "JAX, because JAX is set to double precision"
    return "native, because its library is found; JAX for double precision"


def _without_native() -> Outcome | None:
    """Why a check of the native code cannot be made; None if it can."""
    if native_library.library_problem() is not None:
        return Outcome("skipped", "the library is missing")
    if native_library.mode() == "off":
        return Outcome("skipped", "INNERLOOP_NATIVE=off")
    if jax.default_backend() != "cpu":
        return Outcome("skipped", f"the backend is {jax.default_backend()}")
    return None


def _gradient_error(case: str, kernel: Kernel) -> float:
    """Largest error of a kernel's gradient, relative to the gradient's largest entry, against double precision."""
    draw = kernel.prepare(root_key(_SEED), jnp.asarray(_STEP, jnp.int32)) if kernel.path == "native" else _draw()
    _, actual = jax.jit(kernel.loss_and_gradient)(_moderate_weights(case), draw)
    pairs = zip(jax.tree.leaves(actual), _expected_gradient(case), strict=True)
    largest = max(float(np.abs(leaf).max()) for leaf in _expected_gradient(case))
    return max(float(np.abs(np.asarray(ours, np.float64) - theirs).max()) for ours, theirs in pairs) / largest


@lru_cache
def _draw():
    """The batch's random numbers, as JAX makes them."""
    return jax.jit(_TASK.draw, static_argnums=1)(jax.random.fold_in(root_key(_SEED), _STEP), _BATCH_SIZE)


@lru_cache
def _expected_gradient(case: str) -> list[np.ndarray]:
    """The gradient's leaves in double precision, on the batch that JAX draws in single precision."""
    config, tokens = CASES[case]
    batch = jax.jit(_TASK.assemble)(_draw())
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (_moderate_weights(case), batch))
        gradient = jax.jit(lambda weights, batch: jax.grad(batch_loss, argnums=2)(config, tokens, weights, batch))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(gradient(*double))]


def _moderate_weights(case: str) -> StackWeights:
    """Weights with which a layer changes a token by about as much as there is: no stack explodes or stays linear."""
    config, tokens = CASES[case]
    sizes = {name: getattr(_TASK, name) for name in ("input_size", "output_size", "context_length")}
    num_tokens, token_size = tokens.shape(**sizes)
    width = token_size if config.embedding_size is None else config.embedding_size
    size = (0.3 / (width**2.5 * (1 + num_tokens / 12) * config.num_heads)) ** 0.25
    rng, initial = np.random.default_rng(1), initialise(config, token_size, root_key(1))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(size * rng.normal(size=leaf.shape), jnp.float32), initial)
