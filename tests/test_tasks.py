"""One battery over every task family and input distribution: layout, determinism, exact moments, ranges.

A newly registered family or distribution is in the battery by itself; one whose constructor needs arguments gets an
example here.
"""

import dataclasses
import itertools
from operator import itemgetter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONTEXT_LENGTH, INPUT_SIZE, OUTPUT_SIZE, assert_mean, assert_trees_close

from innerloop.keys import root_key
from innerloop.tasks import (
    INPUT_DISTRIBUTIONS,
    TASKS,
    Gaussian,
    LinearClassification,
    LinearRegression,
    Normal,
    SineWaves,
    Uniform,
    other_input_distributions,
    typical_context_norm,
)

COVARIANCE = ((1.3, 0.4, -0.2), (0.4, 0.6, 0.1), (-0.2, 0.1, 0.9))
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # of float32
MANY = 200_000  # one number, so that draws share a program
SIZES = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
INPUTS = {kind: Gaussian(COVARIANCE) if cls is Gaussian else cls() for kind, cls in INPUT_DISTRIBUTIONS.items()}


def smallest(family):
    """A family at the tests' sizes."""
    return family(**(SIZES | {"input_size": 1, "output_size": 1} if family is SineWaves else SIZES))


TASK_EXAMPLES = {
    **{kind: smallest(cls) for kind, cls in TASKS.items() if cls is not LinearRegression},
    "sine_waves-reference": SineWaves(context_length=CONTEXT_LENGTH, variant="reference"),
    **{f"linear_regression-{kind}": LinearRegression(**SIZES, inputs=inputs) for kind, inputs in INPUTS.items()},
    "linear_regression-noisy": LinearRegression(**SIZES, noise_std=0.4),
    "linear_regression-normalised": LinearRegression(**SIZES, normalise_context=True, input_scale=1.7),
}

every_task = pytest.mark.parametrize("task", TASK_EXAMPLES.values(), ids=TASK_EXAMPLES)
every_distribution = pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)


def batch_of(task, seed, num_tasks=5):
    """Jitted in two halves, which compile faster apart; tasks that differ in their scales share a program."""
    return _assemble(task, _draw(task, root_key(seed), num_tasks))


_draw = jax.jit(lambda task, key, num_tasks: task.draw(key, num_tasks), static_argnums=2)
_assemble = jax.jit(lambda task, draw: task.assemble(draw))


def samples_of(task, seed, num_tasks=5):
    return batch_of(task, seed, num_tasks).samples()


@every_task
def test_shapes(task):
    batch = jax.eval_shape(lambda: task.sample_batch(root_key(0), 5))
    n_i, n_o = task.input_size, task.output_size
    assert batch.inputs.shape == (n_i, CONTEXT_LENGTH + 1, 5)
    assert batch.targets.shape == (n_o, CONTEXT_LENGTH + 1, 5)
    samples = jax.eval_shape(lambda: task.samples(root_key(0), 5))
    assert samples.problem.context_inputs.shape == (5, CONTEXT_LENGTH, n_i)
    assert samples.problem.context_targets.shape == (5, CONTEXT_LENGTH, n_o)
    assert samples.problem.query_input.shape == (5, n_i)
    assert samples.query_target.shape == (5, n_o)
    sample = jax.eval_shape(lambda: task.sample(root_key(0)))
    assert [leaf.shape for leaf in jax.tree.leaves(sample)] == [leaf.shape[1:] for leaf in jax.tree.leaves(samples)]


@every_task
def test_samples_are_slices_of_the_batch(task):
    batch, samples = jax.tree.map(np.asarray, (batch_of(task, 1), task.samples(root_key(1), 5)))
    for b, j in itertools.product(range(5), range(CONTEXT_LENGTH)):
        np.testing.assert_allclose(samples.problem.context_inputs[b, j], batch.inputs[:, j, b], **ROUNDING)
        np.testing.assert_allclose(samples.problem.context_targets[b, j], batch.targets[:, j, b], **ROUNDING)
    np.testing.assert_allclose(samples.problem.query_input, batch.inputs[:, -1].T, **ROUNDING)
    np.testing.assert_allclose(samples.query_target, batch.targets[:, -1].T, **ROUNDING)


