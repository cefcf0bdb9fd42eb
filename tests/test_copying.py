"""Alternating tokens and the copying of neighbours: against NumPy by hand, and Proposition 3 in double precision."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_problem, random_weights, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from innerloop.algorithms import GradientDescent
from innerloop.analysis import jacobian_norms, mean_attention, neighbours, strongest_neighbour, summed_sensitivities
from innerloop.constructions import alternating_descent_transformer, copying_error, copying_weights
from innerloop.kernels import batch_loss, training_path
from innerloop.keys import root_key
from innerloop.models import EmbeddingWeights, StackConfig, Transformer, initialise, run_stack
from innerloop.tasks import Batch, LinearRegression, Sample
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens, Positions
from innerloop.tokens.alternating import _ranks
from innerloop.training import Recipe, published_alternating
from innerloop.training.parameters import initial_parameters

predict = eqx.filter_jit(lambda learner, problem: learner(problem))


# --- Tokens ----------------------------------------------------------------------------------------------------------


def codes_by_hand(kind: str, num_tokens: int, width: int) -> np.ndarray:
    codes = np.zeros((num_tokens, width))
    for t in range(num_tokens):
        for entry in range(width):
            if kind == "one-hot":
                codes[t, entry] = t == entry
            else:
                angle = t / 10000 ** ((entry - entry % 2) / width)
                codes[t, entry] = math.cos(angle) if entry % 2 else math.sin(angle)
    return codes


def content_by_hand(problem, size: int) -> np.ndarray:
    x, y, query = (np.asarray(leaf) for leaf in jax.tree.leaves(problem))
    content = np.zeros((2 * len(x) + 1, size))
    for j in range(len(x)):
        content[2 * j, : x.shape[1]] = x[j]
        content[2 * j + 1, size - y.shape[1] :] = y[j]
    content[-1, : x.shape[1]] = query
    return content


@pytest.mark.parametrize("placement", ["concatenated", "added"])
@pytest.mark.parametrize(
    ("kind", "width"), [("sinusoidal", 4), ("sinusoidal", 5), ("sinusoidal", None), ("one-hot", None), ("one-hot", 17)]
)
@pytest.mark.parametrize("separate_slots", [False, True])
def test_tokens_by_hand(x64, kind, width, placement, separate_slots):
    """Inputs have 3 entries, targets 2; 7 pairs, so 15 tokens; widths below and above the content's, even and odd."""
    problem = random_problem(1)
    size = 5 if separate_slots else 3
    tokens = AlternatingTokens(Positions(kind, width, placement), separate_slots)
    width = width or (15 if kind == "one-hot" else size)
    content, codes = content_by_hand(problem, size), codes_by_hand(kind, 15, width)
    if placement == "concatenated":
        expected = np.concatenate([content, codes], axis=1)
    else:
        expected = np.zeros((15, max(size, width)))
        expected[:, :size] += content
        expected[:, :width] += codes
    actual = tokens.encode(problem)
    np.testing.assert_allclose(actual, expected, atol=1e-15)
    assert tokens.shape(input_size=3, output_size=2, context_length=7) == actual.shape
    np.testing.assert_allclose(tokens.query_prediction(actual, problem), -expected[-1, -2:], atol=1e-15)
    assert tokens.context_prediction(actual, problem) is None


def random_batch(num_tasks: int = 11) -> Batch:
    rng = np.random.default_rng(3)
    return Batch(*(jnp.asarray(rng.normal(size=(size, 8, num_tasks)), jnp.result_type(float)) for size in (3, 2)))


@pytest.mark.parametrize(
    "tokens", [AlternatingTokens(), AlternatingTokens(Positions(permuted=True)), ConcatenatedTokens()]
)
def test_batch_is_encoded_as_its_tasks_are(tokens):
    """In the kernels' layout."""
    batch = random_batch()
    expected = jax.vmap(tokens.encode)(batch.samples().problem)  # (batch, tokens, token_size)
    np.testing.assert_array_equal(tokens.encode_batch(batch), np.moveaxis(expected, 0, -1).swapaxes(0, 1))


