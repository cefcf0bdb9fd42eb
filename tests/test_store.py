"""Files that are whole or absent, damage that is noticed, names of runs and how they are found."""

import json

import numpy as np
import pytest

from innerloop.store import (
    RunFolder,
    StoreError,
    differences,
    ensure_writable,
    environment,
    find_run,
    read_json,
    read_tensors,
    run_name,
    write_atomically,
    write_json,
    write_tensors,
)
from innerloop.store.files import remove_partial_files

TENSORS = {
    "single": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "double": np.array([1 / 3, -0.0, np.nan, np.inf, 5e-324]),
    "scalar": np.array(7, dtype=np.int32),
    "long": np.array([-(2**62), 11]),
    "boolean": np.array([True, False, True]),
    "empty": np.zeros((5, 0, 3), dtype=np.float32),
    "transposed": np.arange(10, dtype=np.float64).reshape(2, 5).T,
    "strided": np.arange(13, dtype=np.int64)[::3],
    "state.weights['W_K'][0]": np.ones((1, 1), dtype=np.float16),
}


def assert_same_bits(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert actual[name].tobytes() == tensor.tobytes(), name


# --- Atomic writes ---------------------------------------------------------------------------------------------------


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["fsync", "rename"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, moment, error):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(*{"fsync": ("os.fsync", fail), "rename": ("pathlib.Path.replace", fail)}[moment])
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """A rename that overtakes the data would leave a whole name on an empty file after a power cut."""
    calls = []
    monkeypatch.setattr("os.fsync", lambda _: calls.append("fsync"))
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: calls.append("rename"))
    write_atomically(tmp_path / "file", b"content")
    assert calls == ["fsync", "rename"]


def test_partial_files_are_removed_and_others_kept(tmp_path, monkeypatch):
    # Killed between writing and renaming: neither the rename nor the clean-up happens.
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: None)
        write_atomically(tmp_path / "file", b"never arrives")
    (tmp_path / "kept").touch()
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_json_round_trip(tmp_path):
    value = {"b": [1, None, 0.1], "a": {"x": "é"}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "other.json", {"loss": float("nan")})
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_unreadable_json_is_named(tmp_path, content):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"file\.json is damaged"):
        read_json(path)


# --- Tensors ---------------------------------------------------------------------------------------------------------


def test_tensors_round_trip(tmp_path):
    write_tensors(tmp_path / "file.safetensors", TENSORS)
    assert_same_bits(read_tensors(tmp_path / "file.safetensors"), TENSORS)
    write_tensors(tmp_path / "none.safetensors", {})
    assert read_tensors(tmp_path / "none.safetensors") == {}


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS)
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(0)
    positions = {0, 1, 7, 8, header - 1, header, len(good) - 1}
    positions |= set(rng.integers(8, header, 20).tolist()) | set(rng.integers(header, len(good), 20).tolist())
    for position in sorted(positions):
        for mask in (0xFF, 1 << int(rng.integers(8))):
            bad = bytearray(good)
            bad[position] ^= mask
            path.write_bytes(bad)
            with pytest.raises(StoreError, match=r"file\.safetensors is damaged"):
                read_tensors(path)
    path.write_bytes(good)
    assert_same_bits(read_tensors(path), TENSORS)


def test_truncated_lengthened_and_missing_tensors(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS)
    good = path.read_bytes()
    for content in (b"", good[:5], good[:50], good[: len(good) // 2], good[:-1], good + b"\0"):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"file\.safetensors is damaged"):
            read_tensors(path)
    path.unlink()
    with pytest.raises(StoreError, match=r"file\.safetensors is damaged"):
        read_tensors(path)


def test_tensors_without_our_checksum_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, tmp_path / "file.safetensors")
    with pytest.raises(StoreError, match="do not match its checksum"):
        read_tensors(tmp_path / "file.safetensors")


# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "run", "store/run"])
def test_folder_that_cannot_be_written_to(tmp_path, below):
    """A file where a folder should be stops even the superuser, whom permissions do not."""
    (tmp_path / "taken").touch()
    with pytest.raises(StoreError, match=r"cannot write to .*taken.*--out"):
        ensure_writable(tmp_path / "taken" / below)
    with pytest.raises(StoreError, match="cannot write to"), RunFolder(tmp_path / "taken" / below).locked():
        pass


def test_writable_folder_is_made_and_left_empty(tmp_path):
    ensure_writable(tmp_path / "a" / "b")
    ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def complete_run(folder) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    for name in ("recipe.json", "environment.json", "weights.safetensors", "metrics.nc", "checkpoint.safetensors"):
        run.file(name).write_text(f"contents of {name}")
    run.mark_complete()
    return run


def test_completing_a_run(tmp_path):
    assert not RunFolder(tmp_path / "run").is_complete()
    with pytest.raises(StoreError, match="holds no complete run"):
        RunFolder(tmp_path / "run").verify()
    run = complete_run(tmp_path / "run")
    assert run.is_complete()
    run.verify()
    assert not run.file("checkpoint.safetensors").exists()


@pytest.mark.parametrize("name", ["recipe.json", "environment.json", "weights.safetensors", "metrics.nc"])
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_results_are_named(tmp_path, name, damage):
    run = complete_run(tmp_path / "run")
    text = run.file(name).read_text()
    {
        "changed": lambda: run.file(name).write_text(text.swapcase()),
        "truncated": lambda: run.file(name).write_text(text[:-1]),
        "missing": run.file(name).unlink,
    }[damage]()
    with pytest.raises(StoreError, match=rf"{name} is damaged"):
        run.verify()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"recipe.json": "00"}', "null"])
