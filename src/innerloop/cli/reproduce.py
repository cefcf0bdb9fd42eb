"""`innerloop reproduce NAME`: one experiment, end to end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from innerloop.cli.main import InputError, unknown
from innerloop.cli.parse import parse


def run(arguments: Sequence[str]) -> int:
    """Parses and runs."""
    return parse(reproduce, arguments, command="reproduce")


def reproduce(
    name: Annotated[str, tyro.conf.Positional],
    preset: Literal["smoke", "quick", "paper"] = "quick",
    seeds: int | None = None,
    out: Path = Path("results"),
    dry_run: bool = False,
    strict: bool = False,
) -> int:
    """Trains, measures, judges and draws one experiment; prints published and measured values with a verdict.

    Models that are already trained in OUT/runs are used again; an interrupted run goes on from its checkpoint. Results
    are written to OUT/NAME: summary.md, claims.json, results.nc (every plotted number) and figures (PNG, SVG).

    Exit code: 0 when every claim was measured, whatever the verdicts; 1 when something failed to run; 2 for bad input.

    Args:
        name: of the experiment; see `innerloop list`.
        preset: smoke takes seconds and only shows that it runs; quick takes minutes on two CPU cores and gives real
            verdicts; paper is the paper's own recipe and number of seeds.
        seeds: number of random seeds, instead of the preset's; verdicts need at least 2.
        out: folder for results and trained models.
        dry_run: print what would be trained and written, and how long it would take on this machine; do nothing else.
        strict: exit with 1 unless every claim is reproduced.
    """
    from innerloop.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise InputError(f"{unknown('experiment', name, EXPERIMENTS)}; see `innerloop list`")
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}; verdicts need at least 2")
    experiment = EXPERIMENTS[name]
    if dry_run:
        return _print_plan(experiment, preset, seeds, out)

    from rich.console import Console

    from innerloop import report

    claims = report.reproduce(experiment, preset=preset, num_seeds=seeds, out=out, console=Console())
    return int(strict and any(claim.verdict != "reproduced" for claim in claims))


def _print_plan(experiment, preset, seeds, out: Path) -> int:
    from rich.console import Console

    from innerloop import report

    print(f"{experiment.name} ({preset}): {experiment.question}")
    with report.notes(Console(stderr=True)) as note:
        expected = report.estimate(experiment, preset, seeds, store=out / "runs", note=note)
    for label, recipe in experiment.recipes(preset, seeds).items():
        name = expected.labels[label]
        seconds = expected.training[name]
        state = f"to train, about {report.text_of(seconds)}" if seconds else "stored"
        print(
            f"  {label:>5}  {recipe.num_steps} steps x {len(recipe.seeds)} seeds, batch {recipe.tasks_per_step}  "
            f"{state}  {out / 'runs' / name}"
        )
    print(f"  then: {', '.join(experiment.stages)}")
    print(f"  {expected}")
    print(f"  results would go to {out / experiment.name}")
    return 0
