"""The instruments: every measure against a second way to compute it, for several kinds of learners."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
from helpers import random_problem, random_weights

from innerloop.algorithms import GradientDescent, Ridge, Trivial
from innerloop.analysis import (
    align,
    align_with,
    fix_gauge,
    interpolate,
    key_query_scale,
    linearisations,
    over_learners,
    read_layers,
    roll_out,
    scale_sweep,
    sensitivity,
    task_losses,
    trajectory_losses,
)
from innerloop.constructions import gradient_descent_transformer, gradient_descent_weights
from innerloop.experiments.along_training import MEASURES, alignment_curves, alignments
from innerloop.keys import root_key
from innerloop.models import StackConfig, Transformer, products
from innerloop.problem import from_callable
from innerloop.tasks import LinearRegression, Normal, Sample

INPUT_SIZE, OUTPUT_SIZE, CONTEXT_LENGTH, TASKS = 3, 2, 7, 11
PENALTY, RATE = 0.7, 0.3

pytestmark = pytest.mark.usefixtures("x64")


def random_samples(seed: int, num_tasks: int = TASKS) -> Sample:
    targets = jnp.asarray(np.random.default_rng(seed + 100).normal(size=(num_tasks, OUTPUT_SIZE)))
    return jax.vmap(Sample)(random_problem(seed, num_tasks), targets)


def one(samples: Sample, index: int) -> Sample:
    return jax.tree.map(lambda leaf: leaf[index], samples)


def transformer(seed: int, *, size: float = 0.2, **architecture) -> Transformer:
    config = StackConfig(**architecture)
    return Transformer(config, random_weights(config, INPUT_SIZE + OUTPUT_SIZE, seed, size=size))


@eqx.filter_jit
def predict(learner, problems):
    return jax.vmap(learner)(problems)


def scikit_ridge():
    def fit_predict(inputs, targets, query):
        return sklearn.linear_model.Ridge(alpha=PENALTY, fit_intercept=False).fit(inputs, targets).predict(query[None])

    return from_callable(fit_predict)


LEARNERS = {
    "descent": lambda: GradientDescent(RATE),
    "three-steps": lambda: GradientDescent(jnp.array([0.1, 0.2, 0.3]), num_steps=3),
    "ridge": lambda: Ridge(PENALTY),
    "scikit-learn": scikit_ridge,
    "transformer": lambda: transformer(0, num_layers=2),
    "untied": lambda: transformer(1, num_layers=2, tied=False, num_heads=2, key_size=4, query_in_keys=True),
    "construction": lambda: gradient_descent_transformer(
        input_size=INPUT_SIZE, output_size=OUTPUT_SIZE, context_length=CONTEXT_LENGTH, learning_rate=RATE
    ),
}


@pytest.fixture(params=LEARNERS)
def learner(request, x64):
    return LEARNERS[request.param]()


# --- Alignment -------------------------------------------------------------------------------------------------------


def by_hand(learner, other, samples):
    """Cosine, model difference and prediction difference, by central differences and NumPy."""
    rows = []
    for index in range(TASKS):
        problem = one(samples, index).problem
        slopes, values = [], []
        for each in (learner, other):
            columns = []
            for coordinate in range(INPUT_SIZE):
                shift = 1e-5 * jnp.eye(INPUT_SIZE)[coordinate]
                moved = [dataclasses.replace(problem, query_input=problem.query_input + s * shift) for s in (1, -1)]
                columns.append((np.asarray(each(moved[0]).value) - np.asarray(each(moved[1]).value)) / 2e-5)
            slopes.append(np.stack(columns, axis=-1))
            values.append(np.asarray(each(problem).value))
        lengths = [np.sqrt((slope**2).sum()) for slope in slopes]
        rows.append(
            [
                (slopes[0] * slopes[1]).sum() / lengths[0] / lengths[1],
                np.sqrt(((slopes[0] - slopes[1]) ** 2).sum()),
                np.sqrt(((values[0] - values[1]) ** 2).sum()),
            ]
        )
    return np.mean(rows, axis=0)


def measures(alignment):
    return [float(alignment.cosine), float(alignment.model_difference), float(alignment.prediction_difference)]


def test_a_learner_is_aligned_with_itself(learner):
    np.testing.assert_allclose(measures(align(learner, learner, random_samples(0))), [1, 0, 0], atol=1e-12)


PAIRS = [("descent", "ridge"), ("three-steps", "transformer"), ("untied", "descent"), ("scikit-learn", "three-steps")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_alignment_against_central_differences(first, second):
    learner, other, samples = LEARNERS[first](), LEARNERS[second](), random_samples(1)
    ours = measures(align(learner, other, samples))
    np.testing.assert_allclose(ours, by_hand(eqx.filter_jit(learner), eqx.filter_jit(other), samples), rtol=1e-5)
    assert abs(ours[0]) < 0.99
    assert min(ours[1:]) > 0.01


def test_the_same_algorithm_from_two_hands_is_aligned():
    samples = random_samples(2)
    np.testing.assert_allclose(measures(align(Ridge(PENALTY), scikit_ridge(), samples)), [1, 0, 0], atol=1e-8)
    construction = LEARNERS["construction"]()
    np.testing.assert_allclose(measures(align(construction, GradientDescent(RATE), samples)), [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("factor", [0.1, 1.1, 7.0, -2.0])
def test_another_learning_rate_changes_lengths_only(factor):
    samples, descent = random_samples(3), GradientDescent(RATE)
    # Against zero, the differences are the descent's own mean slope and prediction.
    own = measures(align(descent, Trivial(), samples))
    assert own[0] == 0  # what ignores the query is aligned with nothing
    assert min(own[1:]) > 0.01
    cosine, *differences = measures(align(descent, GradientDescent(factor * RATE), samples))
    np.testing.assert_allclose(cosine, np.sign(factor), rtol=1e-12)
    np.testing.assert_allclose(differences, [abs(1 - factor) * size for size in own[1:]], rtol=1e-12)


def test_alignment_at_a_step_of_the_trajectory():
    """Two gradient descents from W0 and -2 W0: before the first step their slopes are W0 and -2 W0; later they learn.

    Linear learners: their slopes are their weights after the step. The default is the last step.
    """
    W0, samples = jnp.asarray(np.random.default_rng(6).normal(size=(OUTPUT_SIZE, INPUT_SIZE))), random_samples(6)
    learners = [GradientDescent(RATE, 2, initial_weights=factor * W0) for factor in (1.0, -2.0)]
    weights = [np.asarray(jax.jit(jax.vmap(learner.weights))(samples.problem)) for learner in learners]
    first, second = (each.transpose(1, 0, 2, 3) for each in weights)  # (steps + 1, tasks, outputs, inputs)
    inner, gap = np.sum(first * second, axis=(-1, -2)), first - second
    sizes = [np.sqrt(np.sum(each**2, axis=(-1, -2))) for each in (first, second, gap)]
    guesses = np.linalg.norm(np.einsum("ktoi,ti->kto", gap, samples.problem.query_input), axis=-1)
    expected = np.stack([inner / sizes[0] / sizes[1], sizes[2], guesses]).mean(axis=-1)
    ours = [measures(align(*learners, samples, **options)) for options in ({"step": 0}, {"step": 1}, {})]
    np.testing.assert_allclose(np.transpose(ours), expected, rtol=1e-11)
    np.testing.assert_allclose(ours[0][:2], [-1, 3 * np.linalg.norm(W0)], rtol=1e-12)
    assert np.abs(np.diff(ours, axis=0)).min() > 1e-3


def test_alignment_with_several_others():
    """Whose linearisations are found once: the same numbers, in their order."""
    samples, learner = random_samples(6), LEARNERS["three-steps"]()
    others = [LEARNERS[name]() for name in ("ridge", "transformer", "descent")]
    for step in (1, -1):
        together = align_with([linearisations(other, samples) for other in others], learner, samples, step=step)
        each = [align(learner, other, samples, step=step, other_step=-1) for other in others]
        np.testing.assert_allclose(*([measures(one) for one in found] for found in (together, each)), rtol=1e-12)
    found = linearisations(learner, samples)
    np.testing.assert_allclose(found.prediction, predict(learner, samples.problem).value, rtol=1e-12)


def test_alignment_of_seeds_along_training():
    """(moment, algorithm, seed), each as by itself."""
    samples, algorithms = random_samples(6), [GradientDescent(RATE), Ridge(PENALTY)]
    moments = [[transformer(3 * moment + seed) for seed in range(3)] for moment in range(2)]
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds) for seeds in moments]
    curves = alignment_curves(stacked, algorithms, samples)
    for moment, seeds in enumerate(moments):
        expected = np.asarray([[measures(align(one, other, samples)) for one in seeds] for other in algorithms])
        at_once = alignments(stacked[moment], algorithms, samples)
        for index, name in enumerate(MEASURES):
            np.testing.assert_allclose(curves[name][moment], expected[..., index], rtol=1e-12)
            np.testing.assert_allclose(at_once[name], expected[..., index], rtol=1e-12)


def test_alignment_before_any_step_from_zero():
    """No slope: aligned with nothing, and no differences."""
    pair, samples = (GradientDescent(RATE), GradientDescent(2 * RATE)), random_samples(7)
    assert measures(align(*pair, samples, step=0)) == [0, 0, 0]
    np.testing.assert_allclose(measures(align(*pair, samples, step=-1))[0], 1, rtol=1e-12)


def test_alignment_with_what_ignores_the_query_has_a_derivative():
    def cosine(rate):
        return align(GradientDescent(rate), Trivial(), random_samples(3)).cosine

    assert jax.grad(cosine)(jnp.asarray(RATE)) == 0


def test_sensitivity_of_descent_is_its_weights():
    samples = random_samples(4)
    for name in ("descent", "three-steps"):
        descent = LEARNERS[name]()
        problem = one(samples, 5).problem
        np.testing.assert_allclose(sensitivity(descent, problem), descent.weights(problem)[-1], rtol=1e-12)


def test_sensitivity_against_central_differences(learner):
    problem = one(random_samples(5), 3).problem
    slope = eqx.filter_jit(sensitivity)(learner, problem)
    assert slope.shape == (OUTPUT_SIZE, INPUT_SIZE)
    evaluate = jax.jit(lambda query: learner(dataclasses.replace(problem, query_input=query)).value)
    for coordinate in range(INPUT_SIZE):
        shift = 1e-5 * jnp.eye(INPUT_SIZE)[coordinate]
        difference = evaluate(problem.query_input + shift) - evaluate(problem.query_input - shift)
        np.testing.assert_allclose(slope[:, coordinate], difference / 2e-5, rtol=1e-5, atol=1e-8)


# --- Losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tasks", [1, 11, 1009])  # fewer than a block, and more
def test_task_losses_against_numpy(num_tasks):
    samples = random_samples(6, num_tasks)
    inputs, targets, queries = map(np.asarray, jax.tree.leaves(samples.problem))
    weights = RATE / CONTEXT_LENGTH * np.einsum("tno,tni->toi", targets, inputs)
    errors = np.einsum("toi,ti->to", weights, queries) - np.asarray(samples.query_target)
    losses = task_losses(GradientDescent(RATE), samples)
    assert losses.shape == (num_tasks,)
    np.testing.assert_allclose(losses, 0.5 * (errors**2).sum(axis=1), rtol=1e-12)


def test_trajectory_losses(learner):
    samples = random_samples(7)
    losses = trajectory_losses(learner, samples)
    trajectories = np.asarray(predict(learner, samples.problem).trajectory)
    assert losses.shape == trajectories.shape[1::-1]
    errors = trajectories - np.asarray(samples.query_target)[:, None]
    np.testing.assert_allclose(losses, 0.5 * (errors**2).sum(axis=2).T, rtol=1e-10)
    np.testing.assert_allclose(losses[-1], task_losses(learner, samples), rtol=1e-12)


def test_over_learners_is_a_loop():
    samples = random_samples(8)
    each = [transformer(seed, num_layers=2) for seed in (0, 1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def measure(learner):
        return task_losses(learner, samples), {"align": align(learner, GradientDescent(RATE), samples)}

    together = over_learners(measure, stacked)
    assert together[0].shape == (3, TASKS)
    for index, learner in enumerate(each):
        alone = measure(learner)
        for a, e in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[index], e, rtol=1e-12)
    rates = jnp.array([0.1, 0.2, 0.5])
    losses = over_learners(lambda learner: task_losses(learner, samples), jax.vmap(GradientDescent)(rates))
    np.testing.assert_allclose(losses[2], task_losses(GradientDescent(rates[2]), samples), rtol=1e-12)


# --- Interpolation ---------------------------------------------------------------------------------------------------


def predictions(learner):
    return np.asarray(predict(learner, random_samples(9).problem).value)


def gauge_copy(original: Transformer, factor) -> Transformer:
    """The same function from other products."""
    copy = Transformer(original.config, products(original.weights).rescaled(factor).as_weights(), original.tokens)
    np.testing.assert_allclose(predictions(copy), predictions(original), rtol=1e-9)
    return copy


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_interpolation_ends_at_both_functions(rescale, tied):
    first, second = (transformer(seed, num_layers=2, tied=tied) for seed in (0, 1))
    ends = [interpolate(first, second, input_size=INPUT_SIZE, weight=w, rescale=rescale) for w in (0.0, 1.0)]
    np.testing.assert_allclose(predictions(ends[0]), predictions(first), rtol=1e-9)
    np.testing.assert_allclose(predictions(ends[1]), predictions(second), rtol=1e-9)
    assert np.abs(predictions(first) - predictions(second)).max() > 0.01


def test_interpolation_without_rescaling_mixes_the_products():
    first, second = transformer(0), transformer(1)
    mixed = products(interpolate(first, second, input_size=INPUT_SIZE, weight=0.3, rescale=False).weights)
    parts = products(first.weights), products(second.weights)
    np.testing.assert_allclose(mixed.W_KQ, 0.7 * parts[0].W_KQ + 0.3 * parts[1].W_KQ, rtol=1e-12)
    np.testing.assert_allclose(mixed.W_PV, 0.7 * parts[0].W_PV + 0.3 * parts[1].W_PV, rtol=1e-12)


@pytest.mark.parametrize("factor", [-1.0, 0.01, 3.0, -1000.0])
@pytest.mark.parametrize("tied", [True, False])
def test_interpolation_does_not_see_the_gauge(factor, tied):
    original = transformer(0, num_layers=2, tied=tied)
    copy = gauge_copy(original, factor)
    mixed = interpolate(original, copy, input_size=INPUT_SIZE)
    np.testing.assert_allclose(predictions(mixed), predictions(original), rtol=1e-9)
    naive = interpolate(original, copy, input_size=INPUT_SIZE, rescale=False)
    assert np.abs(predictions(naive) / predictions(original) - 1).max() > 0.01


def test_every_layer_has_a_gauge_of_its_own():
    original = transformer(0, num_layers=3, tied=False)
    factors = jnp.array([2.0, -0.1, 5.0])[:, None, None, None]
    stack = products(original.weights)
    moved = type(stack)(stack.W_KQ / factors, stack.W_PV * factors)
    copy = Transformer(original.config, moved.as_weights(), original.tokens)
    mixed = interpolate(original, copy, input_size=INPUT_SIZE, weight=0.3)
    np.testing.assert_allclose(predictions(mixed), predictions(original), rtol=1e-9)


def test_fixed_gauge():
    stack = products(transformer(0, num_layers=3, tied=False, num_heads=2).weights)
    fixed = fix_gauge(stack, INPUT_SIZE)
    np.testing.assert_allclose(key_query_scale(fixed, INPUT_SIZE), np.ones((3, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        np.einsum("lhij,lhkm->lhijkm", fixed.W_KQ, fixed.W_PV),
        np.einsum("lhij,lhkm->lhijkm", stack.W_KQ, stack.W_PV),
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"num_heads": 2}, {"num_heads": 2}, "one head per layer, got 2 and 2"),
        ({}, {"num_heads": 2}, "one head per layer, got 1 and 2"),
        ({"num_layers": 2, "tied": False}, {"num_layers": 3, "tied": False}, "one depth.*2.*3"),
        ({"num_layers": 2}, {"num_layers": 2, "tied": False}, "one depth and tying"),
        (
            {"num_layers": 2},
            {"num_layers": 5},
            "one depth and tying",
        ),  # one tied layer each, but applied a different number of times
        ({"num_layers": 1}, {"num_layers": 2}, "one depth and tying"),
    ],
)
def test_what_cannot_be_interpolated(first, second, message):
    with pytest.raises(ValueError, match=message):
        interpolate(transformer(0, **first), transformer(1, **second), input_size=INPUT_SIZE)


# --- Reading weights -------------------------------------------------------------------------------------------------

SIZES = {"input_size": INPUT_SIZE, "context_length": CONTEXT_LENGTH}


read = jax.jit(read_layers, static_argnums=1)


@pytest.mark.parametrize("output_size", [1, 2, 5])
def test_reading_gradient_descent_off_its_construction(output_size):
    rates = jnp.array([0.3, 1.7, 0.9])
    stack = products(gradient_descent_weights(**SIZES, output_size=output_size, learning_rate=rates))
    for factor in (1.0, -1.0, 0.01, -300.0):
        reading = read(stack.rescaled(factor), INPUT_SIZE)
        np.testing.assert_allclose(reading.step_size, rates[:, None] / CONTEXT_LENGTH, rtol=1e-14)
        np.testing.assert_allclose(reading.scale, np.full((3, 1), 1 / factor), rtol=1e-14)
        np.testing.assert_allclose(reading.key_query_error, np.zeros((3, 1)), atol=1e-14)
        np.testing.assert_allclose(reading.value_error, np.zeros((3, 1)), atol=1e-14)


@pytest.mark.parametrize("factor", [1.0, -5.0])
def test_errors_measure_what_was_added(factor):
    """One entry in each product, in units of the construction's Frobenius norms, whatever the gauge."""
    stack = products(gradient_descent_weights(**SIZES, output_size=2, learning_rate=0.7))
    for row, column in ((0, 1), (4, 0), (1, 4), (3, 3)):
        addition = 0.2 * np.outer(np.eye(5)[row], np.eye(5)[column])
        reading = read(type(stack)(stack.W_KQ + addition, stack.W_PV).rescaled(factor), INPUT_SIZE)
        np.testing.assert_allclose(reading.key_query_error, 0.2 / np.sqrt(3), rtol=1e-12)
        np.testing.assert_allclose(reading.step_size, 0.1, rtol=1e-12)
    for row, column in ((0, 0), (4, 0), (1, 4), (3, 4)):
        addition = 0.2 * np.outer(np.eye(5)[row], np.eye(5)[column])
        reading = read(type(stack)(stack.W_KQ, stack.W_PV + addition).rescaled(factor), INPUT_SIZE)
        np.testing.assert_allclose(reading.value_error, 0.2 / (0.1 * np.sqrt(2)), rtol=1e-12)
        np.testing.assert_allclose(reading.step_size, 0.1, rtol=1e-12)


