"""Several experiments with one command: each in a process of its own, some of them at a time.

One process keeps several cores busy only while it trains something large; compiling, small models and most analyses run
on one. Processes that share the cores out leave none idle. They take the experiments from one list, the longest first,
and share DIR/runs: a run that two experiments need is trained by one of them. They share compiled programs, too, by
JAX's cache on disk, which lives as long as the command (measured: 10 % of the time of all analyses).

DIR/NAME/log.txt        what NAME's process printed
"""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from innerloop.claims import Claim
from innerloop.experiments import Experiment, Preset
from innerloop.report.estimate import rough_seconds, text_of
from innerloop.report.progress import several_bars
from innerloop.report.summary import verdict_counts
from innerloop.store import ensure_writable, read_json


class Outcome(NamedTuple):
    """How one experiment's process ended.

    Attributes:
        name: of the experiment.
        exit_code: of its process; 0 when every claim was measured.
        seconds: from its start to its end.
        claims: as written; none where the process failed.
        log: what it printed.
        last_line: of what it printed.
    """

    name: str
    exit_code: int
    seconds: float
    claims: list[Claim]
    log: Path
    last_line: str

    def __str__(self) -> str:
        if self.exit_code:
            return f"{self.name}: failed after {text_of(self.seconds)} ({self.last_line}); see {self.log}"
        return f"{self.name}: {verdict_counts(self.claims)} ({text_of(self.seconds)})"


def reproduce_several(
    experiments: Sequence[Experiment],
    *,
    preset: Preset,
    num_seeds: int | None,
    out: Path,
    jobs: int,
    console: Console,
    with_estimate: bool = True,
) -> list[Outcome]:
    """Runs ``innerloop reproduce`` for every experiment; one that fails does not stop the others.

    Args:
        experiments: what to run.
        preset: how much of each.
        num_seeds: overrides the preset's number.
        out: folder for results; runs go to its ``runs``.
        jobs: the most processes at a time. Each gets an equal share of the cores where the system can bind processes to
            cores (Linux does; elsewhere the processes compete for all).
        console: for bars and outcomes.
        with_estimate: let each say in its log how long it will take.

    Returns:
        The outcomes, the longest experiment first.

    Raises:
        StoreError: if ``out`` cannot be written to.
    """
    for experiment in experiments:
        ensure_writable(out / experiment.name)
    expected = {experiment.name: rough_seconds(experiment, preset, num_seeds) for experiment in experiments}
    order = sorted(experiments, key=lambda experiment: -expected[experiment.name])
    jobs = min(jobs, len(order))
    options = ["--preset", preset, "--out", str(out), "--estimate" if with_estimate else "--no-estimate"]
    options += [] if num_seeds is None else ["--seeds", str(num_seeds)]
    running: set[subprocess.Popen] = set()

    with (
        # A process that is still writing when all is over must not make the removal an error.
        tempfile.TemporaryDirectory(prefix="innerloop-programs-", ignore_cleanup_errors=True) as programs,
        several_bars(console, sum(expected.values())) as bars,
    ):
        environment = _environment(programs)

        def run(experiment: Experiment) -> Outcome:
            # A stage speaks when it begins; the last part ends with the process.
            num_parts = len(experiment.recipes(preset, num_seeds)) + len(experiment.stages) + 1
            on_line = bars.experiment(experiment.name, expected[experiment.name], num_parts)
            outcome = _run(experiment.name, options, environment, out, on_line, running)
            bars.end(experiment.name, str(outcome))
            return outcome

        with ThreadPoolExecutor(jobs, initializer=_bind, initargs=(_shares(jobs),)) as pool:
            try:
                return list(pool.map(run, order))
            except BaseException:  # an interrupt above all: the processes keep their checkpoints
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(running):
                    process.send_signal(signal.SIGINT)
                raise


def _environment(programs: str) -> dict[str, str]:
    """Of the processes: lines come at once, and whatever one compiles, another finds. What the user set stays."""
    shared = {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return shared | os.environ | {"PYTHONUNBUFFERED": "1"}


def _run(
    name: str,
    options: list[str],
    environment: dict[str, str],
    out: Path,
    on_line: Callable[[str], None],
    running: set[subprocess.Popen],
) -> Outcome:
    """One experiment in a process, whose lines go to its log and to ``on_line``."""
    folder, started, last_line = out / name, time.monotonic(), ""
    command = [sys.executable, "-m", "innerloop", "reproduce", name, *options]
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
    ):
        running.add(process)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            on_line(line.strip())
            last_line = line.strip() or last_line
    running.discard(process)
    claims = [] if process.returncode else [Claim(**claim) for claim in read_json(folder / "claims.json")]
    return Outcome(
        name, process.returncode, time.monotonic() - started, claims, log=folder / "log.txt", last_line=last_line
    )


def _shares(jobs: int) -> "queue.SimpleQueue[set[int]]":
    """The cores of each of the processes; of fewer cores than processes, some serve several."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or set(cores[job % len(cores) :][:1]) if cores else set())
    return shares


def _bind(shares: "queue.SimpleQueue[set[int]]") -> None:
    """Binds the calling thread, and with it the processes that it will start, to the next share."""
    share = shares.get()
    if share:
        os.sched_setaffinity(0, share)
