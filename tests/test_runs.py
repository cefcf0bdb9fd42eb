"""Stored runs: trained once, resumed to the same bits however they were killed, never read when damaged."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock

from innerloop import runs
from innerloop.kernels import native_library
from innerloop.models import StackConfig
from innerloop.runs import load_run, name_of, obtain_run
from innerloop.store import ENVIRONMENT, RunFolder, StoreError, find_run
from innerloop.tasks import LinearRegression
from innerloop.training import OptimizerConfig, Recipe, recipe_from_json, recipe_to_json

RECIPE = Recipe(
    task=LinearRegression(input_size=2, context_length=3),
    model=StackConfig(num_layers=2),
    optimizer=OptimizerConfig(learning_rate=0.01),
    init_scale=0.1,
    num_steps=1009,  # the last chunk is shorter than the others
    batch_size=16,
    seeds=(7, 5, 11),
    evaluation_interval=5,
    evaluation_tasks=13,
)
SHORT = dataclasses.replace(RECIPE, num_steps=7)
RESULTS = ("recipe.json", "environment.json", "weights.safetensors", "metrics.nc", "complete.json")


class Killed(BaseException):
    """Ends a run as no ordinary error handler would."""


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Shared with the processes that are started here, which would spend their time compiling."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in options.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with one uninterrupted run, and the run."""
    store = tmp_path_factory.mktemp("finished")
    return store, obtain_run(RECIPE, store)


@pytest.fixture
def store(finished, tmp_path):
    """A store of this test's own with a complete run in it."""
    shutil.copytree(finished[0], tmp_path / "store")
    return tmp_path / "store"


def folder_of(store: Path) -> Path:
    return store / name_of(RECIPE)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, position: float = 0.5) -> None:
    """Changes one byte."""
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x01
    path.write_bytes(content)


def assert_same_run(actual, expected):
    assert (actual.name, actual.recipe) == (expected.name, expected.recipe)
    for part in ("weights", "snapshots"):
        trees = getattr(actual, part), getattr(expected, part)
        assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
        for a, e in zip(*map(jax.tree.leaves, trees), strict=True):
            assert (a.dtype, a.shape) == (e.dtype, e.shape)
            assert np.asarray(a).tobytes() == np.asarray(e).tobytes()
    assert actual.metrics.identical(expected.metrics)  # NaN where NaN, names, coordinates and attributes


def train_until(store: Path, step: int, monkeypatch, recipe: Recipe = RECIPE) -> Path:
    """Trains with a checkpoint after every measurement and dies at a step; returns the folder."""

    def report(progress):
        if progress.step >= step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
        with pytest.raises(Killed):
            obtain_run(recipe, store, report)
    return store / name_of(recipe)


def must_not_train(*_):
    raise AssertionError("trained again")


# --- One run ---------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_once_and_then_loaded(finished, store, monkeypatch):
    monkeypatch.setattr(runs, "train", must_not_train)
    before = files(folder_of(store))
    assert_same_run(obtain_run(RECIPE, store), finished[1])
    assert_same_run(load_run(find_run(store, "2-tied")), finished[1])
    assert files(folder_of(store)) == before
    with pytest.raises(AssertionError, match="trained again"):
        obtain_run(dataclasses.replace(RECIPE, num_steps=7), store)


def test_contents_of_a_run(finished):
    store, run = finished
    assert {path.name for path in folder_of(store).iterdir()} == set(RESULTS)
    assert run.name == name_of(RECIPE) == folder_of(store).name
    assert run.recipe == recipe_from_json((folder_of(store) / "recipe.json").read_text()) == RECIPE
    assert (folder_of(store) / "recipe.json").read_text() == recipe_to_json(RECIPE)
    steps = [*range(0, 1009, 5), 1009]
    np.testing.assert_array_equal(run.metrics.step, steps)
    np.testing.assert_array_equal(run.metrics.seed, [7, 5, 11])
    assert run.metrics.evaluation_loss.dims == ("step", "seed")
    assert run.metrics.evaluation_loss.notnull().all()
    assert (run.metrics.train_loss.isnull().sum("step") == 1).all()
    assert all(variable.attrs["units"] for variable in run.metrics.data_vars.values())
    assert run.diverged() == {}
    for final, history in zip(jax.tree.leaves(run.weights), jax.tree.leaves(run.snapshots), strict=True):
        assert history.shape == (len(steps), *final.shape)
        np.testing.assert_array_equal(history[-1], final)
        assert np.abs(history[0] - final).max() > 0.01


