"""The recipe and its canonical JSON: round trips, one text per recipe, strict reading, the published rules."""

import copy
import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop.models import StackConfig
from innerloop.tasks import (
    INPUT_DISTRIBUTIONS,
    TASKS,
    Gaussian,
    LinearClassification,
    LinearRegression,
    RandomNetwork,
    SineWaves,
)
from innerloop.tokens import Positions
from innerloop.training import (
    OptimizerConfig,
    Recipe,
    expected,
    published,
    published_alternating,
    published_sine,
    published_sine_control,
    published_tuning,
    recipe_from_json,
    recipe_to_json,
)

# Beartype looks at random entries of long tuples, also when a strategy builds a recipe.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

sizes = st.integers(1, 5)
finite = st.floats(allow_nan=False, allow_infinity=False)
above_zero = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
at_least_zero = st.floats(min_value=0, allow_infinity=False).map(abs)  # abs: no negative zero
below_one = st.floats(min_value=0, max_value=1, exclude_max=True).map(abs)
seeds = st.integers(0, 2**31)


@st.composite
def input_distributions(draw, input_size: int):
    kind = draw(st.sampled_from(sorted(INPUT_DISTRIBUTIONS)))
    if kind != "gaussian":
        return INPUT_DISTRIBUTIONS[kind]()
    entries = st.lists(st.floats(-3, 3), min_size=input_size**2, max_size=input_size**2)
    root = np.array(draw(entries)).reshape(input_size, input_size)
    return Gaussian(tuple(map(tuple, (root @ root.T).tolist())))


@st.composite
def recipes(draw):
    task = LinearRegression(
        input_size=(input_size := draw(sizes)),
        output_size=(output_size := draw(sizes)),
        context_length=draw(sizes),
        noise_std=draw(at_least_zero),
        input_scale=draw(above_zero),
        target_scale=draw(above_zero),
        inputs=draw(input_distributions(input_size)),
        normalise_context=draw(st.booleans()),
    )
    model = StackConfig(
        num_layers=draw(sizes),
        tied=draw(st.booleans()),
        num_heads=draw(sizes),
        key_size=draw(st.none() | sizes),
        query_in_keys=draw(st.booleans()),
        damping=draw(finite),
        update=draw(st.sampled_from(["all", "targets"])),
        token_clip=draw(st.none() | above_zero),
    )
    is_expected = draw(st.booleans())
    if is_expected:  # where the expected loss covers
        task = dataclasses.replace(task, normalise_context=False)
        model = dataclasses.replace(model, num_layers=1, query_in_keys=False, token_clip=None)
    method = draw(st.sampled_from(["adamw", "lbfgs"])) if is_expected else "adamw"
    optimizer = OptimizerConfig(
        method=method,
        learning_rate=draw(above_zero),
        b1=draw(below_one),
        b2=draw(below_one),
        eps=draw(at_least_zero),
        weight_decay=0.0 if method == "lbfgs" else draw(at_least_zero),
        gradient_clip=None if method == "lbfgs" else draw(st.none() | above_zero),
    )
    alternates = not is_expected and draw(st.booleans())
    positions = Positions()
    if alternates:
        positions = Positions(
            kind=draw(st.sampled_from(["sinusoidal", "one-hot", "learned"])),
            width=draw(st.none() | st.integers(11, 13)),  # five pairs have eleven tokens
            placement=draw(st.sampled_from(["concatenated", "added"])),
            permuted=draw(st.booleans()),
        )
    is_one_full_head = not alternates and model.num_heads == 1 and model.key_size is None
    rows = st.tuples(*[st.tuples(*[finite] * input_size)] * output_size)
    return Recipe(
        task=task,
        model=model,
        optimizer=optimizer,
        token_layout="alternating" if alternates else "concatenated",
        positions=positions,
        loss="expected" if is_expected else "sampled",
        initial_weights=None if is_expected or alternates else draw(st.none() | rows),
        gd_plus_plus_from=draw(st.none() | st.tuples(finite, finite)) if is_one_full_head else None,
        init_scale=draw(above_zero),
        num_steps=draw(sizes),
        batch_size=draw(sizes),
        training_tasks=None if is_expected else draw(st.none() | sizes),
        seeds=tuple(draw(st.lists(seeds, min_size=1, max_size=4, unique=True))),
        evaluation_interval=draw(sizes),
        evaluation_tasks=draw(sizes),
        evaluation_seed=draw(seeds),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        matmul_precision=draw(st.sampled_from(["default", "high", "highest"])),
    )


