"""Noise: weight decay as algorithm and as weights, filters and their tuning, replaced targets, the experiment."""

import itertools

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers import CONTEXT_LENGTH, INPUT_SIZE, OUTPUT_SIZE, assert_mean, random_problem
from hypothesis import given, settings

from innerloop.algorithms import GradientDescent, Ridge, WithPriorPairs, bayes_optimal
from innerloop.analysis import align, task_losses
from innerloop.constructions import weight_decay_transformer
from innerloop.exact import (
    Spectra,
    TuningSpectra,
    decay_filter,
    filter_losses,
    gradient_descent_losses,
    optimal_learning_rate,
    ridge_filter,
    tune,
    tune_stopping,
    tune_weight_decay,
)
from innerloop.experiments.lineup import Lineup
from innerloop.experiments.noise import recipes
from innerloop.experiments.noise.judge import places
from innerloop.experiments.noise.proofs import proof_claims
from innerloop.experiments.noise.reduction import reduced, target_keys
from innerloop.experiments.noise.setting import ALGORITHMS, NOISELESS, TWO, rivals
from innerloop.experiments.responses import responses
from innerloop.keys import root_key
from innerloop.models import Products, StackConfig, Transformer
from innerloop.problem import Problem
from innerloop.tasks import LinearRegression, ReplacedTargets, SineWaves
from innerloop.training import published

SIZES = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
SMALL = LinearRegression(input_size=3, context_length=5, noise_std=0.6)
x64 = pytest.mark.usefixtures("x64")
predict = eqx.filter_jit(lambda learner, problem: learner(problem))


def spectra_of(task, num_contexts, seed):
    """Of the default inputs, from NumPy; queries have second moment 1/12 in every direction."""
    shape = (num_contexts, task.context_length, task.input_size)
    inputs = np.random.default_rng(seed).uniform(-0.5, 0.5, size=shape)
    values = np.linalg.eigvalsh(np.einsum("tni,tnj->tij", inputs, inputs))
    return Spectra(jnp.asarray(values), jnp.full(values.shape, 1 / 12))


def sets_of(task, num_contexts):
    return TuningSpectra(*(spectra_of(task, num_contexts, [0, part]) for part in range(3)))


# --- Weight decay ----------------------------------------------------------------------------------------------------


@x64
def test_weight_decay_by_hand():
    """Three steps in NumPy, with a rate per step, damping and W0."""
    problem, rates = random_problem(0), np.array([0.3, -0.2, 0.5])
    initial = np.random.default_rng(1).normal(size=(OUTPUT_SIZE, INPUT_SIZE))
    inputs, targets = np.asarray(problem.context_inputs), np.asarray(problem.context_targets)
    W, expected = initial, [initial]
    for rate in rates:
        gradient = (W @ inputs.T - targets.T) @ inputs / CONTEXT_LENGTH + 0.4 * W
        W = W - 0.75 * rate * gradient
        expected.append(W)
    learner = GradientDescent(jnp.asarray(rates), 3, 0.75, jnp.asarray(initial), weight_decay=0.4)
    np.testing.assert_allclose(learner.weights(problem), expected, rtol=1e-12)


@x64
def test_weight_decay_tends_to_ridge():
    """With penalty N lambda on the un-normalised sum; half of it, or twice, is far off."""
    problem = random_problem(2)
    many = predict(GradientDescent(0.3, num_steps=3000, weight_decay=0.4), problem).value
    for factor in (0.5, 1.0, 2.0):
        ridge = predict(Ridge(factor * 0.4 * CONTEXT_LENGTH), problem).value
        assert (np.abs(many - ridge).max() < 1e-10) == (factor == 1.0)


@x64
def test_first_step_from_zero_has_nothing_to_decay():
    problem = random_problem(3)
    plain, decayed = (predict(GradientDescent(0.3, 2, weight_decay=decay), problem) for decay in (0.0, 0.4))
    np.testing.assert_allclose(plain.trajectory[1], decayed.trajectory[1], rtol=1e-14)
    assert np.abs(plain.trajectory[2] - decayed.trajectory[2]).max() > 0.01