def test_metrics_and_snapshots_are_those_that_training_yields(finished):
    _, run = finished
    for index, (state, measurement) in zip(range(4), runs.train(RECIPE), strict=False):
        recorded = run.metrics.isel(step=index)
        for name in ("train_loss", "gradient_norm", "evaluation_loss"):
            np.testing.assert_array_equal(recorded[name], getattr(measurement, name))
        for leaf, expected in zip(jax.tree.leaves(run.snapshots), jax.tree.leaves(state.parameters), strict=True):
            np.testing.assert_array_equal(leaf[index], expected)


def test_transformers_of_a_run(finished):
    _, run = finished
    for leaf, expected in zip(jax.tree.leaves(run.transformer(1)), jax.tree.leaves(run.weights), strict=True):
        np.testing.assert_array_equal(leaf, expected[1])
    assert run.transformers().config == RECIPE.model
    first = jax.tree.map(lambda leaf: leaf[0], run.snapshots)
    assert run.transformers(first).weights is first


def test_progress(tmp_path):
    reports = []
    run = obtain_run(SHORT, tmp_path, reports.append)
    assert [report.step for report in reports] == [0, 5, 7]
    assert {(report.name, report.num_steps, report.is_waiting) for report in reports} == {(run.name, 7, False)}
    np.testing.assert_allclose([report.loss for report in reports], run.metrics.evaluation_loss.mean("seed"), rtol=1e-6)


def test_name_tells_recipes_apart():
    names = {name_of(RECIPE), name_of(SHORT)}
    names |= {name_of(dataclasses.replace(RECIPE, model=StackConfig(num_layers=2, tied=False)))}
    assert len(names) == 3
    assert name_of(RECIPE).startswith("2-tied-N3-d2-")


def test_environment_differences_are_reported(store, finished, monkeypatch):
    assert finished[1].environment_differences == []
    here = runs.environment()
    monkeypatch.setattr(runs, "environment", lambda: {**here, "jaxlib": "0.0.1"})
    run = obtain_run(RECIPE, store)
    assert run.environment.items() > here.items()
    assert run.environment_differences == [f"jaxlib: recorded {here['jaxlib']}, here 0.0.1"]


def test_instruction_set_is_recorded(tmp_path):
    with native_library.using("off"):
        run = obtain_run(SHORT, tmp_path)
    assert run.environment["instruction set"] == "none"
    assert run.environment_differences == []


@pytest.mark.skipif(native_library.library_problem() is not None, reason="the native library is not built")
def test_instruction_set_of_the_native_code_is_recorded(tmp_path, monkeypatch):
    with native_library.using("required"):
        run = obtain_run(SHORT, tmp_path)
        in_double_precision = obtain_run(dataclasses.replace(SHORT, dtype="float64"), tmp_path)
        assert run.environment["instruction set"] == native_library.instruction_set()
        assert run.environment_differences == in_double_precision.environment_differences == []
        assert in_double_precision.environment["instruction set"] == "none"
        monkeypatch.setattr(native_library, "instruction_set", lambda: "other")
        (difference,) = obtain_run(SHORT, tmp_path).environment_differences
    assert difference == f"instruction set: recorded {run.environment['instruction set']}, here other"


def test_a_run_without_an_instruction_set_says_so(store):
    """Runs stored before it was recorded are still read."""
    path = folder_of(store) / ENVIRONMENT
    recorded = json.loads(path.read_text())
    here = recorded.pop("instruction set")
    path.write_text(json.dumps(recorded))
    RunFolder(folder_of(store)).mark_complete()
    run = obtain_run(RECIPE, store)
    assert "instruction set" not in run.environment
    assert run.environment_differences == [f"instruction set: recorded nothing, here {here}"]


DIVERGING = dataclasses.replace(
    RECIPE, optimizer=OptimizerConfig(learning_rate=300.0, gradient_clip=None), num_steps=97, seeds=(7, 5)
)


def test_diverged_names_seeds_and_steps(tmp_path, monkeypatch):
    run = obtain_run(DIVERGING, tmp_path / "whole")
    assert run.diverged().keys() == {7, 5}
    assert dict(zip((7, 5), run.metrics.diverged_at.values.tolist(), strict=True)) == run.diverged()
    assert run.metrics.step[-1] < 97
    # Killed after its last checkpoint, it must not go on.
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
        patch.setattr(runs, "_write_results", must_not_train)
        with pytest.raises(AssertionError):
            obtain_run(DIVERGING, tmp_path / "killed")
    assert_same_run(obtain_run(DIVERGING, tmp_path / "killed"), run)