def test_reading_heads_separately():
    stack = products(transformer(0, num_layers=2, tied=False, num_heads=3).weights)
    together = read(stack, INPUT_SIZE)
    for layer in range(2):
        for head in range(3):
            one_head = jax.tree.map(lambda leaf, i=layer, j=head: leaf[i : i + 1, j : j + 1], stack)
            for a, e in zip(jax.tree.leaves(together), jax.tree.leaves(read(one_head, INPUT_SIZE)), strict=True):
                np.testing.assert_allclose(a[layer, head], e[0, 0], rtol=1e-12)


# --- Roll-out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_layers", "damping"), [(1, 1.0), (50, 0.75)])
@pytest.mark.parametrize("trained_layers", [1, 2])
def test_rolled_out_construction_is_damped_descent(num_layers, damping, trained_layers):
    initial = jnp.asarray(np.random.default_rng(10).normal(size=(OUTPUT_SIZE, INPUT_SIZE)))
    layer = gradient_descent_transformer(
        **SIZES, output_size=OUTPUT_SIZE, learning_rate=RATE, num_layers=trained_layers, initial_weights=initial
    )
    descent = GradientDescent(RATE, num_steps=num_layers, damping=damping, initial_weights=initial)
    problems = random_samples(10).problem
    rolled = predict(roll_out(layer, num_layers=num_layers, damping=damping), problems)
    expected = predict(descent, problems)
    assert rolled.trajectory.shape == (TASKS, num_layers + 1, OUTPUT_SIZE)
    np.testing.assert_allclose(rolled.value, expected.value, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rolled.trajectory, expected.trajectory, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rolled.context_trajectory, expected.context_trajectory, rtol=1e-10, atol=1e-10)


