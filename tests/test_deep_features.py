"""Proposition 2, proved numerically: an MLP below one linear layer is gradient descent on the MLP's features."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EMBEDDED_LAYERS, random_problem, random_weights, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from innerloop.algorithms import GradientDescent, KernelGradientDescent, OnFeatures
from innerloop.constructions import feature_descent_transformer, feature_descent_weights, feature_embedding
from innerloop.models import EmbeddingWeights, MLPWeights, embed

RATE = 0.7
pytestmark = pytest.mark.usefixtures("x64")


def random_map(seed, input_size, hidden_size, num_features, *, bias=True) -> MLPWeights:
    """W_2 gelu(W_1 x + b_1) + b_2, whose sizes may all differ: a map, not a residual block."""
    rng = np.random.default_rng(seed)
    shapes = (hidden_size, input_size), (num_features, hidden_size), (hidden_size,), (num_features,)
    W_1, W_2, b_1, b_2 = (jnp.asarray(rng.normal(size=shape) / math.sqrt(shape[-1])) for shape in shapes)
    return MLPWeights(W_1, W_2, b_1, b_2) if bias else MLPWeights(W_1, W_2)


def features(weights, x):
    """m(x) of one input, without the code under test."""
    hidden = weights.W_1 @ x + (0.0 if weights.b_1 is None else weights.b_1)
    hidden = hidden / 2 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return weights.W_2 @ hidden + (0.0 if weights.b_2 is None else weights.b_2)


@jax.jit
def four_ways(weights, problem, rate):
    """Embedded tokens, and the transformer's, the algorithm's and the kernel's prediction."""
    output_size, context_length = problem.context_targets.shape[1], problem.context_targets.shape[0]
    embedding = feature_embedding(weights, output_size=output_size)
    transformer = feature_descent_transformer(
        embedding, output_size=output_size, context_length=context_length, learning_rate=rate
    )
    descent = OnFeatures(lambda x: features(weights, x), GradientDescent(RATE))
    kernel = KernelGradientDescent(lambda x, other: features(weights, x) @ features(weights, other), RATE)
    tokens = jnp.concatenate([problem.context_inputs, problem.context_targets], axis=1)
    expected = jax.vmap(lambda x: features(weights, x))(problem.context_inputs)
    return embed(embedding, tokens), expected, transformer(problem), descent(problem), kernel(problem)


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])  # every example compiles anew: few, none shrunk
@given(
    input_size=st.integers(1, 7),
    hidden_size=st.integers(1, 11),
    num_features=st.integers(1, 13),
    output_size=st.integers(1, 3),
    context_length=st.integers(1, 17),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_mlp_below_a_layer_is_descent_on_features(
    x64, input_size, hidden_size, num_features, output_size, context_length, bias, seed
):
    assert_proposition_2(input_size, hidden_size, num_features, output_size, context_length, bias, seed)


@pytest.mark.parametrize(("input_size", "num_features"), [(3, 11), (11, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_more_and_fewer_features_than_inputs(input_size, num_features, bias):
    """For sure: the residual stream is padded on one side or on the other."""
    assert_proposition_2(input_size, 13, num_features, 2, 7, bias, seed=1)


def assert_proposition_2(input_size, hidden_size, num_features, output_size, context_length, bias, seed):
    weights = random_map(seed, input_size, hidden_size, num_features, bias=bias)
    problem = random_problem(seed, input_size=input_size, output_size=output_size, context_length=context_length)
    embedded, expected, transformer, descent, kernel = four_ways(weights, problem, RATE)
    # Tokens are (m(x), 0, y): padding stays zero, targets pass.
    padding = np.zeros((context_length, max(input_size - num_features, 0)))
    rows = np.concatenate([expected, padding, problem.context_targets], axis=1)
    np.testing.assert_allclose(embedded, rows, rtol=0, atol=1e-12 * (1 + np.abs(rows).max()))
    assert relative_difference(transformer.trajectory, descent.trajectory) < 1e-12
    assert relative_difference(transformer.value, descent.value) < 1e-12
    assert relative_difference(kernel, descent) < 1e-12
    # The formula: (eta / N) sum_i y_i m(x_i) . m(x_q).
    query = np.asarray(features(weights, problem.query_input))
    pairs = zip(np.asarray(problem.context_targets), np.asarray(expected), strict=True)
    by_hand = RATE / context_length * sum(y * (m @ query) for y, m in pairs)
    np.testing.assert_allclose(descent.value, by_hand, rtol=1e-9, atol=1e-12)
    assert np.abs(by_hand).max() > 1e-9


def test_a_rate_one_percent_off_shows():
    weights, problem = random_map(2, 3, 13, 11), random_problem(2)
    _, _, transformer, descent, _ = four_ways(weights, problem, 1.01 * RATE)
    np.testing.assert_allclose(transformer.value, 1.01 * np.asarray(descent.value), rtol=1e-11)


@pytest.mark.parametrize("name", EMBEDDED_LAYERS)
@pytest.mark.parametrize("output_size", [1, 2])
def test_descent_on_any_embedding(name, output_size):
    """As training leaves it: features and targets mix x and y, and the query's target does not start at zero."""
    config, sizes = EMBEDDED_LAYERS[name], {"input_size": 3, "output_size": output_size, "context_length": 7}
    embedding, problem = random_weights(config, 3 + output_size, seed=3).embedding, random_problem(4, **sizes)
    assert embedding is not None
    transformer = feature_descent_transformer(
        embedding, output_size=output_size, context_length=7, learning_rate=jnp.asarray(RATE)
    )

    @jax.jit
    def run(transformer, tokens):
        return embed(embedding, tokens), transformer(problem)

    query = np.concatenate([problem.query_input, np.zeros(output_size)])
    tokens = np.concatenate([np.concatenate([problem.context_inputs, problem.context_targets], axis=1), query[None]])
    embedded, prediction = run(transformer, tokens)
    inputs, targets = np.asarray(embedded[:, :-output_size]), np.asarray(embedded[:, -output_size:])
    assert np.abs(targets[-1]).min() > 1e-3
    step = RATE / 7 * sum(np.outer(targets[j], inputs[j]) for j in range(7))
    np.testing.assert_allclose(prediction.value, step @ inputs[-1] - targets[-1], rtol=1e-11)
    np.testing.assert_allclose(prediction.trajectory[0], -targets[-1], rtol=1e-13)
    for ours, given_ in zip(jax.tree.leaves(transformer.weights.embedding), jax.tree.leaves(embedding), strict=True):
        assert ours is given_


def test_the_feature_map_may_be_any_function():
    """A factor on the features is one on the learning rate; features that are the inputs change nothing."""
    tripled = OnFeatures(lambda x: 3 * x, GradientDescent(RATE)), GradientDescent(9 * RATE)
    linear = KernelGradientDescent(lambda x, other: x @ other, RATE), GradientDescent(RATE)
    run = jax.jit(lambda problem: [(one(problem), other(problem)) for one, other in (tripled, linear)])
    for actual, expected in run(random_problem(5)):
        assert relative_difference(actual, expected) < 1e-12


def test_embeddings_that_leave_no_features():
    wanted = {"context_length": 7, "learning_rate": RATE}
    with pytest.raises(
        ValueError, match="embedding must have a W_E or an MLP, got neither; use gradient_descent_weights"
    ):
        feature_descent_weights(EmbeddingWeights(), **wanted)
    message = r"number of features \(embedding size - output_size\) must be an integer of at least 1, got 0"
    with pytest.raises(ValueError, match=message):
        feature_descent_weights(EmbeddingWeights(jnp.ones((2, 5))), output_size=2, **wanted)
