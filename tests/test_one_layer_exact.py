"""The expected loss of one layer: against exact quadrature over every random number, Monte Carlo, and its optimum.

The quadrature is exact, not approximate: the loss is a polynomial of degree at most 4 in every scalar that is drawn,
and Gauss' rule with 3 nodes integrates degree 5. It runs the plain model on every combination of nodes.
"""

import dataclasses
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean, random_weights

from innerloop.analysis import task_losses
from innerloop.constructions import gradient_descent_weights
from innerloop.exact import (
    check_one_layer,
    one_layer,
    one_layer_loss,
    one_step_loss,
    optimal_layer,
    optimal_learning_rate,
    trivial_loss,
)
from innerloop.keys import root_key
from innerloop.models import Products, StackConfig, Transformer, products
from innerloop.runs import load_run, name_of, obtain_run
from innerloop.store import RunFolder
from innerloop.tasks import (
    Batch,
    Exponential,
    Gaussian,
    IndependentInputs,
    Laplace,
    LinearRegression,
    Normal,
    Uniform,
)
from innerloop.tokens import ConcatenatedTokens
from innerloop.training import OptimizerConfig, Recipe, expected, recipe_from_json, recipe_to_json, train

COVARIANCE = ((1.3, 0.4, -0.2), (0.4, 0.6, 0.1), (-0.2, 0.1, 0.9))
INPUTS = {
    "uniform": Uniform(),
    "normal": Normal(),
    "exponential": Exponential(),
    "laplace": Laplace(),
    "gaussian": Gaussian(COVARIANCE),
}
SIZES = {"input_size": 3, "context_length": 5}
TASKS = {
    **{name: LinearRegression(**SIZES, inputs=inputs) for name, inputs in INPUTS.items()},
    "uniform-noisy-two-outputs": LinearRegression(
        **SIZES, output_size=2, noise_std=0.4, input_scale=2.1, target_scale=0.7
    ),
    "exponential-noisy-two-outputs": LinearRegression(
        **SIZES, output_size=2, inputs=Exponential(), noise_std=0.9, input_scale=0.8, target_scale=1.2
    ),
    "gaussian-noisy": LinearRegression(**SIZES, inputs=INPUTS["gaussian"], noise_std=0.6, target_scale=0.8),
    "one-token-noisy": LinearRegression(input_size=3, context_length=1, inputs=Normal(), noise_std=0.5),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def random_products(task, seed, *, heads=1, size=0.3):
    config = StackConfig(num_heads=heads)
    weights = random_weights(config, task.input_size + task.output_size, seed, size=size)
    return weights, products(weights)


# --- Moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_fourth_moment_tensor(inputs):
    """Symmetric, contracts to Q, and agrees with samples entry by entry."""
    task = LinearRegression(**SIZES, inputs=inputs, input_scale=1.3)
    tensor = task.fourth_moment_tensor()
    for axes in itertools.permutations(range(4)):
        np.testing.assert_allclose(tensor.transpose(axes), tensor, rtol=1e-14)
    np.testing.assert_allclose(np.einsum("ijkk->ij", tensor), task.input_moments().fourth, rtol=1e-13)
    x = np.asarray(1.3 * inputs.sample(root_key(0), (3, 400_000)), np.float64).T
    assert_mean(np.einsum("ti,tj,tk,tl->tijkl", x, x, x, x), tensor, resolution=0.15)


def test_fourth_moment_of_a_distribution_that_has_the_tensor_alone():
    class TensorAlone(Normal):
        fourth_moment = Uniform.__mro__[2].fourth_moment  # that of `InputDistribution`

    np.testing.assert_allclose(TensorAlone().fourth_moment(3), Normal().fourth_moment(3))


def test_no_tensor_for_normalised_contexts():
    with pytest.raises(ValueError, match=r"task\.normalise_context must be False"):
        LinearRegression(normalise_context=True).fourth_moment_tensor()


# --- Against the model itself, with every random number integrated exactly -------------------------------------------


class TwoPoints(IndependentInputs):
    """Two values with unequal probabilities: neither centred nor symmetric."""

    def sample(self, key, shape):
        return jnp.where(jax.random.uniform(key, shape) < 0.3, 1.1, -0.4)

    def raw_moments(self):
        first, second, third, fourth = (0.3 * 1.1**k + 0.7 * (-0.4) ** k for k in range(1, 5))
        return first, second, third, fourth


def hermite():
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    return nodes, weights / weights.sum()


RULES = {
    "two-points": (TwoPoints(), lambda: (np.array([1.1, -0.4]), np.array([0.3, 0.7]))),
    "uniform": (Uniform(), lambda: tuple(part / 2 for part in np.polynomial.legendre.leggauss(3))),
    "normal": (Normal(), hermite),
    "exponential": (Exponential(), lambda: np.polynomial.laguerre.laggauss(3)),
    # Symmetric, with second moment 2 and fourth 24: nodes at 0 and +-sqrt(24 / 2).
    "laplace": (Laplace(), lambda: (np.sqrt(12) * np.array([-1, 0, 1]), np.array([1, 10, 1]) / 12)),
    "gaussian": (Gaussian(((1.3, 0.4), (0.4, 0.6))), hermite),
}


def grid(rule, dimensions):
    """All combinations of a rule's nodes, (points, dimensions), with their weights, (points,)."""
    nodes, weights = rule
    points = np.array(list(itertools.product(nodes, repeat=dimensions)))
    return points, np.array([math.prod(chosen) for chosen in itertools.product(weights, repeat=dimensions)])


def quadrature(task, rule):
    """Every combination of nodes as a sample, and its probability: context inputs, query, W and noise."""
    n_i, n_o, n = task.input_size, task.output_size, task.context_length
    parts = [grid(rule, n * n_i), grid(rule, n_i), grid(hermite(), n_o * n_i)]
    parts.append(grid(hermite(), n * n_o) if task.noise_std else (np.zeros((1, n * n_o)), np.ones(1)))
    index = np.indices([len(weights) for _, weights in parts]).reshape(4, -1)
    context, query, W, noise = (points[i] for (points, _), i in zip(parts, index, strict=True))
    probability = np.prod([weights[i] for (_, weights), i in zip(parts, index, strict=True)], axis=0)
    root = np.eye(n_i)
    if isinstance(task.inputs, Gaussian):
        root = np.linalg.cholesky(np.array(task.inputs.covariance))
    context = task.input_scale * context.reshape(-1, n, n_i) @ root.T
    query = task.input_scale * query @ root.T
    W = task.target_scale * W.reshape(-1, n_o, n_i)
    inputs = np.concatenate([context, query[:, None]], axis=1)  # (tasks, tokens, input_size)
    targets = np.einsum("tni,toi->tno", inputs, W)
    targets[:, :-1] += task.noise_std * noise.reshape(-1, n, n_o)
    return Batch(*(jnp.asarray(part.transpose(2, 1, 0)) for part in (inputs, targets))).samples(), probability


def expectation(task, rule, learner):
    samples, probability = quadrature(task, rule)
    assert probability.sum() == pytest.approx(1.0, rel=1e-12)
    return float(np.asarray(eqx.filter_jit(task_losses)(learner, samples)) @ probability)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("heads", [1, 2])
def test_against_quadrature(x64, name, heads):
    """The plain model, one task per combination of nodes: no formula in common, and no error beyond rounding."""
    inputs, rule = RULES[name]
    task = LinearRegression(
        input_size=2, context_length=2, inputs=inputs, noise_std=0.7, input_scale=0.9, target_scale=1.4
    )
    weights, layer = random_products(task, heads, heads=heads)
    config = StackConfig(num_heads=heads, damping=0.8)
    learner = Transformer(config, weights, ConcatenatedTokens())
    assert float(one_layer_loss(task, config)(layer)) == pytest.approx(expectation(task, rule(), learner), rel=1e-11)


@pytest.mark.parametrize("name", ["two-points", "gaussian"])
def test_two_outputs_against_quadrature(x64, name):
    """With weights that mix the outputs."""
    inputs, rule = RULES[name]
    size = 2 if name == "gaussian" else 1
    length = 1 if name == "gaussian" else 3
    task = LinearRegression(input_size=size, output_size=2, context_length=length, inputs=inputs, noise_std=0.7)
    weights, layer = random_products(task, 3, heads=2)
    learner = Transformer(StackConfig(num_heads=2), weights, ConcatenatedTokens())
    config = StackConfig(num_heads=2)
    assert float(one_layer_loss(task, config)(layer)) == pytest.approx(expectation(task, rule(), learner), rel=1e-11)


# --- Against Monte Carlo ---------------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("heads", [1, 2])
def test_against_monte_carlo(x64, task, heads):
    """Weights near a useful layer, where the loss is not all in the tails, plus noise in every entry."""
    best = optimal_layer(task)
    _, noise = random_products(task, 5, heads=heads, size=0.1)
    base = Products(*(jnp.concatenate([part] * heads, axis=1) for part in (best.W_KQ, best.W_PV / heads)))
    scale = float(jnp.abs(best.W_KQ).max())
    layer = Products(base.W_KQ + scale * 5 * noise.W_KQ, base.W_PV + 5 * noise.W_PV)
    config = StackConfig(num_heads=heads, damping=0.9)
    samples = eqx.filter_jit(lambda: task.samples(root_key(6), 60_000))()
    learner = Transformer(config, layer.as_weights(), ConcatenatedTokens())
    losses = eqx.filter_jit(task_losses)(learner, samples)
    assert_mean(losses, one_layer_loss(task, config)(layer), resolution=0.25)


# --- Against the closed form of a gradient step ----------------------------------------------------------------------


@every_task
def test_construction_has_the_loss_of_its_gradient_step(x64, task):
    for rate in (0.0, 0.3, -1.7, optimal_learning_rate(task)):
        layer = products(
            gradient_descent_weights(
                input_size=task.input_size,
                output_size=task.output_size,
                context_length=task.context_length,
                learning_rate=rate,
            )
        )
        loss = one_layer_loss(task)
        assert float(loss(layer)) == pytest.approx(one_step_loss(task, rate), rel=1e-12)
        assert float(loss(layer.rescaled(-2.3))) == pytest.approx(one_step_loss(task, rate), rel=1e-12)
        halved = one_layer_loss(task, StackConfig(damping=0.5))
        assert float(halved(layer)) == pytest.approx(one_step_loss(task, rate / 2), rel=1e-12)
    assert loss.trivial == pytest.approx(trivial_loss(task))


@pytest.mark.parametrize("part", ["_same_token", "_two_tokens"])
def test_every_moment_counts(x64, monkeypatch, part):
    """A control: without any one kind of moment, the loss of random weights is another."""
    task = TASKS["exponential-noisy-two-outputs"]
    _, layer = random_products(task, 7, heads=2)
    value, original = float(one_layer_loss(task)(layer)), getattr(one_layer, part)
    x, y = slice(3), slice(3, None)
    for place in [(x, x, x, x), (x, x, y, y), (y, y, x, x), (x, y, x, y), (x, y, y, x), (y, x, y, x), (y, y, y, y)]:

        def without(task, place=place):
            moments = original(task)
            assert np.abs(moments[place]).max() > 0.01
            moments[place] = 0.0
            return moments

        monkeypatch.setattr(one_layer, part, without)
        assert abs(float(one_layer_loss(task)(layer)) - value) > 1e-4 * value


# --- The optimum -----------------------------------------------------------------------------------------------------


def gradient_size(loss, layer):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(jax.grad(lambda p: loss(p))(layer)))


