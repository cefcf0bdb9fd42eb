"""Heads of softmax attention: their steps and their sum, and softmax's first order, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONTEXT_LENGTH, INPUT_SIZE, random_problem, random_weights

from innerloop.algorithms import Centred, GradientDescent
from innerloop.analysis import (
    FirstOrderSoftmax,
    combined_key_query,
    expansion_error,
    first_order_softmax,
    head_steps,
    off_diagonal_share,
)
from innerloop.models import Products, StackConfig, Transformer, products
from innerloop.problem import Problem
from innerloop.tasks import Sample

pytestmark = pytest.mark.usefixtures("x64")
CONFIG = StackConfig(attention=("softmax",), num_heads=2, key_size=5, damping=0.7)
TOKEN_SIZE = INPUT_SIZE + 1


def by_hand(transformer: Transformer, problem: Problem):
    """Softmax attention of the query, its first order, and both predictions, one number at a time."""
    W_K, W_Q, W_V, P = (np.asarray(part)[0] for part in jax.tree.leaves(transformer.weights.attention))
    keys = np.concatenate([problem.context_inputs, problem.context_targets], axis=1)
    query = np.append(problem.query_input, 0.0)
    exact, linear, predictions = [], [], np.zeros(2)
    for head in range(2):
        logits = np.array([(W_K[head] @ key) @ (W_Q[head] @ query) for key in keys]) / np.sqrt(5)
        exact.append(np.exp(logits) / np.exp(logits).sum())
        linear.append(1 / len(keys) + (logits - logits.mean()) / len(keys))
        for kind, attention in enumerate((exact[-1], linear[-1])):
            update = sum(a * (P[head] @ (W_V[head] @ key))[-1] for a, key in zip(attention, keys, strict=True))
            predictions[kind] -= 0.7 * update
    return np.array(exact), np.array(linear), predictions


def transformer_of(size: float) -> Transformer:
    return Transformer(CONFIG, random_weights(CONFIG, TOKEN_SIZE, seed=1, size=size))


def test_first_order_against_numpy():
    transformer, problem = transformer_of(0.6), random_problem(2, output_size=1)
    expansion = FirstOrderSoftmax(transformer)
    exact, linear, predictions = by_hand(transformer, problem)
    np.testing.assert_allclose(transformer.attention_maps(problem)[0, :, -1], exact, rtol=1e-12)
    np.testing.assert_allclose(expansion.attention(problem)[:, -1], linear, rtol=1e-12)
    np.testing.assert_allclose(transformer(problem).value[0], predictions[0], rtol=1e-12)
    np.testing.assert_allclose(expansion(problem).value[0], predictions[1], rtol=1e-12)
    assert expansion(problem).trajectory[0, 0] == 0
    np.testing.assert_allclose(linear.sum(axis=1), 1)
    uncentred = FirstOrderSoftmax(transformer, is_centred=False).attention(problem)[:, -1]
    assert (np.abs(uncentred.sum(axis=1) - 1) > 1e-3).all()


def test_error_of_the_first_order_against_numpy():
    transformer = transformer_of(0.5)
    problems = [random_problem(seed, output_size=1) for seed in range(5)]
    samples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(Sample(one, jnp.zeros(1)) for one in problems))
    error = expansion_error(FirstOrderSoftmax(transformer), samples)
    measured = [by_hand(transformer, problem) for problem in problems]
    exact, linear, predictions = (np.stack(parts) for parts in zip(*measured, strict=True))
    missed = ((exact - linear) ** 2).sum(axis=-1).mean(axis=0)
    deviation = ((exact - 1 / CONTEXT_LENGTH) ** 2).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(error.attention, np.sqrt(missed / deviation), rtol=1e-10)
    difference = np.mean((predictions[:, 0] - predictions[:, 1]) ** 2)
    np.testing.assert_allclose(error.prediction, np.sqrt(difference / np.mean(predictions[:, 0] ** 2)), rtol=1e-10)


def test_what_is_missing_is_of_second_order():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(4, 9)))

    def missing(size):
        return float(jnp.abs(jax.nn.softmax(size * logits) - first_order_softmax(size * logits)).max())

    assert 3.8 < missing(2e-3) / missing(1e-3) < 4.2


def test_steps_and_sum_of_heads_against_numpy():
    weights = random_weights(StackConfig(num_layers=2, tied=False, num_heads=3), TOKEN_SIZE, seed=4)
    W_K, W_Q, W_V, P = (np.asarray(part) for part in jax.tree.leaves(weights.attention))
    stack = products(weights)
    for layer in range(2):
        total = np.zeros((TOKEN_SIZE, TOKEN_SIZE))
        for head in range(3):
            eta = sum(P[layer, head, -1, k] * W_V[layer, head, k, -1] for k in range(TOKEN_SIZE))
            np.testing.assert_allclose(head_steps(stack)[layer, head], eta, rtol=1e-12)
            total += eta * W_K[layer, head].T @ W_Q[layer, head]
        np.testing.assert_allclose(combined_key_query(stack)[layer], total, rtol=1e-12)


def test_off_diagonal_share():
    """By hand: 3 and 4 on the diagonal, 5 and 12 off it; the target's column meets zeros and is left out."""
    matrix = jnp.array([[3.0, 0.0, 100.0], [5.0, 4.0, 100.0], [0.0, 12.0, 100.0]])
    assert float(off_diagonal_share(matrix, 2)) == pytest.approx(13 / 5)
    assert float(off_diagonal_share(jnp.diag(jnp.array([1.0, 2.0, 0.0])), 2)) == 0


def test_opposite_heads_to_first_order_are_a_gradient_step_on_centred_inputs():
    """The reading of two trained heads, made exact by construction: eta_1 = -eta_2, a sum like the identity."""
    rng, eta, learning_rate = np.random.default_rng(5), 5.0, 6.0
    both = rng.normal(size=(TOKEN_SIZE, TOKEN_SIZE))
    both[-1], both[:, -1] = 0, 0
    is_input = np.diag([1.0] * INPUT_SIZE + [0.0])
    W_KQ = jnp.asarray(np.stack([both - is_input * learning_rate * np.sqrt(TOKEN_SIZE) / eta, both]))
    target_only = np.zeros((TOKEN_SIZE, TOKEN_SIZE))
    target_only[-1, -1] = eta
    W_PV = jnp.asarray(np.stack([target_only, -target_only]))
    config = StackConfig(attention=("softmax",), num_heads=2)
    transformer = Transformer(config, Products(W_KQ[None], W_PV[None]).as_weights())
    problem = random_problem(6, output_size=1)
    descent = Centred(GradientDescent(learning_rate, 1))
    np.testing.assert_allclose(FirstOrderSoftmax(transformer)(problem).value, descent(problem).value, rtol=1e-11)
    x, y, query = (np.asarray(part) for part in jax.tree.leaves(problem))
    expected = learning_rate / CONTEXT_LENGTH * sum(y[j, 0] * (x[j] - x.mean(axis=0)) @ query for j in range(len(x)))
    np.testing.assert_allclose(descent(problem).value, [expected], rtol=1e-12)


def test_other_stacks_are_refused():
    config = StackConfig(num_heads=2)
    linear = Transformer(config, random_weights(config, TOKEN_SIZE, seed=1))
    with pytest.raises(ValueError, match="one layer of softmax attention without LayerNorm, got num_layers=1"):
        FirstOrderSoftmax(linear)(random_problem(2, output_size=1))
