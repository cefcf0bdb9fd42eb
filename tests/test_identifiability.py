"""What predictions say of the weights, proved locally from their derivative; comparing layers; GD++'s conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_problem, random_weights
from jax.flatten_util import ravel_pytree

from innerloop.analysis import (
    compare_layers,
    condition_gamma,
    condition_numbers,
    corrected_eigenvalues,
    fix_gauge,
    match_gauge,
    read_entries,
    read_layers,
)
from innerloop.constructions import gradient_descent_plus_plus_transformer, gradient_descent_plus_plus_weights
from innerloop.exact import Spectra, TuningSpectra, tune
from innerloop.models import Products, StackConfig, Transformer, products
from innerloop.tasks import LinearRegression
from innerloop.tokens import ConcatenatedTokens

INPUT_SIZE, CONTEXT_LENGTH = 3, 7
SIZES = {"input_size": INPUT_SIZE, "context_length": CONTEXT_LENGTH}
STEP_SIZES, CORRECTIONS = np.array([0.021, 0.033, 0.044]), np.array([0.012, 0.017, 0.008])
pytestmark = pytest.mark.usefixtures("x64")


def construction(config, output_size=1, *, correction_factor=1.0) -> Products:
    """GD++ with numbers of its own for every distinct layer."""
    layers = config.num_distinct_layers
    weights = gradient_descent_plus_plus_weights(
        **SIZES,
        output_size=output_size,
        learning_rate=jnp.asarray(CONTEXT_LENGTH * STEP_SIZES[:layers]),
        curvature_correction=jnp.asarray(correction_factor * CORRECTIONS[:layers]),
    )
    return products(weights)


def is_read_of(config, output_size=1, **options):
    """For every entry of a stack's products, flat: whether a prediction depends on it."""
    is_read = read_entries(config, input_size=INPUT_SIZE, output_size=output_size, **options)
    return np.concatenate([part.ravel() for part in is_read])


# --- The derivative of many predictions ------------------------------------------------------------------------------


def jacobian_of(config, stack, output_size=1, W0=None):
    """Derivative of predictions with respect to the entries of W_KQ and of W_PV, flat.

    Targets are noise, so that no relation between them and the inputs makes two entries look alike.
    """
    flat, unravel = ravel_pytree(stack)
    leaves, structure = jax.tree.flatten(random_problem(1, 300, **SIZES, output_size=output_size))
    problems = jax.tree.unflatten(structure, [scale * leaf for scale, leaf in zip((2, 1, 2), leaves, strict=True)])

    def predictions(flat):
        learner = Transformer(config, unravel(flat).as_weights(), ConcatenatedTokens(W0))
        return jax.vmap(lambda problem: learner(problem).value)(problems).ravel()

    return np.asarray(jax.jit(jax.jacfwd(predictions))(flat))


def gauge_directions(config, stack):
    """d/ds (W_KQ / s, s W_PV) at s = 1, per distinct layer: columns, flat as the entries."""
    columns = []
    for layer in range(config.num_distinct_layers):
        of_layer = (np.arange(config.num_distinct_layers) == layer)[:, None, None, None]
        parts = -np.asarray(stack.W_KQ) * of_layer, np.asarray(stack.W_PV) * of_layer
        columns.append(np.concatenate([part.ravel() for part in parts]))
    return np.stack(columns, axis=-1)


STACKS = {
    "one-layer": (StackConfig(), 1),
    "tied-2": (StackConfig(num_layers=2), 1),
    "untied-2": (StackConfig(num_layers=2, tied=False), 1),
    "tied-3-two-outputs": (StackConfig(num_layers=3), 2),
    "untied-3": (StackConfig(num_layers=3, tied=False), 1),
    "targets-only": (StackConfig(num_layers=2, tied=False, update="targets"), 1),
}