@every_task
def test_optimal_layer_is_a_minimum(x64, task):
    """No gradient, and a higher loss wherever one goes: small and large steps in every entry, also with two heads."""
    loss, best = jax.jit(one_layer_loss(task).__call__), optimal_layer(task)
    least = float(loss(best))
    off = Products(1.01 * best.W_KQ, best.W_PV)
    assert gradient_size(loss, best) < 1e-11 * max(1.0, gradient_size(loss, off))
    for heads, size, seed in itertools.product((1, 2), (1e-3, 1e-1, 1.0), range(5)):
        _, noise = random_products(task, seed, heads=heads)
        base = Products(*(jnp.concatenate([part] * heads, axis=1) for part in (best.W_KQ, best.W_PV / heads)))
        assert float(loss(Products(base.W_KQ + size * noise.W_KQ, base.W_PV + size * noise.W_PV))) > least


@pytest.mark.parametrize("inputs", [Uniform(), Normal(), Laplace()], ids=["uniform", "normal", "laplace"])
def test_optimal_layer_for_centred_independent_coordinates_is_the_optimal_gradient_step(x64, inputs):
    task = LinearRegression(input_size=3, output_size=2, context_length=5, inputs=inputs, noise_std=0.3)
    rate = optimal_learning_rate(task)
    step = products(gradient_descent_weights(input_size=3, output_size=2, context_length=5, learning_rate=rate))
    np.testing.assert_allclose(optimal_layer(task).W_KQ[0, 0, :3, :3], rate / 5 * np.eye(3), atol=1e-14)
    assert float(one_layer_loss(task)(optimal_layer(task))) == pytest.approx(float(one_layer_loss(task)(step)))