# --- Killed ----------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from innerloop import runs
from innerloop.training import recipe_from_json

runs._SECONDS_BETWEEN_CHECKPOINTS = 0
runs.obtain_run(recipe_from_json(sys.argv[1]), Path(sys.argv[2]))
"""


def start(script: str, *arguments, cache: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-c", script, recipe_to_json(RECIPE), *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, **cache}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_killed_at_random_moments_it_resumes_to_the_same_bits(finished, tmp_path, compilation_cache):
    checkpoint = folder_of(tmp_path) / "checkpoint.safetensors"
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(4):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = start(CHILD, tmp_path, cache=compilation_cache)
        try:
            wait_for(lambda before=before: checkpoint.exists() and checkpoint.stat().st_mtime_ns != before, process)
            time.sleep(rng.uniform(0, 0.2))
        finally:
            process.kill()
            process.communicate()
        if process.returncode != -signal.SIGKILL:
            break  # it was faster
        kills += 1
    assert kills >= 2
    assert_same_run(obtain_run(RECIPE, tmp_path), finished[1])
    assert {path.name for path in folder_of(tmp_path).iterdir()} == set(RESULTS)


@pytest.mark.parametrize("step", [0, 5, 35])
def test_resumed_it_does_not_repeat_what_was_done(finished, tmp_path, monkeypatch, step):
    folder = train_until(tmp_path, step, monkeypatch)
    assert (folder / "checkpoint.safetensors").exists() == (step > 0)  # it dies before the checkpoint of that step
    steps = []
    assert_same_run(obtain_run(RECIPE, tmp_path, lambda progress: steps.append(progress.step)), finished[1])
    assert steps[0] == step


@pytest.mark.parametrize("moment", ["weights.safetensors", "metrics.nc", "complete.json"])
def test_killed_while_it_writes_its_results(tmp_path, monkeypatch, moment):
    expected = obtain_run(SHORT, tmp_path / "whole")

    def replace(partial, target, original=Path.replace):
        if Path(target).name == moment:
            raise Killed
        return original(partial, target)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            obtain_run(SHORT, tmp_path)
    with pytest.raises(StoreError, match="holds no complete run"):
        load_run(RunFolder(tmp_path / expected.name))
    steps = []
    assert_same_run(obtain_run(SHORT, tmp_path, lambda progress: steps.append(progress.step)), expected)
    assert steps == []  # all was in the last checkpoint


def test_stale_partial_files_are_removed(finished, tmp_path, monkeypatch):
    folder = train_until(tmp_path, 35, monkeypatch)
    (folder / ".partial-0123").write_bytes(b"half a checkpoi")
    assert_same_run(obtain_run(RECIPE, tmp_path), finished[1])
    assert {path.name for path in folder.iterdir()} == set(RESULTS)


def test_a_store_that_cannot_be_written_to(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(StoreError, match=r"cannot write to .*taken"):
        obtain_run(RECIPE, tmp_path / "taken")


# --- Two at once -----------------------------------------------------------------------------------------------------

CONTENDER = """
import sys
from pathlib import Path
from innerloop import runs
from innerloop.training import recipe_from_json

mark = Path(sys.argv[3])
train = runs.train

def counted(*arguments):
    mark.with_suffix(".trained").touch()
    return train(*arguments)

def report(progress):
    if progress.is_waiting:
        mark.with_suffix(".waiting").touch()

