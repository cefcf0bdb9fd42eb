"""Linear classification: the family, its loss on every path, one layer's gradient step, and the reference learners."""

import dataclasses
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import assert_mean, random_weights, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from native_helpers import needs_native
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression

from innerloop.algorithms import (
    BayesianLogisticRegression,
    CentredLogits,
    CrossEntropyDescent,
    GradientDescent,
    KernelSmoothing,
    LogisticRegression,
    fitted_weights,
    prior_penalty,
)
from innerloop.analysis import best_numbers, task_accuracies, task_losses, trajectory_losses
from innerloop.constructions import classification_descent_transformer, gradient_descent_transformer
from innerloop.exact import optimal_learning_rate
from innerloop.kernels import batch_loss, jax_kernel, training_kernel, training_path
from innerloop.keys import root_key
from innerloop.models import AttentionWeights, StackConfig, StackWeights, Transformer
from innerloop.problem import Problem
from innerloop.runs import name_of, obtain_run
from innerloop.tasks import LinearClassification, LinearRegression, Normal, prediction_loss
from innerloop.tokens import ConcatenatedTokens
from innerloop.training import OptimizerConfig, Recipe

TASK = LinearClassification(input_size=3, output_size=5, context_length=7, target_scale=2.0)


def random_classes(seed: int, *, input_size=3, num_classes=5, context_length=7) -> Problem:
    """Normal inputs with labels that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    dtype = jnp.result_type(float)
    labels = np.eye(num_classes)[rng.integers(num_classes, size=context_length)]
    inputs, query = rng.normal(size=(context_length, input_size)), rng.normal(size=input_size)
    return Problem(*(jnp.asarray(part, dtype) for part in (inputs, labels, query)))


# --- The family ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    """What is drawn for many tasks, and the batch made of it, in double precision."""
    draw = jax.jit(lambda key: TASK.draw(key, 40_000))(root_key(1))
    batch = jax.jit(TASK.assemble)(draw)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (draw, batch))


def test_labels_are_drawn_from_the_softmax_of_one_W(drawn):
    """One-hot labels whose mean given x is softmax(W x): nothing in x is correlated with the difference."""
    draw, batch = drawn
    W, labels = 2.0 * draw.weights, batch.targets[:, :-1]
    assert set(np.unique(labels)) == {0.0, 1.0}
    np.testing.assert_array_equal(labels.sum(axis=0), 1.0)
    probabilities = scipy.special.softmax(np.einsum("cib,itb->ctb", W, batch.inputs), axis=0)
    surprise = np.moveaxis(labels - probabilities[:, :-1], -1, 0)  # (tasks, classes, context)
    assert_mean(surprise, np.zeros(surprise.shape[1:]))
    inputs = np.moveaxis(batch.inputs, -1, 0)
    for token in (0, 4):
        products = surprise[:, :, None, token] * inputs[:, None, :, token]
        assert_mean(products, np.zeros(products.shape[1:]))
    assert_mean(surprise[:, :, 0] * surprise[:, :, 1], np.zeros(5))  # labels are drawn one by one
    # The draws are not the likeliest classes: their probability is that of the likeliest only on average of itself.
    hit = np.mean(labels.argmax(axis=0) == probabilities[:, :-1].argmax(axis=0))
    assert abs(hit - probabilities[:, :-1].max(axis=0).mean()) < 0.01


def test_the_query_has_the_probabilities(drawn):
    draw, batch = drawn
    expected = scipy.special.softmax(np.einsum("cib,ib->cb", 2.0 * draw.weights, batch.inputs[:, -1]), axis=0)
    np.testing.assert_allclose(batch.targets[:, -1], expected, rtol=1e-4, atol=1e-6)


def test_weights_are_the_prior_that_the_penalty_is_of(drawn):
    W = np.moveaxis(2.0 * drawn[0].weights, -1, 0)
    assert_mean(W**2, np.full((5, 3), 1 / prior_penalty(TASK)))


def test_scales_of_inputs_and_targets():
    """Doubling the inputs and halving W changes no label."""
    other = dataclasses.replace(TASK, input_scale=2.0, target_scale=1.0)
    one, two = (task.sample_batch(root_key(2), 11) for task in (TASK, other))
    np.testing.assert_allclose(two.inputs, 2 * one.inputs, rtol=1e-6)
    np.testing.assert_allclose(two.targets, one.targets, atol=1e-5)
    assert TASK.sample_batch(root_key(2), 11).targets.shape == (5, 8, 11)
    normal = dataclasses.replace(TASK, inputs=Normal()).sample_batch(root_key(2), 500)
    assert np.abs(normal.inputs).max() > 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_size", 0, "task.input_size must be an integer of at least 1, got 0"),
        ("output_size", 1, r"task.output_size \(of classification\) must be an integer of at least 2, got 1"),
        ("context_length", 0, "task.context_length must be an integer of at least 1, got 0"),
        ("input_scale", 0.0, "task.input_scale must be a finite number above 0, got 0.0"),
        ("target_scale", math.inf, "task.target_scale must be a finite number above 0, got inf"),
    ],
)
def test_ranges(name, value, message):
    with pytest.raises(ValueError, match=message) as error:
        LinearClassification(**{name: value})
    assert "\n" not in str(error.value)


# --- The loss --------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_scipy():
    rng = np.random.default_rng(3)
    logits, targets = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.dirichlet(np.ones(5), size=4).T)
    expected = -np.sum(targets * scipy.special.log_softmax(np.asarray(logits, np.float64), axis=0), axis=0)
    np.testing.assert_allclose(prediction_loss("cross_entropy", logits, targets), expected, rtol=1e-5)
    expected = 0.5 * np.sum((np.asarray(logits) - targets) ** 2, axis=0)
    np.testing.assert_allclose(prediction_loss("half_squared_error", logits, targets), expected, rtol=1e-5)


def test_large_logits_do_not_overflow():
    loss = prediction_loss("cross_entropy", jnp.array([900.0, -900.0]), jnp.array([0.0, 1.0]))
    assert float(loss) == 1800.0


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_training_loss_is_the_learners_cross_entropy(x64, attention):
    """Batch code and unbatched model, value and gradient; the squared error is another number."""
    config = StackConfig(attention=(attention,), num_heads=2)
    weights = random_weights(config, 8, seed=4, size=0.7)
    batch = TASK.sample_batch(root_key(4), 13)

    @jax.jit
    @jax.value_and_grad
    def by_learner(weights):
        return jnp.mean(task_losses(Transformer(config, weights), batch.samples(), "cross_entropy"))

    kernel = jax_kernel(config, ConcatenatedTokens(), TASK, 13)
    stream, step = root_key(5), jnp.asarray(2, jnp.int32)
    batch = TASK.sample_batch(jax.random.fold_in(stream, 2), 13)
    actual = jax.jit(kernel.loss_and_gradient)(weights, kernel.prepare(stream, step))
    assert relative_difference(actual, by_learner(weights)) < 1e-12
    squared = batch_loss(config, ConcatenatedTokens(), weights, batch)
    assert abs(float(squared - actual[0])) > 1e-3


@needs_native
def test_native_code_leaves_cross_entropy_of_embedded_tokens_to_jax(monkeypatch):
    """Also where it is required: there it has the squared error alone."""
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")
    config, tokens = StackConfig(embedding_size=4), ConcatenatedTokens()
    assert training_kernel(config, tokens, TASK, 8).path == "jax"
    assert training_path(config, tokens, TASK.prediction_loss) == "jax"
    assert training_path(config, tokens, LinearRegression.prediction_loss) == "native"


SMALL = Recipe(
    task=LinearClassification(input_size=2, output_size=3, context_length=11),
    optimizer=OptimizerConfig(learning_rate=0.02, gradient_clip=None),
    init_scale=0.3,
    num_steps=60,
    batch_size=128,
    seeds=(0, 1),
    evaluation_interval=30,
    evaluation_tasks=500,
)


def test_a_run_is_trained_measured_and_named_by_its_cross_entropy(tmp_path):
    run = obtain_run(SMALL, tmp_path)
    assert run.name.startswith("linear_classification-1-tied-N11-d2")
    assert run.name == name_of(SMALL) != name_of(dataclasses.replace(SMALL, task=LinearClassification()))
    assert "cross-entropy in nats" in run.metrics["evaluation_loss"].attrs["units"]
    loss = run.metrics["evaluation_loss"].values
    samples = SMALL.task.samples(root_key(6), 2000)
    for seed in range(2):
        expected = float(task_losses(run.transformer(seed), samples, "cross_entropy").mean())
        assert abs(loss[-1, seed] - expected) < 0.05
    assert (loss[0] > 1.0).all()
    assert (loss[-1] < loss[0] - 0.1).all()


def test_other_measures():
    """Losses along a trajectory, and accuracy as the probability of the likeliest class."""
    samples = TASK.samples(root_key(7), 9)
    learner = CrossEntropyDescent(2.0, 3)
    losses = trajectory_losses(learner, samples, "cross_entropy")
    assert losses.shape == (4, 9)
    np.testing.assert_allclose(losses[0], math.log(5), rtol=1e-6)
    np.testing.assert_allclose(losses[-1], task_losses(learner, samples, "cross_entropy"), rtol=1e-6)
    logits = np.asarray(jax.vmap(lambda sample: learner(sample.problem).value)(samples))
    expected = np.asarray(samples.query_target)[np.arange(9), logits.argmax(axis=1)]
    np.testing.assert_allclose(task_accuracies(learner, samples), expected)


# --- One layer's step ------------------------------------------------------------------------------------------------


def cross_entropy(weights, problem):
    log_probabilities = jax.nn.log_softmax(problem.context_inputs @ weights.T, axis=-1)
    return -jnp.mean(jnp.sum(problem.context_targets * log_probabilities, axis=-1))


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])  # every example compiles anew: few, none shrunk
@given(
    input_size=st.integers(1, 11),
    num_classes=st.integers(2, 7),
    context_length=st.integers(1, 23),
    seed=st.integers(0, 1000),
)
def test_construction_is_a_gradient_step(x64, input_size, num_classes, context_length, seed):
    """For the query and all context tokens; without centring, logits differ and the cross-entropy does not."""
    sizes = {"input_size": input_size, "num_classes": num_classes, "context_length": context_length}
    problem = random_classes(seed, **sizes)
    rate = jnp.asarray(np.random.default_rng(seed).uniform(0.2, 2.0))

    @jax.jit
    def compare(rate, problem):
        weights = -rate * jax.grad(cross_entropy)(jnp.zeros((num_classes, input_size)), problem)
        layers = [
            classification_descent_transformer(**sizes, learning_rate=rate, centred=centred)(problem)
            for centred in (True, False)
        ]
        losses = [-jax.nn.log_softmax(layer.value)[0] for layer in layers]
        expected = weights @ problem.query_input, problem.context_inputs @ weights.T
        return (layers[0].value, layers[0].context_trajectory[-1]), expected, layers[1].value, losses

    actual, expected, uncentred, losses = compare(rate, problem)
    assert relative_difference(actual, expected) < 1e-12
    assert abs(float(losses[0] - losses[1])) < 1e-12
    assert np.abs(np.asarray(uncentred) - np.asarray(expected[0])).max() > 1e-9


@pytest.mark.parametrize(("num_classes", "order"), [(2, 4), (3, 3)])
def test_two_linear_layers_miss_the_second_step(x64, num_classes, order):
    """By a term of third order in eta; of fourth for two classes, where softmax's error is odd."""
    problem = random_classes(8, num_classes=num_classes, context_length=11)
    centred = eqx.tree_at(lambda one: one.context_targets, problem, num_classes * problem.context_targets - 1)
    errors = []
    for rate in (0.02, 0.01):
        layers = gradient_descent_transformer(
            input_size=3, output_size=num_classes, context_length=11, learning_rate=rate / num_classes, num_layers=2
        )
        exact = CrossEntropyDescent(rate, 2)(problem).value
        errors.append(float(jnp.abs(layers(centred).value - exact).max()))
    assert errors[0] > 1e-12
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1


