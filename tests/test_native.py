"""The native kernel against autodiff of the JAX loss in double precision, and its random numbers against JAX's."""

import dataclasses
import math
import os
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_weights, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from native_helpers import (
    STEP,
    STREAM,
    TOLERANCE,
    TOLERANCE_WHEN_CLIPPED,
    assert_correct,
    native_words,
    needs_native,
    reference,
    require,
    run,
)

from innerloop.kernels import native, native_library, training_kernel, training_path
from innerloop.keys import named_key, root_key
from innerloop.models import StackConfig, initialise
from innerloop.tasks import LinearRegression, SineWaves
from innerloop.tokens import ConcatenatedTokens
from innerloop.training import Recipe, loop, published_sine

pytestmark = needs_native


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    """These tests are about the native code, whatever the environment asks for."""
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")


def moderate_weights(config: StackConfig, task: LinearRegression, seed: int):
    """Weights with which a layer changes a token by about as much as there is: no stack explodes or stays linear."""
    token_size = task.input_size + task.output_size
    key_size = config.key_size or token_size
    size = (0.3 / (token_size**1.5 * key_size * (1 + task.context_length / 12) * config.num_heads)) ** 0.25
    return random_weights(config, token_size, seed, size=size)


def initial_weights(task: LinearRegression):
    values = np.random.default_rng(5).normal(size=(task.output_size, task.input_size))
    return ConcatenatedTokens(jnp.asarray(values, jnp.float32))


# --- Loss and gradient -----------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    StackConfig,
    num_layers=st.sampled_from([1, 2, 4]),
    tied=st.booleans(),
    num_heads=st.sampled_from([1, 2]),
    query_in_keys=st.booleans(),
    damping=st.sampled_from([1.0, -0.6]),
    update=st.sampled_from(["all", "targets"]),
    token_clip=st.sampled_from([None, 0.5]),
)
# Inputs, outputs, context, batch: few combinations, because most of the time goes into compiling the reference.
SIZES = st.sampled_from([(3, 2, 7, 37), (10, 1, 19, 16)])
VARIANTS = st.fixed_dictionaries(
    {
        "noise_std": st.sampled_from([0.0, 0.3]),
        "input_scale": st.sampled_from([1.0, 1.7]),
        "target_scale": st.sampled_from([1.0, 0.6]),
        "normalise_context": st.booleans(),
    }
)


@given(CONFIGS, SIZES, VARIANTS, st.booleans())
@settings(max_examples=16, phases=[Phase.generate])  # shrinking would compile for minutes, and options are few
def test_every_option(config, sizes, variant, has_initial_weights):
    task = LinearRegression(
        **dict(zip(("input_size", "output_size", "context_length"), sizes, strict=False)), **variant
    )
    tokens = initial_weights(task) if has_initial_weights else ConcatenatedTokens()
    assert_correct(config, tokens, task, sizes[-1], moderate_weights(config, task, seed=1))


# Layers, D = input_size + 1, context: the shapes of the experiments, tile remainders of all kinds, long contexts.
SHAPES = [(1, 11, 10), (1, 3, 120), (2, 11, 10), (2, 16, 100), (5, 11, 10), (3, 21, 25), (2, 64, 5)]


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize(("num_layers", "token_size", "context_length"), SHAPES)
def test_shapes_and_instruction_sets(num_layers, token_size, context_length, instruction_set):
    require(instruction_set)
    task = LinearRegression(input_size=token_size - 1, context_length=context_length)
    for config in (
        StackConfig(num_layers=num_layers, tied=False),
        StackConfig(num_layers=num_layers, tied=False, token_clip=10.0),
    ):
        weights = moderate_weights(config, task, seed=2)
        assert_correct(config, ConcatenatedTokens(), task, 19, weights, instruction_set=instruction_set)


@pytest.mark.parametrize("change", [{"damping": 1.001}, {"token_clip": 0.49}, {"query_in_keys": True}])
def test_comparison_sees_a_small_change(change):
    """The control: the battery must not pass for a stack that is a little different."""
    task, config = LinearRegression(input_size=3, context_length=7), {"num_layers": 2, "token_clip": 0.5}
    weights = moderate_weights(StackConfig(**config), task, seed=1)
    _, gradient = run(StackConfig(**(config | change)), ConcatenatedTokens(), task, 37, weights)
    _, expected = reference(StackConfig(**config), ConcatenatedTokens(), task, 37, weights)
    gradient = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradient)
    assert relative_difference(gradient, expected) > 2 * TOLERANCE_WHEN_CLIPPED


