"""`innerloop show RUN`: what a stored run says."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from innerloop.cli.parse import parse

if TYPE_CHECKING:
    from rich.console import Console

    from innerloop.runs import Run


def run(arguments: Sequence[str]) -> int:
    """Parses and prints."""
    return parse(show, arguments, command="show")


def show(run: Annotated[str, tyro.conf.Positional], out: Path = Path("results")) -> int:
    """Shows a stored run: its recipe, where it was computed, its losses along training, what its weights say.

    Args:
        run: name of the run in OUT/runs, an unambiguous beginning of it, or the path of its folder.
        out: folder whose runs/ is searched.
    """
    from rich.console import Console

    from innerloop.runs import load_run
    from innerloop.store import find_run

    folder = find_run(out / "runs", run)
    print_run(load_run(folder), folder.path, Console())
    return 0


def print_run(run: "Run", path: Path, console: "Console") -> None:
    """Prints a run: recipe, environment, a table of losses by step and seed, readings of one-layer weights."""
    import json

    import numpy as np
    from rich.table import Table

    from innerloop.analysis import read_layers
    from innerloop.exact import one_step_loss, optimal_learning_rate
    from innerloop.models import products
    from innerloop.tasks import LinearRegression, loss_unit
    from innerloop.training import numerics, recipe_to_json

    console.print(f"[bold]{run.name}[/bold]  {path}", highlight=False)
    console.print(json.dumps(json.loads(recipe_to_json(run.recipe))), style="dim", highlight=False)
    where = run.environment
    console.print(
        f"computed with innerloop {where['innerloop']}, jax {where['jax']}, {where['backend']}, {where['device']}",
        highlight=False,
    )
    for line in run.environment_differences:
        console.print(f"computed elsewhere: {line}", style="yellow", highlight=False)
    title = f"held-out loss, {loss_unit(run.recipe.task.prediction_loss)}"
    table = Table("step", *(f"seed {seed}" for seed in run.recipe.seeds), title=title)
    steps = run.metrics["step"].values
    for index in np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int)):
        losses = run.metrics["evaluation_loss"].values[index]
        table.add_row(str(steps[index]), *(f"{loss:.5f}" for loss in losses))
    console.print(table)
    for seed, step in run.diverged().items():
        console.print(f"seed {seed} diverged at step {step}: its loss, gradient or update was not finite", style="red")
    task = run.recipe.task
    if isinstance(task, LinearRegression) and not task.normalise_context:
        best = optimal_learning_rate(task)
        console.print(
            f"one optimal gradient step: expected loss {one_step_loss(task, best):.5f} at "
            f"c = eta / N = {best / task.context_length:.5f}",
            highlight=False,
        )
    model = run.recipe.model
    if model.is_linear and model.num_layers == 1 and model.num_heads == 1 and not run.diverged():
        with numerics(run.recipe):
            reading = read_layers(products(run.weights), task.input_size)
        sizes = ", ".join(f"{size:.5f}" for size in np.asarray(reading.step_size).ravel())
        console.print(f"the trained weights say c = {sizes}", highlight=False)
