"""Problems, weights and tolerances that several test files share. Sizes are all-different primes by default.

Test data comes from NumPy: nothing to compile, and independent of the code under test.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.models import (
    AttentionWeights,
    EmbeddingWeights,
    LayerNormWeights,
    MLPWeights,
    StackConfig,
    StackWeights,
)
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


# Stacks with every part beside linear attention, alone and together; widths of embeddings and keys are like no other.
PARTS = {
    "softmax": StackConfig(num_layers=2, tied=False, attention=("softmax",), num_heads=2, key_size=3),
    "causal": StackConfig(num_layers=2, causal=True, query_in_keys=True),
    "causal-softmax": StackConfig(num_layers=2, attention=("softmax",), causal=True, key_size=11, token_clip=1.1),
    "mixed": StackConfig(num_layers=2, tied=False, attention=("mixed",), num_heads=2, damping=-0.6),
    "kinds": StackConfig(num_layers=3, attention=("linear", "softmax", "mixed"), update="targets"),
    "block-mlp": StackConfig(num_layers=2, tied=False, mlp="block", mlp_widening=3, damping=0.7, token_clip=1.1),
    "block-mlp-no-bias": StackConfig(num_layers=3, mlp="block", mlp_widening=2, mlp_bias=False, update="targets"),
    "norm": StackConfig(num_layers=2, layer_norm="before", num_heads=2, key_size=7),
    "norm-between": StackConfig(num_layers=3, tied=False, layer_norm="between", mlp="block", mlp_widening=2),
    "deep-embedding": StackConfig(num_layers=2, embedding_size=11, mlp="input", mlp_widening=2, layer_norm="between"),
    "all": StackConfig(
        num_layers=3,
        tied=False,
        num_heads=2,
        key_size=7,
        attention=("softmax", "mixed", "linear"),
        causal=True,
        query_in_keys=True,
        embedding_size=11,
        mlp="block",
        mlp_widening=2,
        layer_norm="between",
        damping=0.7,
        update="targets",
        token_clip=1.1,
    ),
}
# One linear layer on embedded tokens, which has kernels of its own.
EMBEDDED_LAYERS = {
    "embedding": StackConfig(embedding_size=11, query_in_keys=True, damping=-0.6),
    "embedding-mlp": StackConfig(embedding_size=11, mlp="input", mlp_widening=2, num_heads=2, key_size=7),
    "input-mlp": StackConfig(mlp="input", mlp_widening=3, mlp_bias=False, update="targets", token_clip=1.1),
}


def random_weights(config: StackConfig, token_size: int, seed: int, *, size: float = 0.2) -> StackWeights:
    """Large weights; the tiny published initialisation would hide errors behind the residual stream."""
    rng = np.random.default_rng(seed)
    layers, heads = config.num_distinct_layers, config.num_heads
    width = token_size if config.embedding_size is None else config.embedding_size
    key_size = width if config.key_size is None else config.key_size

    def draw(*shape: int):
        return jnp.asarray(size * rng.normal(size=shape), jnp.result_type(float))

    def mlp(*layers: int) -> MLPWeights:
        hidden = config.mlp_widening * width
        biases = (draw(*layers, hidden), draw(*layers, width)) if config.mlp_bias else (None, None)
        return MLPWeights(draw(*layers, hidden, width), draw(*layers, width, hidden), *biases)

    def norm() -> LayerNormWeights:
        return LayerNormWeights(1 + draw(layers, width), draw(layers, width))

    down, up = (layers, heads, key_size, width), (layers, heads, width, key_size)
    attention = AttentionWeights(draw(*down), draw(*down), draw(*down), draw(*up))
    if "mixed" in config.attention:  # shares of softmax all over (0, 1)
        mixing = jnp.asarray(0.1 * rng.normal(size=layers), jnp.result_type(float))
        attention = dataclasses.replace(attention, mixing=mixing)
    embedding = None
    if config.embedding_size is not None or config.mlp == "input":
        W_E = None if config.embedding_size is None else 3 * draw(width, token_size)
        embedding = EmbeddingWeights(W_E, mlp() if config.mlp == "input" else None)
    has_norm, has_mlp = config.layer_norm != "none", config.mlp == "block"
    return StackWeights(
        attention,
        mlp=mlp(layers) if has_mlp else None,
        attention_norm=norm() if has_norm else None,
        mlp_norm=norm() if has_norm and has_mlp else None,
        embedding=embedding,
    )


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
    actual, expected = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (actual, expected))
    difference = max(float(np.abs(a - e).max()) for a, e in zip(actual, expected, strict=True))
    return difference / max(float(np.abs(leaf).max()) for leaf in expected)