def test_a_construction_needs_two_classes():
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 2, got 1"):
        classification_descent_transformer(input_size=3, num_classes=1, context_length=5, learning_rate=1.0)


# --- Reference learners ----------------------------------------------------------------------------------------------


def test_descent_follows_the_gradient(x64):
    problem = random_classes(9)
    W = jnp.zeros((5, 3))
    expected = [W]
    for _ in range(4):
        expected.append(expected[-1] - 0.7 * jax.grad(cross_entropy)(expected[-1], problem))
    np.testing.assert_allclose(CrossEntropyDescent(0.7, 4).weights(problem), jnp.stack(expected), rtol=1e-12)


def test_logistic_regression_is_that_of_scikit_learn(x64):
    problem = random_classes(10, context_length=29)
    labels = np.asarray(problem.context_targets).argmax(axis=1)
    fit = ScikitLogisticRegression(C=1 / 0.3, fit_intercept=False, tol=1e-12, max_iter=10_000)
    fit.fit(np.asarray(problem.context_inputs), labels)
    np.testing.assert_allclose(fitted_weights(problem, 0.3), fit.coef_, atol=1e-7)
    prediction = jax.jit(LogisticRegression(0.3))(problem)
    np.testing.assert_allclose(prediction.value, fit.coef_ @ problem.query_input, atol=1e-6)


