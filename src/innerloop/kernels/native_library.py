"""The library of native code: where it is, whether to use it, how to call it.

The environment variable ``INNERLOOP_NATIVE`` says whether to use it: ``auto`` (the default) where it is built,
``required`` to fail where it is not, ``off`` to train in JAX.
"""

import contextlib
import ctypes
import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt32

_LIBRARY = "innerloop_native.so"
_FUNCTIONS = (
    "innerloop_sampled_batch",
    "innerloop_given_batch",
    "innerloop_embedded_batch",
    "innerloop_words",
    "innerloop_draw",
    "innerloop_threads",
)
_MODES = ("required", "auto", "off")

# Every call in the library, once per element under `jax.vmap`.
ffi_call = partial(jax.ffi.ffi_call, vmap_method="sequential")


class NativeModeError(ValueError):
    """``INNERLOOP_NATIVE`` has none of its three values; the message is one line and says what to do."""


class NativeUnavailableError(RuntimeError):
    """``INNERLOOP_NATIVE=required``, but the library cannot be used; the message is one line and says why."""


def mode() -> str:
    """What ``INNERLOOP_NATIVE`` says: ``auto``, ``required`` or ``off``.

    Raises:
        NativeModeError: if it says anything else.
    """
    value = os.environ.get("INNERLOOP_NATIVE", "auto")
    if value not in _MODES:
        raise NativeModeError(f"INNERLOOP_NATIVE must be one of {', '.join(_MODES)}, got {value!r}; change or unset it")
    return value


@lru_cache
def library_problem() -> str | None:
    """Why the library cannot be used, in one line; None if it can, and is loaded then."""
    path = library_path()
    if path is None:
        return f"{_LIBRARY} is not part of this installation"
    try:
        library = ctypes.CDLL(str(path))
        for name in _FUNCTIONS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error})"
    return None


def library_path() -> Path | None:
    """The library beside this file or, in an editable installation, where the installer put it."""
    beside = Path(__file__).with_name(_LIBRARY)
    if beside.exists():
        return beside
    try:
        installed = importlib.metadata.files("innerloop") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in installed if file.name == _LIBRARY)
    return next((path for path in paths if path.exists()), None)


@contextlib.contextmanager
def using(wanted: str) -> Iterator[None]:
    """Sets ``INNERLOOP_NATIVE`` while the body runs, so that one process can compare the two paths."""
    before = os.environ.get("INNERLOOP_NATIVE")
    os.environ["INNERLOOP_NATIVE"] = wanted
    try:
        yield
    finally:
        if before is None:
            del os.environ["INNERLOOP_NATIVE"]
        else:
            os.environ["INNERLOOP_NATIVE"] = before


def instruction_set() -> str:
    """The instruction set that ``best`` means on this machine; the library must be usable."""
    function = ctypes.CDLL(str(library_path())).innerloop_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


def num_threads() -> int:
    """How many threads XLA lends the kernel; the library must be usable."""
    return int(ffi_call("innerloop_threads", jax.ShapeDtypeStruct((), jnp.int32))())


def random_words(key: Key[Array, ""], count: int) -> UInt32[Array, " count"]:
    """The first words of a key's stream as the native code makes them; the library must be usable."""
    call = ffi_call("innerloop_words", jax.ShapeDtypeStruct((count,), jnp.uint32))
    return call(jax.random.key_data(key), instruction_set="best")


def is_wanted() -> bool:
    """Whether to use the library, by ``INNERLOOP_NATIVE``."""
    wanted = mode()
    if wanted == "off":
        return False
    problem = library_problem()
    if problem is None:
        return True
    if wanted == "required":
        raise NativeUnavailableError(
            f"INNERLOOP_NATIVE=required, but {problem}; reinstall innerloop where a C++ compiler is"
        )
    _warn_once(f"training in JAX, without native kernels: {problem} (INNERLOOP_NATIVE=off silences this)")
    return False


@lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
