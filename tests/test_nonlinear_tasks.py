"""Sine waves and random networks: distributions, variants, and that they are what they say."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from helpers import assert_mean

from innerloop.keys import root_key
from innerloop.tasks import Gaussian, Normal, RandomNetwork, SineWaves

MANY = 50_000
_draw = jax.jit(lambda task, key, num_tasks: task.draw(key, num_tasks), static_argnums=2)
_assemble = jax.jit(lambda task, draw: task.assemble(draw))


def batch_of(task, seed, num_tasks=MANY):
    """Inputs (tasks, tokens, inputs) and targets, in NumPy's double precision; tasks of one draw share a program."""
    batch = _assemble(task, _draw(task, root_key(seed), num_tasks))
    return tuple(np.asarray(part, np.float64).transpose(2, 1, 0) for part in (batch.inputs, batch.targets))


# --- Sine waves ------------------------------------------------------------------------------------------------------


def fitted(inputs, targets):
    """Amplitude and phase of every task by least squares: y = a cos(p) sin(x) + a sin(p) cos(x)."""
    basis = np.concatenate([np.sin(inputs), np.cos(inputs)], axis=-1)
    coefficients = (np.linalg.pinv(basis) @ targets)[..., 0]
    residual = np.abs(basis @ coefficients[..., None] - targets).max()
    return np.hypot(*coefficients.T), np.arctan2(coefficients[:, 1], coefficients[:, 0]), residual


@pytest.fixture(scope="module")
def waves():
    return {variant: batch_of(SineWaves(variant=variant), 1) for variant in ("independent", "reference")}


@pytest.mark.parametrize("variant", ["independent", "reference"])
def test_every_task_is_one_sine_wave(waves, variant):
    """Of uniform amplitude and phase; context and query are of one wave, and no two tasks share one."""
    inputs, targets = waves[variant]
    amplitude, phase, residual = fitted(inputs, targets)
    assert residual < 2e-6
    for value, low, high in ((amplitude, 0.1, 0.5), (phase, 0.0, math.pi), (inputs[:, -1, 0], -5, 5)):
        assert low - 1e-5 < value.min() < low + 1e-3 * (high - low)
        assert high - 1e-3 * (high - low) < value.max() < high + 1e-5
        unit = (value - low) / (high - low)
        assert_mean(unit, 0.5)
        assert_mean(unit**2, 1 / 3)
        assert_mean(unit**4, 1 / 5)
    assert np.unique(np.round(amplitude, 5)).size > 10_000
    assert_mean((amplitude[1:] - 0.3) * (amplitude[:-1] - 0.3), 0.0)
    assert_mean(inputs[:, 0, 0] * inputs[:, 1, 0], 0.0)
    assert_mean((amplitude - 0.3) * inputs[:, 0, 0], 0.0)


def test_amplitude_and_phase_are_independent_or_one_number(waves):
    amplitude, phase, _ = fitted(*waves["independent"])
    places = (amplitude - 0.1) / 0.4, phase / math.pi
    for powers in ((1, 1), (2, 1), (1, 2)):
        parts = [place**power - np.mean(place**power) for place, power in zip(places, powers, strict=True)]
        assert_mean(parts[0] * parts[1], 0.0)
    amplitude, phase, _ = fitted(*waves["reference"])
    np.testing.assert_allclose((amplitude - 0.1) / 0.4, phase / math.pi, atol=1e-4)


def test_mean_square_of_the_waves(waves):
    """E a^2 = .31 / 3; over x in (-5, 5) and p in (0, pi), E sin^2 = 1/2 since cos(2 x + 2 p) averages to 0 over p."""
    assert_mean(waves["independent"][1][:, -1, 0] ** 2, (0.1**2 + 0.1 * 0.5 + 0.5**2) / 3 / 2)


def test_ranges_are_options():
    """The text's amplitudes are U(.1, 5)."""
    task = SineWaves(largest_amplitude=5.0, smallest_amplitude=1.0, largest_phase=0.5, input_range=4.0)
    inputs, targets = batch_of(task, 2)
    amplitude, phase, _ = fitted(inputs, targets)
    np.testing.assert_allclose([amplitude.min(), amplitude.max()], [1, 5], atol=0.01)
    np.testing.assert_allclose([phase.min(), phase.max()], [0, 0.5], atol=0.01)
    np.testing.assert_allclose([inputs.min(), inputs.max()], [-2, 2], atol=0.01)