def test_derivatives_of_the_fit_are_those_of_its_optimum(x64):
    """By the penalty and by the context, against central differences."""
    problem, step = random_classes(10, context_length=29), 1e-5

    @jax.jit
    def value(moves):
        penalty, inputs, targets = moves
        moved = Problem(problem.context_inputs.at[4, 1].add(inputs), problem.context_targets, problem.query_input)
        moved = eqx.tree_at(lambda one: one.context_targets, moved, problem.context_targets.at[2, 3].add(targets))
        return LogisticRegression(0.3 + penalty)(moved).value

    jacobian = jax.jit(jax.jacrev(value))(jnp.zeros(3))
    for place, direction in enumerate(step * jnp.eye(3)):
        expected = (value(direction) - value(-direction)) / (2 * step)
        np.testing.assert_allclose(jacobian[:, place], expected, rtol=1e-6, atol=1e-9)


def test_logistic_regression_of_separable_classes():
    """A single context pair of each class: the penalty alone keeps the fit finite, also in single precision."""
    problem = Problem(jnp.eye(2), jnp.eye(2), jnp.array([1.0, -1.0]))
    value = LogisticRegression(1e-3)(problem).value
    assert 3 < float(value[0]) < 20
    np.testing.assert_allclose(value[0], -value[1], rtol=1e-4)