def test_rolled_out_only_targets_move():
    layer = transformer(0, token_clip=3.0, query_in_keys=True)
    rolled = roll_out(layer, num_layers=5, damping=0.5)
    assert (rolled.config.token_clip, rolled.config.query_in_keys) == (3.0, True)
    problem = one(random_samples(11), 0).problem
    tokens = rolled.trace(problem).tokens
    assert (jnp.abs(tokens[0]) < 3).all()  # or the clip would move inputs too
    np.testing.assert_array_equal(tokens[:, :, :INPUT_SIZE], jnp.broadcast_to(tokens[0, :, :INPUT_SIZE], (6, 8, 3)))
    assert (tokens[-1, :, INPUT_SIZE:] != tokens[0, :, INPUT_SIZE:]).all()


def test_what_cannot_be_rolled_out():
    with pytest.raises(ValueError, match="tied"):
        roll_out(transformer(0, num_layers=2, tied=False), num_layers=3, damping=0.5)
    with pytest.raises(ValueError, match="num_layers must be"):
        roll_out(transformer(0), num_layers=0, damping=0.5)
    with pytest.raises(ValueError, match="damping must be"):
        roll_out(transformer(0), num_layers=3, damping=float("nan"))


# --- Out of distribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["input_scale", "target_scale"])
def test_scale_sweep_is_independent_evaluations_on_one_key(scale):
    with jax.enable_x64(False):  # quicker to compile
        task = LinearRegression(
            input_size=3, context_length=7, noise_std=0.2, input_scale=1.5, target_scale=0.5, inputs=Normal()
        )
        learner, key, values = GradientDescent(0.2), root_key(12), [0.1, 0.5, 2.0]
        swept = scale_sweep(learner, task, scale, jnp.array(values), key, 101)
        assert swept.shape == (3,)
        for value, loss in zip(values, swept, strict=True):
            samples = dataclasses.replace(task, **{scale: value}).samples(key, 101)
            np.testing.assert_allclose(loss, task_losses(learner, samples).mean(), rtol=1e-5)
        assert swept[2] > 2 * swept[1]


def test_a_step_that_a_trajectory_lacks():
    with pytest.raises(ValueError, match="step must be from -2 to 1 for this learner's trajectory, got 2"):
        sensitivity(GradientDescent(0.1), random_problem(1), step=2)