@settings(max_examples=60)
@given(recipes())
def test_json_round_trip(recipe):
    text = recipe_to_json(recipe)
    again = recipe_from_json(text)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.task.inputs == recipe.task.inputs
    assert recipe_to_json(again) == text
    # Canonical: neither the order of keys nor spaces are free.
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("kind", INPUT_DISTRIBUTIONS)
def test_every_input_distribution_survives(kind):
    inputs = Gaussian(((2.0, 0.5), (0.5, 1.0))) if kind == "gaussian" else INPUT_DISTRIBUTIONS[kind]()
    recipe = Recipe(task=LinearRegression(input_size=2, inputs=inputs))
    assert json.loads(recipe_to_json(recipe))["task"]["inputs"]["kind"] == kind
    assert recipe_from_json(recipe_to_json(recipe)).task.inputs == inputs


@st.composite
def other_recipes(draw):
    """Other task families, and stacks with other parts."""
    task = draw(
        st.builds(
            SineWaves,
            context_length=sizes,
            variant=st.sampled_from(["independent", "reference"]),
            largest_amplitude=st.floats(min_value=0.1, allow_infinity=False),
            input_range=above_zero,
        )
        | st.builds(RandomNetwork, input_size=st.just(3), hidden_size=sizes, inputs=input_distributions(3))
        | st.builds(LinearClassification, input_size=st.just(3), target_scale=above_zero, inputs=input_distributions(3))
    )
    num_layers = draw(sizes)
    num_kinds = draw(st.sampled_from([1, num_layers]))
    kinds = st.sampled_from(["linear", "softmax", "mixed"])
    model = StackConfig(
        num_layers=num_layers,
        attention=tuple(draw(st.lists(kinds, min_size=num_kinds, max_size=num_kinds))),
        causal=draw(st.booleans()),
        embedding_size=draw(st.none() | st.integers(2, 7)),
        mlp=draw(st.sampled_from(["none", "input", "block"])),
        mlp_widening=draw(sizes),
        mlp_bias=draw(st.booleans()),
        layer_norm=draw(st.sampled_from(["none", "before", "between"])),
    )
    if draw(st.booleans()):
        model = StackConfig(embedding_size=draw(st.integers(2, 7)), mlp=draw(st.sampled_from(["none", "input"])))
        return Recipe(task=task, model=model, gd_on_features=draw(finite))
    return Recipe(task=task, model=model)


@settings(max_examples=40)
@given(other_recipes())
def test_other_families_and_parts_survive(recipe):
    text = recipe_to_json(recipe)
    again = recipe_from_json(text)
    assert again == recipe
    assert type(again.task) is TASKS[json.loads(text)["task"]["kind"]] is type(recipe.task)
    assert recipe_to_json(again) == text


@given(recipes(), recipes())
def test_same_text_means_same_recipe(one, other):
    assert (recipe_to_json(one) == recipe_to_json(other)) == (one == other)


WITH_NUMBERS = """
import numpy as np
from innerloop.models import StackConfig
from innerloop.tasks import Gaussian, LinearRegression, RandomNetwork, SineWaves, Task
from innerloop.training import OptimizerConfig, Recipe, recipe_from_json, recipe_to_json

def recipe(as_float, as_int, as_bool):
    covariance = (as_float(2), as_float(0)), (as_float(0), as_float(1))
    sizes = dict(input_size=as_int(2), context_length=as_int(3), normalise_context=as_bool(0))
    scales = dict(noise_std=as_float(1), input_scale=as_float(2), target_scale=as_float(3))
    return Recipe(
        task=LinearRegression(inputs=Gaussian(covariance), **sizes, **scales),
        model=StackConfig(num_layers=as_int(2), damping=as_float(1), token_clip=as_float(10), tied=as_bool(1)),
        optimizer=OptimizerConfig(learning_rate=as_float(1), weight_decay=as_float(0), gradient_clip=as_float(10)),
        initial_weights=((as_float(1), as_float(-1)),),
        init_scale=as_float(1),
        seeds=(as_int(7), as_int(11)),
    )

plain = recipe(float, int, bool)
for conversions in ((int, int, bool), (np.float64, np.int64, bool), (np.float32, np.int32, bool), (float, int, int)):
    try:
        converted = recipe(*conversions)
        text = recipe_to_json(converted)
        assert text == recipe_to_json(plain), f"one recipe, two texts: {text}"
        assert recipe_from_json(text) == plain
    except ValueError:  # a range check may refuse; it may not let through what cannot be written or read again
        pass
    except Exception as error:
        print(conversions, repr(error))
"""