def test_optimal_layer_for_a_covariance(x64):
    """The known preconditioner, with noise: ((1 + 1/N) L + (tr L / N + sigma^2 / (N s^2)) I)^-1 / N."""
    task = TASKS["gaussian-noisy"]
    L = np.array(COVARIANCE)
    known = np.linalg.inv((1 + 1 / 5) * L + (np.trace(L) / 5 + 0.6**2 / (5 * 0.8**2)) * np.eye(3)) / 5
    layer = optimal_layer(task)
    np.testing.assert_allclose(layer.W_KQ[0, 0, :3, :3], known, rtol=1e-12)
    assert float(one_layer_loss(task)(layer)) < 0.99 * one_step_loss(task, optimal_learning_rate(task))


def test_optimal_layer_for_inputs_that_are_not_centred_beats_every_gradient_step(x64):
    task = TASKS["exponential"]
    assert float(one_layer_loss(task)(optimal_layer(task))) < 0.99 * one_step_loss(task, optimal_learning_rate(task))


def test_optimal_layer_on_a_line(x64):
    """Inputs on a line: nothing off it, and what is on it is the optimum."""
    line = np.array([0.6, -1.1, 0.3])
    flat = Gaussian(tuple(map(tuple, np.outer(line, line).tolist())))
    task = LinearRegression(**SIZES, inputs=flat, noise_std=0.3)
    A = np.asarray(optimal_layer(task).W_KQ[0, 0, :3, :3])
    square = line @ line
    np.testing.assert_allclose(A, np.outer(line, line) / square / (7 * square + 0.09), atol=1e-12)
    assert gradient_size(one_layer_loss(task), optimal_layer(task)) < 1e-12