def test_variants_share_inputs_and_amplitudes(waves):
    """Streams have names: taking the phase from elsewhere reshuffles nothing else."""
    np.testing.assert_array_equal(waves["independent"][0], waves["reference"][0])
    one, other = (fitted(*waves[variant])[0] for variant in ("independent", "reference"))
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_size", 2, r"task.input_size \(of sine waves\) must be an integer of at most 1, got 2"),
        ("output_size", 3, r"task.output_size \(of sine waves\) must be an integer of at most 1, got 3"),
        ("context_length", 0, "task.context_length must be an integer of at least 1, got 0"),
        ("smallest_amplitude", -0.1, "task.smallest_amplitude must be a finite number of at least 0, got -0.1"),
        ("largest_amplitude", 0.05, "task.largest_amplitude must be a finite number of at least 0.1, got 0.05"),
        ("largest_phase", math.nan, "task.largest_phase must be a finite number of at least 0, got nan"),
        ("input_range", 0.0, "task.input_range must be a finite number above 0, got 0.0"),
    ],
)
def test_ranges_of_sine_waves(name, value, message):
    with pytest.raises(ValueError, match=message) as error:
        SineWaves(**{name: value})
    assert "\n" not in str(error.value)


# --- Random networks -------------------------------------------------------------------------------------------------

NETWORK = RandomNetwork(input_size=3, output_size=2, context_length=31, hidden_size=5)


def test_targets_are_as_large_as_the_inputs():
    """E y^2 = |x|^2 given x, for every output, as in linear regression; outputs of one task are uncorrelated."""
    inputs, targets = batch_of(NETWORK, 3)
    squares = np.sum(inputs**2, axis=-1, keepdims=True)  # (tasks, tokens, 1)
    for token in (0, -1):
        assert_mean(targets[:, token] / np.sqrt(squares[:, token]), np.zeros(2))
        assert_mean(targets[:, token] ** 2 / squares[:, token], np.ones(2))
        assert_mean(targets[:, token, 0] * targets[:, token, 1] / squares[:, token, 0], 0.0)
    assert_mean(targets[1:, 0] * targets[:-1, 0], np.zeros(2))  # a fresh network per task


def test_a_hidden_layer_of_one():
    """V relu(W x) by hand from what is drawn: the scale is the root of 2 / hidden_size, and both scales multiply."""
    task = dataclasses.replace(NETWORK, hidden_size=2, input_scale=1.5, target_scale=0.5)
    draw = _draw(task, root_key(4), 3)
    batch = _assemble(task, draw)
    for b, t, o in np.ndindex(3, 32, 2):
        x = 1.5 * np.asarray(draw.inputs)[:, t, b]
        np.testing.assert_allclose(batch.inputs[:, t, b], x, rtol=1e-6)
        hidden = [max(float(np.asarray(draw.first)[h, :, b] @ x), 0.0) for h in range(2)]
        y = 0.5 * math.sqrt(2 / 2) * sum(np.asarray(draw.second)[o, h, b] * hidden[h] for h in range(2))
        np.testing.assert_allclose(batch.targets[o, t, b], y, rtol=1e-4, atol=1e-5)


def test_networks_are_not_linear_but_piecewise():
    """On a task's own context, the best affine map leaves much; doubling the inputs doubles the targets exactly."""
    inputs, targets = batch_of(NETWORK, 5, 997)
    affine = np.concatenate([inputs, np.ones((*inputs.shape[:2], 1))], axis=-1)
    left = targets - affine @ (np.linalg.pinv(affine) @ targets)
    unexplained = np.sum(left**2, axis=1) / np.sum((targets - targets.mean(axis=1, keepdims=True)) ** 2, axis=1)
    assert 0.1 < np.mean(unexplained) < 0.9
    doubled = batch_of(dataclasses.replace(NETWORK, input_scale=2.0), 5, 997)
    np.testing.assert_allclose(doubled[0], 2 * inputs, rtol=1e-6)
    np.testing.assert_allclose(doubled[1], 2 * targets, rtol=1e-5, atol=1e-5)


def test_inputs_are_of_the_chosen_distribution():
    inputs, _ = batch_of(dataclasses.replace(NETWORK, inputs=Normal()), 6)
    assert_mean(inputs[:, 0] ** 2, np.ones(3))
    assert_mean(inputs[:, 0] ** 4, 3 * np.ones(3), resolution=0.15)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_size", 0),
        ("output_size", -1),
        ("context_length", 0),
        ("hidden_size", 0),
        ("input_scale", 0.0),
        ("target_scale", math.inf),
    ],
)
def test_ranges_of_random_networks(name, value):
    with pytest.raises(ValueError, match=rf"task\.{name} must be .*, got {value!r}") as error:
        RandomNetwork(**{name: value})
    assert "\n" not in str(error.value)


def test_covariance_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"inputs\.covariance is 2 x 2, but input_size is 5"):
        RandomNetwork(input_size=5, inputs=Gaussian(((1.0, 0.0), (0.0, 1.0))))