def test_same_recipe_gives_same_text():
    """``1``, ``1.0`` and NumPy's ones are equal, so they must not name two runs, nor give an unreadable recipe.

    In a process of its own, without the type checks that this suite puts around the package.
    """
    result = subprocess.run([sys.executable, "-c", WITH_NUMBERS], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_missing_fields_take_their_defaults():
    assert recipe_from_json("{}") == Recipe()
    assert recipe_from_json('{"task": {"kind": "linear_regression", "inputs": "laplace"}, "seeds": [3]}') == Recipe(
        task=LinearRegression(inputs=INPUT_DISTRIBUTIONS["laplace"]()), seeds=(3,)
    )


def test_whole_numbers_are_read_as_floats():
    recipe = recipe_from_json('{"init_scale": 1}')
    assert type(recipe.init_scale) is float


BASE = json.loads(recipe_to_json(Recipe(task=LinearRegression(input_size=2), seeds=(0, 1))))
MISFITS = {
    # Unknown fields, in every object.
    ("num_stps",): (3, "unknown field.* num_stps"),
    ("task", "input_sise"): (3, "unknown field.* input_sise @ recipe.task"),
    ("task", "inputs", "width"): (1.0, "unknown field.* width @ recipe.task.inputs"),
    ("model", "layers"): (3, "unknown field.* layers @ recipe.model"),
    ("optimizer", "momentum"): (0.9, "unknown field.* momentum @ recipe.optimizer"),
    # Wrong types.
    ("num_steps",): [
        (7.0, "int.*recipe.num_steps"),
        (True, "int.*recipe.num_steps"),
        ("7", "int.*recipe.num_steps"),
        (None, "int.*recipe.num_steps"),
        (0, "num_steps must be"),
        (-1, "num_steps must be"),
    ],
    ("seeds",): [
        ([], "seeds must be distinct and at least one"),
        ([3, 3], "seeds must be distinct"),
        ([-1], "seeds must be"),
        ([0.0], r"int.*recipe.seeds\[0\]"),
        ([0, True], r"int.*recipe.seeds\[1\]"),
        (3, "seeds"),
        ("01", "seeds"),
    ],
    ("init_scale",): [
        (True, "float.*recipe.init_scale"),
        ("1", "float.*recipe.init_scale"),
        (None, "float.*recipe.init_scale"),
        (0, "init_scale must be a finite number above 0"),
        (math.nan, "init_scale must be"),
        (math.inf, "init_scale must be"),
    ],
    ("evaluation_seed",): [(-1, "evaluation_seed must be"), (1.5, "int.*recipe.evaluation_seed")],
    ("batch_size",): (-2, "batch_size must be"),
    ("training_tasks",): [(0, "training_tasks must be"), (2.0, "int.*recipe.training_tasks")],
    ("evaluation_interval",): (0, "evaluation_interval must be"),
    ("evaluation_tasks",): (0, "evaluation_tasks must be"),
    ("dtype",): [("float16", "float16.*recipe.dtype"), (32, "recipe.dtype")],
    ("matmul_precision",): ("low", "low.*recipe.matmul_precision"),
    ("loss",): [("exact", "exact.*recipe.loss"), (None, "recipe.loss")],
    ("initial_weights",): [
        ([], "initial_weights must have 1 row"),
        ([[1.0]], "initial_weights must have 1 row.* of 2"),
        ([[1.0, 2.0], [3.0, 4.0]], "initial_weights must have 1 row"),
        ([[1.0, math.nan]], "initial_weights must be"),
        ([[1.0, "2"]], r"float.*recipe.initial_weights\[0\]\[1\]"),
        (3, "initial_weights"),
    ],
    ("gd_plus_plus_from",): [
        ([1.0, math.nan], "gd_plus_plus_from must be a finite number, got nan"),
        ([math.inf, 0.0], "gd_plus_plus_from must be a finite number, got inf"),
        ([1.0, "2"], r"float.*recipe.gd_plus_plus_from\[1\]"),
        ([1.0], "recipe.gd_plus_plus_from"),
        ([1.0, 2.0, 3.0], "recipe.gd_plus_plus_from"),
        (3, "gd_plus_plus_from"),
    ],
    # Kinds.
    ("task",): [(3, "kind must be one of linear_regression.*recipe.task"), (None, "recipe.task"), ({}, "recipe.task")],
    ("task", "kind"): ("regression", "kind must be one of linear_regression, .*, got 'regression' @ recipe.task"),
    ("task", "inputs"): [("cauchy", "kind must be one of uniform.*'cauchy' @ recipe.task.inputs"), (3, "task.inputs")],
    ("task", "inputs", "kind"): [
        ("cauchy", "kind must be one of uniform.*'cauchy' @ recipe.task.inputs"),
        (["uniform"], "recipe.task.inputs"),
        ("gaussian", "missing field 'covariance' @ recipe.task.inputs"),
    ],
    # Ranges of the parts.
    ("task", "input_size"): [(0, "task.input_size must be"), (2.0, "int.*recipe.task.input_size")],
    ("task", "output_size"): (-1, "task.output_size must be"),
    ("task", "context_length"): (0, "task.context_length must be"),
    ("task", "noise_std"): [(-0.1, "task.noise_std must be"), (math.nan, "task.noise_std must be")],
    ("task", "input_scale"): [(-1.0, "task.input_scale must be"), (math.inf, "task.input_scale must be")],
    ("task", "target_scale"): (math.nan, "task.target_scale must be"),
    ("task", "normalise_context"): [(1, "bool.*recipe.task.normalise_context"), ("no", "bool.*normalise_context")],
    ("model",): [([], "recipe.model"), (None, "recipe.model"), (3, "recipe.model")],
    ("model", "num_layers"): [(0, "model.num_layers must be"), (True, "int.*recipe.model.num_layers")],
    ("model", "tied"): [(0, "bool.*recipe.model.tied"), (None, "bool.*recipe.model.tied")],
    ("model", "num_heads"): (0, "model.num_heads must be"),
    ("model", "key_size"): [
        (0, "model.key_size must be"),
        (-3, "model.key_size must be"),
        (True, "int.*recipe.model.key_size"),
        (3.0, "int.*recipe.model.key_size"),
    ],
    ("model", "attention"): [
        ([], "model.attention must have one kind"),
        (["linear", "softmax"], "model.attention must have one kind, or one per layer.*num_layers=1.*got 2"),
        (["hard"], r"hard.*recipe.model.attention\[0\]"),
        ("linear", "recipe.model.attention"),
    ],
    ("model", "causal"): (0, "bool.*recipe.model.causal"),
    ("model", "embedding_size"): [(0, "model.embedding_size must be"), (4.0, "int.*recipe.model.embedding_size")],
    ("model", "mlp"): [("output", "output.*recipe.model.mlp"), (None, "recipe.model.mlp")],
    ("model", "mlp_widening"): (0, "model.mlp_widening must be"),
    ("model", "layer_norm"): ("after", "after.*recipe.model.layer_norm"),
    ("gd_on_features",): [(math.inf, "gd_on_features must be a finite number"), ("1", "float.*recipe.gd_on_features")],
    ("model", "damping"): (math.nan, "model.damping must be"),
    ("model", "update"): ("inputs", "inputs.*recipe.model.update"),
    ("model", "token_clip"): [(0.0, "model.token_clip must be"), ("10", "float.*recipe.model.token_clip")],
    ("token_layout",): ("interleaved", "interleaved.*recipe.token_layout"),
    ("positions",): ({"kind": "one-hot"}, "positions must be left alone"),
    ("positions", "kind"): ("rotary", "rotary.*recipe.positions.kind"),
    ("positions", "placement"): ("before", "before.*recipe.positions.placement"),
    ("positions", "width"): (0, "positions.width must be"),
    ("positions", "permuted"): (1, "bool.*recipe.positions.permuted"),
    ("optimizer",): ([1], "recipe.optimizer"),
    ("optimizer", "method"): [
        ("adam", "adam.*recipe.optimizer.method"),
        ("lbfgs", "lbfgs.*needs gradient_clip None.*recipe.optimizer"),
    ],
    ("optimizer", "learning_rate"): [(0.0, "optimizer.learning_rate must be"), (-1, "optimizer.learning_rate must be")],
    ("optimizer", "b1"): [(1.0, "optimizer.b1 must be below 1"), (-0.1, "optimizer.b1 must be")],
    ("optimizer", "b2"): [(1, "optimizer.b2 must be below 1"), (math.nan, "optimizer.b2 must be")],
    ("optimizer", "eps"): (-1e-8, "optimizer.eps must be"),
    ("optimizer", "weight_decay"): (-1.0, "optimizer.weight_decay must be"),
    ("optimizer", "gradient_clip"): [(0.0, "optimizer.gradient_clip must be"), (True, "float.*gradient_clip")],
}
MISFIT_CASES = [
    pytest.param(path, value, message, id=f"{'.'.join(path)}={value}")
    for path, cases in MISFITS.items()
    for value, message in (cases if isinstance(cases, list) else [cases])
]


@pytest.mark.parametrize(("path", "value", "message"), MISFIT_CASES)
def test_strict_reading_names_the_field(path, value, message):
    recipe_from_json(json.dumps(BASE))  # without the change it is a recipe
    changed = copy.deepcopy(BASE)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        recipe_from_json(json.dumps(changed))


@pytest.mark.parametrize(
    "covariance",
    [[[1.0, 0.0]], [], [[1.0, 2.0], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, math.nan], [math.nan, 1.0]], [[1.0]]],
    ids=["not-square", "empty", "not-symmetric", "negative-eigenvalue", "nan", "other-size"],
)
def test_impossible_covariances(covariance):
    changed = copy.deepcopy(BASE)
    changed["task"]["inputs"] = {"kind": "gaussian", "covariance": covariance}
    with pytest.raises(ValueError, match=r"covariance .*@ recipe\.task"):
        recipe_from_json(json.dumps(changed))