@settings(max_examples=8)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 7)),
    num_layers=st.integers(1, 4),
    decay=st.floats(0.0, 2.0),
    has_W0=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_construction_is_gradient_descent_with_weight_decay(sizes, num_layers, decay, has_W0, seed):
    """To 1e-12 of the largest entry, for query and context; rates per layer."""
    with jax.enable_x64(True):
        names = dict(zip(("input_size", "output_size", "context_length"), sizes, strict=True))
        rng, problem = np.random.default_rng(seed), random_problem(seed, **names)
        rates = jnp.asarray(rng.uniform(0.1, 0.4, size=num_layers))
        W0 = jnp.asarray(rng.normal(size=sizes[1::-1])) if has_W0 else None
        built = weight_decay_transformer(
            **names, learning_rate=rates, weight_decay=decay, num_layers=num_layers, initial_weights=W0
        )(problem)
        expected = GradientDescent(rates, num_layers, initial_weights=W0, weight_decay=decay)(problem)
        size = max(1.0, float(jnp.abs(expected.trajectory).max()), float(jnp.abs(expected.context_trajectory).max()))
        assert jnp.abs(built.trajectory - expected.trajectory).max() < 1e-12 * size
        assert built.context_trajectory.shape == expected.context_trajectory.shape
        assert jnp.abs(built.context_trajectory - expected.context_trajectory).max() < 1e-12 * size


@x64
def test_construction_without_its_tokens_does_not_decay():
    problem = random_problem(4)
    built = weight_decay_transformer(**SIZES, learning_rate=0.4, weight_decay=0.3, num_layers=2)
    expected = GradientDescent(0.4, 2, weight_decay=0.3)(problem).value
    assert np.abs(built(problem).value - expected).max() < 1e-13
    assert np.abs(built.learner(problem).value - expected).max() > 1e-2
    with pytest.raises(ValueError, match="weight_decay must be a finite number of at least 0"):
        weight_decay_transformer(**SIZES, learning_rate=0.4, weight_decay=-0.1)


@x64
def test_ridge_is_least_squares_with_prior_pairs():
    problem = random_problem(5)
    pairs = WithPriorPairs(Ridge(), np.sqrt(0.7) * jnp.eye(INPUT_SIZE), jnp.zeros((INPUT_SIZE, OUTPUT_SIZE)))
    expected, actual = predict(Ridge(0.7), problem), predict(pairs, problem)
    np.testing.assert_allclose(actual.value, expected.value, rtol=1e-10)
    np.testing.assert_allclose(actual.context_trajectory, expected.context_trajectory, atol=1e-10)


def left_by_decay(num_steps, decay):
    """r(l) of K steps with c = 1 as a polynomial, lowest power first."""
    kept, learned = np.polynomial.Polynomial([1 - decay, -1]), np.polynomial.Polynomial([0])
    for _ in range(num_steps):
        learned = learned * kept + 1
    return 1 - np.polynomial.Polynomial([0, 1]) * learned


def real_zeros(polynomial):
    roots = polynomial.roots()
    return roots.real[np.abs(roots.imag) < 1e-7]