@pytest.mark.parametrize("family", TASKS)
def test_sample_is_the_only_task_of_a_batch_of_one(family):
    task = smallest(TASKS[family])
    sample, samples = jax.jit(task.sample)(root_key(1)), samples_of(task, 1, num_tasks=1)
    assert_trees_close(sample, jax.tree.map(lambda leaf: leaf[0], samples), **ROUNDING)


@every_task
def test_jit_equals_eager(task):
    assert_trees_close(batch_of(task, 2), task.sample_batch(root_key(2), 5), **ROUNDING)


def test_vmap_equals_loop():
    task = TASK_EXAMPLES["linear_regression-noisy"]
    batched = jax.jit(jax.vmap(lambda key: task.sample_batch(key, 5)))(jnp.stack([root_key(1), root_key(2)]))
    for index, seed in enumerate((1, 2)):
        assert_trees_close(jax.tree.map(itemgetter(index), batched), batch_of(task, seed), **ROUNDING)


@every_task
def test_same_key_same_tasks_other_key_other_tasks(task):
    first, again, other = (samples_of(task, seed) for seed in (3, 3, 4))
    assert_trees_close(first, again, rtol=0, atol=0)
    if isinstance(task, LinearClassification):  # the context's targets are classes, of which there are few
        first, other = ((one.problem.context_inputs, one.query_target) for one in (first, other))
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
        assert not np.isclose(one, two).any()
    for leaf in jax.tree.leaves(first):  # and within a batch no two tasks share anything
        for b, c in itertools.combinations(range(5), 2):
            assert not np.isclose(leaf[b], leaf[c]).any()


@every_task
def test_double_precision(x64, task):
    batch = jax.eval_shape(lambda: task.sample_batch(root_key(0), 5))
    assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {jnp.dtype("float64")}


@every_distribution
def test_moments_match_samples(inputs):
    """A scale other than one tells the powers apart; context and query are draws of the same law."""
    task = LinearRegression(**SIZES, inputs=inputs, input_scale=1.3)
    drawn = np.asarray(batch_of(task, 5, MANY).inputs, np.float64)
    moments = task.input_moments()
    for x in (drawn[:, -1].T, drawn[:, 2].T):  # (draws, input_size): the query, and one context input
        outer = x[:, :, None] * x[:, None, :]
        assert_mean(x, moments.mean)
        assert_mean(outer, moments.second)
        assert_mean(np.sum(x**2, axis=1)[:, None, None] * outer, moments.fourth, resolution=0.15)


@every_distribution
def test_inputs_of_a_task_are_independent(inputs):
    task = LinearRegression(**SIZES, inputs=inputs)
    x = np.asarray(batch_of(task, 6, MANY).inputs, np.float64)
    mean = inputs.mean(INPUT_SIZE)
    for one, other in ((x[:, 0], x[:, 1]), (x[:, 4], x[:, -1]), (x[:, 0, :-1], x[:, 0, 1:])):
        products = (one - mean[:, None])[:, None] * (other - mean[:, None])[None]
        assert_mean(products.transpose(2, 0, 1), np.zeros((INPUT_SIZE, INPUT_SIZE)))


def recovered_weights(problems):
    """W of every noiseless task, from its context alone."""
    inputs, targets = (np.asarray(leaf, np.float64) for leaf in (problems.context_inputs, problems.context_targets))
    return np.swapaxes(np.linalg.pinv(inputs) @ targets, 1, 2)  # (tasks, output_size, input_size)


