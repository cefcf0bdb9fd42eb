"""The unrolled threefry makes JAX's own words, bit for bit, and streams are told apart by name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop.keys import named_key, root_key

SHAPES = [(), (0,), (1,), (7,), (1025,), (3, 5), (2, 5, 3)]
SEEDS = [0, 1, 2**31 - 1, 123_456_789]


def default_key(seed):
    return jax.random.key(seed, impl="threefry2x32")


def assert_same_words(sampler, seed=5):
    ours, jaxs = sampler(root_key(seed)), sampler(default_key(seed))
    assert ours.dtype == jaxs.dtype
    assert ours.shape == jaxs.shape
    np.testing.assert_array_equal(ours, jaxs)


def test_jax_default_is_partitionable_threefry():
    """The promise is about JAX's default generator, so the default must be what we compare with."""
    np.testing.assert_array_equal(jax.random.bits(jax.random.key(3), (7,)), jax.random.bits(default_key(3), (7,)))
    np.testing.assert_array_equal(jax.random.bits(jax.random.key(3), (7,)), jax.random.bits(root_key(3), (7,)))


@pytest.mark.parametrize("shape", SHAPES)
def test_words(shape):
    assert_same_words(lambda key: jax.random.bits(key, shape))


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(seed):
    assert_same_words(lambda key: jax.random.bits(key, (13,)), seed)
    assert_same_words(jax.random.key_data, seed)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_narrow_words(dtype):
    assert_same_words(lambda key: jax.random.bits(key, (3, 7), dtype))


@pytest.mark.parametrize(
    "sampler",
    [
        jax.random.normal,
        jax.random.laplace,
        jax.random.exponential,
        lambda key, shape: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5),
        lambda key, shape: jax.random.truncated_normal(key, -2.0, 2.0, shape),
        lambda key, shape: jax.random.randint(key, shape, 0, 1000),
        lambda key, shape: jax.random.permutation(key, shape[0] * shape[1]),
    ],
    ids=["normal", "laplace", "exponential", "uniform", "truncated_normal", "randint", "permutation"],
)
def test_distributions(sampler):
    assert_same_words(lambda key: sampler(key, (5, 7)))


@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.uniform])
def test_double_precision(x64, sampler):
    """64-bit words are JAX's own: only the 32-bit path is written out."""
    assert_same_words(lambda key: sampler(key, (5, 7)))
    assert sampler(root_key(5), (5, 7)).dtype == jnp.float64


@pytest.mark.parametrize("shape", [2, 3, (5,), (2, 3)])
def test_split(shape):
    assert_same_words(lambda key: jax.random.key_data(jax.random.split(key, shape)))


@pytest.mark.parametrize("data", [0, 1, 7919, 2**31 + 1, 2**32 - 1])
def test_fold_in(data):
    assert_same_words(lambda key: jax.random.key_data(jax.random.fold_in(key, data)))
    assert_same_words(lambda key: jax.random.normal(jax.random.fold_in(key, data), (7,)))


def test_vmap():
    def draw(key):
        keys = jax.random.split(key, 5)
        return jax.vmap(lambda k, step: jax.random.bits(jax.random.fold_in(k, step), (3, 7)))(keys, jnp.arange(5))

    assert_same_words(jax.jit(draw))
    keys = jax.random.split(root_key(5), 5)
    loop = [jax.random.bits(jax.random.fold_in(keys[step], step), (3, 7)) for step in range(5)]
    np.testing.assert_array_equal(jax.jit(draw)(root_key(5)), loop)


def test_named_keys():
    names = ["training", "evaluation", "initialisation", "inputs", "weights", "noise", "W_K", "W_Q", "W_V", "P", ""]
    words = {name: np.asarray(jax.random.bits(named_key(root_key(2), name), (7,))) for name in names}
    for left, right in itertools.combinations(names, 2):
        assert (words[left] != words[right]).all(), (left, right)
    assert (words["training"] != np.asarray(jax.random.bits(root_key(2), (7,)))).all()
    assert (words["training"] != np.asarray(jax.random.bits(named_key(root_key(3), "training"), (7,)))).all()
    np.testing.assert_array_equal(words["training"], jax.random.bits(named_key(root_key(2), "training"), (7,)))
    assert_same_words(lambda key: jax.random.bits(named_key(key, "training"), (7,)))


def test_names_are_stable():
    """Stored runs rely on these words (recorded with JAX 0.10): a change here changes every run's data."""
    assert jax.random.bits(named_key(root_key(0), "training"), (2,)).tolist() == [888662142, 1560899812]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_seeds_that_jax_would_wrap_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be from 0 to 4294967295"):
        root_key(seed)
