"""Time estimates: arithmetic on a known speed, one calibration per kind, a budget; and, slowly, the truth."""

import dataclasses
import sys
import time

import jax
import pytest
from rich.console import Console

from innerloop import report
from innerloop.cli import main
from innerloop.experiments import EXPERIMENTS, Experiment, experiment
from innerloop.kernels import batch_loss
from innerloop.kernels.work import operations_per_task, random_words
from innerloop.keys import root_key
from innerloop.models import StackConfig, initialise
from innerloop.report.estimate import Speed, estimate, notes, speed, text_of
from innerloop.runs import name_of, obtain_run
from innerloop.tasks import LinearRegression, RandomNetwork, SineWaves
from innerloop.tokens import ConcatenatedTokens
from innerloop.training import Recipe

MODULE = sys.modules["innerloop.report.estimate"]
TINY = Recipe(
    task=LinearRegression(input_size=3, context_length=5),
    num_steps=6,
    batch_size=8,
    seeds=(0, 1),
    evaluation_interval=4,
    evaluation_tasks=16,
)
KNOWN = Speed(set_up=2.0, step=0.5, measurement=0.25)


def of(recipes: dict[str, Recipe], analysis=None) -> Experiment:
    def unused(*_):
        raise AssertionError("an estimate must not analyse or draw")

    return experiment.Experiment(
        "test", "?", "nowhere", lambda preset, seeds: recipes, unused, unused, (), analysis or {}
    )


@pytest.fixture
def known_speed(monkeypatch):
    """No calibration: every kind has the same speed. Returns the recipes that were asked for."""
    asked = []
    monkeypatch.setattr(MODULE, "speed", lambda recipe: asked.append(recipe) or KNOWN)
    monkeypatch.setattr(MODULE, "slowness", lambda: 3.0)
    return asked


def test_a_run_is_set_up_steps_and_measurements_of_every_seed():
    # Measurements at steps 0, 4 and 6.
    assert KNOWN.run_seconds(TINY) == 2 + 2 * (6 * 0.5 + 3 * 0.25)


def test_training_and_analysis_add_up(known_speed, tmp_path):
    expected = estimate(of({"a": TINY}, {"smoke": 10.0}), "smoke", store=tmp_path)
    assert expected.training == {name_of(TINY): 9.5}
    assert expected.analysis == 30.0
    assert expected.total == 39.5
    assert str(expected) == "about 40 s (training 10 s, analysis 30 s)"
    assert "analysis not estimated" in str(estimate(of({"a": TINY}, {"smoke": 10.0}), "quick", store=tmp_path))


def test_what_is_stored_takes_no_time_and_no_calibration(known_speed, tmp_path):
    obtain_run(TINY, tmp_path)
    expected = estimate(of({"a": TINY}), "smoke", store=tmp_path)
    assert expected.total == 0
    assert "training stored" in str(expected)
    assert known_speed == []


def test_two_labels_of_one_run_are_trained_once(known_speed, tmp_path):
    expected = estimate(of({"a": TINY, "b": TINY}), "smoke", store=tmp_path)
    assert expected.total == 9.5
    assert set(expected.labels) == {"a", "b"}


def test_beyond_the_budget_kinds_are_scaled_by_their_work(known_speed, tmp_path):
    large = dataclasses.replace(TINY, batch_size=8000)
    half = dataclasses.replace(TINY, batch_size=4000)
    seconds = iter(range(0, 1000, 10))
    said = []
    expected = estimate(
        of({"half": half, "large": large}),
        "smoke",
        store=tmp_path,
        budget=5.0,
        clock=lambda: next(seconds),
        note=said.append,
    )
    assert known_speed == [large], "the most work is timed"
    assert said == [name_of(large)]
    assert expected.training[name_of(large)] == 9.5
    assert expected.training[name_of(half)] == pytest.approx(2 + (9.5 - 2) / 2)


