"""How long an experiment will take on this machine, from a short calibration.

Training: a few steps of every kind of recipe that is not stored yet are compiled and timed; a run then takes

    set-up + seeds x (steps x time per step + measurements x time per measurement)

(on a CPU, where seeds run one after the other; elsewhere all seeds are timed together). Analysis: the seconds that an
experiment says it takes on a machine of two cores, times how much slower this machine compiles and runs a fixed small
program. Kinds that the calibration's budget leaves out are scaled by their work from a kind that was timed, of the same
path (native or JAX) where there is one.

    >>> text_of(200.0), text_of(40.0), text_of(9000.0)
    ('3 min', '40 s', '2.5 h')
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from innerloop.experiments import Experiment, Preset
from innerloop.kernels import batch_loss
from innerloop.kernels.work import operations_per_task, random_words
from innerloop.keys import root_key
from innerloop.models import StackConfig, initialise
from innerloop.runs import name_of
from innerloop.store import RunFolder
from innerloop.tasks import LinearRegression
from innerloop.tokens import ConcatenatedTokens
from innerloop.training import Recipe, held_out_batch, numerics, recipe_held_out_loss, recipe_path, train

# Steps per timed chunk: enough that sending off a program does not count, few enough that JAX's deep stacks are quick.
_STEPS = {"native": 40, "jax": 8, "exact": 8}
# Relative cost of a random word, in floating-point operations; only used to scale one kind's time to another's.
_OPERATIONS_PER_WORD = 20
# Of the native kernels on two cores with AVX-512.
_OPERATIONS_PER_SECOND = 1.5e11
# Of `_fixed_program` on two quiet cores with AVX-512.
_REFERENCE_SECONDS = 0.6


class Speed(NamedTuple):
    """How fast a kind of recipe trains.

    Attributes:
        set_up: seconds before the first step, mostly compiling.
        step: seconds per step of all timed seeds.
        measurement: seconds per measurement on the held-out tasks, of one seed.
    """

    set_up: float
    step: float
    measurement: float

    def run_seconds(self, recipe: Recipe) -> float:
        """What a whole run takes."""
        measurements = 1 + math.ceil(recipe.num_steps / recipe.evaluation_interval)
        rounds = len(recipe.seeds) / len(_timed_seeds(recipe))
        one_round = recipe.num_steps * self.step + measurements * len(_timed_seeds(recipe)) * self.measurement
        return self.set_up + rounds * one_round


class Estimate(NamedTuple):
    """Expected seconds of an experiment.

    Attributes:
        training: by the name of the run; a run that is stored takes none.
        labels: the run's name by the experiment's label.
        analysis: measuring, judging and drawing; None if the experiment does not say.
    """

    training: dict[str, float]
    labels: dict[str, str]
    analysis: float | None

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.training.values()) + (self.analysis or 0.0)

    def __str__(self) -> str:
        training, analysis = sum(self.training.values()), self.analysis
        parts = f"training {text_of(training) if training else 'stored'}"
        parts += ", analysis not estimated" if analysis is None else f", analysis {text_of(analysis)}"
        return f"about {text_of(self.total)} ({parts})"


def estimate(
    experiment: Experiment,
    preset: Preset,
    num_seeds: int | None = None,
    *,
    store: Path,
    note: Callable[[str], None] = lambda _: None,
    budget: float = 4.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:
    """Expected time of an experiment.

    Args:
        experiment: which.
        preset: how much of it.
        num_seeds: overrides the preset's number.
        store: folder of the runs; those that are complete there are not trained again.
        note: called with what is timed next.
        budget: seconds after which no further kind of recipe is timed; the first always is.
        clock: tells the time in seconds.
    """
    recipes = experiment.recipes(preset, num_seeds)
    labels = {label: name_of(recipe) for label, recipe in recipes.items()}
    waiting = {labels[label]: recipe for label, recipe in recipes.items() if not _is_stored(store, labels[label])}
    training = dict.fromkeys(labels.values(), 0.0) | _training_seconds(waiting, note=note, budget=budget, clock=clock)
    analysis = experiment.analysis_seconds.get(preset)
    if analysis is not None:
        note("this machine")
        analysis *= slowness()
    return Estimate(training, labels, analysis)


def rough_seconds(experiment: Experiment, preset: Preset, num_seeds: int | None = None) -> float:
    """About how long an experiment takes on two quiet cores, without timing anything: good to tell long from short."""
    recipes = experiment.recipes(preset, num_seeds).values()
    training = sum(_work(recipe) * len(recipe.seeds) for recipe in recipes) / _OPERATIONS_PER_SECOND
    return training + experiment.analysis_seconds.get(preset, 0.0)


def speed(recipe: Recipe) -> Speed:
    """Times a few steps and a measurement of a recipe's kind; remembered for the life of the process.

    Recipes are of one kind when they agree in all that a step's cost depends on: task, model, batch, precision.
    """
    kind = dataclasses.replace(recipe, seeds=_timed_seeds(recipe), num_steps=1)
    return _timed(dataclasses.replace(kind, evaluation_interval=1, init_scale=Recipe.init_scale), _path(recipe))


def text_of(seconds: float) -> str:
    """A duration for people: about two digits."""
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds < 20 else f"{5 * round(seconds / 5)} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def notes(console: Console, *, patience: float = 2.0) -> Iterator[Callable[[str], None]]:
    """Gives a function for `estimate`'s ``note``: a line that changes, or one line after two seconds off a terminal."""
    started, has_spoken = time.monotonic(), False
    if console.is_terminal:
        with console.status("estimating the time") as status:
            yield lambda what: status.update(f"estimating the time: {what}")
        return

    def note(what: str) -> None:
        nonlocal has_spoken
        if not has_spoken and time.monotonic() - started > patience:
            console.print("estimating the time: timing a few steps of every kind of recipe")
            has_spoken = True

    yield note


