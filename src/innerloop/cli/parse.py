"""Typed command lines by tyro, with its errors reduced to one line."""

import contextlib
import functools
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from innerloop.cli.main import InputError

_WIDE = "10000"


def parse(function: Callable[..., Any], arguments: Sequence[str], *, command: str, registry=None) -> Any:
    """Calls ``function`` with what the command line says of its parameters.

    Raises:
        InputError: one line, for anything that tyro does not accept.
        SystemExit: with code 0, after printing help.
    """
    caught = io.StringIO()
    try:
        with _redirected_errors(caught, wide=not {"-h", "--help"} & set(arguments)):
            call = tyro.cli(_deferred(function), args=list(arguments), prog=f"innerloop {command}", registry=registry)
    except ValueError as error:  # a dataclass at the top level that refuses its fields; tyro reports nested ones
        raise InputError(f"{error}; see `innerloop {command} --help`") from None
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stderr.write(caught.getvalue())
            raise
        raise InputError(f"{_one_line(caught.getvalue())}; see `innerloop {command} --help`") from None
    return call()


def _deferred(function):
    """Makes parsing and running two things: an error while running must not look like a wrong option."""

    @functools.wraps(function)
    def deferred(*args, **kwargs):
        return lambda: function(*args, **kwargs)

    deferred.__signature__ = inspect.signature(function)  # pyright: ignore[reportAttributeAccessIssue]
    return deferred


@contextlib.contextmanager
def _redirected_errors(target: io.StringIO, *, wide: bool):
    """Catches stderr; with ``wide``, long lines are not wrapped, so that an error can be read back."""
    previous = os.environ.get("COLUMNS")
    if wide:
        os.environ["COLUMNS"] = _WIDE
    try:
        with contextlib.redirect_stderr(target):
            yield
    finally:
        if wide:
            if previous is None:
                os.environ.pop("COLUMNS", None)
            else:
                os.environ["COLUMNS"] = previous


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws (a title and rules where the terminal has no box characters)."""
    lines = [line.strip(" │") for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    if len(lines) > 1 and _is_rule(lines[1]):
        lines = lines[2:] if "╭" not in box else lines
    message: list[str] = []
    for line in lines:
        if _is_rule(line) or line.startswith(("Argument helptext", "For full helptext")):
            if message and not message[-1].startswith("Unrecognized"):
                break
            continue
        message.append(line.rstrip(":") if line.startswith("Perhaps") else line)
        if len(message) == 3:
            break
    return re.sub(r"^Error parsing recipe[\w.]*: ", "", " ".join(message)) or "invalid arguments"


def _is_rule(line: str) -> bool:
    return set(line) <= {"-", "─"}


def json_argument(text: str, what: str) -> Any:
    """Parses a JSON value given on the command line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} must be JSON, got {text!r} ({error})") from None