def test_times_are_scaled_within_a_path(monkeypatch, tmp_path):
    """From the kind that takes the same code, though another's work is nearer."""
    sizes = {"jax": 16, "native": 160, "wanted": 15}
    recipes = {name: dataclasses.replace(TINY, batch_size=size) for name, size in sizes.items()}
    monkeypatch.setattr(MODULE, "_path", lambda recipe: "jax" if recipe == recipes["jax"] else "native")
    steps = {recipes["jax"]: 100.0, recipes["native"]: 0.5}
    monkeypatch.setattr(MODULE, "speed", lambda recipe: Speed(0.0, steps[recipe], 0.0))
    seconds = iter([0.0, 1.0, 9.0])  # the third kind is beyond the budget
    expected = estimate(of(recipes), "smoke", store=tmp_path, budget=5.0, clock=lambda: next(seconds)).training
    assert expected[name_of(recipes["wanted"])] == pytest.approx(2 * 6 * 0.5 * 15 / 160)


def test_recipes_of_one_kind_are_timed_once(monkeypatch):
    timed = []
    monkeypatch.setattr(MODULE, "_timed", lambda kind, path: timed.append((kind, path)) or KNOWN)
    longer = dataclasses.replace(TINY, num_steps=500, seeds=(5, 6, 7), init_scale=0.1)
    other = dataclasses.replace(TINY, batch_size=16)
    for recipe in (TINY, longer, other):
        assert speed(recipe) == KNOWN
    assert timed[0] == timed[1]
    assert timed[0] != timed[2]


def test_a_tiny_recipe_is_timed():
    measured = speed(TINY)
    assert 0 < measured.step < 1
    assert 0 < measured.measurement < 1
    assert measured.set_up > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (7.4, "7 s"), (43.0, "45 s"), (95.0, "2 min"), (7200.0, "2.0 h")]
)
def test_durations_for_people(seconds, text):
    assert text_of(seconds) == text


def test_notes_speak_once_and_only_after_a_while(capsys):
    for patience, lines in ((60.0, 0), (0.0, 1)):
        with notes(Console(), patience=patience) as note:
            note("a")
            time.sleep(0.01)
            note("b")
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_reproduce_says_it_first(known_speed, monkeypatch, tmp_path, capsys):
    with pytest.raises(AssertionError, match="must not analyse"):  # it got there
        report.reproduce(of({"a": TINY}), preset="smoke", num_seeds=None, out=tmp_path, console=Console())
    assert "test (smoke): about 10 s (training 10 s, analysis not estimated)" in capsys.readouterr().out