def test_permuted_codes():
    """The context's codes, in an order that differs between tasks and belongs to the task; all else as without."""
    problems = random_batch(199).samples().problem
    plain, shuffled = (
        np.asarray(jax.vmap(AlternatingTokens(Positions("one-hot", permuted=permuted)).encode)(problems))
        for permuted in (False, True)
    )
    np.testing.assert_array_equal(plain[..., :3], shuffled[..., :3])
    np.testing.assert_array_equal(plain[:, -1], shuffled[:, -1])
    codes = shuffled[:, :-1, 3:]
    np.testing.assert_array_equal(codes.sum(axis=1)[:, :-1], 1.0)
    assert len({code.tobytes() for code in codes}) == 199
    # Every code is at every place equally often: of 199 draws from 14, each within four standard errors.
    frequency = codes[..., :14].mean(axis=0)
    assert np.abs(frequency - 1 / 14).max() < 4 * math.sqrt(13 / 14**2 / 199)


@given(st.lists(st.sampled_from([0, 1, 2, 2**31, 2**32 - 1]), min_size=1, max_size=9))
def test_ranks(words):
    """Equal words keep their order, so that every position comes exactly once."""
    order = np.argsort(words, kind="stable")
    np.testing.assert_array_equal(_ranks(jnp.asarray(words, jnp.uint32)), np.argsort(order))


def test_permutation_leaves_the_stream_alone():
    recipe = published_alternating(task=LinearRegression(input_size=3, context_length=5))
    shuffled = dataclasses.replace(recipe, positions=Positions(permuted=True))
    batches = [one.task.sample_batch(root_key(0), 7) for one in (recipe, shuffled)]
    np.testing.assert_array_equal(batches[0].inputs, batches[1].inputs)


@pytest.mark.parametrize("placement", ["concatenated", "added"])
def test_learned_codes(x64, placement):
    """A stack on learned codes is the stack on fixed ones, where the learned codes have the fixed ones' values."""
    problem, config = random_problem(1), StackConfig(num_layers=2, attention=("softmax",), embedding_size=7)
    fixed = AlternatingTokens(Positions("sinusoidal", 5, placement))
    learned = AlternatingTokens(Positions("learned", 5, placement))
    codes = jnp.asarray(Positions("sinusoidal", 5).fixed_codes(15, 3))
    W_E = jnp.asarray(np.random.default_rng(2).normal(size=(7, 8 if placement == "concatenated" else 5)))
    weights = random_weights(config, 7, seed=3)
    on_fixed = dataclasses.replace(weights, embedding=EmbeddingWeights(W_E))
    on_learned = dataclasses.replace(weights, embedding=EmbeddingWeights(W_E, codes=codes, placement=placement))
    expected = Transformer(config, on_fixed, fixed)(problem).trajectory
    np.testing.assert_allclose(Transformer(config, on_learned, learned)(problem).trajectory, expected, rtol=1e-13)


FIRST_SOFTMAX = StackConfig(num_layers=2, tied=False, attention=("softmax", "linear"))
ONE_HOT_ADDED = Positions("one-hot", placement="added", permuted=True)
KERNEL_CASES = {
    "published": (FIRST_SOFTMAX, Positions()),
    "all-linear": (StackConfig(num_layers=2, tied=False), Positions()),
    "one-layer-learned": (StackConfig(), Positions("learned", 5)),
    "learned-all-linear": (StackConfig(num_layers=2), Positions("learned", 5, "added")),
    "all-softmax": (StackConfig(num_layers=2, attention=("softmax",)), ONE_HOT_ADDED),
    # Two last layers by dot products, with everything else that a stack may have below them.
    "heads": (
        StackConfig(
            num_layers=3,
            num_heads=2,
            key_size=3,
            attention=("linear", "softmax", "linear"),
            causal=True,
            query_in_keys=True,
            damping=0.7,
            update="targets",
        ),
        Positions(),
    ),
    "mixed-embedded": (
        StackConfig(
            num_layers=2, tied=False, num_heads=2, attention=("mixed", "linear"), embedding_size=7, mlp="input"
        ),
        Positions("learned", 5),
    ),
    # A last layer of linear attention on something else than attention.
    "clipped": (dataclasses.replace(FIRST_SOFTMAX, token_clip=1.0), Positions()),
    "block": (dataclasses.replace(FIRST_SOFTMAX, mlp="block"), Positions()),
    "normed": (dataclasses.replace(FIRST_SOFTMAX, layer_norm="before"), Positions()),
}


