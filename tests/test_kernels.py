"""The batch loss and its gradient against the unbatched transformer under vmap, in float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EMBEDDED_LAYERS, INPUT_SIZE, OUTPUT_SIZE, PARTS, random_weights, relative_difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from innerloop.kernels import batch_loss, kernel, native_library, training_kernel
from innerloop.kernels.embedded_layer import serves_embedded_layer
from innerloop.kernels.kernel import training_path
from innerloop.kernels.linear_stack import linear_stack_entries
from innerloop.kernels.stack_arrays import serves_stack
from innerloop.keys import root_key
from innerloop.models import StackConfig, Transformer, products
from innerloop.tasks import Batch, LinearRegression
from innerloop.tokens import ConcatenatedTokens

TOKEN_SIZE, BATCH_SIZE = INPUT_SIZE + OUTPUT_SIZE, 11
CONFIGS = {
    "one-layer": StackConfig(),
    "tied": StackConfig(num_layers=3),
    "untied": StackConfig(num_layers=3, tied=False),
    "heads": StackConfig(num_layers=2, tied=False, num_heads=2, key_size=3),
    "damped": StackConfig(num_layers=2, damping=-0.6),
    "targets": StackConfig(num_layers=2, update="targets"),
    "clipped": StackConfig(num_layers=2, tied=False, token_clip=0.9),
    "query-in-keys": StackConfig(num_layers=2, query_in_keys=True),
    "everything": StackConfig(
        num_layers=2,
        tied=False,
        num_heads=2,
        key_size=7,
        query_in_keys=True,
        damping=0.7,
        update="targets",
        token_clip=0.9,
    ),
}
# One layer of softmax attention on the tokens as they are.
SOFTMAX_LAYERS = {
    "softmax-layer": StackConfig(attention=("softmax",)),
    "softmax-layer-everything": StackConfig(
        attention=("softmax",), num_heads=2, key_size=7, query_in_keys=True, damping=0.7, token_clip=0.9
    ),
}
pytestmark = pytest.mark.usefixtures("x64")


def random_batch(context_length: int) -> Batch:
    """Sums over longer contexts are scaled down, so that no stack explodes."""
    rng = np.random.default_rng(context_length)
    scale = np.sqrt(5 / context_length)
    shapes = (INPUT_SIZE, context_length + 1, BATCH_SIZE), (OUTPUT_SIZE, context_length + 1, BATCH_SIZE)
    return Batch(*(jnp.asarray(scale * rng.normal(size=shape)) for shape in shapes))


def loss_by_vmap(config, tokens, weights, batch):
    def loss(sample):
        return 0.5 * jnp.sum((Transformer(config, weights, tokens)(sample.problem).value - sample.query_target) ** 2)

    return jnp.mean(jax.vmap(loss)(batch.samples()))


def initial_weights():
    return jnp.asarray(np.random.default_rng(1).normal(size=(OUTPUT_SIZE, INPUT_SIZE)))


# A context beyond 64 takes XLA's reductions in place of the unrolled sums. W0 changes the query token only.
CASES = [*((name, 5, name in ("tied", "everything")) for name in CONFIGS), ("everything", 67, True)]


@pytest.mark.parametrize(("name", "context_length", "has_initial_weights"), CASES)
def test_loss_and_gradient(name, context_length, has_initial_weights):
    config, batch = CONFIGS[name], random_batch(context_length)
    tokens = ConcatenatedTokens(initial_weights() if has_initial_weights else None)
    weights = random_weights(config, TOKEN_SIZE, seed=2, size=0.3)

    # Not jitted: the unrolled sums take seconds to compile, and operation by operation the cases share everything.
    loss, gradient = jax.value_and_grad(batch_loss, argnums=2)(config, tokens, weights, batch)
    reference = jax.jit(jax.value_and_grad(partial(loss_by_vmap, config, tokens)))
    expected_loss, expected_gradient = reference(weights, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert relative_difference(gradient, expected_gradient) < 1e-12
    for leaf in jax.tree.leaves(expected_gradient):  # every distinct layer and head takes part
        assert (jnp.abs(leaf).max(axis=(2, 3)) > 1e-9).all()


# --- Stacks with other parts than linear attention -------------------------------------------------------------------

OTHERS = PARTS | EMBEDDED_LAYERS | SOFTMAX_LAYERS
# A gradient takes seconds to compile, so it is taken of those that have every option between them.
COVERING = {
    **{name: PARTS[name] for name in ("causal-softmax", "mixed", "block-mlp-no-bias", "norm", "deep-embedding", "all")},
    **EMBEDDED_LAYERS,
    **SOFTMAX_LAYERS,
}


@partial(jax.jit, static_argnums=0)
def both_losses_and_gradients(config, tokens, weights, batch):
    ours = jax.value_and_grad(batch_loss, argnums=2)(config, tokens, weights, batch)
    return ours, jax.value_and_grad(loss_by_vmap, argnums=2)(config, tokens, weights, batch)


@pytest.mark.parametrize("config", COVERING.values(), ids=COVERING)
def test_loss_and_gradient_of_other_parts(config):
    """The query starts at -W0 x, so that it plays a part as key and value too."""
    tokens, weights = ConcatenatedTokens(initial_weights()), random_weights(config, TOKEN_SIZE, seed=2, size=0.3)
    (loss, gradient), (expected_loss, expected) = both_losses_and_gradients(config, tokens, weights, random_batch(5))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for path, leaf in jax.tree.leaves_with_path(expected):
        ours = gradient
        for key in path:
            ours = getattr(ours, key.name)
        # Leaf by leaf: the MLPs' gradients could hide behind larger ones.
        np.testing.assert_allclose(ours, leaf, rtol=1e-11, atol=1e-12 * float(jnp.abs(leaf).max()) + 1e-15 * scale)


@pytest.mark.parametrize("config", COVERING.values(), ids=COVERING)
def test_every_weight_takes_part(config):
    """Or zeros would agree with zeros. Untied layers of several kinds store numbers that only some of them read."""
    tokens, weights = ConcatenatedTokens(initial_weights()), random_weights(config, TOKEN_SIZE, seed=2, size=0.3)
    gradient = both_losses_and_gradients(config, tokens, weights, random_batch(5))[0][1]
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        largest = np.abs(leaf)[None] if "embedding" in name else np.abs(leaf).reshape(leaf.shape[0], -1)
        readers = range(config.num_layers)
        if "mixing" in name:
            readers = [layer for layer in readers if config.attention_kind(layer) == "mixed"]
        if "attention_norm" in name:
            readers = [layer for layer in readers if config.normalises_attention(layer)]
        is_read = [config.tied or "embedding" in name or layer in readers for layer in range(len(largest))]
        np.testing.assert_array_equal([part.max() > 1e-9 for part in largest], is_read, err_msg=name)


def test_gradients_cover_every_option():
    for field in dataclasses.fields(StackConfig):
        values = {getattr(config, field.name) for config in OTHERS.values()}
        covered = {getattr(config, field.name) for config in COVERING.values()}
        if field.name == "attention":
            values, covered = ({kind for kinds in each for kind in kinds} for each in (values, covered))
        if field.name not in (
            "num_layers",
            "num_heads",
            "key_size",
            "mlp_widening",
            "damping",
        ):  # numbers like any other
            assert values == covered, field.name


@pytest.mark.parametrize("config", (ALL := CONFIGS | OTHERS).values(), ids=ALL)
def test_every_stack_is_served_by_its_own_code(config, monkeypatch):
    """Several would be right for one layer: only the time that they take tells them apart."""
    served = []
    for name in (f"{code}_entries" for code in ("linear_stack", "embedded_layer", "softmax_layer", "general_stack")):
        ours = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *given, name=name, ours=ours: served.append(name) or ours(*given))
    weights = random_weights(config, TOKEN_SIZE, seed=2)
    jax.eval_shape(partial(batch_loss, config, ConcatenatedTokens()), weights, random_batch(5))
    own = {"linear_stack": CONFIGS, "embedded_layer": EMBEDDED_LAYERS, "softmax_layer": SOFTMAX_LAYERS}
    code = next((code for code, configs in own.items() if config in configs.values()), "general_stack")
    assert served == [f"{code}_entries"]
    assert config.is_linear == (code == "linear_stack")


@pytest.mark.parametrize(
    "change", [{"attention": ("softmax",)}, {"causal": True}, {"layer_norm": "before"}, {"mlp": "block"}]
)
def test_the_embedded_layer_s_code_is_for_linear_layers(change):
    assert serves_embedded_layer(embedded := StackConfig(embedding_size=11))
    assert not serves_embedded_layer(dataclasses.replace(embedded, **change))
    assert not serves_embedded_layer(dataclasses.replace(embedded, num_layers=2))


@pytest.mark.parametrize("mode", ["auto", "required", "off"])
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_path_of_other_parts(config, mode, monkeypatch):
    """In single precision the native kernels serve stacks of attention and a layer on embedded tokens; JAX the rest."""
    monkeypatch.setenv("INNERLOOP_NATIVE", mode)
    monkeypatch.setattr(native_library, "library_problem", lambda: None)
    with jax.enable_x64(False):
        chosen = training_kernel(config, ConcatenatedTokens(), LinearRegression(), BATCH_SIZE)
        wanted = "jax" if mode == "off" else "native"
        expected = wanted if serves_stack(config) or serves_embedded_layer(config) else "jax"
        assert chosen.path == training_path(config, ConcatenatedTokens()) == expected
        assert training_path(StackConfig(), ConcatenatedTokens()) == wanted


@pytest.mark.parametrize("name", ["clipped", "softmax-layer-everything", "everything"])
def test_clip_is_active(name):
    """The cases above would pass without a clip if no entry reached it, or if it froze every entry."""
    config, batch = ALL[name], random_batch(5)
    transformer = Transformer(config, random_weights(config, TOKEN_SIZE, seed=2, size=0.3))
    tokens = jax.jit(jax.vmap(transformer.trace))(batch.samples().problem).tokens[:, 1:, :, INPUT_SIZE:]
    share = float(jnp.mean(jnp.abs(tokens) == config.token_clip))
    assert 0.05 < share < 0.95


@pytest.mark.parametrize(
    "task",
    [
        LinearRegression(input_size=INPUT_SIZE, output_size=OUTPUT_SIZE, context_length=5),
        LinearRegression(
            input_size=INPUT_SIZE, output_size=OUTPUT_SIZE, context_length=5, noise_std=0.3, normalise_context=True
        ),
    ],
    ids=["plain", "noisy-normalised"],
)
def test_kernel_is_the_loss_of_the_stream(task):
    """Preparing and differentiating step t is the loss of the batch whose key is the stream folded with t."""
    config, tokens, stream = CONFIGS["one-layer"], ConcatenatedTokens(initial_weights()), root_key(3)
    weights = random_weights(config, TOKEN_SIZE, seed=4)
    kernel = training_kernel(config, tokens, task, BATCH_SIZE)
    assert kernel.path == "jax"
    loss_and_gradient = jax.jit(kernel.loss_and_gradient)
    reference = jax.jit(jax.value_and_grad(partial(loss_by_vmap, config, tokens)))
    losses = []
    for step in (0, 5):
        loss, gradient = loss_and_gradient(weights, kernel.prepare(stream, jnp.asarray(step, jnp.int32)))
        expected_loss, expected = reference(weights, task.sample_batch(jax.random.fold_in(stream, step), BATCH_SIZE))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
        assert relative_difference(gradient, expected) < 1e-12
        losses.append(float(loss))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(("tasks_per_piece", "num_pieces"), [(4, 3), (5, 1)])
def test_a_block_with_a_mlp_takes_its_batch_in_pieces(tasks_per_piece, num_pieces, monkeypatch):
    """Their mean is that of the whole batch; a batch that they do not divide stays whole."""
    monkeypatch.setattr(kernel, "_TASKS_PER_PIECE", tasks_per_piece)
    sizes = []
    ours = kernel.general_stack_entries
    monkeypatch.setattr(
        kernel, "general_stack_entries", lambda *given: sizes.append(given[2].shape[-1]) or ours(*given)
    )
    config, tokens = StackConfig(mlp="block"), ConcatenatedTokens()
    task = LinearRegression(input_size=INPUT_SIZE, output_size=OUTPUT_SIZE, context_length=5)
    weights = random_weights(config, TOKEN_SIZE, seed=4, size=0.3)
    trains = training_kernel(config, tokens, task, 12)
    draw = trains.prepare(root_key(3), jnp.asarray(0, jnp.int32))
    loss, gradient = jax.jit(trains.loss_and_gradient)(weights, draw)
    assert set(sizes) == {12 // num_pieces}
    batch = task.sample_batch(jax.random.fold_in(root_key(3), 0), 12)
    expected_loss, expected = jax.jit(jax.value_and_grad(partial(loss_by_vmap, config, tokens)))(weights, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert relative_difference(gradient, expected) < 1e-12


def test_mean_over_tasks_and_sum_over_outputs():
    """A stack of zeros predicts W0 x for everyone: units of the loss, by hand."""
    config, batch, W0 = StackConfig(), random_batch(5), initial_weights()
    weights = jax.tree.map(jnp.zeros_like, random_weights(config, TOKEN_SIZE, seed=0))
    errors = np.asarray(batch.targets[:, -1]) - np.asarray(W0) @ np.asarray(batch.inputs[:, -1])
    expected = 0.5 * np.sum(errors**2) / BATCH_SIZE
    np.testing.assert_allclose(batch_loss(config, ConcatenatedTokens(W0), weights, batch), expected, rtol=1e-13)


# --- The Gram form: several layers without a clip, S formed once -----------------------------------------------------

architectures = st.builds(
    StackConfig,
    num_layers=st.integers(2, 5),  # up to 3 layers act on vectors alone; from 4 on the first ones move S as a matrix
    tied=st.booleans(),
    num_heads=st.integers(1, 2),
    query_in_keys=st.booleans(),
    damping=st.sampled_from([1.0, -0.6]),
    update=st.sampled_from(["all", "targets"]),
)


def sizes(largest_input, contexts):
    """Input, output and context size."""
    return st.tuples(st.integers(largest_input - 5, largest_input), st.integers(1, 5), st.integers(*contexts))


@pytest.mark.parametrize(
    "sizes", [sizes(6, (1, 11)), sizes(17, (1, 12)), sizes(6, (14, 20))], ids=["small", "scores", "long"]
)
@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])
@given(data=st.data(), config=architectures, seed=st.integers(0, 99))
def test_gram_form_is_the_token_form(sizes, data, config, seed):
    """A clip that no entry reaches asks for the token form; inputs, outputs and context of any size.

    The token form multiplies in another order if the matrices are small, the tokens wide or the context long.
    """
    input_size, output_size, context_length = data.draw(sizes)
    assert_forms_agree(config, input_size, output_size, context_length, seed)


@pytest.mark.parametrize(("num_layers", "tied"), [(2, False), (3, True), (4, False), (5, True)])
def test_gram_form_of_every_depth(num_layers, tied):
    """The parts as matrix and on vectors take turns: each depth for sure, with everything else switched on."""
    config = StackConfig(num_layers=num_layers, tied=tied, num_heads=2, query_in_keys=True, damping=0.7)
    assert_forms_agree(config, INPUT_SIZE, OUTPUT_SIZE, 7, seed=num_layers)


def assert_forms_agree(config, input_size, output_size, context_length, seed):
    rng = np.random.default_rng(seed)
    shape = (input_size + output_size, context_length + 1, BATCH_SIZE)
    entries = jnp.asarray(rng.normal(size=shape) / np.sqrt(context_length * input_size))
    batch = Batch(entries[:input_size], entries[input_size:])
    tokens = ConcatenatedTokens(jnp.asarray(rng.normal(size=(output_size, input_size))))
    weights = random_weights(config, input_size + output_size, seed, size=0.15)
    in_tokens = dataclasses.replace(config, token_clip=1e30)

    @jax.jit
    def both_and_entries(weights, batch):
        encoded = tokens.encode_batch(batch)
        moved = linear_stack_entries(config, products(weights), encoded, output_size) - encoded[input_size:, -1]
        loss_and_gradient = jax.value_and_grad(batch_loss, argnums=2)
        in_either = (loss_and_gradient(each, tokens, weights, batch) for each in (config, in_tokens))
        return *in_either, moved

    (loss, gradient), (expected_loss, expected), moved = both_and_entries(weights, batch)
    assert 1e-3 < float(loss) < 1e20  # no token comes near the clip
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert relative_difference(gradient, expected) < 1e-12
    assert np.abs(moved).max() > 1e-5  # far above rounding: the layers do act


def test_gram_form_by_vmap():
    """Both forms could share an error; the model does not share their code."""
    config = StackConfig(num_layers=5, tied=False, num_heads=2, query_in_keys=True, damping=0.7)
    batch, tokens = random_batch(5), ConcatenatedTokens(initial_weights())
    weights = random_weights(config, TOKEN_SIZE, seed=5)
    loss, gradient = jax.value_and_grad(batch_loss, argnums=2)(config, tokens, weights, batch)
    expected_loss, expected = jax.jit(jax.value_and_grad(partial(loss_by_vmap, config, tokens)))(weights, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert relative_difference(gradient, expected) < 1e-12


def equations(jaxpr):
    """All equations of a program, those inside of calls too."""
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
        if inner:
            for value in inner:
                yield from equations(getattr(value, "jaxpr", value))
        else:
            yield equation


@pytest.mark.parametrize(("token_clip", "num_products_over_tokens"), [(None, 1), (1e6, 4 * 3 + 2)])
def test_cost_of_the_gram_form_does_not_grow_with_the_context(token_clip, num_products_over_tokens):
    """Only one product, which forms S, sees the context's axis; the token form's do in every layer (the control).

    None has the context's axis twice: the cost is linear in its length, with a clip too.
    """
    num_tokens = 1009
    config = StackConfig(num_layers=5, token_clip=token_clip)
    weights = random_weights(config, TOKEN_SIZE, seed=6)
    program = jax.make_jaxpr(lambda tokens: linear_stack_entries(config, products(weights), tokens, OUTPUT_SIZE))(
        jnp.zeros((TOKEN_SIZE, num_tokens, BATCH_SIZE))
    )
    sees_context = [
        equation.primitive.name
        for equation in equations(program.jaxpr)
        if any(size in (num_tokens, num_tokens - 1) for part in equation.invars for size in part.aval.shape)
    ]
    assert sees_context.count("dot_general") == num_products_over_tokens
    assert not any(
        sum(size in (num_tokens, num_tokens - 1) for size in part.aval.shape) > 1
        for equation in equations(program.jaxpr)
        for part in equation.outvars
    )
    if token_clip is None:
        assert set(sees_context) - {"dot_general"} <= {"transpose", "slice", "squeeze", "gather", "dynamic_slice"}