def test_no_optimum_in_closed_form_for_normalised_contexts():
    with pytest.raises(ValueError, match=r"task\.normalise_context must be False.*train"):
        optimal_layer(LinearRegression(normalise_context=True))


# --- What is not covered ---------------------------------------------------------------------------------------------

UNCOVERED = {
    "model.num_layers must be 1.*got 2": {"model": StackConfig(num_layers=2)},
    "model.query_in_keys must be False": {"model": StackConfig(query_in_keys=True)},
    "model.token_clip must be None.*got 10": {"model": StackConfig(token_clip=10.0)},
    "task.normalise_context must be False": {"task": LinearRegression(normalise_context=True)},
    r"initial_weights must be None": {"initial_weights": ((0.1,) * 10,)},
    "must be at most 64.*got 65": {"task": LinearRegression(input_size=60, output_size=5)},
}


@pytest.mark.parametrize("message", UNCOVERED)
def test_what_is_not_covered_is_one_line(message):
    given = UNCOVERED[message]
    with pytest.raises(ValueError, match=message) as error:
        Recipe(loss="expected", **given)
    assert "\n" not in str(error.value)
    Recipe(**given)
    if "initial_weights" in given:
        tokens = ConcatenatedTokens(jnp.ones((1, 10)))
        with pytest.raises(ValueError, match=message):
            one_layer_loss(LinearRegression(), tokens=tokens)
    else:
        with pytest.raises(ValueError, match=message):
            one_layer_loss(given.get("task", LinearRegression()), given.get("model"))
    check_one_layer(LinearRegression(), StackConfig())