def test_derivative_on_the_edge_of_the_clip():
    """Entries that the first layer clips lie exactly on the edge in the second, which here changes nothing: 1/2."""
    task = LinearRegression(input_size=3, input_scale=3.0)
    config = StackConfig(num_layers=3, tied=False, token_clip=0.9)
    weights = moderate_weights(config, task, seed=1)
    weights = eqx.tree_at(lambda tree: tree.attention.W_Q, weights, weights.attention.W_Q.at[1:2].set(0.0))
    assert_correct(config, ConcatenatedTokens(), task, 37, weights)


def test_not_finite_is_reported():
    """Divergence is seen by the loss and the gradient's norm; lanes without a task must not hide or invent it."""
    task, config = LinearRegression(input_size=3), StackConfig(num_layers=4)
    weights = random_weights(config, 4, seed=1, size=1e4)
    loss, gradient = run(config, ConcatenatedTokens(), task, 5, weights)
    assert not math.isfinite(loss)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# --- One layer on embedded tokens ------------------------------------------------------------------------------------

SINE = published_sine().model  # embedding to 40, MLP 40-160-40


def embedded_weights(config: StackConfig, task, seed: int):
    """Random biases too; embedded tokens, and what the layer adds to them, are about as large as the tokens."""
    token_size = task.input_size + task.output_size
    weights = initialise(config, token_size, root_key(seed), scale=0.4 if config.num_heads == 1 else 0.3)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) if leaf.ndim == 1 else leaf, weights
    )


EMBEDDED = st.builds(
    StackConfig,
    num_heads=st.integers(1, 3),
    key_size=st.sampled_from([None, 3]),
    query_in_keys=st.booleans(),
    damping=st.sampled_from([1.0, -0.6]),
    update=st.sampled_from(["all", "targets"]),
    token_clip=st.sampled_from([None, 0.5]),
    embedding_size=st.one_of(st.none(), st.integers(3, 40)),
    mlp=st.sampled_from(["none", "input", "input"]),
    mlp_widening=st.integers(1, 5),
    mlp_bias=st.booleans(),
).filter(lambda config: not config.is_linear)


@given(
    EMBEDDED,
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from(["best", "portable"]),
)
@settings(max_examples=6, phases=[Phase.generate])
def test_embedded_layer(config, input_size, output_size, context_length, batch_size, has_initial_weights, name):
    task = LinearRegression(input_size=input_size, output_size=output_size, context_length=context_length)
    tokens = initial_weights(task) if has_initial_weights else ConcatenatedTokens()
    weights = embedded_weights(config, task, seed=1)
    assert_correct(config, tokens, task, batch_size, weights, instruction_set=name)


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize(
    "config",
    [
        SINE,  # the sizes known when compiling
        StackConfig(embedding_size=64, mlp="input"),  # 256 hidden units
        StackConfig(embedding_size=17, mlp="input", mlp_widening=19, num_heads=2, query_in_keys=True),
    ],
)
def test_embedded_layer_on_sine_waves(config, instruction_set):
    require(instruction_set)
    task = SineWaves(variant="reference")
    weights = embedded_weights(config, task, seed=2)
    assert_correct(config, ConcatenatedTokens(), task, 77, weights, instruction_set=instruction_set)


@pytest.mark.parametrize("change", [{"damping": 1.001}, {"token_clip": 0.3}, {"query_in_keys": True}])
def test_comparison_of_embedded_layers_sees_a_small_change(change):
    """The control of the two tests above."""
    task, weights = SineWaves(), embedded_weights(SINE, SineWaves(), seed=1)
    _, gradient = run(dataclasses.replace(SINE, **change), ConcatenatedTokens(), task, 37, weights)
    _, expected = reference(SINE, ConcatenatedTokens(), task, 37, weights)
    gradient = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradient)
    assert relative_difference(gradient, expected) > 10 * TOLERANCE


def test_targets_that_hold_residuals():
    """The tokens are the tokeniser's own."""
    task, config = LinearRegression(input_size=3), StackConfig(embedding_size=7, mlp="input")
    tokens = ConcatenatedTokens(initial_weights(task).initial_weights, targets_hold_residuals=True)
    assert_correct(config, tokens, task, 37, embedded_weights(config, task, seed=1))


# --- Bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [StackConfig(), StackConfig(num_layers=3, tied=False), StackConfig(token_clip=0.5), SINE]
)
def test_any_number_of_threads_gives_the_same_bits(config):
    task = LinearRegression(input_size=3, context_length=5)
    weights = (moderate_weights if config.is_linear else embedded_weights)(config, task, seed=1)
    one, *others = [
        run(config, ConcatenatedTokens(), task, 501, weights, num_threads=count) for count in (1, 2, 3, 2, 2, 0)
    ]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, one)


