"""Closed forms and spectra against Monte Carlo of the learners themselves, within k standard errors."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONTEXT_LENGTH, INPUT_SIZE, OUTPUT_SIZE, assert_mean, random_problem

from innerloop.algorithms import GradientDescent, Ridge, Trivial, bayes_optimal
from innerloop.exact import (
    context_spectra,
    gradient_descent_losses,
    one_step_loss,
    one_step_parabola,
    optimal_learning_rate,
    sample_spectra,
    trivial_loss,
)
from innerloop.keys import root_key
from innerloop.tasks import Exponential, Gaussian, Laplace, LinearRegression, Normal

SIZES = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
CORRELATED = Gaussian(((1.3, 0.4, -0.2), (0.4, 0.6, 0.1), (-0.2, 0.1, 0.9)))
TASKS = {
    "uniform": LinearRegression(**SIZES, input_scale=1.7, target_scale=0.6),
    "normal-noisy": LinearRegression(**SIZES, inputs=Normal(), noise_std=0.5, input_scale=0.8, target_scale=1.3),
    "exponential-noisy": LinearRegression(**SIZES, inputs=Exponential(), noise_std=0.7),
    "laplace": LinearRegression(**SIZES, inputs=Laplace(), input_scale=0.5),
    "correlated-noisy": LinearRegression(**SIZES, inputs=CORRELATED, noise_std=0.5, target_scale=0.6),
    "short-context-noisy": LinearRegression(input_size=5, output_size=3, context_length=2, noise_std=0.4),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
MANY = 50_000


@eqx.filter_jit
def samples_of(task, key, num_tasks=MANY):
    return task.samples(key, num_tasks)


@eqx.filter_jit
def losses(learner, samples):
    """Half squared error, summed over outputs: per task, before the first and after every step."""
    trajectories = jax.vmap(lambda problem: learner(problem).trajectory)(samples.problem)  # (tasks, steps + 1, outputs)
    return 0.5 * jnp.sum((trajectories - samples.query_target[:, None]) ** 2, axis=-1)


@every_task
def test_one_step_loss(task):
    """Off the optimum on both sides, where errors in slope and curvature cannot hide behind each other."""
    samples = samples_of(task, root_key(1))
    for factor in (0.5, 1.4):
        rate = factor * optimal_learning_rate(task)
        measured = losses(GradientDescent(jnp.asarray(rate)), samples)
        assert_mean(measured[:, 1], one_step_loss(task, rate), resolution=0.12)
        assert_mean(measured[:, 0], trivial_loss(task))
    assert_mean(losses(Trivial(), samples)[:, 0], trivial_loss(task))


@every_task
def test_optimal_learning_rate(task):
    """The minimum of the closed form, and, on the same tasks, better than its neighbours."""
    best = optimal_learning_rate(task)
    grid = best * np.linspace(0.0, 2.0, 201)
    assert grid[np.argmin([one_step_loss(task, rate) for rate in grid])] == pytest.approx(best)
    assert one_step_loss(task, best) < min(one_step_loss(task, best * 0.999), one_step_loss(task, best * 1.001))
    samples = samples_of(task, root_key(1))
    at_best = losses(GradientDescent(jnp.asarray(best)), samples)[:, 1]
    curvature = one_step_parabola(task).curvature
    for factor in (0.5, 1.5):
        at_neighbour = losses(GradientDescent(jnp.asarray(factor * best)), samples)[:, 1]
        expected = curvature / 2 * ((factor - 1) * best / task.context_length) ** 2
        assert expected > 0
        assert_mean(np.asarray(at_neighbour) - np.asarray(at_best), expected, resolution=0.5)


def test_published_values():
    """Paper's setting: eta 6.06, loss .2062 (published: .2047 on one set of 10 000 tasks, whose scatter is .003)."""
    task = LinearRegression()
    assert optimal_learning_rate(task) == pytest.approx(200 / 33)
    assert one_step_loss(task, optimal_learning_rate(task)) == pytest.approx(5 / 12 * (1 - 50 / 99))
    assert trivial_loss(task) == pytest.approx(10 / 24)


def test_scales():
    """Losses are quadratic in the target's scale; c = eta / N is inversely quadratic in the inputs'."""
    task = LinearRegression(**SIZES)
    wide = dataclasses.replace(task, input_scale=2.0, target_scale=3.0)
    assert optimal_learning_rate(wide) == pytest.approx(optimal_learning_rate(task) / 4)
    assert one_step_loss(wide, 0.5) == pytest.approx(36 * one_step_loss(task, 2.0))
    assert trivial_loss(dataclasses.replace(task, output_size=5)) == pytest.approx(2.5 * trivial_loss(task))


@pytest.mark.parametrize("function", [one_step_parabola, optimal_learning_rate, trivial_loss])
def test_no_closed_form_for_normalised_contexts(function):
    with pytest.raises(ValueError, match=r"task\.normalise_context"):
        function(LinearRegression(normalise_context=True))


def second_moment(task):
    return jnp.asarray(task.input_moments().second)


@every_task
def test_spectrum_for_one_step_is_the_closed_form(task):
    spectra = sample_spectra(task, root_key(2), MANY)
    rate = 1.2 * optimal_learning_rate(task)
    expected = gradient_descent_losses(task, spectra, jnp.array([rate]))
    assert_mean(expected[1], one_step_loss(task, rate))
    np.testing.assert_allclose(expected[0], trivial_loss(task), rtol=1e-4)


