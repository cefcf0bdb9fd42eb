"""Training an embedding below one constructed gradient step: what moves, what does not, and the bits of it."""

import dataclasses
import itertools
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean

from innerloop.algorithms import GradientDescent
from innerloop.keys import named_key, root_key
from innerloop.models import StackConfig, embed, products
from innerloop.problem import Problem
from innerloop.tasks import SineWaves
from innerloop.training import OptimizerConfig, Recipe, held_out_batch, initial_state, numerics, train
from innerloop.training.loop import recipe_path

RECIPE = Recipe(
    task=SineWaves(context_length=5),
    model=StackConfig(embedding_size=7, mlp="input", mlp_widening=2),
    optimizer=OptimizerConfig(learning_rate=0.01, eps=1e-3, gradient_clip=None),
    gd_on_features=0.3,
    init_scale=1.5,
    num_steps=3,
    batch_size=13,
    seeds=(2, 3),
    evaluation_interval=1,
    evaluation_tasks=11,
    dtype="float64",
)


@pytest.fixture(scope="module")
def trained():
    """All (state, measurement) pairs."""
    return list(train(RECIPE))


def test_attention_stays_the_construction_and_the_embedding_moves(trained):
    """At every snapshot: W_KQ selects the features, P W_V is -(eta / N) on the target; eta / N = .3 / 5."""
    key_query, step = np.diag([1.0] * 6 + [0.0]), np.diag([0.0] * 6 + [-0.06])
    for state, measurement in trained:
        with numerics(RECIPE):
            stack = products(measurement.weights)
        np.testing.assert_allclose(stack.W_KQ, np.broadcast_to(key_query, (2, 1, 1, 7, 7)), atol=1e-15)
        np.testing.assert_allclose(stack.W_PV, np.broadcast_to(step, (2, 1, 1, 7, 7)), atol=1e-15)
        assert jax.tree.structure(state.parameters) == jax.tree.structure(measurement.weights.embedding)
        for ours, theirs in zip(*map(jax.tree.leaves, (state.parameters, measurement.weights.embedding)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for (before, _), (after, _) in itertools.pairwise(trained):
        for old, new in zip(*map(jax.tree.leaves, (before.parameters, after.parameters)), strict=True):
            assert (np.abs(new - old).reshape(2, -1).max(axis=1) > 1e-3).all()


def test_it_starts_as_the_published_control_does():
    """Normal; variances count the raw token's two entries as fan-in of W_E and W_1, the embedded token's of W_2."""
    recipe = dataclasses.replace(
        RECIPE, model=StackConfig(embedding_size=60, mlp="input"), dtype="float32", seeds=tuple(range(300))
    )
    embedding = initial_state(recipe).parameters
    for matrix, variance in ((embedding.W_E, 1.5 / 2), (embedding.mlp.W_1, 1.5 / 2), (embedding.mlp.W_2, 1.5 / 60)):
        flat = np.asarray(matrix, np.float64).ravel()
        assert_mean(flat**2, variance)
        assert_mean(flat**4, 3 * variance**2)  # a truncated normal has less
    assert not embedding.mlp.b_1.any()
    assert not embedding.mlp.b_2.any()


def loss_of_the_algorithm(embedding, samples):
    """Gradient descent on all entries of an embedded token but the last, which is its target; no kernel, no weights."""

    def token(x, y):
        return embed(embedding, jnp.concatenate([x, y]))

    def loss(sample):
        problem = sample.problem
        context = jax.vmap(token)(problem.context_inputs, problem.context_targets)
        query = token(problem.query_input, jnp.zeros(1))
        step = GradientDescent(0.3)(Problem(context[:, :-1], context[:, -1:], query[:-1]))
        return 0.5 * jnp.sum((step.value - query[-1:] - sample.query_target) ** 2)

    return jnp.mean(jax.vmap(loss)(samples))


def test_a_step_is_adam_on_the_loss_of_the_algorithm(trained):
    """The first step: both of Adam's moments are the gradient's own, so it moves by g / (|g| + eps)."""
    (start, first), (after, _) = trained[:2]
    with numerics(RECIPE):
        loss_and_gradient = jax.jit(jax.value_and_grad(loss_of_the_algorithm))
        for index, seed in enumerate(RECIPE.seeds):
            key = jax.random.fold_in(named_key(root_key(seed), "training"), 0)
            samples = RECIPE.task.sample_batch(key, RECIPE.batch_size).samples()
            before, moved = (jax.tree.map(itemgetter(index), each.parameters) for each in (start, after))
            loss, gradient = loss_and_gradient(before, samples)
            np.testing.assert_allclose(trained[1][1].train_loss[index], loss, rtol=1e-12)
            for old, new, slope in zip(*map(jax.tree.leaves, (before, moved, gradient)), strict=True):
                slope = np.asarray(slope)
                assert np.abs(slope).max() > 1e-4
                np.testing.assert_allclose(new - old, -0.01 * slope / (np.abs(slope) + 1e-3), rtol=1e-8, atol=1e-15)
            held_out = loss_of_the_algorithm(before, held_out_batch(RECIPE).samples())
            np.testing.assert_allclose(first.evaluation_loss[index], held_out, rtol=1e-12)
    with numerics(RECIPE):
        assert recipe_path(RECIPE) == "jax"


@pytest.mark.parametrize("index", range(3))
def test_resumed_it_gives_the_same_bits(trained, index):
    resumed = list(train(RECIPE, trained[index][0]))
    assert [int(state.step) for state, _ in resumed] == [1, 2, 3][index:]
    for actual, expected in zip(jax.tree.leaves(resumed), jax.tree.leaves(trained[index + 1 :]), strict=True):
        assert np.asarray(actual).tobytes() == np.asarray(expected).tobytes()
