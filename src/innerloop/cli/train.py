"""`innerloop train`: any recipe, from the command line or from a file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from innerloop.cli.main import InputError
from innerloop.cli.parse import json_argument, parse
from innerloop.cli.show import print_run
from innerloop.tasks import INPUT_DISTRIBUTIONS, TASKS, InputDistribution
from innerloop.training import Recipe, recipe_from_json, structure


def run(arguments: Sequence[str]) -> int:
    """Parses and runs. A recipe file sets the defaults that other options override."""
    arguments = list(arguments)
    default, arguments = _take_recipe_file(arguments)
    default, arguments = _take_family(default, arguments)

    def train(recipe: Annotated[Recipe, tyro.conf.arg(name="")] = default, out: Path = Path("results")) -> int:
        """Trains a recipe and prints what it reached.

        Without options this is the published one-layer recipe. The run is stored in OUT/runs under a name that hashes
        the recipe: the same command loads it again, an interrupted one goes on from its checkpoint to the same bits.

        --recipe FILE reads a recipe (the recipe.json of a stored run, say) whose values other options override.
        --task.kind NAME chooses a task family: linear_regression, sine_waves, random_network,
        linear_classification. Its own options then replace those of linear regression (--task.kind sine_waves --help
        lists them).

        Args:
            recipe: what to train.
            out: folder whose runs/ holds the trained models.
        """
        return _train(recipe, out)

    return parse(train, arguments, command="train", registry=_registry())


def _train(recipe: Recipe, out: Path) -> int:
    from rich.console import Console

    from innerloop.report import progress_bars
    from innerloop.runs import obtain_run

    console = Console()
    with progress_bars(console) as bars:
        trained = obtain_run(recipe, out / "runs", bars.training("recipe", recipe.num_steps))
    print_run(trained, out / "runs" / trained.name, console)
    return 1 if len(trained.diverged()) == len(recipe.seeds) else 0


def _take_family(default: Recipe, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """Puts a family that is asked for into the defaults, so that the command line has that family's options."""
    for position, argument in enumerate(arguments):
        name, _, inline = argument.partition("=")
        if name == "--task.kind":
            family = inline or next(iter(arguments[position + 1 :]), "")
            if family not in TASKS:
                raise InputError(f"--task.kind must be one of {', '.join(TASKS)}, got {family!r}")
            if type(default.task) is not TASKS[family]:
                try:
                    default = dataclasses.replace(default, task=TASKS[family]())  # pyright: ignore[reportCallIssue]
                except ValueError as error:  # what a recipe file says of other fields
                    raise InputError(f"--task.kind {family} does not go with the recipe file: {error}") from None
            return default, arguments[:position] + arguments[position + (1 if inline else 2) :]
    return default, arguments


def _take_recipe_file(arguments: list[str]) -> tuple[Recipe, list[str]]:
    for position, argument in enumerate(arguments):
        if argument == "--recipe" or argument.startswith("--recipe="):
            inline = argument.partition("=")[2]
            rest = arguments[position + (1 if inline else 2) :]
            path = inline or next(iter(arguments[position + 1 :]), "")
            try:
                return recipe_from_json(Path(path).read_text()), arguments[:position] + rest
            except OSError as error:
                raise InputError(f"--recipe: cannot read {path!r} ({error.strerror})") from None
            except ValueError as error:
                raise InputError(f"--recipe: {path} is not a recipe: {error}") from None
    return Recipe(), arguments


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Teaches tyro the types that no flag can spell by itself: input distributions and matrices."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def distribution(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type is not InputDistribution:
            return None
        names = {cls: name for name, cls in INPUT_DISTRIBUTIONS.items()}

        def read(texts: list[str]) -> InputDistribution:
            text = texts[0]
            value = json_argument(text, "inputs") if text.startswith("{") else text
            return structure(value, InputDistribution, path="inputs")

        def write(value: InputDistribution) -> list[str]:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return [names[type(value)] if not fields else str({"kind": names[type(value)], **fields})]

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar='uniform|normal|exponential|laplace|\'{"kind":"gaussian","covariance":[[..]]}\'',
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, InputDistribution),
            str_from_instance=write,
        )

    @registry.primitive_rule
    def matrix(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type != tuple[tuple[float, ...], ...]:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="'[[..], ..]'",
            instance_from_str=lambda texts: structure(json_argument(texts[0], "a matrix"), info.type, path="matrix"),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [str([list(row) for row in value])],
        )

    return registry