@pytest.mark.parametrize(("model", "positions"), KERNEL_CASES.values(), ids=KERNEL_CASES)
def test_kernel_is_the_model(x64, model, positions):
    """Loss and gradient of a batch by the training kernel and by the unbatched transformer; learned codes included."""
    recipe = Recipe(
        task=LinearRegression(input_size=3, output_size=2, context_length=7),
        model=model,
        token_layout="alternating",
        positions=positions,
        init_scale=0.7,
        dtype="float64",
    )
    weights, batch, tokens = initial_parameters(recipe, root_key(5)), random_batch(), recipe.tokens()
    assert training_path(recipe.model, tokens) == "jax"

    def by_vmap(weights):
        def loss(sample: Sample):
            value = Transformer(recipe.model, weights, tokens)(sample.problem).value
            return 0.5 * jnp.sum((value - sample.query_target) ** 2)

        return jnp.mean(jax.vmap(loss)(batch.samples()))

    loss, gradient = jax.jit(jax.value_and_grad(lambda weights: batch_loss(recipe.model, tokens, weights, batch)))(
        weights
    )
    expected_loss, expected = jax.jit(jax.value_and_grad(by_vmap))(weights)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert relative_difference(gradient, expected) < 1e-11
    assert float(jnp.abs(gradient.attention.W_V).max()) > 1e-6
    if positions.kind == "learned":
        assert float(jnp.abs(gradient.embedding.codes).max()) > 1e-6


def test_published_recipe():
    """Width 20, key size 20, and a starting loss of (E y^2 + 1) / 2 = .917, since the last code's entry is nearly 1."""
    recipe = published_alternating(seeds=(7,))
    weights = initial_parameters(recipe, root_key(7))
    assert weights.attention.W_K.shape == (2, 1, 20, 20)
    assert (recipe.num_tokens, recipe.token_size) == (21, 20)
    assert recipe.optimizer.gradient_clip == 10.0
    assert (recipe.optimizer.learning_rate, recipe.optimizer.b2, recipe.batch_size) == (1e-3, 0.98, 2048)
    assert float(weights.attention.W_K.var()) == pytest.approx(0.02 / 2 / 20, rel=0.2)
    losses = batch_loss(recipe.model, recipe.tokens(), weights, recipe.task.sample_batch(root_key(8), 20_000))
    assert float(losses) == pytest.approx(0.917, rel=0.03)


def refused(message: str, **fields):
    with pytest.raises(ValueError, match=message) as error:
        Recipe(**({"token_layout": "alternating"} | fields))
    assert "\n" not in str(error.value)


def test_what_alternating_tokens_refuse():
    refused("initial_weights needs token_layout", initial_weights=((0.0,) * 10,))
    refused("gd_plus_plus_from needs token_layout", gd_plus_plus_from=(1.0, 0.1))
    refused("gd_on_features needs token_layout", gd_on_features=0.1, model=StackConfig(mlp="input"))
    refused('loss="expected" needs token_layout', loss="expected")
    refused("positions.width must be at least the number of tokens, 21", positions=Positions("one-hot", 20))
    refused("positions must be left alone", token_layout="concatenated", positions=Positions("one-hot"))


# --- Proposition 3 ---------------------------------------------------------------------------------------------------

few = settings(max_examples=5, phases=[Phase.explicit, Phase.generate])  # every example compiles anew
sizes = {
    "input_size": st.integers(1, 7),
    "output_size": st.integers(1, 5),
    "context_length": st.integers(1, 11),
}


def copied_by(copies, tokens: AlternatingTokens, problem, *, logit_factor=None):
    """The tokens' content and, after one constructed layer, the end of every token's code; and what is before it."""
    content = np.asarray(tokens.content(problem))
    num_tokens, size = content.shape
    width = max(num_tokens, size)
    weights = copying_weights(content_size=size, num_tokens=num_tokens, copies=copies, logit_factor=logit_factor)
    config = StackConfig(attention=("linear" if logit_factor is None else "softmax",))
    tokens = dataclasses.replace(tokens, positions=Positions("one-hot", width))
    trace = run_stack(config, weights, tokens.encode(problem), num_targets=1)
    np.testing.assert_array_equal(trace.tokens[1, :, :size], content)
    return content, np.asarray(trace.tokens[1, :, size:]), np.asarray(trace.attention[0, 0])