@pytest.mark.parametrize("num_steps", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("decay", [0.05, 0.3, 0.9])
def test_why_plain_stacks_cannot_decay(num_steps, decay):
    """What is left unlearned has no real zero (one where K is odd); every layer of GD or GD++ that learns adds one."""
    left = left_by_decay(num_steps, decay)
    assert real_zeros(left).size == num_steps % 2
    inside = (1 - left) // np.polynomial.Polynomial([0, 1])
    assert num_steps % 2 == 0 or real_zeros(inside).size == 0
    assert real_zeros(left_by_decay(2, -decay)).size == 2  # growth is two rates of gradient descent


# --- Filters and tuning ----------------------------------------------------------------------------------------------


@x64
@pytest.mark.parametrize("context_length", [2, 7])
def test_filter_losses_against_monte_carlo(context_length):
    """Expected losses of learners on one context against samples of W, noise and query."""
    task = LinearRegression(input_size=3, output_size=2, context_length=context_length, noise_std=0.7, target_scale=1.3)
    rng, count = np.random.default_rng(context_length), 60_000
    inputs = rng.normal(size=(context_length, 3))
    spectra = spectra_of_context(inputs)
    learners = {
        GradientDescent(0.2, 3, weight_decay=0.5): decay_filter(spectra.eigenvalues, 0.2 / context_length, 0.1, 3),
        Ridge(0.4): ridge_filter(spectra.eigenvalues, 0.4),
    }
    W = 1.3 * rng.normal(size=(count, 2, 3))
    targets = np.einsum("toi,ni->tno", W, inputs) + 0.7 * rng.normal(size=(count, context_length, 2))
    queries = rng.uniform(-0.5, 0.5, size=(count, 3))
    for learner, learned in learners.items():
        # Predictions are linear in targets and query: A of unit vectors gives them all.
        A = jax.vmap(lambda query, learner=learner: predict(learner, Problem(
            jnp.asarray(inputs), jnp.eye(context_length), query)).value, out_axes=1)(jnp.eye(3))  # fmt: skip
        errors = np.einsum("tno,ni,ti->to", targets, A, queries) - np.einsum("toi,ti->to", W, queries)
        assert_mean(0.5 * np.sum(errors**2, axis=1), filter_losses(task, spectra, learned)[0])


def spectra_of_context(inputs):
    values = np.maximum(np.linalg.eigvalsh(inputs.T @ inputs), 0)[None]
    return Spectra(jnp.asarray(values), jnp.full(values.shape, 1 / 12))


@x64
def test_filters_agree_with_gradient_descent_and_bayes():
    task, spectra = SMALL, spectra_of(SMALL, 200, 0)
    no_decay = decay_filter(spectra.eigenvalues, 0.9 / task.context_length, 0.0, 4)
    expected = gradient_descent_losses(task, spectra, jnp.full(4, 0.9))[-1]
    np.testing.assert_allclose(filter_losses(task, spectra, no_decay), expected, rtol=1e-12)
    best = ridge_filter(spectra.eigenvalues, bayes_optimal(task).penalty)
    least = filter_losses(task, spectra, best)
    posterior = 0.36 / (0.36 + spectra.eigenvalues)  # variance of W along each eigenvector
    np.testing.assert_allclose(least, np.sum(posterior, axis=1) / 24, rtol=1e-12)
    for seed in range(3):
        other = best * (1 + 0.1 * np.random.default_rng(seed).normal(size=best.shape))
        assert (filter_losses(task, spectra, jnp.asarray(other)) > least).all()
    np.testing.assert_array_equal(ridge_filter(jnp.array([0.0, 2.0]), 0.0), [0.0, 0.5])


@x64
def test_tuned_decay_against_brute_force():
    """Two steps, every step size and decay on a grid, on contexts that are not pooled."""
    sets = sets_of(SMALL, 1000)
    sets = TuningSpectra(sets.fitted, sets.fitted, sets.reported)
    values = np.asarray(sets.fitted.eigenvalues)
    step_sizes, decays = np.linspace(0.05, 1.5, 60), np.linspace(-0.4, 0.6, 51)

    def loss(step_size, decay, values=values):
        learned = step_size * (2 - decay - step_size * values)
        return np.mean(np.sum((1 - values * learned) ** 2 + 0.36 * values * learned**2, axis=1)) / 24

    grid = np.array([[loss(step_size, decay) for decay in decays] for step_size in step_sizes])
    row, column = np.unravel_index(grid.argmin(), grid.shape)
    tuned = tune_weight_decay(SMALL, 2, spectra=sets)
    step_size = tuned.learning_rate / SMALL.context_length
    decay = tuned.learning_rate * tuned.weight_decay
    assert abs(step_size - step_sizes[row]) <= np.diff(step_sizes)[0]
    assert abs(decay - decays[column]) <= np.diff(decays)[0]
    assert grid.min() * 0.99 < loss(step_size, decay) < grid.min()
    reported = loss(step_size, decay, np.asarray(sets.reported.eigenvalues))
    assert tuned.loss == pytest.approx(reported, rel=1e-10)


def test_what_noise_asks_for():
    """Growth where it is weak, decay where it is strong; never worse than without, and one step has none."""
    decays = []
    for noise_std in (0.1, 0.6, 1.5):
        task = LinearRegression(input_size=3, context_length=5, noise_std=noise_std)
        with jax.enable_x64(True):
            sets = sets_of(task, 2000)
        tuned = tune_weight_decay(task, 3, spectra=sets)
        assert tuned.loss < tune(task, 3, algorithm="gd", spectra=sets).loss + 3 * tuned.loss_standard_error
        decays.append(tuned.weight_decay)
        one = tune_weight_decay(task, 1, spectra=sets)
        assert one.weight_decay == 0
        assert one.learning_rate == pytest.approx(optimal_learning_rate(task), rel=0.05)
    assert decays[0] < -0.01 < 0.01 < decays[1] < decays[2]


@x64
def test_tuned_stopping_against_brute_force():
    sets = sets_of(SMALL, 1000)
    values = np.asarray(sets.fitted.eigenvalues)
    losses = []
    for num_steps in range(200):
        learned = (1 - (1 - 0.1 * values) ** num_steps) / values
        losses.append(np.mean(np.sum((1 - values * learned) ** 2 + 0.36 * values * learned**2, axis=1)) / 24)
    best = int(np.argmin(losses))
    assert 5 < best < 100
    stopping = tune_stopping(SMALL, 0.5, most_steps=200, spectra=sets)
    assert abs(stopping.num_steps - best) <= 1  # binning
    expected = gradient_descent_losses(SMALL, sets.reported, jnp.full(stopping.num_steps, 0.5))[-1]
    assert stopping.loss == pytest.approx(float(expected.mean()), rel=1e-12)
    with pytest.raises(ValueError, match="most_steps must be above the best number"):
        tune_stopping(SMALL, 0.5, most_steps=best - 3, spectra=sets)
    with pytest.raises(ValueError, match="learning_rate must be small"):
        tune_stopping(SMALL, 100.0, most_steps=5, spectra=sets)


# --- Replaced targets ------------------------------------------------------------------------------------------------

MANY = 20_000
COUNTS = (0, 2, 5)


@pytest.fixture(scope="module")
def replaced():
    task = LinearRegression(input_size=3, output_size=2, context_length=5)
    return {count: ReplacedTargets(task, count).sample_batch(root_key(0), MANY) for count in COUNTS}


def test_replaces_as_many_targets_as_asked(replaced):
    plain = np.asarray(
        LinearRegression(input_size=3, output_size=2, context_length=5).sample_batch(root_key(0), MANY).targets
    )
    np.testing.assert_array_equal(replaced[0].targets, plain)
    for count in COUNTS:
        batch = replaced[count]
        np.testing.assert_array_equal(batch.inputs, replaced[0].inputs)
        np.testing.assert_array_equal(batch.targets[:, -1], plain[:, -1])  # the query's stays clean
        is_replaced = np.asarray(batch.targets[:, :-1]) != plain[:, :-1]
        np.testing.assert_array_equal(is_replaced.sum(axis=1), count)  # in every task, for every output
        np.testing.assert_array_equal(is_replaced[0], is_replaced[1])
        assert_mean(is_replaced[0].T.astype(float), np.full(5, count / 5)) if count else None


def test_replacements_are_standard_normal_and_say_nothing_of_the_task(replaced):
    values = np.asarray(replaced[5].targets[:, :-1])
    assert_mean(values.reshape(-1) ** 2, 1.0)
    assert_mean(values.reshape(-1) ** 4, 3.0)
    products = (
        values[0, 0] * np.asarray(replaced[5].inputs[0, 0]),
        values[0, 1] * values[1, 1],
        values[0, 0] * values[0, 1],
    )
    for product in products:
        assert_mean(product, 0.0)


@pytest.mark.parametrize("count", [-1, 6])
def test_number_of_replaced_targets_is_checked(count):
    with pytest.raises(ValueError, match=r"count must be an integer of at (least 0|most 5)"):
        ReplacedTargets(LinearRegression(context_length=5), count)


def test_other_families_can_be_spoilt():
    task = ReplacedTargets(SineWaves(context_length=5), 5)
    assert (task.input_size, task.output_size, task.context_length) == (1, 1, 5)
    assert_mean(np.asarray(task.sample_batch(root_key(1), MANY).targets[0, :-1]).reshape(-1) ** 2, 1.0)


def test_a_step_s_loss_on_replaced_targets():
    """Against its closed form: n = N - m clean pairs, and m whose targets are noise of variance 1."""
    task, eta = LinearRegression(input_size=3, context_length=5), 4.0
    moments, c = task.input_moments(), 4.0 / 5
    L, Q = moments.second, moments.fourth
    for count in COUNTS:
        n = 5 - count
        signal = n * np.trace(Q @ L) + n * (n - 1) * np.trace(L @ L @ L)
        expected = np.trace(L) - 2 * c * n * np.trace(L @ L) + c**2 * (signal + count * np.trace(L @ L))
        samples = ReplacedTargets(task, count).samples(root_key(2), MANY)
        assert_mean(task_losses(GradientDescent(eta), samples), expected / 2)


# --- The experiment --------------------------------------------------------------------------------------------------


def test_responses_give_losses_and_alignment():
    """The same numbers as `task_losses` and `align`, learner by learner."""
    samples = LinearRegression(input_size=3, output_size=2, context_length=5, noise_std=0.5).samples(root_key(3), 50)
    learners = {
        "a": GradientDescent(jnp.float32(2.0)),
        "b": Ridge(jnp.float32(0.3)),
        "zero": GradientDescent(jnp.float32(0.0)),
    }
    measured = responses(Lineup(learners, {}, 2), samples)
    assert measured.linearisations.prediction.shape == (3, 2, 50, 2)
    for index, learner in enumerate(learners.values()):
        np.testing.assert_allclose(measured.losses()[index], float(task_losses(learner, samples).mean()), rtol=1e-5)
    for one, other in itertools.product(learners, repeat=2):
        expected = align(learners[one], learners[other], samples)
        for name, value in measured.alignment(one, other).items():
            np.testing.assert_allclose(value, float(getattr(expected, name)), rtol=1e-4, atol=1e-6)


def stack_of_products(W_KQ, W_PV):
    """Two seeds of two untied layers with one head."""
    weights = Products(jnp.asarray(W_KQ)[:, :, None], jnp.asarray(W_PV)[:, :, None]).as_weights()
    return Transformer(StackConfig(num_layers=2, tied=False), weights)


@x64
def test_a_key_on_the_target_is_decay_on_shrinking_targets():
    """Two layers with c and beta against W <- (1 - d) W - c sum (W x - t y) x^T, t <- (1 - d) t, in NumPy."""
    problem, numbers = random_problem(6, output_size=1), ((0.04, 0.03), (0.06, -0.02))
    W_KQ = np.stack([np.diag([1.0, 1.0, 1.0, beta]) for _, beta in numbers])
    W_PV = np.stack([np.diag([0.0, 0.0, 0.0, -c]) for c, _ in numbers])
    stack = stack_of_products(W_KQ[None], W_PV[None])
    inputs, targets = np.asarray(problem.context_inputs), np.asarray(problem.context_targets)[:, 0]
    W, t, expected = np.zeros(INPUT_SIZE), 1.0, [0.0]
    for c, beta in numbers:
        left = t * targets - inputs @ W
        decay = c * beta * np.sum(left**2)
        W, t = (1 - decay) * W + c * left @ inputs, (1 - decay) * t
        expected.append(float(W @ np.asarray(problem.query_input)))
    actual = jax.tree.map(lambda leaf: leaf[0], stack)(problem).trajectory[:, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert abs(expected[1] - expected[2]) > 0.01


@x64
def test_reduced_stacks_keep_four_numbers():
    rng = np.random.default_rng(7)
    W_KQ, W_PV = rng.normal(size=(2, 2, 2, 4, 4))
    stacks = stack_of_products(W_KQ, W_PV)
    for with_key in (True, False):
        attention = reduced(stacks, INPUT_SIZE, with_target_key=with_key).weights.attention
        for seed, layer in itertools.product(range(2), repeat=2):
            full, kept = (part[seed, layer] for part in (W_KQ, attention.W_Q[:, :, 0]))
            expected = np.diag([np.trace(full[:3, :3]) / 3] * 3 + [full[3, 3] if with_key else 0.0])
            np.testing.assert_allclose(kept, expected, atol=1e-14)
            full = W_PV[seed, layer]
            expected = np.diag([np.trace(full[:3, :3]) / 3] * 3 + [full[3, 3]])
            np.testing.assert_allclose(attention.W_V[seed, layer, 0], expected, atol=1e-14)
    beta = W_KQ[..., 3, 3] / (np.trace(W_KQ[..., :3, :3], axis1=-2, axis2=-1) / 3)
    np.testing.assert_allclose(target_keys(stacks, INPUT_SIZE), beta, rtol=1e-12)


@pytest.mark.parametrize(("to_own", "to_rival", "place"), [(0.0, 2.0, 1.0), (2.0, 0.0, -1.0), (1.5, 1.5, 0.0)])
def test_place_between_two_algorithms(to_own, to_rival, place):
    """Ridge is the same function as GD++ here, and has no place."""
    learners = [*ALGORITHMS, "trained"]
    apart = xr.DataArray(
        np.full((len(learners), len(ALGORITHMS), 2), 2.0),
        coords={"learner": learners, "other": list(ALGORITHMS), "seed": [0, 1]},
    )
    apart.loc[{"learner": "gd++", "other": ["gd++", "ridge"]}] = 0.01
    apart.loc[{"learner": "trained"}] = to_rival
    apart.loc[{"learner": "trained", "other": "gd++"}] = to_own
    found = places(xr.Dataset({"model_difference": apart}), TWO)
    assert set(found["other"].values) == {"gradient descent", "weight decay", "early stopping"}
    np.testing.assert_allclose(found, place)


def test_rivals_are_what_their_names_say():
    """On samples: expected losses are those that the learners have; every near miss is worse."""
    task = LinearRegression(input_size=3, context_length=5, noise_std=0.6)
    with jax.enable_x64(True):
        here = rivals(task, TWO, num_contexts=2000)
    samples = task.samples(root_key(4), 40_000)
    losses = {name: np.asarray(task_losses(learner, samples)) for name, learner in here.learners.items()}
    for name, expected in here.expected.items():
        assert_mean(losses[name], expected, k=5)  # the spectra are a sample too, and tell 1 %
    assert here.expected["ridge"] == min(here.expected.values())
    for wrong, right in (("wrong ridge", "ridge"), ("control", "gd++"), ("fewer pairs", "gd++")):
        assert losses[wrong].mean() > losses[right].mean()
    assert here.learners["early stopping"].num_steps == here.small_steps
    assert float(here.learners["weight decay"].weight_decay) == pytest.approx(here.weight_decay)


def test_the_noiseless_layer_is_the_one_that_one_layer_trains():
    assert recipes("quick", None)[NOISELESS] == published(seeds=(0, 1, 2, 3, 4))
    assert {recipe.task.noise_std for recipe in recipes("paper", 5).values()} == {0.0, 0.3, 0.7}


def test_proof_holds_and_its_control_fails():
    (claim,) = proof_claims()
    assert (claim.verdict, claim.control_verdict) == ("reproduced", "not reproduced")
