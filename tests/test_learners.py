"""One battery of laws over every learner; a new one adds a line to `LEARNERS`."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONTEXT_LENGTH, INPUT_SIZE, OUTPUT_SIZE, assert_trees_close, random_problem, random_weights

from innerloop.algorithms import (
    CrossEntropyDescent,
    GradientDescent,
    GradientDescentPlusPlus,
    KernelSmoothing,
    Ridge,
    Trivial,
    WithPriorPairs,
)
from innerloop.constructions import gradient_descent_transformer, weight_decay_transformer
from innerloop.models import StackConfig, Transformer
from innerloop.problem import Problem, from_callable
from innerloop.tokens import ConcatenatedTokens

SIZES = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
RATES = (0.7, -0.4, 1.1)


class Example(NamedTuple):
    """How to make a learner from W0 (those that have none ignore it), and which laws it obeys."""

    make: Callable
    num_steps: int
    is_regression: bool  # linear in (targets, W0), blind to rotations of the inputs, one function for context and query


def transformer(**config):
    config = StackConfig(**config)

    def make(W0):
        weights = random_weights(config, INPUT_SIZE + OUTPUT_SIZE, seed=1)
        return Transformer(config, weights, ConcatenatedTokens(W0))

    return Example(make, config.num_layers, is_regression=False)


def ridge_by_hand(inputs, targets, query):
    return np.linalg.solve(inputs.T @ inputs + 0.7 * np.eye(inputs.shape[1]), inputs.T @ targets).T @ query


CALLABLE = from_callable(ridge_by_hand)
LEARNERS = {
    "trivial": Example(lambda W0: Trivial(), 0, True),
    "ridge": Example(lambda W0: Ridge(0.7), 1, True),
    "minimum-norm": Example(lambda W0: Ridge(), 1, True),
    "callable": Example(lambda W0: CALLABLE, 1, True),
    "gd": Example(lambda W0: GradientDescent(0.7, initial_weights=W0), 1, True),
    "gd-0": Example(lambda W0: GradientDescent(0.7, num_steps=0, initial_weights=W0), 0, True),
    "gd-damped-3": Example(
        lambda W0: GradientDescent(jnp.array(RATES), num_steps=3, damping=0.75, initial_weights=W0), 3, True
    ),
    "gd-decay": Example(
        lambda W0: GradientDescent(jnp.array(RATES), 3, damping=0.75, initial_weights=W0, weight_decay=0.3), 3, True
    ),
    "prior-pairs": Example(
        lambda W0: WithPriorPairs(Ridge(0.7), 0.5 * jnp.eye(INPUT_SIZE), jnp.zeros((INPUT_SIZE, OUTPUT_SIZE))), 1, True
    ),
    "gd++": Example(
        lambda W0: GradientDescentPlusPlus(jnp.array(RATES), jnp.array((0.02, 0.05, -0.03)), 3, initial_weights=W0),
        3,
        True,
    ),
    "construction": Example(
        lambda W0: gradient_descent_transformer(**SIZES, learning_rate=0.7, num_layers=2, initial_weights=W0), 2, True
    ),
    "construction-untied": Example(
        lambda W0: gradient_descent_transformer(
            **SIZES, learning_rate=jnp.array(RATES), num_layers=3, initial_weights=W0
        ),
        3,
        True,
    ),
    "construction-decay": Example(
        lambda W0: weight_decay_transformer(**SIZES, learning_rate=0.7, weight_decay=0.3, num_layers=2), 2, True
    ),
    "ce-gd": Example(lambda W0: CrossEntropyDescent(0.7, 2), 2, False),
    "smoothing": Example(lambda W0: KernelSmoothing(0.7, 1.1), 1, False),
    "transformer": transformer(),
    "transformer-tied-heads": transformer(num_layers=3, num_heads=2, key_size=3, damping=0.75),
    "transformer-untied-query": transformer(num_layers=2, tied=False, query_in_keys=True, token_clip=1.5),
    "transformer-targets": transformer(num_layers=5, update="targets", num_heads=3, key_size=2),
}

every_learner = pytest.mark.parametrize("name", LEARNERS)
every_regression = pytest.mark.parametrize(
    "name", [name for name, example in LEARNERS.items() if example.is_regression]
)
pytestmark = pytest.mark.usefixtures("x64")


def initial_weights():
    return jnp.asarray(np.random.default_rng(2).normal(size=(OUTPUT_SIZE, INPUT_SIZE)))


@eqx.filter_jit
def predict(learner, problem):
    """The learner is an argument: all tests share one program per learner's structure."""
    return learner(problem)