@few
@given(**sizes, separate_slots=st.booleans(), seed=st.integers(0, 99))
def test_each_shift_copies_its_neighbour(x64, input_size, output_size, context_length, separate_slots, seed):
    """Corrected: the next token. As printed: the previous one. A token that would copy the query keeps its code."""
    problem = random_problem(seed, input_size=input_size, output_size=output_size, context_length=context_length)
    tokens = AlternatingTokens(separate_slots=separate_slots)
    for copies, shift in (("next", 1), ("previous", -1)):
        content, code, _ = copied_by(copies, tokens, problem)
        num_tokens, size = content.shape
        expected = np.zeros(code.shape)
        for j in range(num_tokens):
            neighbour = (j + shift) % num_tokens
            if neighbour == num_tokens - 1:  # the query is no key
                expected[j, j] = 1.0
            else:
                expected[j, code.shape[1] - size :] = content[neighbour]
        np.testing.assert_allclose(code, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("logit_factor", [0.0, 5.0, 11.0, 50.0])
@pytest.mark.parametrize("copies", ["next", "previous"])
def test_softmax_copies_with_the_stated_error(x64, copies, logit_factor):
    """The row sums of the attention's error are what is stated, and the copies are within the bound that follows."""
    tokens, problem = AlternatingTokens(separate_slots=True), random_problem(2)
    content, exact_code, exact_attention = copied_by(copies, tokens, problem)
    _, code, attention = copied_by(copies, tokens, problem, logit_factor=logit_factor)
    has_target = exact_attention.sum(axis=1) == 1
    assert has_target.sum() == 14  # of 15 tokens, all but the one whose neighbour is the query
    stated = copying_error(14, logit_factor)
    np.testing.assert_allclose(np.abs(attention - exact_attention).sum(axis=1)[has_target], stated, atol=1e-13)
    largest = max(1.0, np.abs(content).max())
    errors = np.abs(code - exact_code)[has_target]
    assert errors.max() < stated * largest + 1e-13
    assert logit_factor == 50 or errors.max() > 0.01 * stated


@few
@given(**sizes, num_steps=st.integers(1, 3), seed=st.integers(0, 99))
def test_copying_then_descending_is_gradient_descent(x64, input_size, output_size, context_length, num_steps, seed):
    """Propositions 3 and 1 stacked, on alternating tokens, with linear and with softmax copying."""
    task_sizes = {"input_size": input_size, "output_size": output_size, "context_length": context_length}
    problem = random_problem(seed, **task_sizes)
    rates = jnp.asarray(np.random.default_rng(seed).uniform(-0.3, 0.3, num_steps))
    expected = predict(GradientDescent(rates, num_steps=num_steps), problem).trajectory
    for logit_factor in (None, 60.0):
        stack = alternating_descent_transformer(**task_sizes, learning_rate=rates, logit_factor=logit_factor)
        trajectory = predict(stack, problem).trajectory
        assert relative_difference(trajectory[1:], expected) < 1e-12
        assert trajectory.shape[0] == num_steps + 2


def test_copying_the_previous_token_does_not_descend(x64):
    """The control of the composition: with the printed shift x_j meets y_{j-1}."""
    stack = alternating_descent_transformer(input_size=3, output_size=2, context_length=7, learning_rate=0.3)
    printed = copying_weights(content_size=5, num_tokens=15, copies="previous").attention
    attention = jax.tree.map(lambda stacked, first: stacked.at[0].set(first[0]), stack.weights.attention, printed)
    wrong = dataclasses.replace(stack, weights=dataclasses.replace(stack.weights, attention=attention))
    problem = random_problem(4)
    difference = predict(wrong, problem).value - predict(stack, problem).value
    assert float(jnp.abs(difference).min()) > 1e-2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"code_size": 14}, "code_size must be at least 15"),
        ({"content_size": 0}, "content_size must be"),
        ({"logit_factor": math.inf}, "logit_factor must be"),
    ],
)
def test_impossible_copying(wrong, message):
    with pytest.raises(ValueError, match=message):
        copying_weights(**({"content_size": 5, "num_tokens": 15} | wrong))


# --- Who copies whom -------------------------------------------------------------------------------------------------


def derivatives_by_definition(transformer: Transformer, samples: Sample) -> np.ndarray:
    """Mean over tasks of d token / d content by reverse mode through the whole stack, (tokens, entries, tokens, ..)."""
    tokens = transformer.tokens

    def first_layer(content, problem):
        encoded = tokens.encode(problem).at[:, :3].set(content)
        return run_stack(transformer.config, transformer.weights, encoded, num_targets=2).tokens[1]

    problems = samples.problem
    derivatives = jax.vmap(jax.jacrev(first_layer))(jax.vmap(tokens.content)(problems), problems)
    return np.asarray(derivatives.mean(axis=0))