@pytest.mark.parametrize("name", STACKS)
def test_predictions_determine_all_that_is_read_but_one_factor_per_layer(name):
    config, output_size = STACKS[name]
    stack = construction(config, output_size)
    jacobian = jacobian_of(config, stack, output_size)
    is_read = is_read_of(config, output_size)
    sizes = np.abs(jacobian).max(axis=0)
    np.testing.assert_array_equal(sizes > 1e-12 * sizes.max(), is_read)

    layers = config.num_distinct_layers
    _, singular, directions = np.linalg.svd(jacobian[:, is_read], full_matrices=False)
    singular /= singular[0]
    np.testing.assert_array_equal(singular[-layers:] < 1e-9, True)
    assert singular[-layers - 1] > 1e-6  # a clear gap: no further direction is nearly undetermined
    # The null directions and the gauge's span one space.
    gauge, _ = np.linalg.qr(gauge_directions(config, stack)[is_read])
    np.testing.assert_allclose(np.linalg.svd(directions[-layers:] @ gauge, compute_uv=False), 1, rtol=1e-9)


def test_initial_weights_make_the_query_s_target_entries_readable():
    """A query that enters with -W0 x_q in its target entries meets the last columns of W_KQ, also in an only layer."""
    config, W0 = StackConfig(), jnp.asarray(np.random.default_rng(2).normal(size=(1, INPUT_SIZE)))
    sizes = np.abs(jacobian_of(config, construction(config), W0=W0)).max(axis=0)
    np.testing.assert_array_equal(sizes > 1e-12 * sizes.max(), is_read_of(config, starts_at_zero=False))
    assert (is_read_of(config, starts_at_zero=False) != is_read_of(config)).any()


# --- Comparing layers ------------------------------------------------------------------------------------------------


def disturbed(config, stack, factors):
    """The same function in other weights: factors per layer, and noise where nothing reads."""
    rng = np.random.default_rng(3)
    is_read = read_entries(config, input_size=INPUT_SIZE)
    parts = (
        jnp.where(read[:, None], part, rng.normal(size=part.shape))
        for read, part in zip(is_read, (stack.W_KQ, stack.W_PV), strict=True)
    )
    return Products(*parts).rescaled(jnp.asarray(factors)[: config.num_distinct_layers, None])


def compare(config, one, other):
    comparison = compare_layers(one, other, config, input_size=INPUT_SIZE)
    assert comparison.cosine.shape == comparison.distance.shape == (config.num_distinct_layers, 1)
    return np.asarray(comparison.cosine), np.asarray(comparison.distance)


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (-1.0, 30.0, -0.02)])
@pytest.mark.parametrize("name", ["one-layer", "tied-2", "untied-3"])
def test_equal_functions_compare_as_equal(name, factors):
    config, _ = STACKS[name]
    for stack in (construction(config), products(random_weights(config, INPUT_SIZE + 1, seed=4))):
        for pair in ((disturbed(config, stack, factors), stack), (stack, disturbed(config, stack, factors))):
            cosine, distance = compare(config, *pair)
            np.testing.assert_allclose(cosine, 1, rtol=1e-13)
            np.testing.assert_allclose(distance, 0, atol=1e-7)  # a root of rounding


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (-1.0, 30.0, -0.02)])
def test_comparison_against_outer_products(factors):
    """Cosine and distance of the outer products themselves, with NumPy; neither is symmetric by accident."""
    config, _ = STACKS["untied-3"]
    one, other = (products(random_weights(config, INPUT_SIZE + 1, seed=seed)) for seed in (5, 6))
    is_read = read_entries(config, input_size=INPUT_SIZE)
    cosine, distance = compare(config, disturbed(config, one, factors), other)
    for layer in range(3):
        ours, theirs = (
            np.outer(*(np.where(read[layer], part[layer, 0], 0.0) for read, part in zip(is_read, parts, strict=True)))
            for parts in ((one.W_KQ, one.W_PV), (other.W_KQ, other.W_PV))
        )
        norms = np.linalg.norm(ours), np.linalg.norm(theirs)
        np.testing.assert_allclose(cosine[layer, 0], np.sum(ours * theirs) / norms[0] / norms[1], rtol=1e-12)
        np.testing.assert_allclose(distance[layer, 0], np.linalg.norm(ours - theirs) / norms[1], rtol=1e-12)