def test_products_of_another_size():
    with pytest.raises(ValueError, match="tokens of size 4"):
        one_layer_loss(TASKS["uniform"])(Products(jnp.ones((1, 1, 5, 5)), jnp.ones((1, 1, 5, 5))))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda: Recipe(optimizer=OptimizerConfig(method="lbfgs", gradient_clip=None)), 'needs loss="expected"'),
        (lambda: OptimizerConfig(method="lbfgs"), "gradient_clip None and weight_decay 0.*got 0.001"),
        (lambda: OptimizerConfig(method="lbfgs", gradient_clip=None, weight_decay=0.1), "weight_decay 0.*and 0.1"),
    ],
)
def test_line_search_needs_the_loss_itself(recipe, message):
    with pytest.raises(ValueError, match=message) as error:
        recipe()
    assert "\n" not in str(error.value)


# --- Exact training --------------------------------------------------------------------------------------------------


def excess(task, measurement, index):
    """Relative to the least loss, of one seed's weights."""
    with jax.enable_x64(True):
        loss = one_layer_loss(task)
        weights = jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), measurement.weights)
        return float(loss(products(weights))) / float(loss(optimal_layer(task))) - 1


TRAINED = {
    "uniform": LinearRegression(**SIZES),
    "gaussian-noisy-two-outputs": LinearRegression(
        **SIZES, output_size=2, inputs=Gaussian(COVARIANCE), noise_std=0.5, target_scale=0.8
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_reaches_the_optimum(name):
    """From every seed's small random weights, beside a saddle, to rounding errors; what follows leaves it there."""
    task = TRAINED[name]
    recipe = dataclasses.replace(expected(task=task, seeds=(0, 1, 2)), evaluation_interval=40, evaluation_tasks=50)
    *_, first, last = [measurement for _, measurement in train(recipe)]
    for index in range(3):
        assert abs(excess(task, first, index)) < 1e-9
        assert abs(excess(task, last, index)) < 1e-12
    with jax.enable_x64(True):
        least = float(one_layer_loss(task)(optimal_layer(task)))
    np.testing.assert_allclose(last.train_loss, least, rtol=1e-9)
    assert (np.asarray(last.gradient_norm) < 1e-3).all()


def test_adamw_on_the_expected_loss_descends_without_noise():
    """The same loss for every seed and step; nothing of the run depends on the batch."""
    task = TRAINED["uniform"]
    recipe = dataclasses.replace(
        expected(task=task, num_steps=40, seeds=(0,)),
        optimizer=OptimizerConfig(learning_rate=0.01, gradient_clip=None),
        init_scale=1.0,
        evaluation_interval=1,
        evaluation_tasks=5,
    )
    losses = np.array([measurement.train_loss[0] for _, measurement in train(recipe)])[1:]
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.7 * losses[0]


def test_stored_run_is_named_and_read_back(tmp_path):
    recipe = dataclasses.replace(expected(task=TRAINED["uniform"], num_steps=3, seeds=(0,)), evaluation_tasks=5)
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    assert "-expected" in name_of(recipe)
    sampled = dataclasses.replace(recipe, loss="sampled", optimizer=OptimizerConfig())
    assert "-expected" not in name_of(sampled)
    run = obtain_run(recipe, tmp_path)
    assert run.name == name_of(recipe)
    again = load_run(RunFolder(tmp_path / run.name))
    assert again.recipe == recipe


def test_resumed_from_a_file_it_gives_the_same_bits():
    """L-BFGS' memory and line search are part of the state."""
    recipe = dataclasses.replace(
        expected(task=TRAINED["uniform"], num_steps=9, seeds=(0, 1)), evaluation_interval=3, evaluation_tasks=5
    )
    pairs = list(train(recipe))
    with jax.enable_x64(True):
        state = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), pairs[1][0])
    for resumed, whole in zip(train(recipe, state), pairs[2:], strict=True):
        for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
