"""The stack against explicit loops in NumPy, the products' gauge, initialisation, configuration."""

import dataclasses
import math
from functools import partial
from operator import itemgetter
from typing import get_args

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import (
    CONTEXT_LENGTH,
    EMBEDDED_LAYERS,
    INPUT_SIZE,
    OUTPUT_SIZE,
    PARTS,
    assert_mean,
    assert_trees_close,
    random_problem,
    random_weights,
)

from innerloop.keys import root_key
from innerloop.models import AttentionKind, StackConfig, Transformer, initialise, products, run_stack
from innerloop.models.stack import LayerNormPlace, MLPPlace
from innerloop.tokens import ConcatenatedTokens

TOKEN_SIZE = INPUT_SIZE + OUTPUT_SIZE
CONFIGS = {
    "plain": StackConfig(),
    "tied": StackConfig(num_layers=3),
    "untied": StackConfig(num_layers=3, tied=False),
    "heads": StackConfig(num_layers=2, num_heads=3, key_size=2, tied=False),
    "wide-keys": StackConfig(num_heads=2, key_size=11),
    "query-in-keys": StackConfig(num_layers=2, query_in_keys=True),
    "damped": StackConfig(num_layers=3, damping=-0.6),
    "targets": StackConfig(num_layers=3, update="targets"),
    "clipped": StackConfig(num_layers=3, tied=False, token_clip=1.1),
    "everything": StackConfig(
        num_layers=3,
        tied=False,
        num_heads=2,
        key_size=7,
        query_in_keys=True,
        damping=0.7,
        update="targets",
        token_clip=2.0,
    ),
}


def stack_by_hand(config, weights, tokens, num_targets):
    """The stack in NumPy, one token, one head and one key at a time (Eq. 3 of the paper and what goes with it)."""
    weights = jax.tree.map(np.asarray, weights)
    kinds = config.attention * (config.num_layers if len(config.attention) == 1 else 1)
    num_tokens = len(tokens)
    num_keys = num_tokens if config.query_in_keys else num_tokens - 1
    tokens = [np.array(token) for token in tokens]
    if weights.embedding is not None:
        if weights.embedding.W_E is not None:
            tokens = [weights.embedding.W_E @ token for token in tokens]
        if weights.embedding.mlp is not None:
            tokens = [token + mlp_by_hand(weights.embedding.mlp, token) for token in tokens]

    def moved(token, update):
        update = config.damping * update
        if config.update == "targets":
            update[: len(token) - num_targets] = 0.0
        bound = np.inf if config.token_clip is None else config.token_clip
        return np.minimum(np.maximum(token + update, -bound), bound)

    history, maps = [np.stack(tokens)], []
    for layer, kind in enumerate(kinds):
        own = jax.tree.map(itemgetter(0 if config.tied else layer), weights.layers())
        read = tokens
        if config.layer_norm == "before" or (config.layer_norm == "between" and layer > 0):
            read = [norm_by_hand(own.attention_norm, token) for token in tokens]
        attention = np.zeros((config.num_heads, num_tokens, num_keys))
        updates = [np.zeros_like(token) for token in tokens]
        for i, h in np.ndindex(num_tokens, config.num_heads):
            seen = [j for j in range(num_keys) if j <= i or not config.causal]
            scores = {j: (own.attention.W_K[h] @ read[j]) @ (own.attention.W_Q[h] @ read[i]) for j in seen}
            for j, value in attention_by_hand(kind, scores, own.attention).items():
                attention[h, i, j] = value
                updates[i] += own.attention.P[h] @ (own.attention.W_V[h] @ read[j]) * value
        tokens = [moved(token, update) for token, update in zip(tokens, updates, strict=True)]
        if own.mlp is not None:
            read = tokens if own.mlp_norm is None else [norm_by_hand(own.mlp_norm, token) for token in tokens]
            tokens = [moved(token, mlp_by_hand(own.mlp, each)) for token, each in zip(tokens, read, strict=True)]
        history.append(np.stack(tokens))
        maps.append(attention)
    return np.stack(history), np.stack(maps)