def test_one_fresh_normal_W_per_task(x64):
    """One W explains a task's context and query; over tasks its entries are independent N(0, target_scale^2)."""
    task = LinearRegression(**SIZES, target_scale=0.6)
    samples = samples_of(task, 7, 20_000)
    W = recovered_weights(samples.problem)
    context = np.einsum("toi,tni->tno", W, samples.problem.context_inputs)
    np.testing.assert_allclose(context, samples.problem.context_targets, atol=1e-10)
    query = np.einsum("toi,ti->to", W, samples.problem.query_input)
    np.testing.assert_allclose(query, samples.query_target, atol=1e-8)
    W = W.reshape(len(W), -1)
    assert_mean(W, np.zeros(W.shape[1]))
    assert_mean(W[:, :, None] * W[:, None, :], 0.36 * np.eye(W.shape[1]))
    assert_mean(W**4, np.full(W.shape[1], 3 * 0.36**2), resolution=0.2)
    assert_mean(W[1:] * W[:-1], np.zeros(W.shape[1]))


@every_distribution
def test_scales(inputs):
    """Inputs scale the targets along; the target scale leaves inputs alone."""
    base = LinearRegression(**SIZES, inputs=inputs)
    batch = batch_of(base, 8)
    wide = batch_of(dataclasses.replace(base, input_scale=1.7), 8)
    np.testing.assert_allclose(wide.inputs, 1.7 * batch.inputs, rtol=1e-6)
    np.testing.assert_allclose(wide.targets, 1.7 * batch.targets, rtol=1e-4, atol=1e-5)
    loud = batch_of(dataclasses.replace(base, target_scale=0.3), 8)
    np.testing.assert_array_equal(loud.inputs, batch.inputs)
    np.testing.assert_allclose(loud.targets, 0.3 * batch.targets, rtol=1e-4, atol=1e-5)


def test_scales_are_leaves():
    """A sweep over a scale is one vmap: the scales are leaves of the pytree."""
    task, scales = LinearRegression(**SIZES), jnp.array([0.5, 1.0, 2.0])

    def at(scale):
        return eqx.tree_at(lambda t: (t.input_scale, t.target_scale), task, (scale, scale + 1)).sample(root_key(9))

    swept = jax.jit(jax.vmap(at))(scales)
    loop = [
        dataclasses.replace(task, input_scale=float(s), target_scale=float(s) + 1).sample(root_key(9)) for s in scales
    ]
    assert_trees_close(swept, jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop), **ROUNDING)


def test_noise_is_on_the_context_only():
    """Noise has a stream of its own, so the noiseless task of the same key is the same task."""
    clean = LinearRegression(**SIZES)
    noisy = dataclasses.replace(clean, noise_std=0.4)
    clean, noisy = (batch_of(task, 10, 20_000) for task in (clean, noisy))
    np.testing.assert_array_equal(noisy.inputs, clean.inputs)
    np.testing.assert_array_equal(noisy.targets[:, -1], clean.targets[:, -1])
    noise = np.asarray(noisy.targets - clean.targets)[:, :-1].reshape(-1, 20_000).T  # (tasks, outputs * context)
    assert_mean(noise, np.zeros(noise.shape[1]))
    assert_mean(noise[:, :, None] * noise[:, None, :], 0.16 * np.eye(noise.shape[1]))
    assert_mean(noise**4, np.full(noise.shape[1], 3 * 0.16**2), resolution=0.2)
    for other in (clean.inputs, clean.targets):  # the noise knows nothing of the task
        other = np.asarray(other).reshape(-1, 20_000).T
        assert_mean(noise[:, :, None] * other[:, None, :], np.zeros((noise.shape[1], other.shape[1])))