@every_task
def test_spectrum_for_several_damped_steps(task):
    """Per context: measured minus expected loss has mean zero, for rates that differ from step to step."""
    samples = samples_of(task, root_key(3))
    rates, damping = optimal_learning_rate(task) * jnp.array([0.9, -0.2, 0.6]), 0.8
    measured = losses(GradientDescent(rates, num_steps=3, damping=damping), samples)
    spectra = context_spectra(samples.problem.context_inputs, second_moment(task))
    expected = gradient_descent_losses(task, spectra, rates, damping=damping)
    assert expected.shape == (4, MANY)
    for step in range(4):
        difference = np.asarray(measured[:, step] - expected[step], np.float64)
        standard_error = difference.std() / np.sqrt(MANY)
        assert 4.5 * standard_error < 0.15 * float(expected[step].mean())
        assert abs(difference.mean()) < 4.5 * standard_error


def test_damping_scales_every_rate(x64):
    task, rates = TASKS["correlated-noisy"], jnp.array([0.9, 0.3])
    spectra = context_spectra(random_problem(4, 5).context_inputs, second_moment(task))
    damped = gradient_descent_losses(task, spectra, rates, damping=0.75)
    np.testing.assert_allclose(damped, gradient_descent_losses(task, spectra, 0.75 * rates), rtol=1e-12)


def test_spectra(x64):
    """Eigenvalues and query moments of given contexts, against NumPy; short contexts have exact zeros."""
    for context_length in (7, 2):
        contexts = random_problem(5, 5, context_length=context_length).context_inputs
        spectra = context_spectra(contexts, jnp.asarray(CORRELATED.covariance))
        for index in range(5):
            x = np.asarray(contexts[index])
            values, vectors = np.linalg.eigh(x.T @ x)
            moments = np.diag(vectors.T @ np.asarray(CORRELATED.covariance) @ vectors)
            np.testing.assert_allclose(spectra.eigenvalues[index], values, atol=1e-12)
            np.testing.assert_allclose(spectra.query_moments[index], moments, rtol=1e-9)
        assert (spectra.eigenvalues >= 0).all()


def test_spectrum_tells_divergence():
    """Where some |1 - c l| exceeds one the loss grows from step to step, elsewhere it falls (no noise)."""
    task = LinearRegression(**SIZES, inputs=Normal())
    spectra, rate = sample_spectra(task, root_key(6), 1000), 1.0
    curves = np.asarray(gradient_descent_losses(task, spectra, jnp.full(40, rate)))
    diverges = np.asarray(jnp.abs(1 - rate / CONTEXT_LENGTH * spectra.eigenvalues).max(axis=1) > 1)
    assert 0.05 < diverges.mean() < 0.95
    assert (np.diff(curves[:, ~diverges], axis=0) <= 1e-6).all()
    assert (curves[40, diverges] > curves[30, diverges]).all()


NOISY = LinearRegression(
    input_size=5, output_size=2, context_length=11, inputs=Normal(), noise_std=1.2, target_scale=0.7
)


def test_bayes_optimal_loss():
    """The posterior of W has covariance sigma^2 (X X^T + penalty)^-1 per output, so the loss is known per context."""
    samples = samples_of(NOISY, root_key(7))
    learner = bayes_optimal(NOISY)
    assert learner.penalty == pytest.approx((1.2 / 0.7) ** 2)
    spectra = context_spectra(samples.problem.context_inputs, second_moment(NOISY))
    per_context = spectra.query_moments * 1.2**2 / (spectra.eigenvalues + learner.penalty)
    expected = NOISY.output_size / 2 * float(jnp.sum(per_context, axis=1).mean())
    assert_mean(losses(learner, samples)[:, 1], expected)


def test_bayes_optimal_beats_everyone():
    """Every tuned gradient descent, and ridge with another penalty, on the same tasks."""
    samples = samples_of(NOISY, root_key(8))
    spectra = context_spectra(samples.problem.context_inputs[:5000], second_moment(NOISY))
    best = losses(bayes_optimal(NOISY), samples)[:, 1]
    rates = np.linspace(0.02, 1.5, 75)

    def mean_loss(rate, num_steps):
        return gradient_descent_losses(NOISY, spectra, jnp.full(num_steps, rate))[-1].mean()

    for num_steps in (1, 3, 11):
        tuned = int(jnp.argmin(jax.jit(jax.vmap(partial(mean_loss, num_steps=num_steps)))(jnp.asarray(rates))))
        assert 0 < tuned < len(rates) - 1  # the search did bracket the optimum
        descent = GradientDescent(jnp.asarray(rates[tuned]), num_steps=num_steps)
        assert_above_zero(losses(descent, samples)[:, -1] - best)
    for factor in (0.3, 3.0):
        assert_above_zero(losses(Ridge(factor * bayes_optimal(NOISY).penalty), samples)[:, 1] - best)
    assert_above_zero(losses(Trivial(), samples)[:, 0] - best)


def assert_above_zero(differences, k=4.5):
    differences = np.asarray(differences, np.float64)
    assert differences.mean() > k * differences.std() / np.sqrt(len(differences))


def test_noiseless_bayes_optimal_is_exact():
    """As many points as dimensions and no noise: the weights are known."""
    task = LinearRegression(**SIZES)
    samples = samples_of(task, root_key(9), 1000)
    assert float(losses(bayes_optimal(task), samples)[:, 1].max()) < 1e-8
    short = dataclasses.replace(task, context_length=2)  # one direction of three stays unseen
    samples = samples_of(short, root_key(10))
    assert_mean(losses(bayes_optimal(short), samples)[:, 1], trivial_loss(short) / 3)