def test_command_line(known_speed, capsys, tmp_path):
    assert main(["reproduce", "two-layer", "--dry-run", "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "to train, about" in out
    assert "(training" in out
    assert main(["list", "--times", "--preset", "smoke", "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert out.count("    smoke: about") == len(EXPERIMENTS)
    assert "all experiments, smoke: about" in out
    assert list(tmp_path.iterdir()) == []


def test_every_experiment_says_how_long_its_analysis_takes():
    for one in EXPERIMENTS.values():
        assert set(one.analysis_seconds) == {"smoke", "quick", "paper"}
        assert 0 < one.analysis_seconds["smoke"] <= one.analysis_seconds["quick"] <= one.analysis_seconds["paper"]


def test_work_grows_as_the_formulas_say():
    task, wide = LinearRegression(), LinearRegression(input_size=21)
    assert operations_per_task(StackConfig(num_heads=2), task) == 2 * 2048 - 200
    gram = [operations_per_task(StackConfig(num_layers=layers), task) for layers in (2, 3, 4)]
    assert gram[2] - gram[1] == gram[1] - gram[0] == 20 * 11**3
    clipped = StackConfig(num_layers=5, token_clip=1.0)
    assert operations_per_task(clipped, wide) > operations_per_task(clipped, task)


# XLA counts the body of a loop once, so that layers to be counted must differ in kind.
COUNTED = {
    "one softmax layer": StackConfig(attention=("softmax",), num_heads=2),
    "two kinds": StackConfig(attention=("softmax", "linear", "softmax"), num_layers=3, num_heads=2, causal=True),
    "last keys left in place": StackConfig(attention=("softmax", "linear"), num_layers=2, num_heads=2),
    "block MLP": StackConfig(attention=("softmax", "linear"), mlp="block", num_layers=2, tied=False),
    "input MLP": StackConfig(attention=("softmax", "linear"), embedding_size=23, mlp="input", num_layers=2),
    "embedded layer": StackConfig(embedding_size=23, mlp="input"),
    "embedding alone": StackConfig(embedding_size=23, num_heads=2),
}


@pytest.mark.parametrize("config", COUNTED.values(), ids=COUNTED)
def test_work_of_other_stacks_is_what_the_compiler_counts(config):
    """Within a factor of two, since formulas have leading terms only."""
    task, batch_size = LinearRegression(context_length=19), 128
    weights = jax.eval_shape(lambda: initialise(config, 11, root_key(0)))
    batch = jax.eval_shape(lambda: task.sample_batch(root_key(0), batch_size))
    loss_and_gradient = jax.value_and_grad(batch_loss, argnums=2)
    program = jax.jit(lambda *given: loss_and_gradient(config, ConcatenatedTokens(), *given)).lower(weights, batch)
    cost = program.compile().cost_analysis()
    counted = cost["flops"] + 20 * cost.get("transcendentals", 0.0)
    assert 0.5 < batch_size * operations_per_task(config, task) / counted < 2


def test_work_of_other_stacks_grows_as_the_formulas_say():
    """By hand for N = 10 and tokens of width 11: the last layer moves one token, those before it 11."""
    task = LinearRegression()
    one, two = (StackConfig(num_layers=layers, attention=("softmax",)) for layers in (1, 2))
    token = 6 * (2 * 11**2 + 2 * 10 * 11) + 60 * 10
    assert operations_per_task(one, task) == token
    assert operations_per_task(two, task) == 12 * token
    left = 6 * (11**2 + 10 * 11) + 60 * 10
    in_place = dataclasses.replace(two, attention=("softmax", "linear"))
    assert operations_per_task(in_place, task) == 11 * left + token
    assert operations_per_task(dataclasses.replace(one, num_heads=3), task) == 3 * token
    assert operations_per_task(dataclasses.replace(two, mlp="block"), task) == 12 * (token + 12 * 11 * 44 + 60 * 44)
    # Blocks of linear attention move tokens by M = I + sum of A_h S C_h; with clip and heads as in Fig 8.
    blocks = StackConfig(num_layers=12, tied=False, num_heads=4, mlp="block", token_clip=10.0)
    attention = 11 * (9 * 10 * 11**2 + 12 * 4 * 11**3) + 8 * 4 * 10 * 11 + 8 * 4 * 11**2
    assert operations_per_task(blocks, task) == 200 + attention + 122 * (12 * 11 * 44 + 60 * 44)
    wide = 6 * (2 * 23**2 + 2 * 10 * 23) + 60 * 10
    below = 11 * (6 * (23 * 11 + 2 * 23 * 92) + 60 * 92)
    assert operations_per_task(dataclasses.replace(one, embedding_size=23, mlp="input"), task) == wide + below
    # One linear layer on embedded tokens: per context token, then the query.
    embedded = StackConfig(embedding_size=23, mlp="input")
    query = 6 * (23 * 11 + 2 * 23 * 92 + 23 * (23 + 11 + 92)) + 60 * 92
    assert operations_per_task(embedded, task) == 10 * (6 * (11 * 92 + 2 * (11 + 92)) + 60 * 92) + query


def test_random_words_of_every_family():
    """Numbers drawn for a task: inputs with the query's, and what the target is made of."""
    assert random_words(LinearRegression(input_size=3, output_size=2, context_length=7)) == 8 * 3 + 2 * 3
    assert random_words(LinearRegression(input_size=3, context_length=7, noise_std=0.1)) == 8 * 3 + 3 + 7
    assert random_words(SineWaves(context_length=7)) == 8 + 2
    network = RandomNetwork(input_size=3, output_size=2, context_length=7, hidden_size=5)
    assert random_words(network) == 8 * 3 + 5 * 3 + 2 * 5


@pytest.mark.slow
def test_estimate_is_within_a_factor_of_two(tmp_path):
    recipe = dataclasses.replace(TINY, num_steps=4000, batch_size=2048, evaluation_interval=100)
    expected = estimate(of({"a": recipe}), "smoke", store=tmp_path).total
    started = time.monotonic()
    obtain_run(recipe, tmp_path)
    assert 0.5 < expected / (time.monotonic() - started) < 2
