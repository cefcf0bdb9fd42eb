"""Many tasks at once against one at a time: predictions, sensitivities, losses."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_problem, random_weights

from innerloop.algorithms import CentredLogits, GradientDescent
from innerloop.analysis import evaluation, linearisations, linearise, task_accuracies, task_losses
from innerloop.models import StackConfig, Transformer
from innerloop.tasks import Sample, prediction_loss
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens

INPUT_SIZE, OUTPUT_SIZE, CONTEXT_LENGTH, TASKS = 3, 2, 7, 11

pytestmark = pytest.mark.usefixtures("x64")

W0 = np.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]])
STACKS = {
    "one layer": StackConfig(),
    "tied": StackConfig(num_layers=3, damping=0.7),
    "untied": StackConfig(num_layers=2, tied=False, num_heads=2),
    "clipped": StackConfig(num_layers=3, tied=False, num_heads=2, token_clip=0.9),
    "clipped with the query among the keys": StackConfig(num_layers=3, token_clip=0.9, query_in_keys=True),
    "targets alone": StackConfig(num_layers=3, update="targets"),
    "softmax": StackConfig(num_heads=2, attention=("softmax",)),
    "softmax, then linear": StackConfig(num_layers=2, attention=("softmax", "linear"), tied=False),
    "normalised": StackConfig(num_layers=2, layer_norm="before"),
    "embedded": StackConfig(embedding_size=6, mlp="input"),
    "causal": StackConfig(num_layers=2, causal=True),
}


def samples_of(num_tasks: int = TASKS) -> Sample:
    targets = jnp.asarray(np.random.default_rng(5).normal(size=(num_tasks, OUTPUT_SIZE)))
    return jax.vmap(Sample)(random_problem(3, num_tasks), targets)


def transformer(config: StackConfig, tokens=None) -> Transformer:
    tokens = ConcatenatedTokens() if tokens is None else tokens
    sizes = {"input_size": INPUT_SIZE, "output_size": OUTPUT_SIZE, "context_length": CONTEXT_LENGTH}
    return Transformer(config, random_weights(config, tokens.shape(**sizes)[1], 4, size=0.3), tokens)


@eqx.filter_jit
def one_at_a_time(learner, samples):
    found = jax.vmap(lambda sample: linearise(learner, sample.problem))(samples)
    return found.prediction, found.sensitivity


def agrees(learner, samples):
    found = linearisations(learner, samples)
    predictions, sensitivities = one_at_a_time(learner, samples)
    np.testing.assert_allclose(found.prediction, predictions, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.sensitivity, sensitivities, rtol=1e-10, atol=1e-12)
    assert float(jnp.abs(sensitivities).max()) > 0.01
    losses = [prediction_loss("cross_entropy", *pair) for pair in zip(predictions, samples.query_target, strict=True)]
    np.testing.assert_allclose(task_losses(learner, samples, "cross_entropy"), losses, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STACKS)
def test_all_tasks_at_once_are_each_task_alone(name):
    agrees(transformer(STACKS[name]), samples_of())


@pytest.mark.parametrize("residuals", [False, True])
def test_initial_weights_are_part_of_the_prediction(residuals):
    tokens = ConcatenatedTokens(jnp.asarray(W0), targets_hold_residuals=residuals)
    agrees(transformer(StackConfig(num_layers=2), tokens), samples_of())


def test_tokens_that_alternate():
    agrees(transformer(StackConfig(num_layers=2, attention=("softmax", "linear")), AlternatingTokens()), samples_of())


def test_centred_logits_of_a_stack():
    agrees(CentredLogits(transformer(STACKS["softmax"])), samples_of())


def test_a_clip_that_is_reached_stops_what_the_query_says():
    """The cases above would not tell a clip's derivative if no token reached it."""
    clipped = transformer(STACKS["clipped"])
    free = dataclasses.replace(STACKS["clipped"], token_clip=None)
    one, other = (
        linearisations(each, samples_of()).sensitivity
        for each in (clipped, Transformer(free, clipped.weights, clipped.tokens))
    )
    assert float(jnp.mean(jnp.abs(one - other))) > 0.01


@pytest.mark.parametrize("at_once", [1, 4, 11, 100])
def test_blocks_of_any_size_cover_every_task(at_once, monkeypatch):
    samples, learner = samples_of(), transformer(STACKS["tied"])
    whole = task_losses(learner, samples)
    monkeypatch.setattr(evaluation, "_TASKS_AT_ONCE", at_once)
    jax.clear_caches()
    np.testing.assert_allclose(task_losses(learner, samples), whole, rtol=1e-12)


def test_accuracies_are_the_chosen_classes_probabilities():
    samples, learner = samples_of(), GradientDescent(0.3)
    predictions, _ = one_at_a_time(learner, samples)
    chosen = [target[int(np.argmax(one))] for one, target in zip(predictions, samples.query_target, strict=True)]
    np.testing.assert_allclose(task_accuracies(learner, samples), chosen)
