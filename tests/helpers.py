"""Problems, weights and tolerances that several test files share. Sizes are all-different primes by default.

Test data comes from NumPy: nothing to compile, and independent of the code under test.
"""

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.models import AttentionWeights, StackConfig, StackWeights
from innerloop.problem import Problem

INPUT_SIZE, OUTPUT_SIZE, CONTEXT_LENGTH = 3, 2, 7


def random_problem(
    seed: int, *batch: int, input_size=INPUT_SIZE, output_size=OUTPUT_SIZE, context_length=CONTEXT_LENGTH
) -> Problem:
    """Normal entries without any relation between inputs and targets: laws must not lean on a task family."""
    rng = np.random.default_rng(seed)
    shapes = (context_length, input_size), (context_length, output_size), (input_size,)
    arrays = [jnp.asarray(rng.normal(size=(*batch, *shape)), jnp.result_type(float)) for shape in shapes]
    single = Problem(*(array[(0,) * len(batch)] for array in arrays))
    return jax.tree.unflatten(jax.tree.structure(single), arrays)


def random_weights(config: StackConfig, token_size: int, seed: int, *, size: float = 0.2) -> StackWeights:
    """Large weights; the tiny published initialisation would hide errors behind the residual stream."""
    rng = np.random.default_rng(seed)
    layers, heads = config.num_distinct_layers, config.num_heads
    key_size = token_size if config.key_size is None else config.key_size
    down, up = (layers, heads, key_size, token_size), (layers, heads, token_size, key_size)
    arrays = [jnp.asarray(size * rng.normal(size=shape), jnp.result_type(float)) for shape in (down, down, down, up)]
    return StackWeights(AttentionWeights(*arrays))


def assert_mean(samples, expected, *, k: float = 4.5, resolution: float = 0.1) -> None:
    """Checks the mean over the first axis to within ``k`` standard errors of the sample.

    It also checks that the sample can tell: ``k`` standard errors must be below ``resolution`` times the largest
    expected entry (or the root mean square where zero is expected), or too small a sample would pass anything.
    """
    samples, expected = np.asarray(samples, np.float64), np.asarray(expected, np.float64)
    tolerance = k * samples.std(axis=0, ddof=1) / np.sqrt(samples.shape[0])
    size = np.abs(expected).max() or np.sqrt(np.mean(samples**2))
    assert (tolerance <= resolution * size).all(), f"sample too small: tolerance {tolerance}, size {size}"
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - expected), tolerance + 1e-6 * size)


def assert_trees_close(actual, expected, **tolerances) -> None:
    """Same structure and close leaves."""
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerances), actual, expected)


def relative_difference(actual, expected) -> float:
    """Largest difference between two trees over the largest entry of ``expected``."""
    difference = max(
        float(jnp.abs(a - e).max()) for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    )
    return difference / max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
