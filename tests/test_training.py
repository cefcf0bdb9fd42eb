"""The training loop: held against a step-by-step simulation, against itself interrupted, and against the optimum.

Compiling takes nearly all of the time, so most tests share one recipe, and programs that do not differ between recipes
come from a cache that lasts as long as this file.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop.algorithms import GradientDescent, GradientDescentPlusPlus
from innerloop.analysis import over_learners, read_layers, task_losses
from innerloop.exact import one_step_loss, optimal_learning_rate, trivial_loss
from innerloop.keys import named_key, root_key
from innerloop.models import StackConfig, Transformer, products
from innerloop.tasks import LinearRegression, Normal
from innerloop.training import (
    OptimizerConfig,
    Recipe,
    held_out_batch,
    initial_state,
    loop,
    numerics,
    recipe_kernel,
    train,
)

SEEDS = (2, 3, 5)
RECIPE = Recipe(
    task=LinearRegression(input_size=3, context_length=5, noise_std=0.1),
    model=StackConfig(num_layers=2),
    # Values that matter: the gradients are longer than the clip, and eps is not negligible beside them.
    optimizer=OptimizerConfig(learning_rate=0.01, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1, gradient_clip=0.005),
    init_scale=0.7,
    num_steps=7,
    batch_size=17,
    seeds=SEEDS,
    evaluation_interval=3,
    evaluation_tasks=11,
)


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def trained():
    """All (state, measurement) pairs of the shared recipe."""
    return list(train(RECIPE))


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def of_seed(index: int, tree):
    """One seed's part of a state or measurement, with its leading axis; the step has none."""
    return jax.tree.map(lambda leaf: leaf[index : index + 1] if leaf.ndim else leaf, tree)


def steps(pairs) -> list[int]:
    assert [int(state.step) for state, _ in pairs] == [int(measurement.step) for _, measurement in pairs]
    return [int(state.step) for state, _ in pairs]


def train_by_hand(recipe: Recipe, seed: int):
    """AdamW in NumPy on the kernel's gradients; lists of weights before, and loss and gradient norm at, every step.

    Goes on to the last step or to the first whose loss or gradient is not finite.
    """
    config, kernel = recipe.optimizer, recipe_kernel(recipe)
    stream = named_key(root_key(seed), "training")
    loss_and_gradient = jax.jit(lambda weights, step: kernel.loss_and_gradient(weights, kernel.prepare(stream, step)))
    weights = jax.tree.map(lambda leaf: leaf[0], initial_state(dataclasses.replace(recipe, seeds=(seed,))).parameters)
    leaves, structure = jax.tree.flatten(weights)
    leaves, zeros = [np.asarray(leaf, np.float64) for leaf in leaves], [np.zeros(leaf.shape) for leaf in leaves]
    first, second = zeros, zeros
    history, losses, norms = [leaves], [], []
    for step in range(recipe.num_steps):
        weights = jax.tree.unflatten(structure, [jnp.asarray(leaf, recipe.dtype) for leaf in leaves])
        loss, gradient = loss_and_gradient(weights, jnp.asarray(step, jnp.int32))
        gradient = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient))
        losses.append(float(loss))
        norms.append(norm)
        if not (np.isfinite(loss) and norm < np.finfo(recipe.dtype).max ** 0.5):  # the loop squares in its own dtype
            break
        if config.gradient_clip is not None and norm > config.gradient_clip:
            gradient = [leaf * config.gradient_clip / norm for leaf in gradient]
        first = [config.b1 * m + (1 - config.b1) * g for m, g in zip(first, gradient, strict=True)]
        second = [config.b2 * v + (1 - config.b2) * g**2 for v, g in zip(second, gradient, strict=True)]
        scales = 1 - config.b1 ** (step + 1), 1 - config.b2 ** (step + 1)
        leaves = [
            w - config.learning_rate * (m / scales[0] / (np.sqrt(v / scales[1]) + config.eps) + config.weight_decay * w)
            for w, m, v in zip(leaves, first, second, strict=True)
        ]
        history.append(leaves)
    return history, losses, norms