def test_every_misfit_is_reported_at_once():
    with pytest.raises(ValueError, match=r"recipe\.num_steps") as error:
        recipe_from_json('{"num_steps": 1.0, "model": {"tied": 3}}')
    assert "recipe.model.tied" in str(error.value)


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "3", "null", '"uniform"', "{"])
def test_text_that_is_no_recipe(text):
    with pytest.raises(ValueError):  # noqa: PT011 (JSON's own errors are ValueErrors with texts of their own)
        recipe_from_json(text)


@pytest.mark.parametrize("seed", [2**32, 2**63, 2**70])
def test_seeds_that_no_key_can_hold(seed):
    """Keys take 32 bits of a seed in single precision: 0 and 2**32 would be one seed under two names."""
    with pytest.raises(ValueError, match="seeds"):
        Recipe(seeds=(0, seed))
    with pytest.raises(ValueError, match="evaluation_seed"):
        Recipe(evaluation_seed=seed)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("tied", [True, False])
def test_published_rules(num_layers, tied):
    recipe = published(num_layers=num_layers, tied=tied)
    assert (recipe.model.num_layers, recipe.model.tied) == (num_layers, tied)
    assert recipe.optimizer.gradient_clip == (0.001 if num_layers <= 2 else 10.0)
    assert recipe.optimizer.learning_rate == (1e-3 if num_layers <= 3 else 5e-4)
    assert recipe.model.token_clip == (None if num_layers <= 3 else 10.0)
    assert recipe.num_steps == (5000 if tied else 50_000)
    assert recipe.batch_size == 2048
    assert recipe.seeds == (0, 1, 2, 3, 4)
    assert (recipe.task.input_size, recipe.task.context_length, recipe.task.output_size) == (10, 10, 1)


