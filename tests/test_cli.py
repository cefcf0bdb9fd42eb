"""The command line: bad input is one line and exit code 2, help is quick, results land where they should."""

import json
import subprocess
import sys
import time

import pytest

from innerloop.cli import main
from innerloop.tasks import TASKS

TINY = [
    "--num-steps",
    "4",
    "--evaluation-interval",
    "2",
    "--batch-size",
    "8",
    "--evaluation-tasks",
    "16",
    "--seeds",
    "0",
    "1",
    "--task.input-size",
    "3",
    "--task.context-length",
    "5",
]


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as stop:  # --help
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("reproduc", "did you mean 'reproduce'"),
        ("reproduce one-laier", "did you mean 'one-layer'"),
        ("reproduce one-layer --preset fast", "invalid choice 'fast'"),
        ("reproduce one-layer --seeds 0", "--seeds must be at least 1"),
        ("reproduce one-layer --seeds two", "--seeds"),
        ("reproduce", "name an experiment"),
        ("reproduce weights one-laier", "did you mean 'one-layer'"),
        ("reproduce weights two-layer --jobs 0", "--jobs must be at least 1, got 0"),
        ("reproduce one-layer --nosuch 3", "--nosuch"),
        ("train --num-steps abc", "--num-steps"),
        ("train --num-steps -5", "num_steps must be an integer of at least 1, got -5"),
        ("train --model.key-size 0", "model.key_size must be an integer of at least 1, got 0"),
        ("train --task.context-length -3", "task.context_length"),
        ("train --task.inputs gausian", "kind must be one of"),
        ("train --task.inputs {", "must be JSON"),
        ("train --optimizer.learning-rate nan", "optimizer.learning_rate must be a finite number above 0"),
        ("train --seeds 1 1", "seeds must be distinct"),
        ("train --initial-weights [[1,2]]", "initial_weights must have 1 row(s) of 10 numbers"),
        ("train --initial-weights 3", "--initial-weights"),
        ("train --model.num-layer 2", "--model.num-layers"),
        ("train --task.kind sine", f"--task.kind must be one of {', '.join(TASKS)}, got 'sine'"),
        ("train --task.kind", f"--task.kind must be one of {', '.join(TASKS)}, got ''"),
        ("train --task.kind=", f"--task.kind must be one of {', '.join(TASKS)}, got ''"),
        (
            "train --task.kind sine_waves --task.input-size 3",
            "task.input_size (of sine waves) must be an integer of at",
        ),
        ("train --task.kind sine_waves --task.noise-std 1", "--task.noise-std"),
        ("train --task.kind sine_waves --loss expected", "task must be linear regression for the expected loss"),
        ("train --task.kind sine_waves --gd-on-features .1", "gd_on_features needs model.embedding_size or"),
        ("train --model.attention linear softmax", "model.attention must have one kind, or one per layer"),
        ("train --model.mlp output", "invalid choice 'output'"),
        ("train --recipe nowhere.json", "cannot read 'nowhere.json'"),
        ("train --loss expected --model.num-layers 2", "model.num_layers must be 1 for the expected loss, got 2"),
        ("train --loss expected --optimizer.method lbfgs", "needs gradient_clip None"),
        ("train --optimizer.method lbfgs --optimizer.gradient-clip None", 'needs loss="expected"'),
        ("show nothing", "no run 'nothing'"),
        ("list --all", "--all"),
        ("list --times --preset fast", "invalid choice 'fast'"),
        ("doctor --fast", "--fast"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments.split())
    assert code == 2
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, _, err = call(capsys, "train", *TINY, "--out", str(tmp_path / "file"))
    assert code == 2
    assert "cannot write to" in err
    assert len(err.strip().splitlines()) == 1