@lru_cache(maxsize=1)
def slowness() -> float:
    """How much slower than the reference machine this one compiles and runs a fixed small program."""
    return min(_fixed_program() for _ in range(2)) / _REFERENCE_SECONDS


def _training_seconds(recipes: dict[str, Recipe], *, note, budget: float, clock) -> dict[str, float]:
    """Seconds of every run; what the budget leaves out is scaled from what was timed."""
    started, timed, seconds = clock(), {}, {}
    # The most work first: the budget is spent where the time goes.
    for name, recipe in sorted(recipes.items(), key=lambda item: -_work(item[1]) * len(item[1].seeds)):
        if timed and clock() - started > budget:
            alike = [(work, own) for (path, work), own in timed.items() if path == _path(recipe)]
            options = alike or [(work, own) for (_, work), own in timed.items()]
            nearest, own = min(options, key=lambda option: abs(math.log(option[0] / _step_work(recipe))))
            ratio = _step_work(recipe) / nearest
            seconds[name] = Speed(own.set_up, own.step * ratio, own.measurement * ratio).run_seconds(recipe)
            continue
        note(name)
        timed[_path(recipe), _step_work(recipe)] = own = speed(recipe)
        seconds[name] = own.run_seconds(recipe)
    return seconds


def _work(recipe: Recipe) -> float:
    return recipe.num_steps * _step_work(recipe)


def _step_work(recipe: Recipe) -> float:
    words = _OPERATIONS_PER_WORD * random_words(recipe.task)
    return float(recipe.tasks_per_step * (operations_per_task(recipe.model, recipe.task, recipe.tokens()) + words))


def _path(recipe: Recipe) -> str:
    with numerics(recipe):
        return recipe_path(recipe)


def _is_stored(store: Path, name: str) -> bool:
    return RunFolder(store / name).is_complete()


def _timed_seeds(recipe: Recipe) -> tuple[int, ...]:
    """On a CPU one seed tells the others' time; an accelerator runs all at once."""
    return (0,) if jax.default_backend() == "cpu" else tuple(range(len(recipe.seeds)))


@lru_cache(maxsize=256)
def _timed(kind: Recipe, path: str) -> Speed:
    steps = _STEPS[path]
    started = time.perf_counter()
    # `train` sends off a chunk before it yields the one before, so the time between yields is a chunk's own.
    chunks = train(dataclasses.replace(kind, num_steps=3 * steps, evaluation_interval=steps, evaluation_tasks=1))
    weights = jax.tree.map(lambda leaf: leaf[0], next(chunks)[1].weights)
    moments = []
    for state, _ in chunks:
        jax.block_until_ready(state)
        moments.append(time.perf_counter())
    chunk = min(later - earlier for earlier, later in itertools.pairwise(moments))
    set_up = max(moments[0] - started - chunk, 0.0)

    started = time.perf_counter()
    with numerics(kind):
        batch = held_out_batch(kind)
        evaluate = jax.jit(recipe_held_out_loss(kind))
        jax.block_until_ready(evaluate(weights, batch))
        set_up += time.perf_counter() - started
        measurement = min(_seconds(lambda: evaluate(weights, batch)) for _ in range(2))
    return Speed(set_up, chunk / steps, measurement)


def _seconds(call: Callable[[], Iterable]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def _fixed_program() -> float:
    """Seconds to compile and run one small gradient, as analyses do all the time."""
    config, task = StackConfig(num_layers=2), LinearRegression()
    weights = initialise(config, task.input_size + task.output_size, root_key(0))
    batch = task.sample_batch(root_key(1), 2000)

    def gradient(weights, batch):  # a new function every time, so that it is compiled every time
        return jax.value_and_grad(batch_loss, argnums=2)(config, ConcatenatedTokens(), weights, batch)

    jax.block_until_ready((weights, jnp.sum(batch.inputs)))
    return _seconds(lambda: jax.jit(gradient)(weights, batch))
