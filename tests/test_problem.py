"""The adapter that makes a learner of any callable, held against our own ridge regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
from helpers import random_problem, relative_difference

from innerloop.algorithms import Ridge
from innerloop.problem import from_callable

PENALTY = 0.7


def scikit_learner(make_regressor):
    def fit_predict(inputs, targets, query):
        assert inputs.dtype == targets.dtype == query.dtype == np.float64
        return make_regressor().fit(inputs, targets).predict(query[None])[0]

    return from_callable(fit_predict)


# The second context is shorter than the input: both sides must then pick the minimum-norm solution.
PAIRS = {
    "ridge": (lambda: sklearn.linear_model.Ridge(alpha=PENALTY, fit_intercept=False), Ridge(PENALTY), 7),
    "least-squares": (lambda: sklearn.linear_model.LinearRegression(fit_intercept=False), Ridge(), 7),
    "minimum-norm": (lambda: sklearn.linear_model.LinearRegression(fit_intercept=False), Ridge(), 2),
}


@pytest.fixture(params=PAIRS)
def pair(request, x64):
    make_regressor, ours, context_length = PAIRS[request.param]
    return scikit_learner(make_regressor), ours, random_problem(1, 5, context_length=context_length)


def first(problems):
    return jax.tree.map(lambda leaf: leaf[0], problems)


def test_values_agree(pair):
    scikit, ours, problems = pair
    expected = jax.jit(jax.vmap(ours))(problems).value
    np.testing.assert_allclose(scikit(first(problems)).value, expected[0], rtol=1e-9)
    np.testing.assert_allclose(jax.jit(scikit)(first(problems)).value, expected[0], rtol=1e-9)
    np.testing.assert_allclose(jax.vmap(scikit)(problems).value, expected, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.vmap(scikit))(problems).value, expected, rtol=1e-9)


def gradients(learner):
    """With respect to everything in a problem, through both outputs with unequal weights."""
    return jax.grad(lambda problem: learner(problem).value @ jnp.array([1.0, -3.0]))


def test_gradients_agree(pair):
    scikit, ours, problems = pair
    actual = jax.jit(jax.vmap(gradients(scikit)))(problems)
    expected = jax.jit(jax.vmap(gradients(ours)))(problems)
    for name in ("query_input", "context_inputs", "context_targets"):
        assert float(jnp.abs(getattr(expected, name)).max()) > 0.1
        assert relative_difference(getattr(actual, name), getattr(expected, name)) < 1e-6, name


def test_gradient_in_single_precision():
    """Differences are taken in float64 even where the problem is float32, or they would drown in rounding."""
    problem = random_problem(2)
    actual = gradients(scikit_learner(PAIRS["ridge"][0]))(problem)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    assert relative_difference(actual, jax.jit(gradients(Ridge(PENALTY)))(problem)) < 1e-5


def test_jacobian_of_nested_batches(x64):
    """A Jacobian within a two-level vmap: the host loop must walk several leading axes."""
    problems = random_problem(3, 2, 5)
    learner = from_callable(lambda inputs, targets, query: targets.T @ (inputs @ query) ** 2)
    jacobian = jax.jacrev(lambda problem: learner(problem).value)
    actual = jax.jit(jax.vmap(jax.vmap(jacobian)))(problems).query_input
    scores = np.einsum("abni,abi->abn", problems.context_inputs, problems.query_input)
    expected = 2 * np.einsum("abno,abn,abni->aboi", problems.context_targets, scores, problems.context_inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


def test_scalar_return_and_trajectory():
    problem = random_problem(4, output_size=1)
    prediction = from_callable(lambda inputs, targets, query: 2.5)(problem)
    np.testing.assert_array_equal(prediction.trajectory, [[0.0], [2.5]])
    assert prediction.context_trajectory is None


BAD = {
    "too few values": (lambda inputs, targets, query: 1.0, r"must return 2 value\(s\).*returned 1"),
    "too many values": (lambda inputs, targets, query: np.ones(5), r"must return 2 value\(s\).*returned 5"),
    "not a number": (lambda inputs, targets, query: np.array([1.0, np.nan]), "not finite"),
    "infinite": (lambda inputs, targets, query: np.array([np.inf, 1.0]), "not finite"),
}


@pytest.mark.parametrize("transform", [lambda learner: learner, jax.jit, jax.grad], ids=["eager", "jit", "grad"])
@pytest.mark.parametrize("case", BAD)
def test_bad_returns_raise(case, transform):
    function, message = BAD[case]
    learner = from_callable(function)
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=message):
        transform(lambda problem: jnp.sum(learner(problem).value))(random_problem(5))


def test_not_callable():
    with pytest.raises(ValueError, match="function must be callable, got 3"):
        from_callable.__wrapped__(3)  # past the type check that only tests have