# --- What is done, step by step --------------------------------------------------------------------------------------


def test_measurements_fall_on_multiples_of_the_interval_and_on_the_end(trained):
    assert steps(trained) == [0, 3, 6, 7]


@pytest.mark.parametrize(
    ("num_steps", "interval", "start", "grid"),
    [(7, 3, 0, [3, 6, 7]), (6, 3, 0, [3, 6]), (2, 3, 0, [2]), (11, 3, 7, [9, 11]), (11, 5, 10, [11]), (7, 3, 7, [])],
)
def test_chunks_from_any_step(trained, monkeypatch, num_steps, interval, start, grid):
    """Also from where a shorter training ended. The chunks themselves are left out."""

    def compiled_chunk(recipe, length, path):
        return lambda state, *_: (dataclasses.replace(state, step=state.step + length), trained[1][1])

    monkeypatch.setattr(loop, "_compiled_chunk", compiled_chunk)
    recipe = dataclasses.replace(RECIPE, num_steps=num_steps, evaluation_interval=interval)
    state = dataclasses.replace(trained[0][0], step=jnp.asarray(start, jnp.int32))
    assert [int(state.step) for state, _ in train(recipe, state)] == grid


def test_every_step_is_adamw_on_the_clipped_gradient_of_the_seed_s_own_batch(trained):
    for index, seed in enumerate(SEEDS):
        history, losses, norms = train_by_hand(RECIPE, seed)
        assert min(norms) > 2 * RECIPE.optimizer.gradient_clip
        for (state, measurement), start in zip(trained, (None, 0, 3, 6), strict=True):
            stop = int(state.step)
            for tree in (state.parameters, measurement.weights):
                for actual, expected in zip(jax.tree.leaves(tree), history[stop], strict=True):
                    # Every weight has moved by about .01 a step; this is a thousandth of that.
                    np.testing.assert_allclose(actual[index], expected, rtol=0, atol=1e-5)
            if start is None:
                assert np.isnan(measurement.train_loss[index])
                assert np.isnan(measurement.gradient_norm[index])
            else:
                np.testing.assert_allclose(measurement.train_loss[index], np.mean(losses[start:stop]), rtol=1e-4)
                np.testing.assert_allclose(measurement.gradient_norm[index], np.mean(norms[start:stop]), rtol=1e-4)
        assert np.median(np.abs(history[7][0] - history[0][0])) > 1e-3


def test_evaluation_is_the_learner_s_loss_on_the_held_out_tasks(trained):
    with numerics(RECIPE):
        samples = held_out_batch(RECIPE).samples()
    assert samples.query_target.shape == (11, 1)
    for _, measurement in trained:
        learners = Transformer(RECIPE.model, measurement.weights, RECIPE.tokens())
        expected = over_learners(lambda learner: task_losses(learner, samples).mean(), learners)
        np.testing.assert_allclose(measurement.evaluation_loss, expected, rtol=1e-5)