@every_distribution
def test_normalise_context(inputs):
    """Every input, the query's too, is divided by the Frobenius norm of the context's; the scale comes after."""
    raw = LinearRegression(**SIZES, inputs=inputs)
    unit = dataclasses.replace(raw, normalise_context=True)
    raw, unit, wide = (samples_of(task, 11).problem for task in (raw, unit, dataclasses.replace(unit, input_scale=1.7)))
    norms = np.linalg.norm(raw.context_inputs, axis=(1, 2))
    assert np.ptp(norms) > 0.1
    np.testing.assert_allclose(np.linalg.norm(unit.context_inputs, axis=(1, 2)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(wide.context_inputs, axis=(1, 2)), 1.7, rtol=1e-6)
    np.testing.assert_allclose(unit.query_input * norms[:, None], raw.query_input, rtol=1e-5)
    np.testing.assert_allclose(unit.context_inputs * norms[:, None, None], raw.context_inputs, rtol=1e-5)


def test_normalised_inputs_have_no_closed_form():
    with pytest.raises(ValueError, match=r"task\.normalise_context must be False"):
        LinearRegression(normalise_context=True).input_moments()


@every_distribution
def test_typical_context_norm(inputs):
    task = LinearRegression(**SIZES, inputs=inputs, input_scale=1.3)
    context = np.asarray(samples_of(task, 12, MANY).problem.context_inputs, np.float64)
    assert_mean(np.sum(context**2, axis=(1, 2)), typical_context_norm(task) ** 2)


def test_other_input_distributions():
    task = LinearRegression(**SIZES, noise_std=0.2, target_scale=0.5, input_scale=1.7)
    others = other_input_distributions(task, normalise_context=True)
    assert {name: type(INPUTS[name]) for name in ("normal", "exponential", "laplace")} == {
        name: type(other.inputs) for name, other in others.items()
    }
    for other in others.values():
        assert other.normalise_context
        assert dataclasses.replace(other, inputs=Uniform(), normalise_context=False) == task
    assert not any(
        other.normalise_context for other in other_input_distributions(task, normalise_context=False).values()
    )


def test_gaussian_covariance():
    """A covariance of rank one puts every input on a line; the identity is the standard normal's law."""
    line = np.array([0.6, -1.1, 0.3])
    flat = Gaussian(tuple(map(tuple, np.outer(line, line).tolist())))
    x = np.asarray(flat.sample(root_key(13), (3, 7)))
    np.testing.assert_allclose(np.cross(x.T, line), 0.0, atol=1e-5)
    assert np.abs(x).max() > 0.5
    identity = Gaussian(tuple(map(tuple, np.eye(3).tolist())))
    np.testing.assert_allclose(identity.fourth_moment(3), Normal().fourth_moment(3))
    np.testing.assert_allclose(identity.second_moment(3), Normal().second_moment(3))


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (((1.0, 0.0),), "square matrix, got 1 rows of lengths"),
        (((1.0, 0.0), (0.0,)), r"square matrix, got 2 rows of lengths \[1, 2\]"),
        ((), "square matrix"),
        (((1.0, 0.5), (0.4, 1.0)), "finite and symmetric"),
        (((1.0, float("nan")), (float("nan"), 1.0)), "finite and symmetric"),
        (((1.0, float("inf")), (float("inf"), 1.0)), "finite and symmetric"),
        (((1.0, 2.0), (2.0, 1.0)), "no negative eigenvalue, but its smallest is -1"),
    ],
)
def test_bad_covariances(covariance, message):
    with pytest.raises(ValueError, match=f"covariance must.*{message}"):
        Gaussian(covariance)


def test_covariance_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"inputs\.covariance is 3 x 3, but input_size is 5"):
        LinearRegression(input_size=5, inputs=Gaussian(COVARIANCE))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_size", 0),
        ("output_size", -1),
        ("context_length", 0),
        ("context_length", True),
        ("noise_std", -0.1),
        ("noise_std", float("nan")),
        ("input_scale", -1.0),
        ("input_scale", float("inf")),
        ("target_scale", float("nan")),
        ("target_scale", -2.0),
    ],
)
def test_ranges(name, value):
    with pytest.raises(ValueError, match=rf"task\.{name} must be .*, got {value!r}"):
        LinearRegression(**{name: value})
