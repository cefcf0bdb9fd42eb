"""Shape checks, strict dtype promotion and reproducible property tests for the whole suite."""

import os
from importlib.metadata import version

# Tests compile far more than they compute. `make test-slow` says otherwise; processes that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "false" and version("jaxlib").startswith("0.10."):
    # XLA's older code generator compiles in two thirds of the time. XLA ends the process at a flag that it does not
    # know, hence the version.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

import jax
import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

jaxtyping.install_import_hook("innerloop", "beartype.beartype")  # before anything imports innerloop
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The x64 fixture means the same for every example, so Hypothesis need not worry about its scope.
settings.register_profile(
    "innerloop",
    deadline=None,
    derandomize=True,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("innerloop")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped():
    """After every module; thousands of them take gigabytes and, in the end, the worker's process."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision, for proofs."""
    with jax.enable_x64(True):
        yield