def test_train_show_and_train_again_from_the_stored_recipe(capsys, tmp_path):
    code, out, _ = call(capsys, "train", *TINY, "--out", str(tmp_path))
    assert code == 0
    (run,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert run.name in out
    code, shown, _ = call(capsys, "show", run.name[:8], "--out", str(tmp_path))
    assert code == 0
    assert "seed 1" in shown
    before = (run / "complete.json").stat().st_mtime_ns
    code, _, _ = call(capsys, "train", "--recipe", str(run / "recipe.json"), "--out", str(tmp_path))
    assert code == 0
    assert (run / "complete.json").stat().st_mtime_ns == before, "a stored run was trained again"


def test_exact_training_from_the_command_line(capsys, tmp_path):
    exact = ["--loss", "expected", "--optimizer.method", "lbfgs", "--optimizer.gradient-clip", "None"]
    code, out, _ = call(capsys, "train", *TINY, *exact, "--dtype", "float64", "--out", str(tmp_path))
    assert code == 0
    assert "-expected" in out


def test_another_task_family_from_the_command_line(capsys, tmp_path):
    """Its own options with its own defaults; the stored recipe names it, and is read again."""
    family = ["--task.kind", "sine_waves", "--task.variant", "reference", "--model.embedding-size", "7"]
    small = [text for text in TINY if text not in ("--task.input-size", "3")]
    sine = [*small, *family, "--model.mlp", "input", "--gd-on-features", "0.1", "--out", str(tmp_path)]
    code, out, _ = call(capsys, "train", *sine)
    assert code == 0
    (run,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert run.name.startswith("sine_waves-1-tied-N5-d1-gd-")
    assert run.name in out
    stored = json.loads((run / "recipe.json").read_text())
    assert (stored["task"]["kind"], stored["task"]["variant"]) == ("sine_waves", "reference")
    assert (stored["gd_on_features"], stored["task"]["largest_amplitude"]) == (0.1, 0.5)
    before = (run / "complete.json").stat().st_mtime_ns
    same = ["--task.kind=sine_waves", "--recipe", str(run / "recipe.json"), "--out", str(tmp_path)]
    assert call(capsys, "train", *same)[0] == 0
    assert (run / "complete.json").stat().st_mtime_ns == before, "a stored run was trained again"


def test_a_family_that_the_recipe_file_does_not_fit_is_one_line(capsys, tmp_path):
    """The file's other fields stay, and may be about linear regression alone."""
    (tmp_path / "recipe.json").write_text('{"loss": "expected", "optimizer": {"gradient_clip": null}}')
    code, _, err = call(capsys, "train", "--recipe", str(tmp_path / "recipe.json"), "--task.kind", "sine_waves")
    assert code == 2
    assert "task must be linear regression for the expected loss" in err
    assert len(err.strip().splitlines()) == 1


def test_damaged_run_is_one_line_and_nothing_is_lost(capsys, tmp_path):
    call(capsys, "train", *TINY, "--out", str(tmp_path))
    (run,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    weights = bytearray((run / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "weights.safetensors").write_bytes(weights)
    for arguments in (["show", run.name], ["train", *TINY]):
        code, _, err = call(capsys, *arguments, "--out", str(tmp_path))
        assert code == 2
        assert "weights.safetensors is damaged" in err
        assert len(err.strip().splitlines()) == 1
    assert (run / "weights.safetensors").read_bytes() == bytes(weights)


def test_diverging_training_says_so_and_exits_with_1(capsys, tmp_path):
    wild = ["--optimizer.learning-rate", "1e9", "--optimizer.gradient-clip", "None", "--num-steps", "60"]
    code, out, _ = call(capsys, "train", *TINY, *wild, "--out", str(tmp_path))
    assert code == 1
    assert "seed 0 diverged at step" in out


def test_gaussian_inputs_and_initial_weights_from_the_command_line(capsys, tmp_path):
    covariance = '{"kind":"gaussian","covariance":[[1,0.5,0],[0.5,2,0],[0,0,1]]}'
    given = ["--task.inputs", covariance, "--initial-weights", "[[1, 2, 3]]"]
    code, _, _ = call(capsys, "train", *TINY, *given, "--out", str(tmp_path))
    assert code == 0
    (recipe,) = (tmp_path / "runs").glob("*/recipe.json")
    stored = json.loads(recipe.read_text())
    assert stored["task"]["inputs"]["covariance"][0][1] == 0.5
    assert stored["initial_weights"] == [[1.0, 2.0, 3.0]]


def test_dry_run_writes_nothing(capsys, tmp_path):
    code, out, _ = call(capsys, "reproduce", "one-layer", "--dry-run", "--out", str(tmp_path / "new"))
    assert code == 0
    assert "to train" in out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["list", "reproduce", "train", "show", "doctor"])
def test_every_command_has_help(capsys, command):
    code, out, err = call(capsys, command, "--help")
    assert code == 0
    assert len((out + err).splitlines()) > 3


def test_help_does_not_import_jax():
    script = "import sys, innerloop.cli; innerloop.cli.main(['--help']); sys.exit('jax' in sys.modules)"
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
    assert time.monotonic() - started < 10, "generous: this only guards against a hang"