def test_published_overrides():
    task = LinearRegression(context_length=7)
    recipe = published(task=task, num_steps=11, seeds=(13,))
    assert (recipe.task, recipe.num_steps, recipe.seeds) == (task, 11, (13,))


def test_published_alternating():
    """Softmax in the first of two untied layers; the rest as for up to two layers, but for clip and initialisation."""
    task = LinearRegression(context_length=7)
    recipe = published_alternating(task=task, num_steps=11, seeds=(13,))
    assert (recipe.task, recipe.num_steps, recipe.seeds) == (task, 11, (13,))
    assert recipe.model == StackConfig(num_layers=2, tied=False, attention=("softmax", "linear"))
    assert (recipe.token_layout, recipe.positions) == ("alternating", Positions("sinusoidal", None, "concatenated"))
    assert (recipe.init_scale, recipe.optimizer.gradient_clip) == (0.02, 10.0)
    other = published()
    assert dataclasses.replace(recipe.optimizer, gradient_clip=0.001) == other.optimizer
    assert (recipe.batch_size, published_alternating().task) == (other.batch_size, other.task)


@pytest.mark.parametrize(
    ("architecture", "words"), [({"num_heads": 2}, "num_heads=2, key_size=None"), ({"key_size": 3}, "key_size=3")]
)
def test_numbers_of_gd_plus_plus_need_one_full_head(architecture, words):
    Recipe(gd_plus_plus_from=(1.0, 0.1))
    with pytest.raises(ValueError, match=f"gd_plus_plus_from needs one head of the token's width.*{words}") as error:
        Recipe(gd_plus_plus_from=(1.0, 0.1), model=StackConfig(**architecture))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_layers", [2, 3, 5])
