"""Times whole training steps at the paper's sizes, by themselves or beside the published code.

    python -m benchmarks.training_step [--reference PATH] [--rounds N] [--steps N] [--seeds N ..] [--output DIR]

A step is all of it: fresh tasks, loss, gradient, clip, Adam. Innerloop's two paths, native and JAX, and the published
code run in every round, so that load from elsewhere hits all, and ratios are taken round by round.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from benchmarks.reference import ReferenceLoop, UnsuitableReferenceError, check_files
from benchmarks.report import Row, paths, save, table
from innerloop.kernels import native_library
from innerloop.training import (
    Recipe,
    TrainingState,
    initial_state,
    numerics,
    published,
    published_alternating,
    published_blocks,
    published_sine,
    recipe_path,
    train,
)

RECIPES: dict[str, Callable[..., Recipe]] = {
    "1 layer": partial(published, num_layers=1, tied=True),
    "2 tied layers": partial(published, num_layers=2, tied=True),
    "5 untied layers": partial(published, num_layers=5, tied=False),
    "sine waves": published_sine,
    "alternating tokens": published_alternating,
    "12 blocks": published_blocks,
}
SLOW: dict[str, int] = {"12 blocks": 10}
"""Recipes whose steps take so long that a round has only this part of them."""

Side = tuple[str, int]
"""Who is timed, and with how many seeds at once."""
REFERENCE: Side = ("reference", 1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times whole training steps (data, gradient, clip, Adam) at the paper's sizes."""

    reference: Path | None = None
    """Folder transformers_learn_icl_by_gd of the published code, to be timed in turn with innerloop."""
    rounds: int = 7
    """Timed rounds; medians and spreads are over them."""
    steps: int = 100
    """Training steps that each side takes in a round; a tenth of them for the twelve blocks."""
    seeds: tuple[int, ...] = (1, 5)
    """Numbers of seeds to train together, each measured by itself. For a GPU, try 1 10 100."""
    output: Path = Path("benchmarks/results")
    """Where the table (JSON) and the plot (PNG) go."""

    def __post_init__(self):
        for name in ("rounds", "steps", "seeds"):
            value = getattr(self, name)
            if np.min(value, initial=1) < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}; choose e.g. 5")
        if not self.seeds:
            raise ValueError("--seeds needs at least one number of seeds, got none; choose e.g. 1 5")


class OurLoop:
    """Innerloop's training of one recipe on one path; every `run` trains the same steps anew.

    Attributes:
        compile_seconds: time that the first call took beyond its steps.
    """

    def __init__(self, recipe: Recipe, mode: str):
        """Compiles the recipe, whose ``num_steps`` must be two chunks of ``evaluation_interval``.

        Args:
            recipe: what to train.
            mode: value of ``INNERLOOP_NATIVE`` while it trains; the loop keeps a program per path.
        """
        self._recipe, self._mode = recipe, mode
        with numerics(recipe):
            state = jax.block_until_ready(initial_state(recipe))
            # One step before the end of the first chunk: what comes before the timed chunk is then a single step.
            self._start = dataclasses.replace(state, step=jnp.asarray(recipe.evaluation_interval - 1, jnp.int32))
        first, second = self._two_chunks(state)
        self.compile_seconds = first - second
        self._two_chunks(self._start)

    def run(self) -> float:
        """Returns the seconds that ``evaluation_interval`` steps of all seeds take, and one measurement."""
        return self._two_chunks(self._start)[1]

    def _two_chunks(self, state: TrainingState) -> tuple[float, float]:
        """Seconds until the first chunk is done, everything that `train` sets up included, and from there to the end.

        `train` yields a chunk when it is done and has sent off the following one, so the time from the first yield to
        the second is that of the second chunk alone. (This needs JAX's asynchronous dispatch, which is its default.)
        """
        with native_library.using(self._mode):
            start = time.perf_counter()
            chunks = train(self._recipe, state)
            jax.block_until_ready(next(chunks))
            middle = time.perf_counter()
            jax.block_until_ready(next(chunks))
            return middle - start, time.perf_counter() - middle


def timing_recipe(name: str, *, steps: int, seeds: int) -> Recipe:
    """The published recipe with chunks of ``steps`` steps and next to no evaluation."""
    recipe = RECIPES[name](num_steps=2 * steps, seeds=tuple(range(seeds)))
    return dataclasses.replace(recipe, evaluation_interval=steps, evaluation_tasks=1)


def time_recipe(name: str, settings: Settings) -> list[Row]:
    """Times one recipe: both paths with one seed and with several, and the reference where there is one.

    Raises:
        UnsuitableReferenceError: if the reference cannot run.
    """
    steps = max(1, settings.steps // SLOW.get(name, 1))
    reference = None
    if settings.reference is not None:
        reference = ReferenceLoop(settings.reference, timing_recipe(name, steps=steps, seeds=1))
    recipes = {seeds: timing_recipe(name, steps=steps, seeds=seeds) for seeds in sorted(set(settings.seeds))}
    ours = {
        (side, seeds): OurLoop(recipe, mode)
        for side, mode in paths().items()
        for seeds, recipe in recipes.items()
        if side == "JAX" or _is_native(recipe)
    }

    runs: dict[Side, Callable[[], float]] = {key: loop.run for key, loop in ours.items()}
    if reference is not None:
        runs[REFERENCE] = lambda: reference.run(steps)
    seconds = interleaved(runs, settings.rounds)
    ms = {key: tuple(1e3 * s / (steps * key[1]) for s in values) for key, values in seconds.items()}

    batch_size = RECIPES[name](num_steps=1).batch_size
    rows = [
        Row(name, side, seeds, batch_size, loop.compile_seconds, ms[side, seeds], ms.get(REFERENCE))
        for (side, seeds), loop in ours.items()
    ]
    if reference is not None:
        times = ms[REFERENCE]
        steady = 1e-3 * sorted(times)[len(times) // 2] * reference.start_up_steps
        rows.append(Row(name, *REFERENCE, batch_size, reference.start_up_seconds - steady, times))
    return rows


def _is_native(recipe: Recipe) -> bool:
    """Whether the native kernel serves a recipe at all."""
    with native_library.using("required"), numerics(recipe):
        return recipe_path(recipe) == "native"


def interleaved(runs: dict[Side, Callable[[], float]], rounds: int) -> dict[Side, list[float]]:
    """Calls every run once a round, in an order that turns around each time; returns the seconds of each."""
    seconds: dict[Side, list[float]] = {key: [] for key in runs}
    for index in range(rounds):
        order = list(runs) if index % 2 == 0 else list(reversed(runs))
        for key in order:
            seconds[key].append(runs[key]())
    return seconds


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # the table would wrap at the 80 columns that rich assumes
    try:
        settings = tyro.cli(Settings)
        if settings.reference is not None:
            check_files(settings.reference)
        rows: list[Row] = []
        for name in RECIPES:
            with console.status(f"timing {name}"):
                rows += time_recipe(name, settings)
    except UnsuitableReferenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(table(rows))
    used = {"rounds": settings.rounds, "steps": settings.steps, "seeds": settings.seeds}
    for path in save(rows, used, settings.output):
        console.print(f"saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