def test_bayes_is_the_integral(x64):
    """Two classes, one input: only the difference d ~ N(0, 2 s^2) of the weights counts, and quadrature gives it."""
    inputs, query, s = np.array([[0.9], [-1.4], [0.3], [-0.2]]), 2.5, 4.0
    labels = np.array([0, 1, 0, 1])  # separable: the posterior is skewed, its mode far from its mean
    problem = Problem(jnp.asarray(inputs), jnp.asarray(np.eye(2)[labels]), jnp.array([query]))
    d = np.linspace(-60, 60, 40_001)
    signs = np.where(labels == 0, 1.0, -1.0)
    log_posterior = scipy.stats.norm.logpdf(d, scale=math.sqrt(2) * s)
    log_posterior += np.sum(scipy.special.log_expit(signs[:, None] * inputs * d), axis=0)
    posterior = np.exp(log_posterior - log_posterior.max())
    expected = np.average(scipy.special.expit(query * d), weights=posterior)
    spread = math.sqrt(np.average((scipy.special.expit(query * d) - expected) ** 2, weights=posterior))
    bayes = BayesianLogisticRegression(1 / s**2, root_key(12), 20_000)
    probability = float(jnp.exp(eqx.filter_jit(bayes)(problem).value[0]))
    size = float(bayes.effective_sample_size(problem))
    assert 5000 < size < 20_000
    assert abs(probability - expected) < 4.5 * spread / math.sqrt(size)
    mode = float(jax.nn.softmax(LogisticRegression(1 / s**2)(problem).value)[0])
    assert abs(mode - expected) > 9 * spread / math.sqrt(size)  # the fit alone would not pass