@pytest.mark.parametrize("tied", [True, False])
def test_published_tuning(num_layers, tied):
    """Only what the tuning of GD++ changes; all else is as published for the transformer."""
    recipe = published_tuning(num_layers=num_layers, tied=tied, learning_rate=12.0)
    assert recipe.gd_plus_plus_from == (12.0, 12.0 / 100)  # gamma = eta / N^2
    assert (recipe.optimizer.b2, recipe.batch_size, recipe.num_steps) == (0.999, 512, 1000 if tied else 30_000)
    transformer = published(num_layers=num_layers, tied=tied)
    assert (recipe.model, recipe.task, recipe.seeds) == (transformer.model, transformer.task, (0,))
    for name in ("learning_rate", "b1", "eps", "weight_decay", "gradient_clip"):
        assert getattr(recipe.optimizer, name) == getattr(transformer.optimizer, name)
    task = LinearRegression(context_length=7)
    other = published_tuning(num_layers=2, task=task, learning_rate=4.9, num_steps=11, seeds=(13, 17))
    assert (other.task, other.num_steps, other.seeds) == (task, 11, (13, 17))
    assert other.gd_plus_plus_from == pytest.approx((4.9, 0.1))


def test_expected():
    """L-BFGS in double precision on the expected loss; the rest as published."""
    task = LinearRegression(context_length=7)
    recipe = expected(task=task, num_heads=2, num_steps=11, seeds=(13,))
    assert (recipe.task, recipe.model, recipe.num_steps, recipe.seeds) == (task, StackConfig(num_heads=2), 11, (13,))
    assert (recipe.loss, recipe.optimizer.method, recipe.dtype) == ("expected", "lbfgs", "float64")
    assert recipe.init_scale == published().init_scale
    assert expected().task == published().task