def test_seeds_differ(trained):
    for leaf in jax.tree.leaves(trained[-1][0].parameters):
        assert leaf.shape[0] == 3
        assert min(np.abs(leaf[a] - leaf[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_streams_of_evaluation_seeds_and_steps_are_disjoint(monkeypatch):
    """Also where seeds agree. Single numbers of 23 bits may agree by chance; streams would agree throughout."""
    monkeypatch.setenv("INNERLOOP_NATIVE", "off")  # there the draw is the numbers; the native kernel's are the same
    seeds = (RECIPE.evaluation_seed, *SEEDS)
    with numerics(RECIPE):
        prepare = jax.jit(recipe_kernel(RECIPE).prepare)
        draws = [
            prepare(named_key(root_key(seed), "training"), jnp.asarray(step, jnp.int32)).inputs
            for seed in seeds
            for step in range(7)
        ]
        streams = [np.unique(inputs) for inputs in (held_out_batch(RECIPE).inputs, *draws)]
    assert streams[0].size > 190  # 3 coordinates, 6 tokens, 11 tasks
    for one, other in itertools.combinations(streams, 2):
        assert np.intersect1d(one, other).size < 5


# --- Interruptions and company ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_resumed_from_any_state_it_gives_the_same_bits(trained, index):
    resumed = list(train(RECIPE, trained[index][0]))
    assert steps(resumed) == steps(trained)[index + 1 :]
    for pair, expected in zip(resumed, trained[index + 1 :], strict=True):
        assert_same_bits(pair, expected)


def test_resumed_from_states_that_went_through_numpy(trained):
    """As states come back from a file."""
    state = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), trained[1][0])
    assert_same_bits(list(train(RECIPE, state)), trained[2:])


def test_a_lone_seed_gives_the_bits_that_it_has_in_company(trained):
    alone = list(train(dataclasses.replace(RECIPE, seeds=SEEDS[1:2])))
    assert_same_bits(alone, of_seed(1, trained))


@pytest.mark.parametrize(
    ("mode", "model"),
    [("off", RECIPE.model), ("required", RECIPE.model), ("required", StackConfig(embedding_size=5))],
    ids=["jax", "native", "native-embedded"],
)
def test_a_fixed_training_set_is_the_batch_of_step_zero_at_every_step(mode, model, monkeypatch):
    """Of as many tasks as it says, whatever the batch size; another one for every seed; resumed to the same bits."""
    monkeypatch.setenv("INNERLOOP_NATIVE", mode)
    recipe = dataclasses.replace(
        RECIPE, model=model, training_tasks=19, seeds=SEEDS[:2], num_steps=4, evaluation_interval=1
    )
    pairs = list(train(recipe))
    with numerics(recipe):
        for index, seed in enumerate(recipe.seeds):
            first_step = jax.random.fold_in(named_key(root_key(seed), "training"), 0)
            samples = recipe.task.sample_batch(first_step, 19).samples()
            for (_, before), (_, measurement) in itertools.pairwise(pairs):
                weights = jax.tree.map(lambda leaf, index=index: leaf[index], before.weights)
                expected = task_losses(Transformer(recipe.model, weights, recipe.tokens()), samples).mean()
                np.testing.assert_allclose(measurement.train_loss[index], expected, rtol=1e-5)
    assert abs(float(pairs[1][1].train_loss[0] - pairs[1][1].train_loss[1])) > 1e-3
    assert_same_bits(list(train(recipe, pairs[2][0])), pairs[3:])


# --- Divergence ------------------------------------------------------------------------------------------------------

FIELDS = ("train_loss", "gradient_norm", "evaluation_loss")
DIVERGING = dataclasses.replace(
    RECIPE,
    model=StackConfig(),
    optimizer=OptimizerConfig(learning_rate=300.0, gradient_clip=None),
    num_steps=97,
    seeds=(0, 1, 6),  # these diverge at different steps, in different chunks
)


def test_one_seed_diverges_and_the_others_go_on(trained):
    state = trained[1][0]
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(1e30), state.parameters)
    state = dataclasses.replace(state, parameters=broken)
    resumed = list(train(RECIPE, state))
    assert steps(resumed) == [6, 7]
    for (state, measurement), (healthy_state, healthy_measurement) in zip(resumed, trained[2:], strict=True):
        np.testing.assert_array_equal(state.diverged_at, [-1, 3, -1])
        for name in FIELDS:
            np.testing.assert_array_equal(np.isnan(getattr(measurement, name)), [False, True, False])
        for index in (0, 2):
            expected = of_seed(index, (healthy_state, healthy_measurement))
            assert_same_bits(of_seed(index, (state, measurement)), expected)
        assert_same_bits(of_seed(1, (state.parameters, measurement.weights)), of_seed(1, (broken, broken)))


@pytest.fixture(scope="module")
def diverged():
    return list(train(DIVERGING))


