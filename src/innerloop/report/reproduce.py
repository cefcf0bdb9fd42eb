"""Running an experiment end to end and writing what it found.

DIR/runs/               trained models, shared by all experiments
DIR/NAME/claims.json    the list of claims
DIR/NAME/results.nc     every plotted number, labelled
DIR/NAME/figures/       PNG and SVG
DIR/NAME/summary.md     the table as printed
"""

import dataclasses
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.console import Console

from innerloop.claims import Claim
from innerloop.experiments import Experiment, Preset, Results
from innerloop.report.estimate import estimate, notes
from innerloop.report.progress import progress_bars
from innerloop.report.summary import markdown_table, terminal_table, verdict_counts
from innerloop.runs import Run, obtain_run
from innerloop.store import ensure_writable, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reproduce(
    experiment: Experiment,
    *,
    preset: Preset,
    num_seeds: int | None,
    out: Path,
    console: Console,
    with_estimate: bool = True,
) -> list[Claim]:
    """Trains what is not yet trained, analyses, writes results and prints the table.

    Args:
        experiment: what to run.
        preset: how much of it.
        num_seeds: overrides the preset's number.
        out: folder for results; runs go to its ``runs``.
        console: for bars and tables.
        with_estimate: time a few steps first, and say how long all will take.

    Returns:
        The claims, as written.

    Raises:
        StoreError: if ``out`` cannot be written to or a stored run is damaged.
    """
    folder = out / experiment.name
    ensure_writable(folder)
    ensure_writable(folder / "figures")
    if with_estimate:
        with notes(console) as note:
            expected = estimate(experiment, preset, num_seeds, store=out / "runs", note=note)
        console.print(f"{experiment.name} ({preset}): {expected}", highlight=False)
    started = time.monotonic()
    with progress_bars(console) as bars:
        runs = {
            label: obtain_run(recipe, out / "runs", bars.training(label, recipe.num_steps))
            for label, recipe in experiment.recipes(preset, num_seeds).items()
        }
        with jax.default_matmul_precision("highest"):  # an accelerator's default would blur small differences
            results = experiment.analyse(preset, runs, bars.stages("analyse", experiment.stages))
        claims = [claim.for_smoke() if preset == "smoke" else claim for claim in results.claims]
        results = dataclasses.replace(results, claims=claims, notes=[*results.notes, *_run_notes(runs)])
        _write(folder, experiment, preset, results, seconds=time.monotonic() - started)
    console.print(terminal_table(claims, console.width))
    for note in results.notes:
        console.print(note, style="dim")
    console.print(f"\n[bold]{experiment.name}[/bold] ({preset}): {verdict_counts(claims)}")
    console.print(f"written to {folder}: summary.md, claims.json, results.nc, figures/", highlight=False)
    return claims


def _run_notes(runs: dict[str, Run]) -> list[str]:
    """What a reader must know about the runs: divergence, and results computed elsewhere."""
    notes = []
    for label, run in runs.items():
        notes += [f"Run {label}: seed {seed} diverged at step {step}." for seed, step in run.diverged().items()]
        if run.environment_differences:
            notes.append(f"Run {label} was computed elsewhere: {'; '.join(run.environment_differences)}.")
    return notes


def _write(folder: Path, experiment: Experiment, preset: Preset, results: Results, *, seconds: float) -> None:
    figures = experiment.draw(results.data)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            write_atomically(folder / "figures" / f"{name}.{kind}", _rendered(figure, kind))
    write_atomically(folder / "results.nc", bytes(results.data.to_netcdf(engine="h5netcdf")))
    write_json(folder / "claims.json", [claim.as_json() for claim in results.claims])
    write_atomically(folder / "summary.md", _summary(experiment, preset, results, list(figures), seconds).encode())


def _rendered(figure: "Figure", kind: str) -> bytes:
    buffer = io.BytesIO()
    # Without a date, the same data give the same file.
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _summary(experiment: Experiment, preset: Preset, results: Results, figures: list[str], seconds: float) -> str:
    notes = "\n".join(f"- {note}" for note in results.notes)
    pictures = "\n\n".join(f"![{name}](figures/{name}.png)" for name in figures)
    return f"""# {experiment.name}

{experiment.question}

Source: {experiment.source}. Preset: {preset}. Computed in {seconds:.0f} s. {verdict_counts(results.claims)}.

{markdown_table(results.claims)}

{notes}

{pictures}
"""
