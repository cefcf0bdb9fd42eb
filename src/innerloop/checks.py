"""One-line checks of arguments, with messages that name the argument, what was expected, what came, what to do.

Recipes own their ranges: a task, a model or an optimiser checks its own fields with these when it is built, so the same
message comes from the command line, a file and Python.
"""

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def positive_int(name: str, value: Any, *, minimum: int = 1, maximum: int | None = None) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``minimum`` and at most ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}; choose a larger one")
    if maximum is not None and int(value) > maximum:
        raise ValueError(f"{name} must be an integer of at most {maximum}, got {value!r}; choose a smaller one")


def finite_number(name: str, value: Any, *, minimum: float = -math.inf, above: float = -math.inf) -> None:
    """Raises ValueError unless ``value`` is a finite number, at least ``minimum`` and strictly above ``above``."""
    wanted = "a finite number"
    if minimum > -math.inf:
        wanted += f" of at least {minimum:g}"
    if above > -math.inf:
        wanted += f" above {above:g}"
    wrong = isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value)
    if wrong or value < minimum or value <= above:
        raise ValueError(f"{name} must be {wanted}, got {value!r}; change it")


def one_of(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