def test_divergence_is_found_at_its_step_and_weights_stay_at_the_last_finite_ones(diverged):
    diverged_at = []
    for index, seed in enumerate(DIVERGING.seeds):
        history, _, _ = train_by_hand(DIVERGING, seed)
        diverged_at.append(len(history) - 1)
        for actual, expected in zip(jax.tree.leaves(diverged[-1][0].parameters), history[-1], strict=True):
            assert np.isfinite(actual).all()
            np.testing.assert_allclose(actual[index], expected, rtol=0, atol=3)  # a hundredth of a step
    np.testing.assert_array_equal(diverged[-1][0].diverged_at, diverged_at)
    assert len({step // 3 for step in diverged_at}) > 1, "a recipe whose seeds all diverge together tests less"


def test_metrics_are_unknown_from_divergence_on_and_training_stops_when_all_have_diverged(diverged):
    diverged_at = np.asarray(diverged[-1][0].diverged_at)
    assert (diverged_at >= 0).all()
    last = 3 * (diverged_at.max() // 3 + 1)
    assert steps(diverged) == list(range(0, last + 1, 3))
    assert last < 97
    for _, measurement in diverged[1:]:
        for name in FIELDS:
            np.testing.assert_array_equal(np.isnan(getattr(measurement, name)), diverged_at < measurement.step)


def test_nothing_is_left_to_do_once_all_have_diverged(diverged):
    """Or a run that was killed after its last checkpoint would get a measurement that the uninterrupted one lacks."""
    assert list(train(DIVERGING, diverged[-1][0])) == []


@pytest.mark.parametrize(
    "optimizer",
    [
        # The first layer's query never sees the target entry: a gradient of zero, and 0 / (sqrt(0) + eps) is NaN.
        OptimizerConfig(eps=0.0),
        OptimizerConfig(learning_rate=1e39),  # infinite in single precision
    ],
    ids=["eps", "learning_rate"],
)
def test_weights_stay_finite_where_the_update_is_not(optimizer):
    pairs = list(train(dataclasses.replace(DIVERGING, optimizer=optimizer, num_steps=1)))
    assert steps(pairs) == [0, 1]  # fewer than the interval
    state, measurement = pairs[-1]
    for leaf in jax.tree.leaves((state.parameters, measurement.weights)):
        assert np.isfinite(leaf).all()
    np.testing.assert_array_equal(state.diverged_at, [0, 0, 0])


# --- Precision -------------------------------------------------------------------------------------------------------


def test_double_precision_throughout():
    recipe = dataclasses.replace(
        RECIPE, dtype="float64", model=StackConfig(), seeds=(2,), num_steps=3, initial_weights=((0.1, 0.2, 0.3),)
    )
    pairs = []
    for state, measurement in train(recipe):
        assert not jax.config.jax_enable_x64, "the caller's precision is his own"
        pairs.append((state, measurement))
    for pair in pairs:
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(pair)}
        assert dtypes == {np.dtype("float64"), np.dtype("int32")}
    # Not single precision in wider boxes: half of a number's bits would be zero.
    final = np.asarray(pairs[-1][0].parameters.attention.W_V)
    assert (final != final.astype(np.float32)).all()
    with numerics(recipe):
        batch = held_out_batch(recipe)
        learner = Transformer(
            recipe.model, jax.tree.map(lambda leaf: leaf[0], pairs[-1][0].parameters), recipe.tokens()
        )
        expected = task_losses(learner, batch.samples()).mean()
    assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {np.dtype("float64")}
    np.testing.assert_allclose(pairs[-1][1].evaluation_loss[0], expected, rtol=1e-13)


def test_single_precision_throughout(trained):
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {np.dtype("float32"), np.dtype("int32")}


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_matmul_precision_is_in_force_while_programs_are_traced(precision):
    """CPUs ignore it, so the result cannot tell; the traced program can."""
    recipe = dataclasses.replace(RECIPE, matmul_precision=precision)
    with numerics(recipe):
        program = str(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 5))))
    expected = {"default": "Precision.DEFAULT", "high": "Precision.HIGH,", "highest": "Precision.HIGHEST"}[precision]
    assert expected in program


