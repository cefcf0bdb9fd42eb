"""Laws of a stack's parts: softmax, mixed attention, masks, MLP, LayerNorm, embedding, their initialisation and errors.

That the parts compute what their formulas say, alone and together, is in `test_models` (explicit loops in NumPy).
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
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
from innerloop.models import (
    EmbeddingWeights,
    LayerNormWeights,
    MLPWeights,
    StackConfig,
    Transformer,
    attention_of_scores,
    embed,
    hidden_units,
    initialise,
    layer_norm,
    layer_segments,
    mlp,
    run_stack,
)
from innerloop.tokens import ConcatenatedTokens

TOKEN_SIZE, HEADS, TOKENS, KEYS, KEY_SIZE = INPUT_SIZE + OUTPUT_SIZE, 2, 7, 5, 3
pytestmark = pytest.mark.usefixtures("x64")


def normal(*shape, seed=0):
    """NumPy's, as all arithmetic around the code under test: there is nothing to compile then."""
    return np.random.default_rng(seed).normal(size=shape)


@partial(jax.jit, static_argnames=("kind", "causal"))
def attention_of(kind, scores, mixing=0.03, *, causal=False):
    mixing = jnp.asarray(mixing, scores.dtype) if kind == "mixed" else None
    return attention_of_scores(kind, scores, key_size=KEY_SIZE, mixing=mixing, causal=causal)


# --- Attention -------------------------------------------------------------------------------------------------------


def test_softmax_is_a_distribution_over_keys():
    """Positive, of sum one, blind to a shift of a token's scores; even where exponentials overflow."""
    scores = normal(HEADS, TOKENS, KEYS)
    attention = attention_of("softmax", scores)
    np.testing.assert_allclose(np.sum(attention, axis=-1), 1.0, rtol=1e-14)
    assert float(attention.min()) > 0
    shifted = attention_of("softmax", scores + normal(HEADS, TOKENS, 1, seed=1))
    np.testing.assert_allclose(shifted, attention, rtol=1e-12)
    ratio = np.log(attention[..., 1:] / attention[..., :1])
    np.testing.assert_allclose(ratio, (scores[..., 1:] - scores[..., :1]) / math.sqrt(KEY_SIZE), rtol=1e-10, atol=1e-13)
    largest = attention_of("softmax", 1e6 * scores)
    np.testing.assert_allclose(largest, np.asarray(scores) == np.max(scores, axis=-1, keepdims=True), atol=1e-12)


def test_softmax_of_equal_scores_is_the_mean_over_what_is_seen():
    zeros = np.zeros((HEADS, TOKENS, KEYS))
    np.testing.assert_allclose(attention_of("softmax", zeros), 1 / KEYS)
    for i, row in enumerate(np.asarray(attention_of("softmax", zeros, causal=True))[1]):
        seen = min(i + 1, KEYS)
        np.testing.assert_allclose(row, [1 / seen] * seen + [0.0] * (KEYS - seen))


