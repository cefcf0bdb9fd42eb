"""Proposition 1, proved numerically: the construction and gradient descent differ by rounding, for any sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_problem, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from innerloop.algorithms import GradientDescent
from innerloop.constructions import gradient_descent_transformer, gradient_descent_weights
from innerloop.models import products

predict = jax.jit(lambda learner, problem: learner(problem))
predict_both = jax.jit(lambda one, other, problem: (one(problem), other(problem)))


def initial_weights(seed, output_size, input_size):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(output_size, input_size)))


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])  # every example compiles anew: few, none shrunk
@given(
    input_size=st.integers(1, 13),
    output_size=st.integers(1, 5),
    context_length=st.integers(1, 23),
    num_layers=st.integers(1, 7),
    has_initial_weights=st.booleans(),
    has_rate_per_step=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_construction_is_gradient_descent(
    x64, input_size, output_size, context_length, num_layers, has_initial_weights, has_rate_per_step, seed
):
    """At every step, for the query and all context tokens at once; one rate (tied) or one per step (untied)."""
    sizes = {"input_size": input_size, "output_size": output_size, "context_length": context_length}
    problem = random_problem(seed, **sizes)
    W0 = initial_weights(seed, output_size, input_size) if has_initial_weights else None
    rates = np.random.default_rng(seed).uniform(-0.3, 0.3, num_layers)
    rate = jnp.asarray(rates if has_rate_per_step else rates[0])

    @jax.jit  # the construction too: its small steps are not compiled one by one
    def build_and_predict(rate, W0, problem):
        construction = gradient_descent_transformer(
            **sizes, learning_rate=rate, num_layers=num_layers, initial_weights=W0
        )
        assert construction.config.tied != has_rate_per_step
        return construction(problem), GradientDescent(rate, num_steps=num_layers, initial_weights=W0)(problem)

    actual, expected = build_and_predict(rate, W0, problem)
    assert relative_difference(actual, expected) < 1e-12
    assert np.abs(np.subtract(*np.asarray(expected.trajectory)[[0, -1]])).max() > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_published_demo(dtype, tolerance):
    """N 45, n_i 12, n_o 8, 100 steps; the published float32 difference is 2.6e-06."""
    with jax.enable_x64(dtype == "float64"):
        sizes = {"input_size": 12, "output_size": 8, "context_length": 45}
        problem, W0 = random_problem(1, **sizes), initial_weights(2, 8, 12)
        W0 = W0.astype(dtype)
        construction = gradient_descent_transformer(**sizes, learning_rate=0.9, num_layers=100, initial_weights=W0)
        descent = GradientDescent(0.9, num_steps=100, initial_weights=W0)
        actual, expected = jax.tree.map(np.asarray, predict_both(construction, descent, problem))
    assert actual.value.dtype == dtype
    assert actual.trajectory.shape == (101, 8)
    assert np.abs(actual.trajectory - expected.trajectory).max() < tolerance
    assert np.abs(actual.context_trajectory - expected.context_trajectory).max() < tolerance
    assert np.abs(expected.trajectory[-1] - expected.trajectory[0]).max() > 0.5


def value_with_query_among_keys(num_layers, W0):
    """The construction's prediction without and with the query as a key and value."""
    problem = random_problem(3)
    construction = gradient_descent_transformer(
        input_size=3, output_size=2, context_length=7, learning_rate=0.5, num_layers=num_layers, initial_weights=W0
    )
    config = dataclasses.replace(construction.config, query_in_keys=True)
    with_query = dataclasses.replace(construction, config=config)
    return predict(construction, problem).value, predict(with_query, problem).value


def test_query_among_keys_is_harmless_iff_it_starts_at_zero(x64):
    """The query's value is W0 x - (-W0 x) = 2 W0 x: nothing for W0 = 0."""
    without, with_query = value_with_query_among_keys(1, None)
    np.testing.assert_allclose(with_query, without, rtol=1e-13)
    without, with_query = value_with_query_among_keys(1, initial_weights(4, 2, 3))
    assert float(jnp.abs(with_query - without).min()) > 0.1


def test_query_among_keys_harms_later_layers(x64):
    """After one layer the query's entry holds a prediction, so the remark is about the first layer only."""
    without, with_query = value_with_query_among_keys(2, None)
    assert float(jnp.abs(with_query - without).min()) > 1e-3


def test_a_wrong_learning_rate_shows(x64):
    """A near miss: a rate 0.1 % off must not pass for the algorithm."""
    problem, sizes = random_problem(5), {"input_size": 3, "output_size": 2, "context_length": 7}
    construction = gradient_descent_transformer(**sizes, learning_rate=0.5005, num_layers=2)
    actual, expected = predict_both(construction, GradientDescent(0.5, 2), problem)
    assert relative_difference(actual.value, expected.value) > 1e-4


def test_products_of_the_construction(x64):
    """W_K^T W_Q selects the inputs; P W_V is (eta / N) [[0, 0], [W0, -I]]."""
    W0 = initial_weights(6, 2, 3)
    weights = gradient_descent_weights(
        input_size=3, output_size=2, context_length=7, learning_rate=jnp.array([0.5, 1.5]), initial_weights=W0
    )
    reduced = products(weights)
    assert reduced.W_KQ.shape == (2, 1, 5, 5)
    for layer, rate in enumerate((0.5, 1.5)):
        np.testing.assert_allclose(reduced.W_KQ[layer, 0], np.diag([1.0, 1.0, 1.0, 0.0, 0.0]))
        expected = np.zeros((5, 5))
        expected[3:, :3], expected[3:, 3:] = W0, -np.eye(2)
        np.testing.assert_allclose(reduced.W_PV[layer, 0], rate / 7 * expected, rtol=1e-13)


@pytest.mark.parametrize("name", ["input_size", "output_size", "context_length"])
def test_ranges(name):
    sizes = {"input_size": 3, "output_size": 2, "context_length": 7, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        gradient_descent_weights(**sizes, learning_rate=1.0)