# --- Learning --------------------------------------------------------------------------------------------------------


def test_one_layer_approaches_the_best_gradient_step():
    """Within 3 % of the least loss that one step can have, on the same held-out tasks; untrained it is 4 times that."""
    task = LinearRegression(input_size=2, context_length=11, inputs=Normal())
    recipe = Recipe(
        task=task,
        optimizer=OptimizerConfig(learning_rate=0.01, gradient_clip=1.0),
        init_scale=0.1,
        num_steps=400,
        batch_size=128,
        seeds=(0, 1),
        evaluation_interval=200,
        evaluation_tasks=5000,
    )
    measurements = [measurement for _, measurement in train(recipe)]
    samples = held_out_batch(recipe).samples()
    rate = optimal_learning_rate(task)
    losses = np.asarray(task_losses(GradientDescent(rate), samples))
    standard_error = losses.std() / np.sqrt(losses.size)
    assert abs(losses.mean() - one_step_loss(task, rate)) < 4 * standard_error
    assert (measurements[-1].evaluation_loss < 1.03 * losses.mean()).all()
    assert (measurements[-1].evaluation_loss > 0.97 * losses.mean()).all()
    assert (measurements[0].evaluation_loss > 0.9 * trivial_loss(task)).all()
    assert trivial_loss(task) > 4 * one_step_loss(task, rate)


# --- The numbers of GD++ in place of weights --------------------------------------------------------------------------

INITIAL_WEIGHTS = ((0.4, -0.7, 0.2),)


@pytest.fixture(scope="module")
def tuned():
    """A recipe whose gradients are clipped, and all (state, measurement) pairs of its training."""
    recipe = dataclasses.replace(
        RECIPE,
        model=StackConfig(num_layers=2, tied=False),
        gd_plus_plus_from=(0.8, 0.2),
        initial_weights=INITIAL_WEIGHTS,
        seeds=SEEDS[:2],
        num_steps=6,
        dtype="float64",
    )
    return recipe, list(train(recipe))


def test_numbers_are_trained_by_adamw_on_the_loss_of_the_algorithm(tuned):
    """A simulation that knows neither kernel nor weights: GD++ itself on every task of the seed's own batches."""
    recipe, pairs = tuned
    config, layers = recipe.optimizer, recipe.model.num_distinct_layers
    with numerics(recipe):
        W0 = jnp.asarray(INITIAL_WEIGHTS)

        def mean_loss(numbers, samples):
            # In the recipe, c = eta / N is what Adam sees.
            rates, corrections = (jnp.broadcast_to(part, 2) for part in (5 * numbers[0], numbers[1]))
            learner = GradientDescentPlusPlus(rates, corrections, 2, W0, "recomputed")
            return task_losses(learner, samples).mean()

        loss_and_gradient = jax.jit(jax.value_and_grad(mean_loss))
        for index, seed in enumerate(recipe.seeds):
            stream = named_key(root_key(seed), "training")
            numbers = np.stack([np.full(layers, 0.8 / 5), np.full(layers, 0.2)])
            first, second, history = np.zeros_like(numbers), np.zeros_like(numbers), [numbers]
            for step in range(recipe.num_steps):
                samples = recipe.task.sample_batch(jax.random.fold_in(stream, step), recipe.batch_size).samples()
                gradient = np.asarray(loss_and_gradient(jnp.asarray(numbers), samples)[1])
                norm = np.sqrt((gradient**2).sum())
                assert norm > 2 * config.gradient_clip
                gradient = gradient * config.gradient_clip / norm
                first = config.b1 * first + (1 - config.b1) * gradient
                second = config.b2 * second + (1 - config.b2) * gradient**2
                scales = 1 - config.b1 ** (step + 1), 1 - config.b2 ** (step + 1)
                update = first / scales[0] / (np.sqrt(second / scales[1]) + config.eps) + config.weight_decay * numbers
                numbers = numbers - config.learning_rate * update
                history.append(numbers)
            held_out = held_out_batch(recipe).samples()
            for state, measurement in pairs:
                expected = history[int(state.step)]
                np.testing.assert_allclose(state.parameters.step_size[index], expected[0], rtol=1e-9)
                np.testing.assert_allclose(state.parameters.curvature_correction[index], expected[1], rtol=1e-9)
                loss = loss_and_gradient(jnp.asarray(expected), held_out)[0]
                np.testing.assert_allclose(measurement.evaluation_loss[index], loss, rtol=1e-9)
            assert np.abs(history[-1] - history[0]).min() > 1e-3


