"""GD++: the algorithm against plain NumPy, its construction against the algorithm, both definitions of the residual."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import CONTEXT_LENGTH, INPUT_SIZE, OUTPUT_SIZE, random_problem, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from innerloop.algorithms import GradientDescent, GradientDescentPlusPlus
from innerloop.constructions import gradient_descent_plus_plus_transformer, gradient_descent_plus_plus_weights
from innerloop.models import products
from innerloop.tasks import Batch
from innerloop.tokens import ConcatenatedTokens

SIZES = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
RATES, CORRECTIONS = (0.3, -0.2, 0.4), (0.02, 0.05, -0.03)
every_definition = pytest.mark.parametrize("residuals", ["carried", "recomputed"])

predict = eqx.filter_jit(lambda learner, problem: learner(problem))
predict_both = eqx.filter_jit(lambda one, other, problem: (one(problem), other(problem)))


def initial_weights(seed=0, output_size=OUTPUT_SIZE, input_size=INPUT_SIZE):
    return jnp.asarray(np.random.default_rng(seed + 1000).normal(size=(output_size, input_size)))


def by_hand(problem, rates, corrections, W0, residuals):
    """Token after token, with the sums of the definition: predictions (steps + 1, context and query, outputs)."""
    x = [np.array(each) for each in (*problem.context_inputs, problem.query_input)]
    y = [np.array(each) for each in problem.context_targets]
    num_context, W0 = len(y), np.asarray(W0)
    first = [W0 @ each for each in x]
    true_residuals = [y[j] - first[j] for j in range(num_context)]
    taken = [np.zeros_like(each) for each in first]  # what the steps have added to each prediction
    predictions = [np.array(first)]
    for rate, correction in zip(rates, corrections, strict=True):
        gradient, gram = np.zeros_like(W0), np.zeros((len(x[0]), len(x[0])))
        for j in range(num_context):
            left = true_residuals[j] if residuals == "carried" else y[j] - W0 @ x[j]
            gradient -= np.outer(left - taken[j], x[j]) / num_context
            gram += np.outer(x[j], x[j])
        taken = [taken[i] - rate * gradient @ x[i] for i in range(num_context + 1)]
        x = [x[i] - correction * gram @ x[i] for i in range(num_context + 1)]
        predictions.append(np.array(first) + np.array(taken))
    return np.array(predictions)


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])  # every example compiles anew: few, none shrunk
@given(
    input_size=st.integers(1, 11),
    output_size=st.integers(1, 5),
    context_length=st.integers(1, 19),
    num_layers=st.integers(1, 5),
    has_initial_weights=st.booleans(),
    has_rate_per_step=st.booleans(),
    has_correction_per_step=st.booleans(),
    residuals=st.sampled_from(["carried", "recomputed"]),
    seed=st.integers(0, 1000),
)
def test_construction_is_the_algorithm_is_the_definition(
    x64,
    input_size,
    output_size,
    context_length,
    num_layers,
    has_initial_weights,
    has_rate_per_step,
    has_correction_per_step,
    residuals,
    seed,
):
    """At every step, for the query and all context tokens; tied where both numbers are shared, else untied."""
    sizes = {"input_size": input_size, "output_size": output_size, "context_length": context_length}
    problem = random_problem(seed, **sizes)
    W0 = initial_weights(seed, output_size, input_size) if has_initial_weights else None
    rng = np.random.default_rng(seed)
    rates = np.full(num_layers, 0.3) * (rng.uniform(-1, 1, num_layers) if has_rate_per_step else 1.0)
    corrections = np.full(num_layers, 0.3 / (input_size + context_length))
    corrections = corrections * (rng.uniform(-0.5, 1.5, num_layers) if has_correction_per_step else 1.0)
    numbers = {
        "learning_rate": jnp.asarray(rates) if has_rate_per_step else float(rates[0]),
        "curvature_correction": jnp.asarray(corrections) if has_correction_per_step else float(corrections[0]),
    }
    construction = gradient_descent_plus_plus_transformer(
        **sizes, **numbers, num_layers=num_layers, initial_weights=W0, residuals=residuals
    )
    assert construction.config.tied == (not has_rate_per_step and not has_correction_per_step)
    algorithm = GradientDescentPlusPlus(**numbers, num_steps=num_layers, initial_weights=W0, residuals=residuals)
    built, ours = predict_both(construction, algorithm, problem)
    assert ours.trajectory.shape == (num_layers + 1, output_size)
    assert ours.context_trajectory.shape == (num_layers + 1, context_length, output_size)
    assert relative_difference(built, ours) < 1e-12
    expected = by_hand(
        problem, rates, corrections, np.zeros((output_size, input_size)) if W0 is None else W0, residuals
    )
    assert relative_difference((ours.context_trajectory, ours.trajectory), (expected[:, :-1], expected[:, -1])) < 1e-12
    np.testing.assert_array_equal(ours.value, ours.trajectory[-1])
    assert float(jnp.abs(ours.trajectory[-1] - ours.trajectory[0]).max()) > 0


@every_definition
def test_a_wrong_number_shows(x64, residuals):
    """Near misses: a gamma or eta 0.1 % off, in the first step alone, must not pass for the algorithm."""
    problem, W0 = random_problem(1), initial_weights()

    def value(rates, corrections):
        learner = GradientDescentPlusPlus(jnp.array(rates), jnp.array(corrections), 3, W0, residuals)
        return predict(learner, problem).value

    expected = value(RATES, CORRECTIONS)
    assert relative_difference(value(RATES, (1.001 * CORRECTIONS[0], *CORRECTIONS[1:])), expected) > 1e-7
    assert relative_difference(value((1.001 * RATES[0], *RATES[1:]), CORRECTIONS), expected) > 1e-7


def both_definitions(num_steps, W0):
    """Predictions of algorithm and construction under both definitions."""
    numbers = {"learning_rate": 0.3, "curvature_correction": 0.02, "initial_weights": W0}
    return [
        predict_both(
            GradientDescentPlusPlus(**numbers, num_steps=num_steps, residuals=residuals),
            gradient_descent_plus_plus_transformer(**SIZES, **numbers, num_layers=num_steps, residuals=residuals),
            random_problem(2),
        )
        for residuals in ("carried", "recomputed")
    ]


@pytest.mark.parametrize(("num_steps", "has_initial_weights"), [(1, True), (3, False)])
def test_definitions_agree_in_the_first_step_and_from_zero(x64, num_steps, has_initial_weights):
    carried, recomputed = both_definitions(num_steps, initial_weights() if has_initial_weights else None)
    assert relative_difference(carried, recomputed) < 1e-12


def test_definitions_differ_from_the_second_step_on(x64):
    """So the construction of one is not the other's: algorithm against construction, crosswise."""
    (carried, built_carried), (recomputed, built_recomputed) = both_definitions(3, initial_weights())
    for algorithm, construction in ((carried, built_recomputed), (recomputed, built_carried)):
        assert relative_difference(algorithm.trajectory[:2], construction.trajectory[:2]) < 1e-12
        assert relative_difference(algorithm.trajectory[2], construction.trajectory[2]) > 1e-3