def attention_by_hand(kind, scores, weights):
    """Attention per key of one token and head, from its scores per key."""
    if kind == "linear":
        return scores
    exponentials = {j: math.exp(score / math.sqrt(len(weights.W_K[0]))) for j, score in scores.items()}
    softmax = {j: value / sum(exponentials.values()) for j, value in exponentials.items()}
    if kind == "softmax":
        return softmax
    share = 1 / (1 + math.exp(-10 * weights.mixing))
    return {j: share * softmax[j] + (1 - share) * scores[j] for j in scores}


def mlp_by_hand(weights, token):
    """The output for one token, unit by unit; GELU as its tanh approximation."""
    output = np.zeros_like(token) if weights.b_2 is None else weights.b_2.copy()
    for unit, row in enumerate(weights.W_1):
        x = sum(row * token) + (0.0 if weights.b_1 is None else weights.b_1[unit])
        output += weights.W_2[:, unit] * (x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return output


def norm_by_hand(weights, token):
    mean = sum(token) / len(token)
    variance = sum((entry - mean) ** 2 for entry in token) / len(token)
    return weights.scale * (token - mean) / math.sqrt(variance + 1e-5) + weights.offset


def case_of(config):
    tokens = ConcatenatedTokens().encode(random_problem(1))
    return config, random_weights(config, TOKEN_SIZE, seed=2), tokens


@pytest.fixture(params=CONFIGS)
def case(request, x64):
    """Linear attention alone."""
    return case_of(CONFIGS[request.param])


@partial(jax.jit, static_argnums=0)
def run(config, weights, tokens):
    return run_stack(config, weights, tokens, num_targets=OUTPUT_SIZE)


ALL_CONFIGS = CONFIGS | PARTS | EMBEDDED_LAYERS


@pytest.mark.parametrize("config", ALL_CONFIGS.values(), ids=ALL_CONFIGS)
def test_stack_against_loops(x64, config):
    config, weights, tokens = case_of(config)
    trace = run(config, weights, tokens)
    history, maps = stack_by_hand(config, weights, tokens, OUTPUT_SIZE)
    np.testing.assert_allclose(trace.tokens, history, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(trace.attention, maps, rtol=1e-11, atol=1e-12)
    assert np.abs(history[-1] - history[0]).max() > 0.05  # the layers do something
    if config.token_clip is not None:
        assert np.abs(history[-1][:, -OUTPUT_SIZE:]).max() == config.token_clip
        assert np.abs(history[-1]).min() < config.token_clip


def test_cases_above_have_every_part():
    """One value per field at least that is not its default; every place and kind that there is."""
    defaults = dataclasses.asdict(StackConfig())
    for field, default in defaults.items():
        assert any(getattr(config, field) != default for config in ALL_CONFIGS.values()), field
    assert {config.mlp for config in ALL_CONFIGS.values()} == set(get_args(MLPPlace))
    assert {config.layer_norm for config in ALL_CONFIGS.values()} == set(get_args(LayerNormPlace))
    assert {kind for config in ALL_CONFIGS.values() for kind in config.attention} == set(get_args(AttentionKind))


def test_transformer_against_loops(x64):
    """Tokeniser and read-out with W0: the query starts at -W0 x, predictions are minus the target entries."""
    config, problem = CONFIGS["everything"], random_problem(3)
    W0 = np.random.default_rng(4).normal(size=(OUTPUT_SIZE, INPUT_SIZE))
    weights = random_weights(config, TOKEN_SIZE, seed=5)
    transformer = Transformer(config, weights, ConcatenatedTokens(jnp.asarray(W0)))
    x, y, query = (np.asarray(leaf) for leaf in jax.tree.leaves(problem))
    tokens = np.concatenate([np.concatenate([x, query[None]]), np.concatenate([y, -(W0 @ query)[None]])], axis=1)
    history, maps = stack_by_hand(config, weights, tokens, OUTPUT_SIZE)
    prediction = transformer(problem)
    np.testing.assert_allclose(prediction.trajectory, -history[:, -1, INPUT_SIZE:], rtol=1e-11)
    np.testing.assert_allclose(prediction.value, -history[-1, -1, INPUT_SIZE:], rtol=1e-11)
    expected = x @ W0.T + y - history[:, :-1, INPUT_SIZE:]
    np.testing.assert_allclose(prediction.context_trajectory, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(transformer.attention_maps(problem), maps, rtol=1e-11, atol=1e-12)


def test_attention_maps_have_a_column_per_key():
    for query_in_keys, num_keys in ((False, CONTEXT_LENGTH), (True, CONTEXT_LENGTH + 1)):
        config = StackConfig(num_layers=3, num_heads=5, query_in_keys=query_in_keys)
        transformer = Transformer(config, random_weights(config, TOKEN_SIZE, seed=6))
        shape = jax.eval_shape(transformer.attention_maps, random_problem(1)).shape
        assert shape == (3, 5, CONTEXT_LENGTH + 1, num_keys)


def test_only_the_products_matter(case):
    """Weights rebuilt from the products, anywhere along the gauge, run the same."""
    config, weights, tokens = case
    expected, reduced = run(config, weights, tokens), products(weights)
    same = run(config, reduced.as_weights(), tokens)
    np.testing.assert_allclose(same.tokens, expected.tokens, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(same.attention, expected.attention, rtol=1e-11, atol=1e-12)
    moved = reduced.rescaled(-2.5)
    np.testing.assert_allclose(moved.W_KQ, reduced.W_KQ / -2.5, rtol=1e-12)
    gauged = run(config, moved.as_weights(), tokens)
    np.testing.assert_allclose(gauged.tokens, expected.tokens, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(gauged.attention[0], expected.attention[0] / -2.5, rtol=1e-11, atol=1e-12)
    assert_trees_close(products(moved.as_weights()), moved, rtol=1e-12)


def test_products_per_layer_and_head(x64):
    config = StackConfig(num_layers=3, tied=False, num_heads=2, key_size=7)
    weights = random_weights(config, TOKEN_SIZE, seed=7)
    reduced, attention = products(weights), weights.attention
    assert reduced.W_KQ.shape == reduced.W_PV.shape == (3, 2, TOKEN_SIZE, TOKEN_SIZE)
    for layer, head in np.ndindex(3, 2):
        W_KQ = attention.W_K[layer, head].T @ attention.W_Q[layer, head]
        W_PV = attention.P[layer, head] @ attention.W_V[layer, head]
        np.testing.assert_allclose(reduced.W_KQ[layer, head], W_KQ, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(reduced.W_PV[layer, head], W_PV, rtol=1e-11, atol=1e-13)


def test_one_trained_layer_applied_again_and_again(x64):
    """The roll-out of a tied stack is the single layer, iterated."""
    config, tokens = StackConfig(damping=0.75, update="targets"), ConcatenatedTokens().encode(random_problem(8))
    weights = random_weights(config, TOKEN_SIZE, seed=9, size=0.1)
    rolled = run(dataclasses.replace(config, num_layers=17), weights, tokens).tokens
    for step in range(17):
        np.testing.assert_allclose(rolled[step + 1], run(config, weights, rolled[step]).tokens[1], rtol=1e-11)


def test_tied_is_untied_with_copies(x64):
    tied, tokens = CONFIGS["tied"], ConcatenatedTokens().encode(random_problem(10))
    weights = random_weights(tied, TOKEN_SIZE, seed=11)
    copies = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 3), weights)
    untied = run(dataclasses.replace(tied, tied=False), copies, tokens)
    assert_trees_close(untied, run(tied, weights, tokens), rtol=1e-12)


def test_wrong_number_of_layers():
    tokens = ConcatenatedTokens().encode(random_problem(1))
    for config, stored in ((CONFIGS["untied"], CONFIGS["tied"]), (CONFIGS["tied"], CONFIGS["untied"])):
        message = f"weights hold {stored.num_distinct_layers}.*needs {config.num_distinct_layers}.*tied={config.tied}"
        with pytest.raises(ValueError, match=message):
            run_stack(config, random_weights(stored, TOKEN_SIZE, seed=0), tokens, num_targets=OUTPUT_SIZE)


@pytest.mark.parametrize("tied", [True, False])
def test_initialisation_variance(tied):
    """Fan-in truncated normal with variance scale / K; the projection reads all heads, so its fan-in is H times the
    key size. Tied stacks divide by K too.
    """
    scale, num_layers, num_heads, key_size, token_size = 0.3, 3, 2, 7, 5
    config = StackConfig(num_layers=num_layers, tied=tied, num_heads=num_heads, key_size=key_size)
    keys = jax.random.split(root_key(1), 2000)
    draw = jax.jit(jax.vmap(lambda key: initialise(config, token_size, key, scale=scale).attention))
    drawn = draw(keys)
    fan_in = {"W_K": token_size, "W_Q": token_size, "W_V": token_size, "P": num_heads * key_size}
    for name, fan in fan_in.items():
        weights = np.asarray(getattr(drawn, name), np.float64)
        shape = (token_size, key_size) if name == "P" else (key_size, token_size)
        assert weights.shape == (2000, 1 if tied else num_layers, num_heads, *shape)
        variance = scale / num_layers / fan
        assert_mean(weights, np.zeros(weights.shape[1:]), resolution=0.12)
        per_head = np.mean(weights**2, axis=(-1, -2))
        assert_mean(per_head, np.full(per_head.shape[1:], variance), resolution=0.03)
        # Cut at two standard deviations of the uncut normal, which the cut shrinks by .8796.
        bound = 2 * np.sqrt(variance) / 0.87962566103423978
        assert 0.99 * bound < np.abs(weights).max() < bound * (1 + 1e-6)
        flat = weights.reshape(2000, -1)
        assert_mean(flat[:, 1:] * flat[:, :1], np.zeros(flat.shape[1] - 1), resolution=0.15)
    assert_mean(drawn.W_K * drawn.W_Q, np.zeros(drawn.W_K.shape[1:]), resolution=0.15)


def test_initialisation_defaults():
    """Key size and token width agree by default, the published scale is .002, and the dtype is obeyed."""
    weights = initialise(StackConfig(num_layers=2), 5, root_key(0)).attention
    assert [leaf.shape for leaf in jax.tree.leaves(weights)] == [(1, 1, 5, 5)] * 4
    loud = initialise(StackConfig(num_layers=2), 5, root_key(0), scale=0.008).attention
    assert_trees_close(loud, jax.tree.map(lambda leaf: 2 * leaf, weights), rtol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: initialise(StackConfig(), 5, root_key(0), dtype=jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float64")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_layers", 0),
        ("num_layers", True),
        ("num_heads", -1),
        ("key_size", 0),
        ("damping", float("nan")),
        ("damping", float("inf")),
        ("token_clip", 0.0),
        ("token_clip", -1.0),
        ("token_clip", float("inf")),
    ],
)
def test_config_ranges(name, value):
    with pytest.raises(ValueError, match=rf"model\.{name} must be .*, got {value!r}"):
        StackConfig(**{name: value})


def test_config_update():
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="update"):
        StackConfig(update="none")


def test_num_distinct_layers():
    assert StackConfig(num_layers=5).num_distinct_layers == 1
    assert StackConfig(num_layers=5, tied=False).num_distinct_layers == 5