@every_learner
def test_shapes_and_trajectories(name):
    example, problem = LEARNERS[name], random_problem(3)
    prediction = predict(example.make(initial_weights()), problem)
    assert prediction.value.shape == (OUTPUT_SIZE,)
    assert prediction.trajectory.shape == (example.num_steps + 1, OUTPUT_SIZE)
    np.testing.assert_array_equal(prediction.value, prediction.trajectory[-1])
    assert {leaf.dtype for leaf in jax.tree.leaves(prediction)} == {jnp.dtype("float64")}
    if prediction.context_trajectory is not None:
        assert prediction.context_trajectory.shape == (example.num_steps + 1, CONTEXT_LENGTH, OUTPUT_SIZE)


@every_learner
def test_starts_from_the_initial_weights(name):
    """Before the first step everyone predicts W0 x, for query and context; zero without W0."""
    problem = random_problem(4)
    for W0 in (None, initial_weights()):
        learner = LEARNERS[name].make(W0)
        has_W0 = W0 is not None and isinstance(learner, GradientDescent | GradientDescentPlusPlus | Transformer)
        matrix = W0 if has_W0 else jnp.zeros((OUTPUT_SIZE, INPUT_SIZE))
        prediction = predict(learner, problem)
        np.testing.assert_allclose(prediction.trajectory[0], matrix @ problem.query_input, atol=1e-12)
        if prediction.context_trajectory is not None:
            expected = problem.context_inputs @ matrix.T
            np.testing.assert_allclose(prediction.context_trajectory[0], expected, atol=1e-12)


@every_learner
def test_jit_equals_eager(name):
    learner, problem = LEARNERS[name].make(initial_weights()), random_problem(5)
    assert_trees_close(predict(learner, problem), learner(problem), rtol=1e-11, atol=1e-12)


@every_learner
def test_vmap_equals_loop(name):
    learner, problems = LEARNERS[name].make(initial_weights()), random_problem(6, 3)
    batched = jax.jit(jax.vmap(learner))(problems)
    for index in range(3):
        one = partial(jax.tree.map, itemgetter(index))
        assert_trees_close(one(batched), predict(learner, one(problems)), rtol=1e-11, atol=1e-12)


