"""The command line: picks the command without importing what it does not need, turns bad input into one line.

``innerloop --help`` answers in a fraction of a second, because JAX is imported by the commands that compute.

Exit code 0 when everything was measured, whatever the verdicts; 1 when something failed to run (or, with ``--strict``,
when a claim was not reproduced); 2 for bad input.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

from innerloop.cli.interrupts import interrupts_arrive

_COMMANDS = {
    "list": "the experiments, with the question that each asks",
    "reproduce": "train, measure, judge and draw experiments",
    "train": "train any recipe given on the command line or in a file",
    "show": "what a stored run says: recipe, losses, weights",
    "doctor": "which code trains on this machine, and whether it computes correctly",
}

_EPILOG = """examples:
  innerloop reproduce one-layer                     the paper's Figure 2 in a few minutes, into results/one-layer
  innerloop reproduce one-layer --dry-run           what that would train, for how long, and where it would write
  innerloop train --model.num-layers 2 --seeds 0 1  train a two-layer tied transformer
  innerloop COMMAND --help                          everything about one command
"""


class InputError(ValueError):
    """Bad input from the command line; its message is the one line that the user sees."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="innerloop",
        description="Finds and shows the learning algorithm running inside a transformer's forward pass.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"innerloop {metadata.version('innerloop')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    if arguments[0] == "--version":
        parser.parse_args(arguments)
    command, *rest = arguments
    try:
        if command not in _COMMANDS:
            raise InputError(f"{unknown('command', command, _COMMANDS)}; see `innerloop --help`")
        with interrupts_arrive():
            return importlib.import_module(f"innerloop.cli.{command}").run(rest)
    except InputError as error:
        return _report(command, error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone; nothing more can be said
        return 1
    except KeyboardInterrupt:
        print("\ninnerloop: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        # Imported here: these errors are only raised by commands that have imported their modules.
        from innerloop.kernels.native_library import NativeModeError, NativeUnavailableError
        from innerloop.store import StoreError

        if isinstance(error, (StoreError, NativeModeError, NativeUnavailableError)):
            return _report(command, error)
        raise


def unknown(what: str, given: str, known: Sequence[str] | dict) -> str:
    """One line about an unknown name, with the nearest match."""
    nearest = difflib.get_close_matches(given, list(known), n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
    return f"unknown {what} {given!r}; {hint}"


def _report(command: str, error: Exception) -> int:
    label = f"innerloop {command}" if command in _COMMANDS else "innerloop"
    print(f"{label}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
