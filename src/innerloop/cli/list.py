"""`innerloop list`: the experiments."""

from collections.abc import Sequence

from innerloop.cli.parse import parse


def run(arguments: Sequence[str]) -> int:
    """Parses and prints."""
    return parse(list_experiments, arguments, command="list")


def list_experiments() -> int:
    """Lists the experiments, with the question that each asks and what it reproduces."""
    from innerloop.experiments import EXPERIMENTS

    for experiment in EXPERIMENTS.values():
        print(f"{experiment.name}\n    {experiment.question}\n    {experiment.source}")
    return 0