def test_damaged_completion_marker_is_named(tmp_path, content):
    run = complete_run(tmp_path / "run")
    run.file("complete.json").write_text(content)
    with pytest.raises(StoreError, match=r"complete\.json is damaged"):
        run.verify()


def test_lock_excludes_others_and_is_released(tmp_path):
    run, other, waited = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run"), []

    class Waited(Exception):
        pass

    def on_wait():
        waited.append(True)
        raise Waited

    with run.locked(), pytest.raises(Waited), other.locked(on_wait):
        pass
    assert waited == [True]
    with pytest.raises(RuntimeError), run.locked():
        raise RuntimeError
    with other.locked(on_wait):
        pass
    assert waited == [True]


# --- Names -----------------------------------------------------------------------------------------------------------


def test_name_changes_with_all_that_determines_the_bits(monkeypatch):
    recipe = '{"num_steps":7,"task":{"a":1}}'

    def name(label="x", recipe=recipe, kernel_path="jax", backend="cpu"):
        return run_name(label, recipe, kernel_path=kernel_path, backend=backend)

    assert name() == name() == name(recipe='{ "task": {"a": 1}, "num_steps": 7}')
    assert name().startswith("x-")
    assert name("y").removeprefix("y") == name().removeprefix("x")
    names = {name(), name(recipe='{"num_steps":8,"task":{"a":1}}'), name(kernel_path="native"), name(backend="gpu")}
    monkeypatch.setattr("innerloop.store.run_folder.NUMERICS_VERSION", -1)
    assert len(names | {name()}) == 5


@pytest.fixture
def store(tmp_path):
    for name in ("1-tied-abc", "1-tied-abd", "1-tied-abcd", "2-untied-xyz"):
        (tmp_path / "store" / name).mkdir(parents=True)
    (tmp_path / "store" / "2-untied-xyz.lock").touch()
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("2-untied-xyz", "2-untied-xyz"),
        ("2", "2-untied-xyz"),
        ("1-tied-abd", "1-tied-abd"),
        ("1-tied-abc", "1-tied-abc"),  # a whole name, though another run's begins with it
        ("1-tied-abcd", "1-tied-abcd"),
    ],
)
def test_find_run(store, reference, name):
    assert find_run(store, reference).path == store / name


def test_find_run_by_path(store, tmp_path):
    assert find_run(tmp_path / "nowhere", str(store / "1-tied-abd")).path == store / "1-tied-abd"


def test_find_run_ambiguous_or_unknown(store, tmp_path):
    with pytest.raises(StoreError, match=r"fits several runs.*1-tied-abc, 1-tied-abcd, 1-tied-abd; give more"):
        find_run(store, "1-tied-ab")
    with pytest.raises(StoreError, match=r"no run '3' in .*store \(it holds 1-tied-abc, .*2-untied-xyz\)"):
        find_run(store, "3")
    with pytest.raises(StoreError, match=r"no run '2-untied-xyz.lock'"):
        find_run(store, "2-untied-xyz.lock")
    with pytest.raises(StoreError, match="it holds no runs"):
        find_run(tmp_path / "nowhere", "1")


def test_find_run_without_a_reference(store):
    """The empty path is the working directory, which is no run."""
    with pytest.raises(StoreError, match="fits several runs"):
        find_run(store, "")


def test_environment_and_its_differences():
    here = environment()
    assert {"innerloop", "jax", "jaxlib", "python", "backend", "device"} <= here.keys()
    assert json.loads(json.dumps(here)) == here
    assert differences(here, here) == []
    recorded = {**here, "jaxlib": "0.0.1", "compiler": "old"}
    del recorded["python"]
    lines = differences(recorded, here)
    assert [line.split(":")[0] for line in lines] == ["compiler", "jaxlib", "python"]
    assert "recorded 0.0.1" in lines[1]
    assert here["jaxlib"] in lines[1]
    assert "recorded nothing" in lines[2]
