"""`innerloop reproduce NAME ..`: experiments, end to end."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from innerloop.cli.main import InputError, unknown
from innerloop.cli.parse import parse

if TYPE_CHECKING:
    from innerloop.claims import Claim
    from innerloop.experiments import Experiment


def run(arguments: Sequence[str]) -> int:
    """Parses and runs."""
    return parse(reproduce, arguments, command="reproduce")


def reproduce(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME ...")],
    preset: Literal["smoke", "quick", "paper"] = "quick",
    seeds: int | None = None,
    out: Path = Path("results"),
    jobs: int = 1,
    estimate: bool = True,
    dry_run: bool = False,
    strict: bool = False,
) -> int:
    """Trains, measures, judges and draws experiments; prints published and measured values with a verdict.

    Models that are already trained in OUT/runs are used again; an interrupted run goes on from its checkpoint. Results
    are written to OUT/NAME: summary.md, claims.json, results.nc (every plotted number) and figures (PNG, SVG). Several
    experiments run in processes of their own, whose output goes to OUT/NAME/log.txt.

    Exit code: 0 when every claim was measured, whatever the verdicts; 1 when something failed to run; 2 for bad input.

    Args:
        names: of one or more experiments, or all; see `innerloop list`.
        preset: smoke takes seconds and only shows that it runs; quick takes minutes on two CPU cores and gives real
            verdicts; paper is the paper's own recipe and number of seeds.
        seeds: number of random seeds, instead of the preset's; verdicts need at least 2.
        out: folder for results and trained models.
        jobs: how many of several experiments run at a time, each on its share of the CPU's cores; leave it at 1 on a
            GPU.
        estimate: say first how long an experiment will take on this machine, from a few timed steps.
        dry_run: print what would be trained and written, and how long it would take on this machine; do nothing else.
        strict: exit with 1 unless every claim is reproduced.
    """
    experiments = _chosen(names)
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}; verdicts need at least 2")
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if dry_run:
        for experiment in experiments:
            _print_plan(experiment, preset, seeds, out)
        return 0

    from rich.console import Console

    from innerloop import report

    options = {"preset": preset, "num_seeds": seeds, "out": out, "console": Console(), "with_estimate": estimate}
    if len(experiments) == 1:
        claims = report.reproduce(experiments[0], **options)
        return int(strict and not _are_reproduced(claims))

    import jax

    jax.config.update("jax_platforms", "cpu")  # this process only counts; an accelerator is for those that it starts
    outcomes = report.reproduce_several(experiments, jobs=jobs, **options)
    has_failed = any(outcome.exit_code for outcome in outcomes)
    return int(has_failed or (strict and not all(_are_reproduced(outcome.claims) for outcome in outcomes)))


def _chosen(names: tuple[str, ...]) -> "list[Experiment]":
    from innerloop.experiments import EXPERIMENTS

    if not names:
        raise InputError("name an experiment, or several, or all; see `innerloop list`")
    if names == ("all",):
        return list(EXPERIMENTS.values())
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"{unknown('experiment', name, EXPERIMENTS)}; see `innerloop list`")
    return [EXPERIMENTS[name] for name in dict.fromkeys(names)]


def _are_reproduced(claims: "Sequence[Claim]") -> bool:
    return all(claim.verdict == "reproduced" for claim in claims)


def _print_plan(experiment, preset, seeds, out: Path) -> None:
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
