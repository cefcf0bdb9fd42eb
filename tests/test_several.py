"""Several experiments with one command: cores are shared out, a failure stops nothing, an interrupt stops all."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from innerloop.claims import Claim
from innerloop.experiments import EXPERIMENTS
from innerloop.report.estimate import rough_seconds
from innerloop.report.several import Outcome, _environment, _shares


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process to a core")
@pytest.mark.parametrize("jobs", [1, 2, 3, 5])
def test_every_core_serves_and_none_serves_two_processes_unless_it_must(monkeypatch, jobs):
    for cores in ({0, 1, 4, 7}, {3}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        shares = _shares(jobs)
        given = [shares.get() for _ in range(jobs)]
        assert shares.empty()
        assert all(given)
        assert set().union(*given) == cores
        if jobs <= len(cores):
            assert sum(map(len, given)) == len(cores)


def test_rough_seconds_tell_long_from_short():
    paper = {name: rough_seconds(EXPERIMENTS[name], "paper") for name in ("weights", "two-layer", "five-layer", "sine")}
    assert sorted(paper, key=paper.__getitem__) == ["weights", "two-layer", "five-layer", "sine"]
    assert rough_seconds(EXPERIMENTS["weights"], "paper", 1) < paper["weights"]


def test_a_cache_of_the_users_own_is_kept(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert _environment("ours")["JAX_COMPILATION_CACHE_DIR"] == "ours"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "theirs")
    assert _environment("ours")["JAX_COMPILATION_CACHE_DIR"] == "theirs"


def test_one_fails_and_the_other_is_measured(tmp_path, monkeypatch):
    """The folder for figures of one is a file, so that it cannot be written to."""
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "programs"))
    (tmp_path / "plateaus").mkdir()
    (tmp_path / "plateaus" / "figures").write_text("not a folder")
    names = ["weights", "plateaus", "weights"]
    command = [sys.executable, "-m", "innerloop", "reproduce", *names, "--preset", "smoke", "--jobs", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = " ".join(done.stdout.split())
    assert "plateaus: failed after" in lines
    assert "cannot write to" in lines
    claims = [Claim(**claim) for claim in json.loads((tmp_path / "weights" / "claims.json").read_text())]
    outcome = Outcome("weights", 0, 1.0, claims, tmp_path, "")
    assert str(outcome).removesuffix(" (1 s)") in lines
    assert lines.count("weights: started") == 1
    assert "trained one layer" in (tmp_path / "weights" / "log.txt").read_text()
    assert not list((tmp_path / "programs").iterdir()), "compiled programs were left behind"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_reaches_the_processes(tmp_path):
    logs = [tmp_path / name / "log.txt" for name in ("softmax", "plateaus")]
    names = ["softmax", "plateaus", "weights"]
    arguments = ["reproduce", *names, "--preset", "paper", "--jobs", "2", "--out", str(tmp_path)]
    # What a shell starts in the background ignores interrupts, and its children with it.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{listening}; import sys; from innerloop.cli import main; sys.exit(main({arguments!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not all(log.exists() and log.read_text() for log in logs) and time.monotonic() < deadline:
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "interrupted" in err
    assert all("interrupted" in log.read_text() for log in logs)
    assert not (tmp_path / "weights" / "log.txt").exists(), "what was waiting started after the interrupt"