def test_a_near_miss_shows_where_it_is_read():
    """A gamma 5 % off in every layer: visible in all but the last, whose gamma nothing reads."""
    config, _ = STACKS["untied-3"]
    cosine, distance = compare(config, construction(config, correction_factor=1.05), construction(config))
    assert (1 - cosine[:2] > 1e-5).all()
    assert (distance[:2] > 5e-3).all()
    np.testing.assert_allclose([cosine[2], 1 - distance[2]], 1, atol=1e-7)


def test_gradients_of_opposite_sign_compare_as_opposite():
    config = StackConfig(num_layers=2)
    stack = construction(config)
    cosine, distance = compare(config, Products(stack.W_KQ, -stack.W_PV), stack)
    np.testing.assert_allclose(cosine, -1, rtol=1e-13)
    np.testing.assert_allclose(distance, 2, rtol=1e-13)


def test_heads_cannot_be_compared():
    config = StackConfig(num_layers=2, num_heads=2)
    stack = products(random_weights(config, INPUT_SIZE + 1, seed=7))
    with pytest.raises(ValueError, match="one head per layer, got num_heads=2") as error:
        compare_layers(stack, stack, config, input_size=INPUT_SIZE)
    assert "\n" not in str(error.value)


def test_gauge_matched_to_the_construction_is_the_fixed_gauge():
    config = StackConfig(num_layers=3, tied=False)
    stack = products(random_weights(config, INPUT_SIZE + 1, seed=8))
    matched, fixed = match_gauge(stack, construction(config)), fix_gauge(stack, INPUT_SIZE)
    np.testing.assert_allclose(matched.W_KQ, fixed.W_KQ, rtol=1e-12)
    np.testing.assert_allclose(matched.W_PV, fixed.W_PV, rtol=1e-12)
    # Matched to another copy of itself it gives that copy, factor, sign and all.
    copy = stack.rescaled(jnp.array([[-3.0], [0.1], [7.0]]))
    np.testing.assert_allclose(match_gauge(stack, copy).W_KQ, copy.W_KQ, rtol=1e-12)
    np.testing.assert_allclose(match_gauge(stack, copy).W_PV, copy.W_PV, rtol=1e-12)


# --- Reading GD++ off its construction -------------------------------------------------------------------------------

read = jax.jit(read_layers, static_argnums=1)


@pytest.mark.parametrize("output_size", [1, 2])
@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (-300.0, 0.01, -1.0)])
def test_reading_numbers_off_the_construction(output_size, factors):
    stack = construction(StackConfig(num_layers=3, tied=False), output_size).rescaled(jnp.asarray(factors)[:, None])
    reading = read(stack, INPUT_SIZE)
    np.testing.assert_allclose(reading.step_size, STEP_SIZES[:, None], rtol=1e-13)
    np.testing.assert_allclose(reading.curvature_correction, CORRECTIONS[:, None], rtol=1e-13)
    np.testing.assert_allclose(reading.scale, 1 / np.array(factors)[:, None], rtol=1e-13)
    np.testing.assert_allclose(reading.key_query_error, np.zeros((3, 1)), atol=1e-13)
    np.testing.assert_allclose(reading.plus_plus_value_error, np.zeros((3, 1)), atol=1e-13)
    # Proposition 1 has no corrections: to it they are errors.
    expected = np.sqrt(INPUT_SIZE / output_size) * CORRECTIONS / STEP_SIZES
    np.testing.assert_allclose(reading.value_error, expected[:, None], rtol=1e-12)


@pytest.mark.parametrize("factor", [1.0, -5.0])
def test_plus_plus_error_measures_what_was_added(factor):
    """Off the diagonal an entry is an error; on it, only what differs from the diagonal's mean."""
    stack = construction(StackConfig(), 2)
    size = np.sqrt(3 * CORRECTIONS[0] ** 2 + 2 * STEP_SIZES[0] ** 2)
    for row, column in ((0, 1), (4, 0), (1, 4), (3, 4)):
        addition = 0.01 * np.outer(np.eye(5)[row], np.eye(5)[column])
        reading = read(Products(stack.W_KQ, stack.W_PV + addition).rescaled(factor), INPUT_SIZE)
        np.testing.assert_allclose(reading.plus_plus_value_error, 0.01 / size, rtol=1e-12)
        np.testing.assert_allclose(reading.curvature_correction, CORRECTIONS[0], rtol=1e-12)
    moved = Products(stack.W_KQ, stack.W_PV - 0.01 * jnp.diag(jnp.array([1.0, -1.0, 0.0, 0.0, 0.0]))).rescaled(factor)
    np.testing.assert_allclose(read(moved, INPUT_SIZE).plus_plus_value_error, 0.01 * np.sqrt(2) / size, rtol=1e-12)
    np.testing.assert_allclose(read(moved, INPUT_SIZE).curvature_correction, CORRECTIONS[0], rtol=1e-12)


