"""The native kernel for softmax, mixed attention, LayerNorm, masks and MLPs, and for alternating tokens.

Against autodiff of the model itself, `innerloop.models.run_stack`, in double precision.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_weights, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from native_helpers import STEP, STREAM, TOLERANCE, TOLERANCE_WHEN_CLIPPED, needs_native, require, run

from innerloop.kernels import native, native_library, training_path
from innerloop.models import LayerNormWeights, StackConfig, run_stack
from innerloop.tasks import LinearClassification, LinearRegression, RandomNetwork, prediction_loss
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens, Positions
from innerloop.training import loop, published_alternating, published_blocks

pytestmark = needs_native
FIG_5 = published_alternating().model  # softmax, then linear, untied
BLOCKS = StackConfig(num_layers=3, tied=False, num_heads=2, mlp="block", mlp_widening=3)
FIG_8 = published_blocks(num_layers=3).model  # four heads, no biases, a clip that is not reached


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    """These tests are about the native code, whatever the environment asks for."""
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")


def weights_for(config: StackConfig, tokens, task, *, size: float = 0.3):
    """Random weights, those of LayerNorm too; attention is far from even, and a layer changes tokens by as much."""
    _, token_size = tokens.shape(**sizes_of(task))
    if config.layer_norm != "none" or config.is_linear:  # linear attention multiplies three tokens
        size *= 0.7
    return random_weights(config, token_size, seed=1, size=size * (5 / token_size) ** 0.5)


def sizes_of(task) -> dict[str, int]:
    return {name: getattr(task, name) for name in ("input_size", "output_size", "context_length")}


def expected_of(config, tokens, task, batch_size, weights):
    """Loss and gradient of the model in double precision, on the tokens that JAX makes in single precision."""
    samples = task.sample_batch(jax.random.fold_in(STREAM, STEP), batch_size).samples()
    rows, answers = jax.vmap(tokens.encode)(samples.problem), samples.query_target

    def loss_of(weights, rows, answers):
        def query_entries(rows):
            trace = run_stack(config, weights, rows, num_targets=task.output_size)
            return trace.tokens[-1, -1, -task.output_size :]

        return jnp.mean(prediction_loss(task.prediction_loss, -jax.vmap(query_entries)(rows).T, answers.T))

    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (weights, rows, answers))
        loss, gradient = jax.jit(jax.value_and_grad(loss_of))(*arguments)
        return float(loss), jax.tree.map(np.asarray, gradient)


def assert_correct(config, tokens, task, batch_size, weights, **options):
    loss, gradient = run(config, tokens, task, batch_size, weights, **options)
    expected_loss, expected = expected_of(config, tokens, task, batch_size, weights)
    tolerance = TOLERANCE if config.token_clip is None else TOLERANCE_WHEN_CLIPPED
    np.testing.assert_allclose(loss, expected_loss, rtol=tolerance)
    # Every leaf by itself: LayerNorm's and the mixing's gradients must not hide behind larger ones.
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        if np.abs(theirs).max() > 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)):
            assert relative_difference(np.asarray(ours, np.float64), theirs) < 4 * tolerance
    assert relative_difference(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradient), expected) < tolerance


# --- Loss and gradient -----------------------------------------------------------------------------------------------


# Not yet a StackConfig: its type checks use random numbers, which Hypothesis wants to own.
OPTIONS = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "attention": st.tuples(*[st.sampled_from(["linear", "softmax", "mixed"])] * 3),
        "tied": st.booleans(),
        "num_heads": st.integers(1, 2),
        "key_size": st.sampled_from([None, 3]),
        "causal": st.sampled_from([False, False, True]),
        "query_in_keys": st.booleans(),
        "layer_norm": st.sampled_from(["none", "before", "between"]),
        "mlp": st.sampled_from(["none", "block"]),
        "mlp_widening": st.integers(1, 3),
        "mlp_bias": st.booleans(),
        "damping": st.sampled_from([1.0, -0.6]),
        "update": st.sampled_from(["all", "targets"]),
        "token_clip": st.sampled_from([None, None, 0.5]),
    }
)
TOKENS = st.sampled_from(
    [
        ConcatenatedTokens(),
        ConcatenatedTokens(jnp.asarray([[0.3, -0.5, 0.2], [0.4, 0.1, -0.7]])),
        ConcatenatedTokens(jnp.asarray([[0.3, -0.5, 0.2], [0.4, 0.1, -0.7]]), targets_hold_residuals=True),
        AlternatingTokens(),
        AlternatingTokens(Positions("one-hot", placement="added"), separate_slots=True),
        AlternatingTokens(Positions(width=4, permuted=True)),
    ]
)


FAMILIES = st.sampled_from([partial(LinearRegression, noise_std=0.1), LinearClassification])


@given(OPTIONS, TOKENS, FAMILIES, st.integers(1, 9), st.integers(1, 40), st.sampled_from(["best", "avx2", "portable"]))
@settings(max_examples=25, phases=[Phase.generate])  # shrinking would compile for minutes
def test_drawn_stacks(options, tokens, family, context_length, batch_size, instruction_set):
    require(instruction_set)
    config = StackConfig(**options | {"attention": options["attention"][: options["num_layers"]]})
    task = family(input_size=3, output_size=2, context_length=context_length)
    assert_correct(config, tokens, task, batch_size, weights_for(config, tokens, task), instruction_set=instruction_set)


# Every way through the code, at sizes known when compiling (11, 20) and others.
PATHS = {
    "one layer": (StackConfig(attention=("softmax",), num_heads=2), ConcatenatedTokens()),
    "one layer, normalised": (StackConfig(layer_norm="before"), ConcatenatedTokens()),
    "last keys not moved": (FIG_5, AlternatingTokens()),
    "last keys not moved, three layers": (
        StackConfig(num_layers=3, tied=False, attention=("softmax", "mixed", "linear"), num_heads=2),
        AlternatingTokens(),
    ),
    "normalised, three layers": (
        StackConfig(num_layers=3, layer_norm="between", attention=("softmax", "mixed", "linear")),
        AlternatingTokens(),
    ),
    "two heads below": (dataclasses.replace(FIG_5, num_heads=2, query_in_keys=True), ConcatenatedTokens()),
    "all keys moved": (StackConfig(num_layers=2, tied=False, layer_norm="before"), ConcatenatedTokens()),
    "clip that is reached": (
        StackConfig(num_layers=3, tied=False, attention=("softmax", "linear", "mixed"), token_clip=0.45),
        ConcatenatedTokens(),
    ),
    "clip that is not reached": (dataclasses.replace(FIG_5, token_clip=50.0), AlternatingTokens()),
    "causal": (
        StackConfig(num_layers=3, attention=("mixed",), causal=True, query_in_keys=True),
        ConcatenatedTokens(),
    ),
    "shuffled codes": (FIG_5, AlternatingTokens(Positions(permuted=True))),
    "block MLPs": (BLOCKS, ConcatenatedTokens()),
    "block MLPs, as published": (FIG_8, ConcatenatedTokens()),
    "block MLPs, one layer": (StackConfig(mlp="block"), ConcatenatedTokens()),
    "block MLPs, one layer, only the MLP normalised": (
        StackConfig(mlp="block", layer_norm="between"),
        ConcatenatedTokens(),
    ),
    "block MLPs, clip that is reached": (dataclasses.replace(BLOCKS, token_clip=0.4), ConcatenatedTokens()),
    "block MLPs, tied, targets alone": (
        dataclasses.replace(BLOCKS, tied=True, update="targets", damping=-0.6),
        AlternatingTokens(Positions(permuted=True)),
    ),
    "block MLPs, softmax, normalised": (
        StackConfig(num_layers=3, attention=("softmax", "mixed", "linear"), mlp="block", layer_norm="between"),
        AlternatingTokens(),
    ),
    "block MLPs, targets alone": (
        StackConfig(num_layers=2, attention=("softmax",), mlp="block", mlp_bias=False, update="targets"),
        ConcatenatedTokens(),
    ),
    "linear, alternating": (StackConfig(num_layers=3, tied=False), AlternatingTokens()),
    "linear, alternating, clip": (StackConfig(num_layers=3, tied=False, token_clip=50.0), AlternatingTokens()),
    "linear, alternating, one layer": (StackConfig(num_heads=2), AlternatingTokens()),
}


@pytest.mark.parametrize(
    ("input_size", "instruction_set"), [(10, "avx512"), (10, "avx2"), (10, "portable"), (4, "best")]
)
@pytest.mark.parametrize("name", PATHS)
def test_every_way_and_instruction_set(name, input_size, instruction_set):
    require(instruction_set)
    config, tokens = PATHS[name]
    task = LinearRegression(input_size=input_size, context_length=7)
    assert_correct(config, tokens, task, 35, weights_for(config, tokens, task), instruction_set=instruction_set)


# The loss is taken by three pieces of code: for attention of any kind, for Gram matrices, and for tokens with a clip.
CLASSIFIERS = {
    "one layer": StackConfig(num_heads=2),
    "softmax": StackConfig(attention=("softmax",), num_heads=2),
    "two layers": StackConfig(num_layers=2),
    "clip that is reached": StackConfig(num_layers=2, tied=False, token_clip=0.45),
    "one block": StackConfig(mlp="block"),
    "softmax blocks": StackConfig(num_layers=2, attention=("softmax",), mlp="block"),
}


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_cross_entropy(name, instruction_set):
    require(instruction_set)
    config, tokens = CLASSIFIERS[name], ConcatenatedTokens()
    task = LinearClassification(input_size=3, output_size=4, context_length=7)
    assert_correct(config, tokens, task, 35, weights_for(config, tokens, task), instruction_set=instruction_set)


@pytest.mark.parametrize(("size", "token_clip"), [(3.0, None), (30.0, None), (3.0, 0.3)])
@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_cross_entropy_of_sharp_logits(attention, size, token_clip):
    """Probabilities near 0 and 1, logits whose exponentials would overflow, and logits that reach the clip."""
    config, tokens = StackConfig(attention=(attention,), token_clip=token_clip), ConcatenatedTokens()
    task = LinearClassification(input_size=3, output_size=4, context_length=7)
    weights = weights_for(config, tokens, task)
    attention = dataclasses.replace(weights.attention, P=size**3 * weights.attention.P)
    assert_correct(config, tokens, task, 35, dataclasses.replace(weights, attention=attention))


@pytest.mark.parametrize("change", [{"damping": 1.001}, {"query_in_keys": True}, {"causal": True}])
def test_comparison_sees_a_small_change(change):
    """The control: the comparison must not pass for a stack that is a little different."""
    config, tokens, task = FIG_5, AlternatingTokens(), LinearRegression(context_length=5)
    weights = weights_for(config, tokens, task)
    _, gradient = run(dataclasses.replace(config, **change), tokens, task, 19, weights)
    _, expected = expected_of(config, tokens, task, 19, weights)
    assert relative_difference(gradient, expected) > 10 * TOLERANCE


def test_large_logits_do_not_overflow():
    """Scores of thousands make attention one-hot, and must neither overflow nor hide what is read."""
    config, tokens = FIG_5, AlternatingTokens()
    task = LinearRegression(context_length=5)
    weights = weights_for(config, tokens, task)
    attention = weights.attention
    sharp = dataclasses.replace(attention, W_Q=attention.W_Q.at[0].multiply(3000.0))
    loss, gradient = run(config, tokens, task, 19, dataclasses.replace(weights, attention=sharp))
    assert math.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    expected_loss, _ = expected_of(config, tokens, task, 19, dataclasses.replace(weights, attention=sharp))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-3)


def test_not_finite_is_reported():
    """Divergence is seen by the loss and the gradient; lanes without a task must not hide it."""
    config, tokens, task = FIG_5, AlternatingTokens(), LinearRegression(context_length=5)
    loss, gradient = run(config, tokens, task, 5, weights_for(config, tokens, task, size=1e12))
    assert not math.isfinite(loss)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_lanes_without_a_task_count_nothing():
    """LayerNorm's offset and the MLPs' biases give empty lanes tokens of their own, which must not count."""
    tokens, task = ConcatenatedTokens(), LinearRegression(input_size=3)
    config = StackConfig(layer_norm="before")
    weights = weights_for(config, tokens, task)
    offset = LayerNormWeights(weights.attention_norm.scale, jnp.full_like(weights.attention_norm.offset, 3.0))
    assert_correct(config, tokens, task, 3, dataclasses.replace(weights, attention_norm=offset))
    for config in (BLOCKS, StackConfig(mlp="block", attention=("softmax",))):
        weights = weights_for(config, tokens, task)
        biased = dataclasses.replace(weights.mlp, b_2=jnp.full_like(weights.mlp.b_2, 0.5))
        assert_correct(config, tokens, task, 3, dataclasses.replace(weights, mlp=biased))


def test_tasks_that_jax_makes():
    """The door for given batches, with pairs and with tokens."""
    task = RandomNetwork(input_size=3, output_size=2, context_length=5)
    cases = [(FIG_5, tokens) for tokens in (AlternatingTokens(), AlternatingTokens(Positions(permuted=True)))]
    for config, tokens in [(FIG_5, ConcatenatedTokens()), *cases, (BLOCKS, ConcatenatedTokens())]:
        weights = weights_for(config, tokens, task)
        assert_correct(config, tokens, task, 21, weights)
        _, fixed = run(config, tokens, task, 21, weights, is_fixed=True)
        _, other = run(config, tokens, task, 21, weights)
        assert relative_difference(fixed, other) > 1e-3, "a fixed set is the batch of step 0"


# --- Bits, and the choice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_any_number_of_threads_gives_the_same_bits(name):
    config, tokens = PATHS[name]
    task = LinearRegression(input_size=3, context_length=5)
    weights = weights_for(config, tokens, task)
    one, *others = [run(config, tokens, task, 501, weights, num_threads=count) for count in (1, 2, 3, 2, 0)]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, one)


def test_weights_that_lack_a_part_are_refused():
    """In place of reading memory that is not there."""
    tokens, task = ConcatenatedTokens(), LinearRegression(input_size=3)
    for config in (
        StackConfig(layer_norm="before"),
        StackConfig(attention=("mixed",)),
        StackConfig(mlp="block"),
        StackConfig(mlp="block", layer_norm="between"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="do not fit"):
            run(config, tokens, task, 8, weights_for(StackConfig(), tokens, task))
    with pytest.raises(jax.errors.JaxRuntimeError, match="do not fit"):
        run(StackConfig(), tokens, task, 8, weights_for(StackConfig(mlp="block"), tokens, task))


def test_which_stacks_are_native():
    tokens = AlternatingTokens()
    for config in (
        FIG_5,
        StackConfig(layer_norm="before"),
        StackConfig(causal=True),
        StackConfig(attention=("mixed",)),
        StackConfig(mlp="block"),
    ):
        for each in (tokens, ConcatenatedTokens()):
            assert training_path(config, each) == "native"
            assert native.native_kernel(config, each, LinearRegression(), 8) is not None
    for config in (StackConfig(embedding_size=7), StackConfig(mlp="input")):
        assert training_path(config, tokens) == "jax"
    assert training_path(FIG_5, AlternatingTokens(Positions("learned"))) == "jax"


@pytest.mark.parametrize("recipe", [published_alternating(), published_blocks(num_layers=3)], ids=["Fig 5", "Fig 8"])
def test_training_follows_jax(recipe):
    """A few steps of a published recipe on both paths."""
    recipe = dataclasses.replace(
        recipe, num_steps=20, seeds=(0, 1), batch_size=64, evaluation_interval=10, evaluation_tasks=64
    )
    losses = []
    for mode in ("required", "off"):
        with native_library.using(mode):
            losses.append([measured.evaluation_loss for _, measured in loop.train(recipe)])
    np.testing.assert_allclose(*map(np.asarray, losses), rtol=1e-4)