FEATURES = StackConfig(embedding_size=7, mlp="input")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"num_heads": 2}}, "gd_on_features needs one head of the token's width.*num_heads=2, key_size=None"),
        ({"model": {"key_size": 3}}, "gd_on_features needs one head of the token's width.*num_heads=1, key_size=3"),
        ({"model": {"num_layers": 2}}, "gd_on_features needs one layer of linear attention"),
        ({"model": {"attention": ("softmax",)}}, "gd_on_features needs one layer of linear attention"),
        ({"model": {"causal": True}}, "gd_on_features needs one layer of linear attention"),
        ({"model": {"layer_norm": "before"}}, "gd_on_features needs one layer of linear attention"),
        ({"model": {"mlp": "block"}}, "gd_on_features needs one layer of linear attention"),
        ({"model": {"mlp": "none", "embedding_size": None}}, "gd_on_features needs model.embedding_size or model.mlp"),
        ({"model": {"embedding_size": 1}}, "model.embedding_size must be above task.output_size.*got 1"),
        ({"gd_on_features": math.nan}, "gd_on_features must be a finite number, got nan"),
    ],
)
def test_what_descent_on_features_needs(changes, message):
    Recipe(gd_on_features=0.1, model=FEATURES)
    model = dataclasses.replace(FEATURES, **changes.get("model", {}))
    with pytest.raises(ValueError, match=message) as error:
        Recipe(gd_on_features=changes.get("gd_on_features", 0.1), model=model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "part",
    [
        {"attention": ("softmax",)},
        {"causal": True},
        {"embedding_size": 7},
        {"mlp": "input"},
        {"mlp": "block"},
        {"layer_norm": "before"},
    ],
    ids=lambda part: next(iter(part)),
)
def test_what_needs_linear_attention_alone(part):
    for options, message in (
        ({"gd_plus_plus_from": (1.0, 0.1)}, "gd_plus_plus_from needs linear attention alone"),
        ({"loss": "expected"}, "model must be linear attention alone for the expected loss"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            Recipe(model=StackConfig(**part), **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", [SineWaves(), RandomNetwork(), LinearClassification()])
def test_what_is_about_linear_regression_alone(task):
    with pytest.raises(ValueError, match=f"task must be linear regression for the expected.*{type(task).__name__}"):
        Recipe(task=task, loss="expected")
    with pytest.raises(TypeError, match=f"task must be LinearRegression here, got {type(task).__name__}"):
        Recipe(task=task).linear_task()
    assert Recipe().linear_task() == LinearRegression()


def test_an_embedding_must_hold_the_targets():
    """Predictions are read off its last entries."""
    task = LinearRegression(output_size=3)
    Recipe(task=task, model=StackConfig(embedding_size=3))
    with pytest.raises(ValueError, match=r"model.embedding_size must be at least task.output_size = 3, got 2"):
        Recipe(task=task, model=StackConfig(embedding_size=2))


def test_gradient_descent_on_features_or_gd_plus_plus():
    with pytest.raises(ValueError, match="gd_plus_plus_from needs linear attention alone"):
        Recipe(gd_on_features=0.1, gd_plus_plus_from=(1.0, 0.1), model=FEATURES)


def test_published_sine():
    """The paper's checklist, 5.7: sizes, rates and clip; the family of the code, with one number per function."""
    recipe, control = published_sine(), published_sine_control()
    assert recipe.task == control.task == SineWaves(variant="reference")
    assert (recipe.task.context_length, recipe.task.input_range, recipe.task.largest_amplitude) == (10, 10.0, 0.5)
    for each in (recipe, control):
        model = each.model
        assert (model.embedding_size, model.mlp, model.embedding_size * model.mlp_widening) == (40, "input", 160)
        assert (model.num_layers, model.num_heads, model.key_size, model.mlp_bias) == (1, 1, None, True)
        assert (model.attention, model.layer_norm, model.causal) == (("linear",), "none", False)
        assert (model.query_in_keys, model.damping, model.update, model.token_clip) == (False, 1.0, "all", None)
        assert (each.batch_size, each.num_steps, each.init_scale) == (2048, 20_000, 0.002)
        assert (each.optimizer.gradient_clip, each.optimizer.b1, each.optimizer.weight_decay) == (100.0, 0.9, 0.0)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.b2, recipe.gd_on_features) == (1e-3, 0.98, None)
    assert (control.optimizer.learning_rate, control.optimizer.b2, control.gd_on_features) == (3e-4, 0.999, 0.1)
    assert control.gd_on_features / control.task.context_length == pytest.approx(0.01)  # c
    task = SineWaves(context_length=7)
    for make in (published_sine, published_sine_control):
        other = make(task=task, num_steps=11, seeds=(13,))
        assert (other.task, other.num_steps, other.seeds) == (task, 11, (13,))