@pytest.mark.parametrize("causal", [False, True])
def test_mixed_attention_blends_softmax_and_linear(causal):
    scores = normal(HEADS, TOKENS, KEYS, seed=2)
    softmax, linear = (np.asarray(attention_of(kind, scores, causal=causal)) for kind in ("softmax", "linear"))
    for mixing, share in ((-100.0, 0.0), (0.0, 0.5), (0.03, 1 / (1 + math.exp(-0.3))), (100.0, 1.0)):
        mixed = attention_of("mixed", scores, mixing, causal=causal)
        np.testing.assert_allclose(mixed, share * softmax + (1 - share) * linear, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", ["linear", "softmax", "mixed"])
def test_causal_attention(kind):
    """None above the diagonal, whatever the scores there are; below it, linear attention is as without the mask."""
    scores = normal(HEADS, TOKENS, KEYS, seed=3)
    attention = np.asarray(attention_of(kind, scores, causal=True))
    above = np.triu(np.ones((TOKENS, KEYS), bool), k=1)
    assert (attention[:, above] == 0).all()
    assert (attention[:, ~above] != 0).all()
    for worst in (1e300, -1e300):
        same = attention_of(kind, np.where(above, worst, scores), causal=True)
        np.testing.assert_array_equal(same, attention)
    if kind == "linear":
        np.testing.assert_array_equal(attention[:, ~above], scores[:, ~above])
    if kind == "softmax":
        np.testing.assert_allclose(np.sum(attention, axis=-1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("kind", ["linear", "softmax", "mixed"])
def test_gradients_pass_by_what_is_masked(kind):
    """A score that no token sees has no effect, and not NaN either, however large it is."""
    above = np.triu(np.ones((TOKENS, KEYS), bool), k=1)
    scores, target = np.where(above, 1e300, normal(HEADS, TOKENS, KEYS, seed=4)), normal(HEADS, TOKENS, KEYS, seed=5)

    @jax.jit
    def gradient(scores):
        return jax.grad(lambda scores: jnp.sum(target * attention_of.__wrapped__(kind, scores, causal=True)))(scores)

    slopes = np.asarray(gradient(scores))
    np.testing.assert_array_equal(slopes[:, above], 0.0)
    seen = ~above
    seen[0] = False  # the first token sees itself alone: its softmax is 1
    assert (np.abs(slopes[:, seen]) > 1e-9).all()


trace = partial(jax.jit, static_argnums=0)(partial(run_stack, num_targets=OUTPUT_SIZE))


def test_later_tokens_change_nothing_earlier():
    """Every part at once: a token reads what came before and nothing else. Without the mask it does not."""
    config = PARTS["all"]
    weights = random_weights(config, TOKEN_SIZE, seed=6)
    tokens = np.array(ConcatenatedTokens().encode(random_problem(7)))
    later = tokens.copy()
    later[4:] += normal(len(tokens) - 4, TOKEN_SIZE, seed=8)
    one, other = jax.tree.map(np.asarray, (trace(config, weights, tokens), trace(config, weights, later)))
    np.testing.assert_allclose(one.tokens[:, :4], other.tokens[:, :4], rtol=1e-13)
    np.testing.assert_allclose(one.attention[:, :, :4], other.attention[:, :, :4], rtol=1e-13)
    assert (np.abs(one.tokens - other.tokens)[-1, 4:].max(axis=-1) > 1e-3).all()
    unmasked = dataclasses.replace(config, causal=False)
    one, other = jax.tree.map(np.asarray, (trace(unmasked, weights, tokens), trace(unmasked, weights, later)))
    assert (np.abs(one.attention - other.attention)[-1, :, :4].max(axis=(0, 2)) > 1e-3).all()


def test_segments_are_the_layers_in_order():
    kinds = ("linear", "linear", "softmax", "softmax", "mixed")
    config = StackConfig(num_layers=5, attention=kinds, layer_norm="between")
    found = [(segment.layers, segment.kind, segment.normalises) for segment in layer_segments(config)]
    assert found == [
        (range(1), "linear", False),
        (range(1, 2), "linear", True),
        (range(2, 4), "softmax", True),
        (range(4, 5), "mixed", True),
    ]
    assert [segment.layers for segment in layer_segments(StackConfig(num_layers=50))] == [range(50)]


# --- MLP and embedding -----------------------------------------------------------------------------------------------


def random_mlp(width, hidden, *, bias=True):
    shapes = {"W_1": (hidden, width), "W_2": (width, hidden), "b_1": (hidden,), "b_2": (width,)}
    drawn = {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    return MLPWeights(**{name: jnp.asarray(value) for name, value in drawn.items() if bias or name[0] == "W"})


def test_gelu_is_the_tanh_approximation():
    """Which differs from the exact one by up to 5e-4: both must not pass."""
    x = np.linspace(-4, 4, 101)
    units = np.asarray(jax.jit(hidden_units)(random_mlp(5, 101, bias=False), x))
    np.testing.assert_allclose(units, x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), atol=1e-15)
    exact = np.array([value / 2 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    assert 1e-4 < np.abs(units - exact).max() < 1e-3


def test_derivatives_of_gelu_are_those_of_its_formula():
    """Forwards, backwards and twice: the derivative is written by hand."""
    x, bare = jnp.linspace(-6, 6, 101), random_mlp(5, 101, bias=False)

    @partial(jax.jit, static_argnums=0)
    def derivatives(function):
        slope = jax.grad(lambda x: jnp.sum(function(x)))
        return jax.jvp(function, (x,), (x,))[1], slope(x), jax.jvp(slope, (x,), (x,))[1]

    for ours, expected in zip(derivatives(partial(hidden_units, bare)), derivatives(jax.nn.gelu), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


run_mlp, run_embed = jax.jit(mlp), jax.jit(embed)


def test_a_mlp_without_biases_is_one_with_zeros():
    bare, tokens = random_mlp(5, 7, bias=False), normal(3, 5, seed=9)
    zeros = dataclasses.replace(bare, b_1=jnp.zeros(7), b_2=jnp.zeros(5))
    np.testing.assert_allclose(run_mlp(bare, tokens), run_mlp(zeros, tokens), rtol=1e-13)
    np.testing.assert_array_equal(run_mlp(bare, np.zeros((3, 5))), 0.0)


def test_embedding_is_linear_then_residual():
    tokens, W_E, block = normal(3, 5, seed=10), normal(11, 5, seed=11), random_mlp(11, 13)
    assert embed(None, given := jnp.asarray(tokens)) is given
    assert embed(EmbeddingWeights(), given) is given
    embedded = np.stack([W_E @ token for token in tokens])
    np.testing.assert_allclose(run_embed(EmbeddingWeights(jnp.asarray(W_E)), tokens), embedded, rtol=1e-12)
    full = np.asarray(run_embed(EmbeddingWeights(jnp.asarray(W_E), block), tokens))
    np.testing.assert_allclose(full - run_mlp(block, embedded), embedded, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("config", EMBEDDED_LAYERS.values(), ids=EMBEDDED_LAYERS)
def test_predictions_are_read_off_the_last_embedded_entries(config):
    """From before the first layer on; no entry of an embedded context token says what its target was."""
    problem, weights = random_problem(12), random_weights(config, TOKEN_SIZE, seed=13)
    transformer = Transformer(config, weights)
    prediction, trace = jax.jit(lambda learner: (learner(problem), learner.trace(problem)))(transformer)
    np.testing.assert_array_equal(prediction.trajectory, -np.asarray(trace.tokens)[:, -1, -OUTPUT_SIZE:])
    np.testing.assert_array_equal(prediction.value, np.asarray(prediction.trajectory)[-1])
    assert prediction.context_trajectory is None
    query = np.concatenate([problem.query_input, np.zeros(OUTPUT_SIZE)])
    np.testing.assert_allclose(
        prediction.trajectory[0], -run_embed(weights.embedding, query)[-OUTPUT_SIZE:], rtol=1e-12
    )


# --- LayerNorm -------------------------------------------------------------------------------------------------------


PLAIN, SCALED = (np.ones(5), np.zeros(5)), (normal(5, seed=15), normal(5, seed=16))
run_norm = jax.jit(lambda weights, tokens: layer_norm(LayerNormWeights(*weights), tokens))


def test_layer_norm_centres_and_scales_every_token():
    tokens = 3 * normal(7, 5, seed=14) + 2
    normed = np.asarray(run_norm(PLAIN, tokens))
    np.testing.assert_allclose(normed.mean(axis=1), 0.0, atol=1e-14)
    variance = np.asarray(tokens).var(axis=1)
    np.testing.assert_allclose(normed.var(axis=1), variance / (variance + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(run_norm(SCALED, tokens), normed * SCALED[0] + SCALED[1], rtol=1e-12)
    shifted = run_norm(PLAIN, tokens + normal(7, 1, seed=17))
    np.testing.assert_allclose(shifted, normed, rtol=1e-10, atol=1e-13)


def test_layer_norm_of_a_constant_token():
    """Without the 1e-5 this would be 0 / 0."""
    np.testing.assert_array_equal(run_norm(SCALED, np.full((7, 5), 3.0)), np.tile(SCALED[1], (7, 1)))
    slope = jax.jit(jax.jacfwd(run_norm.__wrapped__, argnums=1))(PLAIN, np.full(5, 3.0))
    np.testing.assert_allclose(slope, (np.eye(5) - 1 / 5) / math.sqrt(1e-5), rtol=1e-9)


def test_norm_between_leaves_the_first_attention_as_it_is():
    """Its maps are those of the stack without LayerNorm; later ones, and the first with LayerNorm before, are not."""
    bare = StackConfig(num_layers=2)
    between, before = (dataclasses.replace(bare, layer_norm=place) for place in ("between", "before"))
    weights, tokens = random_weights(before, TOKEN_SIZE, seed=18), ConcatenatedTokens().encode(random_problem(19))
    traces = [
        trace(config, dataclasses.replace(weights, attention_norm=norm), tokens)
        for config, norm in ((bare, None), (between, weights.attention_norm), (before, weights.attention_norm))
    ]
    traces = jax.tree.map(np.asarray, traces)
    np.testing.assert_allclose(traces[1].attention[0], traces[0].attention[0], rtol=1e-12)
    np.testing.assert_allclose(traces[1].tokens[1], traces[0].tokens[1], rtol=1e-12)
    assert np.abs(traces[1].attention[1] - traces[0].attention[1]).max() > 0.1
    assert np.abs(traces[2].attention[0] - traces[0].attention[0]).max() > 0.1


# --- Initialisation --------------------------------------------------------------------------------------------------

EVERY_PART = StackConfig(
    num_layers=3, num_heads=2, attention=("mixed",), embedding_size=7, mlp="block", mlp_widening=2, layer_norm="before"
)


def drawn_from(samples, variance, *, resolution):
    """Centred, of this variance, cut at two standard deviations of the uncut normal, which the cut shrinks by .8796."""
    samples, bound = np.ravel(samples), 2 * np.sqrt(variance) / 0.87962566103423978
    assert_mean(samples**2, variance, resolution=resolution)
    assert_mean(samples, 0.0, resolution=4 * resolution)
    assert np.abs(samples).max() < bound * (1 + 1e-6)


def test_initialisation_of_block_mlps_norms_and_mixing():
    """Many layers in place of many seeds."""
    config = dataclasses.replace(EVERY_PART, num_layers=809, tied=False)
    drawn = jax.jit(lambda key: initialise(config, 5, key, scale=0.3))(root_key(1))
    assert drawn.mlp is not None
    assert drawn.embedding.mlp is None
    drawn_from(drawn.mlp.W_1, 0.3 / 809 / 7, resolution=0.03)
    drawn_from(drawn.mlp.W_2, 0.3 / 809 / 14, resolution=0.03)
    drawn_from(drawn.attention.W_V, 0.3 / 809 / 7, resolution=0.03)
    drawn_from(drawn.attention.mixing, 0.3 / 809, resolution=0.2)
    assert (drawn.mlp.W_1.shape, drawn.mlp.W_2.shape) == ((809, 14, 7), (809, 7, 14))
    assert (drawn.mlp.b_1.shape, drawn.mlp.b_2.shape) == ((809, 14), (809, 7))
    assert not np.any(drawn.mlp.b_1)
    assert not np.any(drawn.mlp.b_2)
    for norm in (drawn.attention_norm, drawn.mlp_norm):
        assert norm.scale.shape == norm.offset.shape == (809, 7)
        assert np.all(np.asarray(norm.scale) == 1)
        assert not np.any(norm.offset)


def test_initialisation_of_embedding_and_input_mlp():
    """No layer axis here: a wide embedding in place of many seeds."""
    config = dataclasses.replace(EVERY_PART, mlp="input", embedding_size=307, num_heads=1, key_size=2)
    drawn = jax.jit(lambda key: initialise(config, 5, key, scale=0.3))(root_key(1))
    assert drawn.mlp is drawn.mlp_norm is None
    drawn_from(drawn.embedding.W_E, 0.1 / 5, resolution=0.15)
    drawn_from(drawn.embedding.mlp.W_1, 0.1 / 307, resolution=0.03)
    drawn_from(drawn.embedding.mlp.W_2, 0.1 / 614, resolution=0.03)
    drawn_from(drawn.attention.W_Q, 0.1 / 307, resolution=0.3)
    assert drawn.embedding.W_E.shape == (307, 5)
    assert (drawn.embedding.mlp.W_1.shape, drawn.embedding.mlp.W_2.shape) == ((614, 307), (307, 614))
    assert drawn.attention_norm.scale.shape == (1, 307)
    for bias, size in ((drawn.embedding.mlp.b_1, 614), (drawn.embedding.mlp.b_2, 307)):
        assert bias.shape == (size,)
        assert not np.any(bias)


def test_every_part_is_drawn_by_its_name():
    """No two matrices are one draw, and a new part does not reshuffle the others. All shapes are equal here."""
    full = StackConfig(num_layers=3, tied=False, embedding_size=5, mlp="block", mlp_widening=1, layer_norm="before")
    changes = {"block": {}, "input": {"mlp": "input"}, "no bias": {"mlp_bias": False}}
    drawn = {name: initialise(dataclasses.replace(full, **change), 5, root_key(2)) for name, change in changes.items()}
    bare = initialise(StackConfig(num_layers=3, tied=False), 5, root_key(2))
    for weights in drawn.values():
        assert_trees_close(weights.attention, bare.attention, rtol=0)
        assert_trees_close(weights.embedding.W_E, drawn["block"].embedding.W_E, rtol=0)
    block, below = drawn["block"].mlp, drawn["input"].embedding.mlp
    assert drawn["no bias"].mlp.b_1 is drawn["no bias"].mlp.b_2 is None
    assert_trees_close(drawn["no bias"].mlp.W_1, block.W_1, rtol=0)
    leaves = [drawn["block"].embedding.W_E, block.W_1, block.W_2, below.W_1, below.W_2, *jax.tree.leaves(bare)]
    rows = np.concatenate([np.reshape(leaf, (-1, 25)) for leaf in leaves])
    correlation = rows @ rows.T / np.sqrt(np.outer(np.sum(rows**2, axis=1), np.sum(rows**2, axis=1)))
    assert len(rows) == 1 + 6 + 2 + 12
    np.testing.assert_array_less(np.abs(correlation - np.eye(len(rows))), 0.9)


@pytest.mark.parametrize("config", (PARTS | EMBEDDED_LAYERS).values(), ids=PARTS | EMBEDDED_LAYERS)
def test_initial_weights_fit_their_stack(config):
    """Same shapes as the tests' own weights, in the dtype that is asked for."""
    drawn = jax.eval_shape(lambda: initialise(config, TOKEN_SIZE, root_key(0), dtype=jnp.float64))
    expected = random_weights(config, TOKEN_SIZE, seed=0)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


# --- What is refused -------------------------------------------------------------------------------------------------

SQUARE = StackConfig(embedding_size=TOKEN_SIZE)  # of the tokens' width, so that only the part itself can be missed


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (SQUARE, "embedding_size"),
        (StackConfig(mlp="input"), 'mlp="input"'),
        (StackConfig(mlp="block"), 'mlp="block"'),
        (StackConfig(layer_norm="before"), "layer_norm"),
        (StackConfig(layer_norm="between"), "layer_norm"),
        (StackConfig(attention=("mixed",)), 'attention="mixed"'),
    ],
)
def test_weights_of_another_architecture(config, part):
    """Both ways round: running on would leave a part out silently, or fail far from here."""
    tokens, bare = ConcatenatedTokens().encode(random_problem(1)), StackConfig()
    lack, have = "is set but the weights lack", "is not set but the weights have"
    for asked, stored, words in ((config, bare, lack), (bare, config, have)):
        with pytest.raises(ValueError, match=f"model.{part} {words} that part; use") as error:
            run_stack(asked, random_weights(stored, TOKEN_SIZE, seed=0), tokens, num_targets=OUTPUT_SIZE)
        assert "\n" not in str(error.value)


def test_mlps_of_two_places_are_told_apart():
    tokens = ConcatenatedTokens().encode(random_problem(1))
    for asked, stored in (("input", "block"), ("block", "input")):
        weights = random_weights(StackConfig(mlp=stored), TOKEN_SIZE, seed=0)
        with pytest.raises(ValueError, match="mlp="):
            run_stack(StackConfig(mlp=asked), weights, tokens, num_targets=OUTPUT_SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_size": 0}, "model.embedding_size must be an integer of at least 1, got 0"),
        ({"mlp_widening": 0}, "model.mlp_widening must be an integer of at least 1, got 0"),
        ({"attention": ()}, r"model.attention must have one kind, or one per layer \(num_layers=1\), got 0"),
        ({"num_layers": 3, "attention": ("linear",) * 2}, r"one per layer \(num_layers=3\), got 2"),
        ({"attention": ("linear", "softmax")}, r"one per layer \(num_layers=1\), got 2"),
    ],
)
def test_ranges_of_the_parts(options, message):
    with pytest.raises(ValueError, match=message) as error:
        StackConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("attention", ("hardmax",)), ("mlp", "output"), ("layer_norm", "after"), ("attention", "softmax")],
)
def test_unknown_choices(name, value):
    """The type checks of this suite see them first; the package itself has them on one line, naming the choices."""
    config = StackConfig()
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=f"model.{name} must") as error:
        config.__post_init__()
    assert "\n" not in str(error.value)