def test_weights_stay_the_construction_of_the_numbers(tuned):
    """Read back off the recorded weights; layers with numbers of their own come to differ."""
    recipe, pairs = tuned
    for state, measurement in pairs:
        with numerics(recipe):
            stack = products(measurement.weights)
            reading = read_layers(stack, 3)
        assert stack.W_PV.shape == (2, recipe.model.num_distinct_layers, 1, 4, 4)
        np.testing.assert_allclose(reading.step_size[..., 0], state.parameters.step_size, rtol=1e-13)
        np.testing.assert_allclose(
            reading.curvature_correction[..., 0], state.parameters.curvature_correction, rtol=1e-13
        )
        np.testing.assert_allclose(reading.key_query_error, 0, atol=1e-13)
        # All that is off the diagonal is W0, with the layer's own step size.
        off_diagonal = stack.W_PV[..., 3, :3] / reading.step_size[..., None]
        np.testing.assert_allclose(off_diagonal, np.broadcast_to(INITIAL_WEIGHTS, off_diagonal.shape), rtol=1e-12)
        np.testing.assert_array_equal(stack.W_PV[..., :3, 3], 0)
    assert np.ptp(pairs[-1][0].parameters.step_size, axis=1).min() > 1e-4


def test_tied_layers_share_their_numbers(tuned):
    recipe = dataclasses.replace(tuned[0], model=StackConfig(num_layers=2))
    with numerics(recipe):
        shapes = jax.eval_shape(lambda: initial_state(recipe).parameters)
    assert shapes.step_size.shape == shapes.curvature_correction.shape == (2, 1)  # seeds, distinct layers


def test_numbers_resume_to_the_same_bits(tuned):
    recipe, pairs = tuned
    assert_same_bits(list(train(recipe, pairs[1][0])), pairs[2:])


# --- Every field counts ----------------------------------------------------------------------------------------------