@every_definition
def test_without_correction_it_is_gradient_descent(x64, residuals):
    problem, W0 = random_problem(3), initial_weights()
    learner = GradientDescentPlusPlus(jnp.array(RATES), jnp.zeros(3), 3, W0, residuals)
    actual, expected = predict_both(learner, GradientDescent(jnp.array(RATES), 3, initial_weights=W0), problem)
    assert relative_difference(actual, expected) < 1e-13


@every_definition
def test_last_correction_has_no_effect(x64, residuals):
    """One step is plain gradient descent, whatever gamma; of several, all corrections but the last count."""
    problem, W0 = random_problem(4), initial_weights()
    one_step, descent = predict_both(
        GradientDescentPlusPlus(0.3, 17.0, 1, W0, residuals), GradientDescent(0.3, initial_weights=W0), problem
    )
    assert relative_difference(one_step, descent) < 1e-13
    for step, counts in enumerate((True, True, False)):
        values = [
            predict(GradientDescentPlusPlus(jnp.array(RATES), jnp.array(numbers), 3, W0, residuals), problem).value
            for numbers in (CORRECTIONS, (*CORRECTIONS[:step], 0.1, *CORRECTIONS[step + 1 :]))
        ]
        assert (relative_difference(*values) > 1e-3) == counts


def test_no_step_predicts_the_initial_weights(x64):
    problem, W0 = random_problem(5), initial_weights()
    prediction = GradientDescentPlusPlus(0.3, 0.02, 0, W0)(problem)
    np.testing.assert_allclose(prediction.trajectory, (W0 @ problem.query_input)[None], rtol=1e-13)
    np.testing.assert_allclose(prediction.context_trajectory, (problem.context_inputs @ W0.T)[None], rtol=1e-13)