@every_learner
def test_order_of_the_context_is_irrelevant(name):
    learner, problem = LEARNERS[name].make(initial_weights()), random_problem(7)
    order = np.random.default_rng(0).permutation(CONTEXT_LENGTH)
    shuffled = Problem(problem.context_inputs[order], problem.context_targets[order], problem.query_input)
    before, after = predict(learner, problem), predict(learner, shuffled)
    np.testing.assert_allclose(after.trajectory, before.trajectory, rtol=1e-10, atol=1e-12)
    if before.context_trajectory is not None:
        np.testing.assert_allclose(
            after.context_trajectory, before.context_trajectory[:, order], rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("name", [name for name, example in LEARNERS.items() if example.num_steps > 0])
def test_uses_its_context(name):
    """The laws must not hold because a learner ignores its input."""
    learner = LEARNERS[name].make(initial_weights())
    jacobian = jax.jit(jax.jacrev(lambda problem: learner(problem).value))(random_problem(8))
    for leaf in jax.tree.leaves(jacobian):
        assert (jnp.abs(leaf) > 1e-9).any(axis=0).all()


@every_regression
def test_linear_in_the_targets(name):
    """Superposition, of the targets together with W0; it implies equivariance to the targets' scale."""
    make, problem, other, W0 = LEARNERS[name].make, random_problem(9), random_problem(10), initial_weights()

    def value(targets, W0):
        return predict(make(W0), Problem(problem.context_inputs, targets, problem.query_input)).trajectory

    summed = value(problem.context_targets - 2.5 * other.context_targets, W0 - 2.5 * W0[::-1])
    parts = value(problem.context_targets, W0) - 2.5 * value(other.context_targets, W0[::-1])
    np.testing.assert_allclose(summed, parts, rtol=1e-10, atol=1e-11)


@every_regression
def test_blind_to_rotations(name):
    """Rotating all inputs, and W0 with them, changes no prediction."""
    make, problem, W0 = LEARNERS[name].make, random_problem(11), initial_weights()
    rotation, _ = jnp.linalg.qr(random_problem(12).context_inputs[:INPUT_SIZE])
    turned = Problem(problem.context_inputs @ rotation.T, problem.context_targets, rotation @ problem.query_input)
    before, after = predict(make(W0), problem), predict(make(W0 @ rotation.T), turned)
    assert_trees_close(after, before, rtol=1e-10, atol=1e-11)
    assert float(jnp.abs(rotation - jnp.eye(INPUT_SIZE)).max()) > 0.5


@pytest.mark.parametrize("name", [name for name, one in LEARNERS.items() if one.is_regression and name != "callable"])
def test_query_and_context_see_one_function(name):
    """A query that equals a context input is predicted as that input is, at every step, where a learner says both."""
    learner, problem = LEARNERS[name].make(initial_weights()), random_problem(13)
    at_context = Problem(problem.context_inputs, problem.context_targets, problem.context_inputs[4])
    prediction = predict(learner, at_context)
    np.testing.assert_allclose(prediction.trajectory, prediction.context_trajectory[:, 4], rtol=1e-11, atol=1e-12)


def test_random_transformers_are_no_regressions():
    """The two laws above can fail: a transformer with other weights breaks both."""
    problem = random_problem(9)
    for name in (name for name in LEARNERS if name.startswith("transformer")):
        learner = LEARNERS[name].make(None)
        doubled = Problem(problem.context_inputs, 2 * problem.context_targets, problem.query_input)
        flipped = Problem(-problem.context_inputs, problem.context_targets, -problem.query_input)
        value = predict(learner, problem).value
        assert float(jnp.abs(predict(learner, doubled).value - 2 * value).max()) > 1e-3
        assert float(jnp.abs(predict(learner, flipped).value - value).max()) > 1e-3


def test_gradient_descent_follows_the_gradient():
    """Each step is -eta times JAX's gradient of 1/(2N) sum |W x - y|^2, damped."""
    problem, W = random_problem(14), initial_weights()
    learner = GradientDescent(jnp.array(RATES), num_steps=3, damping=0.75, initial_weights=W)

    @jax.jit
    @jax.grad
    def gradient(W):
        residuals = problem.context_inputs @ W.T - problem.context_targets
        return jnp.sum(residuals**2) / (2 * CONTEXT_LENGTH)

    expected = [W]
    for rate in RATES:
        expected.append(expected[-1] - 0.75 * rate * gradient(expected[-1]))
    np.testing.assert_allclose(learner.weights(problem), jnp.stack(expected), rtol=1e-12)


def test_gradient_descent_converges_to_least_squares():
    problem = random_problem(15)
    many = predict(GradientDescent(0.9, num_steps=3000), problem)
    np.testing.assert_allclose(many.value, predict(Ridge(), problem).value, rtol=1e-9)


@pytest.mark.parametrize("context_length", [7, 2])
def test_ridge_solves_the_normal_equations(context_length):
    problem = random_problem(16, context_length=context_length)
    inputs, targets = problem.context_inputs, problem.context_targets
    W = jnp.linalg.solve(inputs.T @ inputs + 0.7 * jnp.eye(INPUT_SIZE), inputs.T @ targets).T
    prediction = predict(Ridge(0.7), problem)
    np.testing.assert_allclose(prediction.value, W @ problem.query_input, rtol=1e-11)
    np.testing.assert_allclose(prediction.context_trajectory[-1], inputs @ W.T, rtol=1e-10)
    limit, tiny = predict(Ridge(), problem), predict(Ridge(1e-10), problem)
    np.testing.assert_allclose(limit.value, tiny.value, rtol=1e-7)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_ridge_survives_a_rank_deficient_context(penalty):
    """A context that repeats one input leaves the other directions at zero."""
    problem = random_problem(17)
    inputs = jnp.broadcast_to(problem.context_inputs[:1], problem.context_inputs.shape)
    value = predict(Ridge(penalty), Problem(inputs, problem.context_targets, problem.query_input)).value
    direction, mean = inputs[0], problem.context_targets.mean(axis=0)
    share = CONTEXT_LENGTH * (direction @ problem.query_input) / (CONTEXT_LENGTH * direction @ direction + penalty)
    np.testing.assert_allclose(value, share * mean, rtol=1e-10)


def test_float64_rule():
    """The construction's distance to gradient descent is rounding: doubling the precision shrinks it by the ratio of
    the two epsilons, about 8 orders. A bug would stay.
    """

    def error():
        problems = random_problem(18, 200)
        construction = gradient_descent_transformer(**SIZES, learning_rate=0.7, num_layers=5)
        expected = jax.jit(jax.vmap(GradientDescent(0.7, num_steps=5)))(problems).value
        actual = jax.jit(jax.vmap(construction))(problems).value
        return float(jnp.sqrt(jnp.mean((actual - expected) ** 2) / jnp.mean(expected**2)))

    double = error()
    with jax.enable_x64(False):
        single = error()
    assert 1e-8 < single < 1e-5
    assert 1e7 < single / double < 1e10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 1.0, "num_steps": -1}, "num_steps must be an integer of at least 0, got -1"),
        ({"learning_rate": np.ones(3), "num_steps": 2}, r"learning_rate must.*\(2,\), got shape \(3,\)"),
    ],
)
def test_gradient_descent_ranges(arguments, message):
    rate = arguments["learning_rate"]
    with pytest.raises(ValueError, match=message):
        GradientDescent(**{**arguments, "learning_rate": jnp.asarray(rate) if np.ndim(rate) else rate})


def test_ridge_has_gradients_where_singular_values_coincide():
    problem = Problem(jnp.eye(2), jnp.ones((2, 1)), jnp.ones(2))

    def prediction(shift):
        moved = eqx.tree_at(lambda p: p.context_inputs, problem, problem.context_inputs + shift)
        return Ridge(0.5)(moved).value[0]

    step = 1e-4
    direction = jnp.array([[0.3, 1.0], [0.0, -0.7]])
    expected = (prediction(step * direction) - prediction(-step * direction)) / (2 * step)
    gradient = jax.grad(prediction)(jnp.zeros((2, 2)))
    np.testing.assert_allclose(jnp.sum(gradient * direction), expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Ridge(-1.0), "penalty must be a finite number of at least 0"),
        (lambda: from_callable(lambda *_: 0.0, difference_step=0.0), "difference_step must be a finite number above 0"),
        (lambda: gradient_descent_transformer(**SIZES, learning_rate=jnp.ones(3)), "one entry per layer, num_layers=1"),
        (lambda: GradientDescent(jnp.ones(3), num_steps=2), "learning_rate must be a number or have shape"),
    ],
)
def test_impossible_learners_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