def test_learners_come_in_their_order():
    """Bayes-optimal, then the fit at its mode, then one tuned step, then equal probabilities; on the same tasks."""
    task = LinearClassification(input_size=3, context_length=13)
    samples, penalty = task.samples(root_key(13), 600), prior_penalty(task)
    chance, fit, bayes = trajectory_losses(
        BayesianLogisticRegression(penalty, root_key(14), 300), samples, "cross_entropy"
    )
    step = task_losses(CrossEntropyDescent(20.0), samples, "cross_entropy")
    losses = [np.asarray(one, np.float64) for one in (bayes, fit, step, chance)]
    np.testing.assert_allclose(chance, math.log(2), rtol=1e-6)
    np.testing.assert_allclose(fit, task_losses(LogisticRegression(penalty), samples, "cross_entropy"), atol=1e-5)
    for better, worse in itertools.pairwise(losses):
        gap = worse - better
        assert gap.mean() > 2 * gap.std() / math.sqrt(gap.size)


def test_penalties_and_samples_have_ranges():
    with pytest.raises(ValueError, match=r"penalty must be a finite number above 0, got 0\.0"):
        LogisticRegression(0.0)
    with pytest.raises(ValueError, match=r"penalty must be a finite number above 0, got -1\.0"):
        BayesianLogisticRegression(-1.0, root_key(0))
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        BayesianLogisticRegression(1.0, root_key(0), 0)


def test_one_softmax_head_is_kernel_smoothing(x64):
    """With W_K = W_Q = I on the inputs, and minus the scale on the targets."""
    problem, root = random_classes(15), 8**0.5  # softmax divides its scores by the root of the key size
    keys = jnp.zeros((1, 1, 8, 8)).at[..., :3, :3].set(jnp.eye(3))
    values = jnp.zeros((1, 1, 8, 8)).at[..., 3:, 3:].set(-2.5 * jnp.eye(5))
    weights = StackWeights(AttentionWeights(W_K=1.3 * root * keys, W_Q=keys, W_V=values, P=jnp.eye(8)[None, None]))
    head = Transformer(StackConfig(attention=("softmax",)), weights)(problem)
    smoothed = KernelSmoothing(2.5, 1.3)(problem)
    np.testing.assert_allclose(head.value, smoothed.value, rtol=1e-12)
    np.testing.assert_allclose(head.context_trajectory, smoothed.context_trajectory, rtol=1e-12)


def test_centred_logits(x64):
    problem = random_classes(16)
    plain, centred = GradientDescent(0.7)(problem), CentredLogits(GradientDescent(0.7))(problem)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(centred), strict=True):
        np.testing.assert_allclose(other, one - np.mean(one, axis=-1, keepdims=True), atol=1e-14)
        np.testing.assert_allclose(other.sum(axis=-1), 0.0, atol=1e-13)
    np.testing.assert_allclose(centred.value, CrossEntropyDescent(0.7)(problem).value, atol=1e-14)


# --- Tuning ----------------------------------------------------------------------------------------------------------


def test_tuning_finds_the_known_optimum():
    """One gradient step on regression, whose best learning rate is known in closed form."""
    task = LinearRegression(input_size=3, context_length=5)
    (rate,), loss = best_numbers(GradientDescent, (2.0,), task.samples(root_key(17), 20_000))
    assert abs(rate / optimal_learning_rate(task) - 1) < 0.03
    assert 0 < loss < 0.125


def test_tuning_finds_two_numbers():
    """Of a smoothing that made the targets itself: its numbers have no loss."""
    samples = TASK.samples(root_key(18), 200)
    targets = jax.vmap(lambda sample: KernelSmoothing(2.0, 3.0)(sample.problem).value)(samples)
    samples = eqx.tree_at(lambda one: one.query_target, samples, targets)
    numbers, loss = best_numbers(KernelSmoothing, (1.0, 1.0), samples)
    np.testing.assert_allclose(numbers, (2.0, 3.0), rtol=0.05)
    assert loss < 1e-4


def test_tuning_starts_at_positive_numbers():
    with pytest.raises(ValueError, match=r"start must be positive numbers, got \(0.0,\)"):
        best_numbers(CrossEntropyDescent, (0.0,), TASK.samples(root_key(0), 3), "cross_entropy")