# --- Conditioning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.03, 1.7])
def test_the_correction_s_maximum_and_zero(gamma):
    grid = np.linspace(0, 1 / gamma, 3001)
    values = np.asarray(corrected_eigenvalues(jnp.asarray(grid), gamma))
    assert values.max() == pytest.approx(4 / (27 * gamma), rel=1e-12)
    assert grid[values.argmax()] == pytest.approx(1 / (3 * gamma))
    assert values[-1] == pytest.approx(0, abs=1e-14 / gamma)
    assert (values[1:-1] > 0).all()
    np.testing.assert_allclose(corrected_eigenvalues(jnp.asarray(grid), 0.0), grid, rtol=1e-15)


def test_corrected_eigenvalues_are_those_of_the_moved_tokens():
    gamma = 0.04
    layer = gradient_descent_plus_plus_transformer(**SIZES, learning_rate=0.3, curvature_correction=gamma, num_layers=1)
    problem = random_problem(9, **SIZES, output_size=1)
    before, after = np.asarray(layer.trace(problem).tokens[:, :-1, :INPUT_SIZE])
    expected = corrected_eigenvalues(jnp.asarray(np.linalg.eigvalsh(before.T @ before)), gamma)
    np.testing.assert_allclose(np.linalg.eigvalsh(after.T @ after), np.sort(expected), rtol=1e-12)
    assert np.abs(after - before).max() > 0.1


def test_condition_numbers_are_numpy_s():
    contexts = np.random.default_rng(10).normal(size=(11, CONTEXT_LENGTH, INPUT_SIZE))
    grams = np.einsum("tni,tnj->tij", contexts, contexts)
    values = np.linalg.eigvalsh(grams)
    np.testing.assert_allclose(condition_numbers(jnp.asarray(values)), np.linalg.cond(grams), rtol=1e-9)
    np.testing.assert_allclose(condition_numbers(jnp.asarray(values[:, ::-1])), np.linalg.cond(grams), rtol=1e-9)
    values[4, 0] = 0.0
    np.testing.assert_array_equal(np.isinf(condition_numbers(jnp.asarray(values))), np.arange(11) == 4)


@pytest.mark.parametrize(("input_size", "context_length"), [(3, 7), (5, 5), (10, 25)])
def test_condition_gamma_against_brute_force(input_size, context_length):
    """And it lies above the gamma of lowest loss, which cares about all directions."""
    task = LinearRegression(input_size=input_size, context_length=context_length)
    inputs = np.random.default_rng(11).uniform(-0.5, 0.5, size=(1000, context_length, input_size))
    values = np.linalg.eigvalsh(np.einsum("tni,tnj->tij", inputs, inputs))
    spectra = Spectra(jnp.asarray(values), jnp.full(values.shape, 1 / 12))
    found = condition_gamma(spectra)
    gammas = np.linspace(0, 1 / np.median(values[:, -1]), 2001)

    def median(gamma):
        moved = values * (1 - gamma * values) ** 2
        return np.median(moved.max(axis=1) / moved.min(axis=1))

    medians = np.array([median(gamma) for gamma in gammas])
    assert median(found) < 1.005 * medians.min()
    assert median(found) < 0.9 * median(0.0)
    assert abs(found - gammas[medians.argmin()]) < 0.1 * found  # flat, and a median has kinks
    if input_size == 3:
        assert found > 1.1 * tune(task, 2, spectra=TuningSpectra(spectra, spectra, spectra)).curvature_corrections[0]
