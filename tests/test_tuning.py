"""Spectral losses of GD++ against the learner itself, exactly; tuning against brute force and the published numbers.

Spectra come from NumPy here, so that a case costs no compilation; `test_spectra` in test_exact.py covers drawing them.
"""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import CONTEXT_LENGTH, INPUT_SIZE, OUTPUT_SIZE, random_problem

from innerloop.algorithms import GradientDescentPlusPlus
from innerloop.constructions import gradient_descent_plus_plus_transformer
from innerloop.exact import (
    Spectra,
    TuningSpectra,
    context_spectra,
    gradient_descent_losses,
    one_step_loss,
    optimal_learning_rate,
    pool,
    spectrum,
    tune,
    tuning_spectra,
)
from innerloop.keys import named_key, root_key
from innerloop.problem import Problem
from innerloop.tasks import Exponential, Gaussian, LinearRegression

SIZES = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
CORRELATED = Gaussian(((1.3, 0.4, -0.2), (0.4, 0.6, 0.1), (-0.2, 0.1, 0.9)))
TASKS = {
    "correlated-noisy": LinearRegression(**SIZES, inputs=CORRELATED, noise_std=0.5, target_scale=0.6),
    "exponential-noisy": LinearRegression(**SIZES, inputs=Exponential(), noise_std=0.7),
    "short-context-noisy": LinearRegression(input_size=3, output_size=2, context_length=2, noise_std=0.4),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
SMALL = LinearRegression(input_size=3, context_length=5)
predict = eqx.filter_jit(lambda learner, problem: learner(problem).trajectory)
spectral_losses = eqx.filter_jit(gradient_descent_losses)
pytestmark = pytest.mark.usefixtures("x64")


def eigenvalues(task, num_contexts, seed):
    """Of X X^T for the default inputs, U(-1/2, 1/2)."""
    shape = (num_contexts, task.context_length, task.input_size)
    inputs = np.random.default_rng(seed).uniform(-0.5, 0.5, size=shape)
    return np.linalg.eigvalsh(np.einsum("tni,tnj->tij", inputs, inputs))


def spectra_of(values):
    """Queries of the default inputs have second moment 1/12 in every direction."""
    return Spectra(jnp.asarray(values), jnp.full(values.shape, 1 / 12))


def sets_of(task, num_contexts, seed=0):
    return TuningSpectra(*(spectra_of(eigenvalues(task, num_contexts, [seed, part])) for part in range(3)))


def losses_by_hand(values, step_sizes, corrections):
    """Mean over contexts after the last step, in NumPy, for W ~ N(0, 1), one output, no noise; numbers on axis 0."""
    left, moved = np.ones_like(values), values
    for step_size, correction in zip(step_sizes, corrections, strict=True):
        left, moved = left * (1 - step_size * moved), moved * (1 - correction * moved) ** 2
    return np.mean(np.sum(left**2, axis=-1), axis=-1) / 24


# --- The loss on a spectrum ------------------------------------------------------------------------------------------


def expected_losses(learner, task, inputs):
    """Exact expectation over W, noise and query for one context, from the learner alone.

    A prediction is linear in the targets and in the query, alike for every output. So predictions for targets and
    queries that are unit vectors give A with prediction = Y^T A x_q, and with Y = X W^T + noise the error is
    W (X^T A - I) x_q + noise^T A x_q.
    """
    num_context, input_size = inputs.shape
    unit_targets, unit_queries = jnp.eye(num_context), jnp.eye(input_size)
    A = jax.vmap(lambda query: predict(learner, Problem(inputs, unit_targets, query)), out_axes=2)(unit_queries)
    second = task.input_moments().second  # A: (steps + 1, context, input_size)
    off = np.einsum("ji,sjk->sik", inputs, A) - np.eye(input_size)
    signal = np.einsum("sik,kl,sil->s", off, second, off)
    noise = np.einsum("sjk,kl,sjl->s", A, second, A)
    return A, task.output_size / 2 * (task.target_scale**2 * signal + task.noise_std**2 * noise)


RATES, CORRECTIONS = np.array([0.4, -0.1, 0.3]), np.array([0.011, 0.023, -0.017])
with jax.enable_x64(True):
    LEARNER = GradientDescentPlusPlus(jnp.asarray(RATES), jnp.asarray(CORRECTIONS), num_steps=3)


@every_task
def test_spectral_loss_is_the_learner_s_expected_loss(task):
    """Per context and step, not only on average: numbers that differ from step to step."""
    contexts = jnp.stack(
        [2 * random_problem(seed, context_length=task.context_length).context_inputs for seed in range(3)]
    )
    spectra = context_spectra(contexts, jnp.asarray(task.input_moments().second))
    actual = spectral_losses(task, spectra, jnp.asarray(RATES), curvature_corrections=jnp.asarray(CORRECTIONS))
    assert actual.shape == (4, 3)
    for index, inputs in enumerate(contexts):
        _, expected = expected_losses(LEARNER, task, inputs)
        np.testing.assert_allclose(actual[:, index], expected, rtol=1e-10)


def test_a_prediction_is_linear_in_targets_and_query():
    """What the exact expectation rests on: predictions of a whole problem from those of unit vectors."""
    problem = random_problem(9)
    A, _ = expected_losses(LEARNER, TASKS["correlated-noisy"], problem.context_inputs)
    expected = jnp.einsum("jo,sjk,k->so", problem.context_targets, A, problem.query_input)
    np.testing.assert_allclose(predict(LEARNER, problem), expected, rtol=1e-10)


def test_damping_is_the_stack_s():
    """Damping acts on everything a layer writes, so on corrections too: against a damped construction."""
    task = TASKS["correlated-noisy"]
    built = gradient_descent_plus_plus_transformer(
        input_size=INPUT_SIZE,
        output_size=CONTEXT_LENGTH,
        context_length=CONTEXT_LENGTH,
        learning_rate=jnp.asarray(RATES),
        curvature_correction=jnp.asarray(CORRECTIONS),
        num_layers=3,
    )
    damped = dataclasses.replace(built, config=dataclasses.replace(built.config, damping=0.7))
    inputs = 2 * random_problem(0).context_inputs
    spectra = context_spectra(inputs[None], jnp.asarray(task.input_moments().second))
    actual = spectral_losses(
        task, spectra, jnp.asarray(RATES), curvature_corrections=jnp.asarray(CORRECTIONS), damping=0.7
    )
    np.testing.assert_allclose(actual[:, 0], expected_losses(damped, task, inputs)[1], rtol=1e-10)


@every_task
def test_pooled_contexts_have_the_mean_loss(task):
    rng = np.random.default_rng(1)
    contexts = rng.normal(size=(500, task.context_length, INPUT_SIZE))
    spectra = context_spectra(jnp.asarray(contexts), jnp.asarray(task.input_moments().second))
    pooled = pool(spectra)
    assert pooled.eigenvalues.shape == pooled.query_moments.shape == (1, 4096)
    longer = pool(spectra, with_tail=True)
    np.testing.assert_array_equal(longer.eigenvalues[:, :4096], pooled.eigenvalues)
    assert (longer.eigenvalues[:, 4096:] > spectra.eigenvalues.max()).all()
    assert 1 < longer.query_moments.sum() / pooled.query_moments.sum() < 1 + 1 / 500
    np.testing.assert_allclose(pooled.query_moments.sum(), np.trace(task.input_moments().second), rtol=1e-12)
    numbers = jnp.asarray(RATES), jnp.asarray(CORRECTIONS)
    expected, actual = (
        spectral_losses(task, each, numbers[0], curvature_corrections=numbers[1]) for each in (spectra, pooled)
    )
    np.testing.assert_allclose(actual[:, 0], expected.mean(axis=1), rtol=1e-5)
    coarse = spectral_losses(
        task, jax.tree.map(lambda leaf: leaf[:, :8], pool(spectra, 8)), numbers[0], curvature_corrections=numbers[1]
    )
    assert np.abs(coarse[-1, 0] / expected[-1].mean() - 1) > 1e-3  # so it is the bins' number that makes it exact


# --- Tuning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context_length", "gamma"), [(10, 0.179), (25, 0.099), (50, 0.056), (100, 0.029)])
def test_published_gammas(context_length, gamma):
    """Two steps; the paper trained these numbers. 4000 contexts know gamma to about 1 %."""
    task = LinearRegression(context_length=context_length)
    tuned = tune(task, 2, spectra=sets_of(task, 4000))
    np.testing.assert_allclose(tuned.curvature_corrections, gamma, rtol=0.03)
    assert tuned.learning_rates[0] == tuned.learning_rates[1]


def test_one_step_is_the_closed_form():
    """The optimum from spectra is N (sum q l) / (sum q l^2), a ratio of means whose standard error is known."""
    sets = sets_of(SMALL, 4000)
    values = np.asarray(sets.fitted.eigenvalues)
    slopes, curvatures = values.sum(axis=1), (values**2).sum(axis=1)
    ratio = slopes.mean() / curvatures.mean()
    standard_error = (slopes - ratio * curvatures).std() / curvatures.mean() / np.sqrt(len(values))
    assert 4.5 * standard_error < 0.05 * ratio
    for algorithm in ("gd", "gd++"):
        for per_step in (False, True):
            tuned = tune(SMALL, 1, algorithm=algorithm, per_step=per_step, spectra=sets)
            np.testing.assert_allclose(tuned.learning_rates, [SMALL.context_length * ratio], rtol=1e-4)
            expected = optimal_learning_rate(SMALL)
            assert abs(tuned.learning_rates[0] - expected) < 4.5 * SMALL.context_length * standard_error
            np.testing.assert_array_equal(tuned.curvature_corrections, [0.0])  # one step has none
            assert abs(tuned.loss - one_step_loss(SMALL, float(tuned.learning_rates[0]))) < (
                4.5 * tuned.loss_standard_error
            )


@pytest.fixture(scope="module")
def sets():
    """One set is fitted and chooses among fits, so that nothing but the fitted minimum is asked for."""
    with jax.enable_x64(True):
        fitted, _, reported = sets_of(SMALL, 1000)
        return TuningSpectra(fitted, fitted, reported)


@pytest.mark.parametrize("algorithm", ["gd", "gd++"])
def test_shared_numbers_are_stationary(sets, algorithm):
    """On contexts that are not pooled, by central differences in the numbers' logarithms; 5 % off it shows."""
    tuned = tune(SMALL, 3, algorithm=algorithm, spectra=sets)
    assert len(set(tuned.learning_rates)) == len(set(tuned.curvature_corrections)) == 1
    assert (tuned.curvature_corrections[0] > 0.05) == (algorithm == "gd++")

    def slopes(*factors):
        def log_loss(factors):
            numbers = tuned.learning_rates / SMALL.context_length * factors[0], tuned.curvature_corrections * factors[1]
            return np.log(losses_by_hand(np.asarray(sets.fitted.eigenvalues), *numbers))

        shifts = 1e-5 * np.eye(2)
        return [(log_loss(factors + shift) - log_loss(factors - shift)) / 2e-5 for shift in shifts]

    np.testing.assert_allclose(slopes(1.0, 1.0), 0, atol=2e-3)
    assert slopes(1.05, 1.0)[0] > 0.05
    assert (slopes(1.0, 1.05)[1] > 0.05) == (algorithm == "gd++")


def test_two_steps_against_brute_force(sets):
    """Every step size and correction on a grid, negative corrections among them, on contexts that are not pooled."""
    values = np.asarray(sets.fitted.eigenvalues)
    largest = values[:, -1].mean()
    step_sizes, corrections = np.linspace(0.1, 8, 80) / largest, np.linspace(-0.5, 1.0, 61) / largest
    grid = np.array(
        [losses_by_hand(values, [c[:, None, None]] * 2, [g] * 2) for c in [step_sizes] for g in corrections]
    )
    row, column = np.unravel_index(grid.argmin(), grid.shape)
    tuned = tune(SMALL, 2, spectra=sets)
    assert abs(tuned.learning_rates[0] / SMALL.context_length - step_sizes[column]) <= np.diff(step_sizes)[0]
    assert abs(tuned.curvature_corrections[0] - corrections[row]) <= np.diff(corrections)[0]
    own = losses_by_hand(values, tuned.learning_rates / SMALL.context_length, tuned.curvature_corrections)
    assert grid.min() * 0.99 < own < grid.min()
    assert tuned.fitted_loss == pytest.approx(own, rel=1e-5)
    on_reported = losses_by_hand(
        np.asarray(sets.reported.eigenvalues), tuned.learning_rates / SMALL.context_length, tuned.curvature_corrections
    )
    assert tuned.loss == pytest.approx(on_reported, rel=1e-12)


@pytest.mark.parametrize("algorithm", ["gd", "gd++"])
def test_numbers_per_step_are_never_worse(sets, algorithm):
    shared = tune(SMALL, 3, algorithm=algorithm, spectra=sets)
    own = tune(SMALL, 3, algorithm=algorithm, per_step=True, spectra=sets)
    assert own.fitted_loss < 0.9 * shared.fitted_loss
    assert len({round(rate, 3) for rate in own.learning_rates}) == 3
    if algorithm == "gd":
        np.testing.assert_array_equal(own.curvature_corrections, 0.0)
        assert own.fitted_loss > tune(SMALL, 3, per_step=True, spectra=sets).fitted_loss
    else:
        assert own.curvature_corrections[0] != own.curvature_corrections[1]
        assert own.curvature_corrections[2] == own.curvature_corrections[1]  # the last has no effect


def test_order_of_descent_s_steps_does_not_matter():
    """Which is why a fit per step must not start from equal numbers; with corrections the order does matter."""
    spectra, rates = spectra_of(eigenvalues(SMALL, 11, 0)), (2.0, 5.0, 11.0)
    for corrections, is_equal in ((jnp.zeros(3), True), (jnp.full(3, 0.2), False)):
        losses = [
            spectral_losses(SMALL, spectra, jnp.array(order), curvature_corrections=corrections)[-1]
            for order in itertools.permutations(rates)
        ]
        assert (np.ptp(losses, axis=0) < 1e-12 * np.max(losses, axis=0)).all() == is_equal


def test_the_added_tail_guards_a_fit(monkeypatch):
    """Five steps with numbers of their own, fitted to few contexts, hold on many; without the tail not all do."""
    task, tail = LinearRegression(), spectrum._exponential_tail
    worst = {}
    for name, function in (
        ("guarded", tail),
        ("naive", lambda *sample: (tail(*sample)[0], np.zeros(256))),
    ):
        monkeypatch.setattr(spectrum, "_exponential_tail", function)
        ratios = []
        for seed in range(3):
            few, many = sets_of(task, 1000, seed), sets_of(task, 10_000, seed + 50)
            tuned = tune(task, 5, per_step=True, spectra=TuningSpectra(few.fitted, few.choosing, many.reported))
            ratios.append(tuned.loss / tuned.fitted_loss)
        worst[name] = max(ratios)
    assert worst["guarded"] < 1.5
    assert worst["naive"] > 1000


def test_the_tail_goes_on_where_the_sample_ends():
    """Largest eigenvalues of exponential distribution: the tail's mass and mean are those of the distribution."""
    largest = np.random.default_rng(0).exponential(2.0, size=(200_000, 1))
    nodes, weights = spectrum._exponential_tail(largest, np.full(largest.size, 3.0 / largest.size))
    assert (nodes > largest.max()).all()
    beyond = np.exp(-largest.max() / 2.0)  # survival function at the sample's end
    assert 0.5 < weights.sum() / (3.0 * beyond) < 2.0
    assert np.average(nodes - largest.max(), weights=weights) == pytest.approx(2.0, rel=0.3)


def test_three_independent_sets():
    task = dataclasses.replace(SMALL, input_scale=2.0)
    sets = tuning_spectra(task, num_contexts=500)
    assert TuningSpectra._fields == ("fitted", "choosing", "reported")
    first_moment = task.context_length * np.trace(task.input_moments().second)
    for spectra in sets:
        assert spectra.eigenvalues.shape == spectra.query_moments.shape == (500, 3)
        assert spectra.eigenvalues.dtype == jnp.float64
        traces = np.asarray(spectra.eigenvalues).sum(axis=1)
        assert abs(traces.mean() - first_moment) < 4.5 * traces.std() / np.sqrt(500)
    for one, other in itertools.combinations(sets, 2):
        assert np.intersect1d(one.eigenvalues, other.eigenvalues).size == 0
    # The inputs are those of the task's samples, whatever its targets.
    with jax.enable_x64(True):
        inputs = task.samples(named_key(named_key(root_key(0), "tuning"), "reported"), 500).problem.context_inputs
    expected = np.linalg.eigvalsh(np.einsum("tni,tnj->tij", inputs, inputs))
    other_targets = tuning_spectra(dataclasses.replace(task, noise_std=0.3, output_size=2), num_contexts=500)
    np.testing.assert_allclose(other_targets.reported.eigenvalues, expected, rtol=1e-9, atol=1e-12)
    again, elsewhere = tuning_spectra(task, num_contexts=500), tuning_spectra(task, num_contexts=500, seed=1)
    np.testing.assert_array_equal(again.fitted.eigenvalues, sets.fitted.eigenvalues)
    assert np.intersect1d(elsewhere.fitted.eigenvalues, sets.fitted.eigenvalues).size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 2, "algorithm": "sgd"}, r"algorithm must be one of 'gd', 'gd\+\+', got 'sgd'"),
    ],
)
def test_impossible_tunings_are_refused(sets, arguments, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # the suite's type checks would refuse some values before we do
    try:
        with pytest.raises(ValueError, match=message) as error:
            tune(SMALL, **arguments, spectra=sets)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "\n" not in str(error.value)
