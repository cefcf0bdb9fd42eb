"""`innerloop doctor`: what trains on this machine, and does it compute correctly."""

from collections.abc import Sequence

from innerloop.cli.parse import parse


def run(arguments: Sequence[str]) -> int:
    """Parses and runs."""
    return parse(doctor, arguments, command="doctor")


def doctor() -> int:
    """Says which code trains here and why, with versions and devices, and tests itself for ten to twenty seconds.

    Exit code: 0 if all is well, with native kernels or without; 1 if a check fails; 2 for a bad INNERLOOP_NATIVE.
    """
    from rich.console import Console

    from innerloop.report.doctor import examine, facts, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    known = facts()
    with console.status("testing"):
        outcomes = examine()
    console.print(table(known, outcomes))
    failed = [name for name, outcome in outcomes.items() if outcome.verdict == "FAILED"]
    console.print(f"{len(failed)} of {len(outcomes)} checks failed: {', '.join(failed)}" if failed else "all is well")
    return int(bool(failed))