def test_inside_scan_and_map_and_vmap():
    """The training loop's way of calling, against one call at a time.

    The call's own results agree to the bit; XLA may order the matrix products around it differently in each program.
    """
    config, task, steps = StackConfig(num_layers=2), LinearRegression(input_size=3), jnp.arange(3, dtype=jnp.int32)
    kernel = native.native_kernel(config, ConcatenatedTokens(), task, 21)
    assert kernel is not None
    weights, streams = moderate_weights(config, task, seed=1), jnp.stack([root_key(1), root_key(2)])

    def one(stream, step):
        return kernel.loss_and_gradient(weights, kernel.prepare(stream, step))

    def scanned(stream):
        return jax.lax.scan(lambda carry, step: (carry, one(stream, step)), 0, steps)[1]

    single = [jax.jit(one)(stream, step) for stream in streams for step in steps]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(2, 3, *leaves[0].shape), *single)
    for results in (jax.jit(lambda: jax.lax.map(scanned, streams))(), jax.jit(jax.vmap(scanned))(streams)):
        np.testing.assert_array_equal(results[0], expected[0])
        assert relative_difference(results[1], expected[1]) < 1e-6
    losses = np.asarray(expected[0])
    assert np.unique(losses).size == losses.size


def test_denormals_are_left_alone():
    run(
        StackConfig(),
        ConcatenatedTokens(),
        LinearRegression(),
        100,
        moderate_weights(StackConfig(), LinearRegression(), 1),
    )
    tiny = np.full(100, 1e-39, np.float32)
    assert (tiny * np.float32(0.5) > 0).all()
    assert (jax.jit(lambda x: x * 2)(np.full(100, 1e-37, np.float32)) > 0).all()


# --- Random numbers --------------------------------------------------------------------------------------------------


def native_draw(task, batch_size, instruction_set="best"):
    shapes = jax.eval_shape(lambda: task.draw(STREAM, batch_size))
    call = jax.ffi.ffi_call("innerloop_draw", (shapes.inputs, shapes.weights, shapes.noise))
    names = native.STREAM_NAMES
    return call(jax.random.key_data(STREAM), STEP, instruction_set=instruction_set, names=names)


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
def test_words_are_jaxs(instruction_set):
    require(instruction_set)
    for key in (root_key(0), root_key(2**32 - 1), named_key(root_key(3), "inputs")):
        for count in (1, 15, 16, 1027):
            words = native_words(key, count, instruction_set)
            np.testing.assert_array_equal(words, jax.random.bits(key, (count,)))


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("batch_size", [1, 16, 1003])
def test_draw_is_the_tasks(instruction_set, batch_size):
    """Uniform inputs to the bit. Normal numbers to 4 units in the last place: another logarithm."""
    require(instruction_set)
    task = LinearRegression(input_size=5, output_size=3, context_length=7, noise_std=0.1)
    expected = task.draw(jax.random.fold_in(STREAM, STEP), batch_size)
    inputs, weights, noise = native_draw(task, batch_size, instruction_set)
    np.testing.assert_array_equal(inputs, expected.inputs)
    assert expected.noise is not None
    for ours, jaxs in ((weights, expected.weights), (noise, expected.noise)):
        np.testing.assert_array_max_ulp(np.asarray(ours), np.asarray(jaxs), maxulp=4)
    assert batch_size < 1000 or np.abs(noise).max() > math.sqrt(2) * 2.1  # the polynomial for the tails was used


def test_sampled_and_given_batches_agree():
    """The same batch by either door. A subclass may draw anything, so it goes through JAX."""

    class Subclass(LinearRegression):
        pass

    config, sizes = StackConfig(num_layers=2), {"input_size": 3, "output_size": 2, "noise_std": 0.2}
    weights = moderate_weights(config, LinearRegression(**sizes), seed=1)
    tokens = initial_weights(LinearRegression(**sizes))
    inside, outside = [
        run(config, tokens, task, 37, weights) for task in (LinearRegression(**sizes), Subclass(**sizes))
    ]
    np.testing.assert_allclose(inside[0], outside[0], rtol=1e-6)
    assert relative_difference(inside[1], outside[1]) < TOLERANCE
    kernel = native.native_kernel(config, tokens, Subclass(**sizes), 37)
    assert kernel is not None
    assert hasattr(kernel.prepare(STREAM, STEP), "inputs")


def test_other_generators_are_refused():
    kernel = native.native_kernel(StackConfig(), ConcatenatedTokens(), LinearRegression(), 8)
    assert kernel is not None
    with pytest.raises(ValueError, match="a stream must be a threefry key of two words"):
        kernel.prepare(jax.random.key(0, impl="rbg"), STEP)


# --- The choice ------------------------------------------------------------------------------------------------------


def chosen_path():
    return training_kernel(StackConfig(), ConcatenatedTokens(), LinearRegression(), 8).path


