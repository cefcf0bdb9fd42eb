"""`innerloop list`: the experiments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from innerloop.cli.parse import parse


def run(arguments: Sequence[str]) -> int:
    """Parses and prints."""
    return parse(list_experiments, arguments, command="list")


def list_experiments(
    times: bool = False, preset: Literal["smoke", "quick", "paper"] = "quick", out: Path = Path("results")
) -> int:
    """Lists the experiments, with the question that each asks and what it reproduces.

    Args:
        times: also say how long each would take on this machine, from a few steps of every kind of recipe.
        preset: what to estimate the time of.
        out: folder whose runs/ is looked into: what is stored there takes no time.
    """
    from innerloop.experiments import EXPERIMENTS

    if not times:
        for experiment in EXPERIMENTS.values():
            _print_experiment(experiment)
        return 0

    from rich.console import Console

    from innerloop import report

    expected = []
    with report.notes(Console(stderr=True)) as note:
        for experiment in EXPERIMENTS.values():
            _print_experiment(experiment)
            expected.append(report.estimate(experiment, preset, store=out / "runs", note=note))
            print(f"    {preset}: {expected[-1]}", flush=True)
    _print_total(expected, preset)
    return 0


def _print_experiment(experiment) -> None:
    print(f"{experiment.name}\n    {experiment.question}\n    {experiment.source}", flush=True)


def _print_total(expected, preset) -> None:
    from innerloop.report import text_of

    # Experiments share runs: each is trained once.
    training = {name: seconds for one in expected for name, seconds in one.training.items()}
    total = sum(training.values()) + sum(one.analysis or 0.0 for one in expected)
    print(f"all experiments, {preset}: about {text_of(total)}; what they share is trained once")