def test_products_of_the_construction(x64):
    """W_K^T W_Q selects the inputs; P W_V is [[-gamma I, 0], [(eta / N) W0, -(eta / N) I]]."""
    W0 = initial_weights()
    weights = gradient_descent_plus_plus_weights(
        **SIZES, learning_rate=jnp.array([0.5, 1.5]), curvature_correction=0.3, initial_weights=W0
    )
    reduced = products(weights)
    assert reduced.W_KQ.shape == (2, 1, 5, 5)
    for layer, rate in enumerate((0.5, 1.5)):
        np.testing.assert_allclose(reduced.W_KQ[layer, 0], np.diag([1.0, 1.0, 1.0, 0.0, 0.0]))
        expected = np.diag([-0.3] * 3 + [-rate / 7] * 2)
        expected[3:, :3] = rate / 7 * W0
        np.testing.assert_allclose(reduced.W_PV[layer, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("hold_residuals", [True, False])
@pytest.mark.parametrize("has_initial_weights", [True, False])
def test_tokens_of_a_batch_are_tokens_of_its_tasks(x64, hold_residuals, has_initial_weights):
    """And both are what the two definitions say, entry by entry."""
    rng = np.random.default_rng(6)
    inputs, targets = rng.normal(size=(INPUT_SIZE, 8, 11)), rng.normal(size=(OUTPUT_SIZE, 8, 11))
    batch = Batch(jnp.asarray(inputs), jnp.asarray(targets))
    W0 = initial_weights() if has_initial_weights else None
    tokens = ConcatenatedTokens(W0, targets_hold_residuals=hold_residuals)
    together = np.asarray(tokens.encode_batch(batch))
    one_by_one = jax.vmap(tokens.encode, out_axes=-1)(batch.samples().problem)  # (tokens, token_size, batch)
    np.testing.assert_allclose(together, np.swapaxes(one_by_one, 0, 1), rtol=1e-13, atol=1e-13)
    guesses = np.einsum("oi,inb->onb", W0 if has_initial_weights else np.zeros((OUTPUT_SIZE, INPUT_SIZE)), inputs)
    held = targets - guesses if hold_residuals else targets
    np.testing.assert_array_equal(together[:INPUT_SIZE], inputs)
    np.testing.assert_allclose(together[INPUT_SIZE:, :-1], held[:, :-1], rtol=1e-13)
    np.testing.assert_allclose(together[INPUT_SIZE:, -1], -guesses[:, -1], rtol=1e-13)


def test_precision_is_the_problem_s(x64):
    problem = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), random_problem(7))
    learner = GradientDescentPlusPlus(0.3, 0.02, 2, initial_weights().astype(jnp.float32), "recomputed")
    assert {leaf.dtype for leaf in jax.tree.leaves(learner(problem))} == {jnp.dtype("float32")}


@pytest.fixture
def unchecked_types():
    """As users call: without the suite's type checks, which would refuse some values before we do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


LEARNER = GradientDescentPlusPlus(0.3, 0.02, num_steps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": -1}, "num_steps must be an integer of at least 0, got -1"),
        ({"learning_rate": jnp.ones(3)}, r"learning_rate must .*\(num_steps,\) = \(2,\), got shape \(3,\)"),
        ({"curvature_correction": jnp.ones(1)}, r"curvature_correction must .*= \(2,\), got shape \(1,\)"),
        ({"residuals": "true"}, "residuals must be one of 'carried', 'recomputed', got 'true'"),
    ],
)
def test_impossible_algorithms_are_refused(unchecked_types, change, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(LEARNER, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": jnp.ones(3)}, r"learning_rate must .*num_layers=2, got shape \(3,\)"),
        ({"curvature_correction": jnp.ones(1)}, r"curvature_correction must .*num_layers=2, got shape \(1,\)"),
        ({"residuals": "true"}, "residuals must be one of 'carried', 'recomputed', got 'true'"),
        ({"context_length": 0}, "context_length must be an integer of at least 1, got 0"),
    ],
)
def test_impossible_constructions_are_refused(unchecked_types, change, message):
    arguments = {**SIZES, "learning_rate": 0.3, "curvature_correction": 0.02, "num_layers": 2, **change}
    with pytest.raises(ValueError, match=message) as error:
        gradient_descent_plus_plus_transformer(**arguments)
    assert "\n" not in str(error.value)