CONFIGS = {
    "softmax": StackConfig(num_layers=2, tied=False, attention=("softmax", "linear")),
    "heads": StackConfig(num_layers=2, num_heads=2, key_size=7, damping=0.7, query_in_keys=True, token_clip=1.5),
    "causal": StackConfig(num_layers=2, attention=("softmax",), causal=True, update="targets"),
    "mixed": StackConfig(num_layers=2, attention=("mixed",)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_sensitivities_by_definition(x64, name):
    """Against one backward pass per output entry, through the model itself."""
    config = CONFIGS[name]
    weights = initialise(config, 8, root_key(1), scale=0.9, dtype=jnp.float64)
    transformer = Transformer(config, weights, AlternatingTokens(Positions(width=5)))
    samples = random_batch(7).samples()
    num_keys = config.num_keys(15)
    expected = derivatives_by_definition(transformer, samples)
    summed = np.linalg.norm(expected.sum(axis=1), axis=-1)[:, :num_keys]
    frobenius = np.sqrt((expected**2).sum(axis=(1, 3)))[:, :num_keys]
    np.testing.assert_allclose(summed_sensitivities(transformer, samples), summed, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(jacobian_norms(transformer, samples), frobenius, rtol=1e-10, atol=1e-13)
    assert np.abs(frobenius - np.eye(15)[:, :num_keys] * frobenius).max() > 1e-3


def test_neighbours_as_the_published_loop_counts_them():
    """Over tokens k with a next token in the context: own, next, and all but the own one over their number."""
    matrix = np.random.default_rng(5).uniform(size=(2, 15, 14))
    found = neighbours(matrix)
    for learner in range(2):
        own = following = other = rest = 0.0
        for k in range(13):
            row = matrix[learner, k]
            own += row[k] / 13
            following += row[k + 1] / 13
            other += (row[:k].sum() + row[k + 1 :].sum()) / 13 / 13
            rest += (row.sum() - row[k] - row[k + 1]) / 12 / 13
        actual = [getattr(found, name)[learner] for name in ("own", "next", "other", "other_than_next")]
        np.testing.assert_allclose(actual, [own, following, other, rest], rtol=1e-13)
        before = [matrix[learner, k, k - 1] for k in range(1, 14)]
        rest = [matrix[learner, k].sum() - matrix[learner, k, k] - matrix[learner, k, k - 1] for k in range(1, 14)]
        np.testing.assert_allclose(found.previous[learner], np.mean(before), rtol=1e-13)
        np.testing.assert_allclose(found.other_than_previous[learner], np.mean(rest) / 12, rtol=1e-13)


@pytest.mark.parametrize("copies", ["next", "previous"])
def test_constructed_copying_is_found(copies):
    """The construction on the next or the previous token: all attention, and a Jacobian of the size of J's."""
    tokens = AlternatingTokens(Positions("one-hot", 15), separate_slots=True)
    weights = copying_weights(content_size=5, num_tokens=15, copies=copies, logit_factor=50.0)
    config = StackConfig(attention=("softmax",))
    transformer, samples = Transformer(config, weights, tokens), random_batch(20).samples()
    attention = np.asarray(mean_attention(transformer, samples))[0, 0]
    assert strongest_neighbour(attention) == copies
    assert getattr(neighbours(attention), copies) == pytest.approx(1.0)
    jacobian = neighbours(jacobian_norms(transformer, samples))
    assert getattr(jacobian, copies) == pytest.approx(math.sqrt(5))
    # The token whose neighbour is the query reads all 14 tokens alike, itself too.
    assert jacobian.own == pytest.approx(math.sqrt(5), abs=0.02)
    assert getattr(jacobian, f"other_than_{copies}") < 0.02


@pytest.mark.parametrize("measure", [summed_sensitivities, jacobian_norms])
def test_what_sensitivities_refuse(measure):
    config, samples = StackConfig(mlp="block"), random_batch(3).samples()
    weights = initialise(config, 6, root_key(0))
    with pytest.raises(ValueError, match="attention alone"):
        measure(Transformer(config, weights, AlternatingTokens()), samples)
    with pytest.raises(TypeError, match="AlternatingTokens"):
        measure(Transformer(StackConfig(), initialise(StackConfig(), 5, root_key(0))), samples)