SMALL = Recipe(
    task=LinearRegression(input_size=2, context_length=3),
    optimizer=OptimizerConfig(learning_rate=0.01, weight_decay=0.1, gradient_clip=0.01),
    init_scale=0.7,
    num_steps=2,
    batch_size=5,
    seeds=(0,),
    evaluation_interval=3,
    evaluation_tasks=7,
)
TWO_LAYERS = dataclasses.replace(SMALL, model=StackConfig(num_layers=2))
NORMED = dataclasses.replace(SMALL, model=StackConfig(num_layers=2, layer_norm="before"))
MLP = dataclasses.replace(SMALL, model=StackConfig(mlp="input"))
ALTERNATING = dataclasses.replace(SMALL, model=StackConfig(attention=("softmax",)), token_layout="alternating")
EXPECTED = dataclasses.replace(SMALL, loss="expected", optimizer=OptimizerConfig(gradient_clip=None))
CHANGES = {
    "task.noise_std": (SMALL, 0.2),
    "task.input_scale": (SMALL, 1.5),
    "task.target_scale": (SMALL, 1.5),
    "task.inputs": (SMALL, Normal()),
    "task.normalise_context": (SMALL, True),
    "model.num_layers": (SMALL, 2),
    "model.query_in_keys": (SMALL, True),
    "model.causal": (TWO_LAYERS, True),
    "model.attention": (SMALL, ("softmax",)),
    "model.layer_norm": (NORMED, "between"),
    "model.damping": (SMALL, 0.5),
    "model.update": (TWO_LAYERS, "targets"),
    "model.token_clip": (SMALL, 0.1),
    "token_layout": (SMALL, "alternating"),
    "positions.kind": (ALTERNATING, "learned"),
    "positions.placement": (ALTERNATING, "added"),
    "positions.permuted": (ALTERNATING, True),
    "initial_weights": (SMALL, ((0.3, 0.5),)),
    "init_scale": (SMALL, 0.8),
    "gd_plus_plus_from": (TWO_LAYERS, (0.5, 0.1)),
    "loss": (SMALL, "expected"),
    "optimizer.method": (EXPECTED, "lbfgs"),
    "training_tasks": (SMALL, 5),  # as many as a batch has: the first step is the same, the second is not
    "evaluation_seed": (SMALL, 1),
}
SHAPES = {
    "model.embedding_size": (SMALL, 4),
    "model.mlp": (SMALL, "block"),
    "model.mlp_widening": (MLP, 2),
    "model.mlp_bias": (MLP, False),
    "gd_on_features": (MLP, 0.3),
    "positions.width": (ALTERNATING, 3),
    "task.input_size": (SMALL, 3),
    "task.output_size": (SMALL, 2),
    "task.context_length": (SMALL, 4),
    "model.tied": (TWO_LAYERS, False),
    "model.num_heads": (SMALL, 2),
    "model.key_size": (SMALL, 2),
    "batch_size": (SMALL, 6),
    "evaluation_tasks": (SMALL, 8),
}
# Pinned by tests above: the simulation in NumPy has every number of the optimiser, none of them at its default.
ELSEWHERE = {"dtype", "matmul_precision", "num_steps", "evaluation_interval", "seeds"}
ELSEWHERE |= {f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig) if field.name != "method"}


def test_no_number_of_the_simulated_optimizer_is_at_its_default():
    values, defaults = dataclasses.asdict(RECIPE.optimizer), dataclasses.asdict(OptimizerConfig())
    assert values.pop("method") == "adamw"
    assert [name for name in values if values[name] == defaults[name]] == []


def changed(recipe: Recipe, field: str, value) -> Recipe:
    part, _, name = field.rpartition(".")
    if part:
        return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **{name: value})})
    return dataclasses.replace(recipe, **{name: value})


def test_no_field_is_left_out_below():
    fields = {field.name for field in dataclasses.fields(Recipe)}
    for part in ("task", "model", "optimizer", "positions"):
        fields.remove(part)
        fields |= {f"{part}.{field.name}" for field in dataclasses.fields(getattr(SMALL, part))}
    assert fields == CHANGES.keys() | SHAPES.keys() | ELSEWHERE


def outcome(recipe: Recipe):
    """Bits of the final weights, and the measured losses."""
    pairs = list(train(recipe))
    weights = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(pairs[-1][0].parameters)]
    return weights, [float(measured.evaluation_loss[0]) for _, measured in pairs]


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_has_an_effect(field):
    recipe, value = CHANGES[field]
    weights, measured = outcome(recipe)
    changed_weights, changed_measured = outcome(changed(recipe, field, value))
    assert changed_measured != measured
    assert (changed_weights == weights) == (field == "evaluation_seed")


@pytest.mark.parametrize("field", SHAPES)
def test_every_size_has_an_effect(field, monkeypatch):
    monkeypatch.setenv("INNERLOOP_NATIVE", "off")  # there the draw has the batch's shape

    def shapes(recipe: Recipe):
        stream, step = root_key(0), jnp.zeros((), jnp.int32)
        draw = jax.eval_shape(recipe_kernel(recipe).prepare, stream, step)
        return jax.eval_shape(lambda: (initial_state(recipe).parameters, held_out_batch(recipe))), draw

    recipe, value = SHAPES[field]
    assert str(shapes(changed(recipe, field, value))) != str(shapes(recipe))