runs.train = counted
runs.obtain_run(recipe_from_json(sys.argv[1]), Path(sys.argv[2]), report)
"""


def test_two_processes_that_want_the_same_run(finished, tmp_path, compilation_cache):
    """They are let loose together, once both have found the run taken."""
    store, marks = tmp_path / "store", [tmp_path / name for name in ("one", "other")]
    store.mkdir()
    with FileLock(folder_of(store).with_suffix(".lock")):
        processes = [start(CONTENDER, store, mark, cache=compilation_cache) for mark in marks]
        for process, mark in zip(processes, marks, strict=True):
            wait_for(mark.with_suffix(".waiting").exists, process)
        assert not list(tmp_path.glob("*.trained"))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(list(tmp_path.glob("*.trained"))) == 1
    assert_same_run(obtain_run(RECIPE, store), finished[1])


# --- Damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("position", [0.0, 0.37, 1.0])
def test_a_damaged_result_is_named_and_neither_used_nor_deleted(store, monkeypatch, name, position):
    monkeypatch.setattr(runs, "train", must_not_train)
    folder = folder_of(store)
    flip(folder / name, position)
    damaged = files(folder)
    for read in (lambda: obtain_run(RECIPE, store), lambda: load_run(RunFolder(folder))):
        # A wrong digest in the marker cannot be told from a wrong file, so there the message may name the other.
        with pytest.raises(StoreError, match=name if name != "complete.json" else "is damaged") as error:
            read()
        assert str(folder) in str(error.value)
    assert files(folder) == damaged


def test_a_damaged_completion_marker_is_named(store):
    """Wherever the damage is, the message says that the marker may be what is wrong."""
    marker = folder_of(store) / "complete.json"
    good = marker.read_text()
    for name, digest in json.loads(good).items():
        marker.write_text(good.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))
        with pytest.raises(StoreError, match=r"complete\.json") as error:
            load_run(RunFolder(folder_of(store)))
        assert "damaged" in str(error.value), name


@pytest.mark.parametrize("name", ["recipe.json", "checkpoint.safetensors"])
@pytest.mark.parametrize("position", [0.0, 0.1, 0.37, 0.8, 1.0])
def test_a_damaged_unfinished_run_is_named_and_neither_used_nor_deleted(
    unfinished, tmp_path, monkeypatch, name, position
):
    shutil.copytree(unfinished, tmp_path / "store")
    monkeypatch.setattr(runs, "train", must_not_train)
    folder = folder_of(tmp_path / "store")
    flip(folder / name, position)
    damaged = files(folder)
    with pytest.raises(StoreError, match=name):
        obtain_run(RECIPE, tmp_path / "store")
    assert files(folder) == damaged


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    store = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = train_until(store, 35, monkeypatch)
    assert {path.name for path in folder.iterdir()} == {"recipe.json", "environment.json", "checkpoint.safetensors"}
    return store


def test_a_checkpoint_of_another_shape_is_refused(unfinished, tmp_path):
    """Whole, but of another recipe: the fields that it lacks are named."""
    from innerloop.store import read_tensors, write_tensors

    shutil.copytree(unfinished, tmp_path / "store")
    path = folder_of(tmp_path / "store") / "checkpoint.safetensors"
    tensors = read_tensors(path)
    del tensors["state.step"]
    write_tensors(path, tensors)
    with pytest.raises(StoreError, match=r"checkpoint\.safetensors lacks state\.step"):
        obtain_run(RECIPE, tmp_path / "store")


def test_an_unfinished_run_is_not_loaded(unfinished):
    with pytest.raises(StoreError, match="holds no complete run"):
        load_run(find_run(unfinished, "2"))


def test_double_precision_survives_the_store(tmp_path, monkeypatch):
    """Training is replaced by random numbers, which cost nothing to compile."""
    recipe = dataclasses.replace(RECIPE, dtype="float64", num_steps=1)
    rng = np.random.default_rng(0)
    with runs.numerics(recipe):
        template = jax.eval_shape(lambda: runs.initial_state(recipe))
        random = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), template)
    losses = random.parameters.attention.W_K[:, 0, 0, 0, 0]
    measurement = runs.Measurement(random.step, losses, losses, losses, random.parameters)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", lambda *_: iter([(random, measurement)]))
        trained = obtain_run(recipe, tmp_path)
    assert_same_run(obtain_run(recipe, tmp_path), trained)
    for leaf, expected in zip(jax.tree.leaves(trained.weights), jax.tree.leaves(random.parameters), strict=True):
        assert leaf.dtype == np.float64
        np.testing.assert_array_equal(leaf, expected)
    assert trained.metrics.evaluation_loss.dtype == np.float64


def test_a_run_that_is_finished_elsewhere_says_so(unfinished, tmp_path, monkeypatch):
    """Bits are promised per environment, so the one that a run was begun in must not be overwritten."""
    shutil.copytree(unfinished, tmp_path / "store")
    here = runs.environment()
    monkeypatch.setattr(runs, "environment", lambda: {**here, "jaxlib": "0.0.1"})
    run = obtain_run(RECIPE, tmp_path / "store")
    assert run.environment["jaxlib"] == here["jaxlib"]
    assert run.environment["finished elsewhere"] == f"jaxlib: recorded {here['jaxlib']}, here 0.0.1"
    assert any(line.startswith("finished elsewhere") for line in run.environment_differences)