def test_embedded_architectures():
    """One linear layer on embedded tokens is native; with block MLPs, LayerNorm, masks, softmax or more layers not."""
    task, tokens = SineWaves(), ConcatenatedTokens()
    assert training_kernel(SINE, tokens, task, 8).path == training_path(SINE, tokens) == "native"
    for change in (
        {"num_layers": 2},
        {"mlp": "block"},
        {"layer_norm": "before"},
        {"causal": True},
        {"attention": ("softmax",)},
    ):
        config = dataclasses.replace(SINE, **change)
        assert training_kernel(config, tokens, task, 8).path == training_path(config, tokens) == "jax"


def test_training_on_embedded_tokens_follows_jax():
    """A few steps of the published recipe on both paths."""
    recipe = dataclasses.replace(
        published_sine(num_steps=20, seeds=(0, 1)), batch_size=64, evaluation_interval=10, evaluation_tasks=64
    )
    losses = []
    for mode in ("required", "off"):
        with native_library.using(mode):
            losses.append([measured.evaluation_loss for _, measured in loop.train(recipe)])
    np.testing.assert_allclose(*map(np.asarray, losses), rtol=1e-4)


@pytest.mark.parametrize(("mode", "path"), [("off", "jax"), ("auto", "native"), ("required", "native")])
def test_modes(mode, path, monkeypatch):
    monkeypatch.setenv("INNERLOOP_NATIVE", mode)
    assert chosen_path() == path
    monkeypatch.delenv("INNERLOOP_NATIVE")
    assert chosen_path() == "native"


def test_training_follows_a_mode_that_changes(monkeypatch):
    """One process can train the same recipe on both paths: a compiled chunk is not used for the other one."""
    recipe = Recipe(num_steps=2, evaluation_interval=2, batch_size=8, evaluation_tasks=8, seeds=(0,))
    chosen = []
    original = loop.training_kernel
    monkeypatch.setattr(
        loop,
        "training_kernel",
        lambda *arguments, **options: (
            chosen.append(original(*arguments, **options).path) or original(*arguments, **options)
        ),
    )
    for mode in ("off", "required", "off"):
        with native_library.using(mode):
            list(loop.train(recipe))
    assert chosen == ["jax", "native"]
    assert os.environ["INNERLOOP_NATIVE"] == "required"


def test_held_out_losses_come_from_the_path_that_trains():
    """Sampled training measures natively; exact training in JAX, so that its bits do not depend on what is built."""
    sampled = Recipe(num_steps=2, evaluation_interval=1, batch_size=8, evaluation_tasks=999, seeds=(0,))
    for recipe in (sampled, dataclasses.replace(sampled, loss="expected")):
        native_losses, losses = [], {}
        for mode in ("required", "off"):
            with native_library.using(mode):
                measurements = [measurement for _, measurement in loop.train(recipe)]
                losses[mode] = [float(measurement.evaluation_loss[0]) for measurement in measurements]
                if mode == "required":
                    kernel = native.native_kernel(recipe.model, recipe.tokens(), recipe.task, 999, is_fixed=True)
                    batch, of_batch = loop.held_out_batch(recipe), jax.jit(kernel.loss_and_gradient)
                    seeds = [jax.tree.map(lambda leaf: leaf[0], measurement.weights) for measurement in measurements]
                    native_losses = [float(of_batch(weights, batch)[0]) for weights in seeds]
        np.testing.assert_allclose(losses["required"], losses["off"], rtol=1e-5)
        assert losses["required"] == (native_losses if recipe.loss == "sampled" else losses["off"])
        assert losses["off"] != native_losses


def test_bad_mode(monkeypatch):
    monkeypatch.setenv("INNERLOOP_NATIVE", "bad")
    with pytest.raises(ValueError, match="INNERLOOP_NATIVE must be one of required, auto, off, got 'bad'"):
        chosen_path()


def test_double_precision_and_accelerators_use_jax(monkeypatch):
    with jax.enable_x64(True):
        assert chosen_path() == "jax"
    monkeypatch.setattr(native.jax, "default_backend", lambda: "gpu")
    assert chosen_path() == "jax"


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(native_library, "library_problem", lambda: "it is a test")
    with pytest.raises(RuntimeError, match="INNERLOOP_NATIVE=required, but it is a test"):
        chosen_path()
    monkeypatch.setenv("INNERLOOP_NATIVE", "auto")
    with pytest.warns(UserWarning, match="without native kernels: it is a test"):
        assert chosen_path() == "jax"
    with warnings.catch_warnings():  # says so once
        warnings.simplefilter("error")
        assert chosen_path() == "jax"
    monkeypatch.setenv("INNERLOOP_NATIVE", "off")
    assert chosen_path() == "jax"
