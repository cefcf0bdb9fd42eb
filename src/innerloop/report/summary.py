"""The claims as a table: in Markdown for a file, with colours for a terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from innerloop.claims import Claim

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = ("claim", "source", "published", "measured", "95 % interval", "criterion", "control", "verdict")
_COLOURS = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow", "consistent": "cyan"}


def verdict_counts(claims: Sequence[Claim]) -> str:
    """For example ``38 reproduced, 1 inconclusive; controls: 39 of 39 fail as they must``."""
    counts = Counter(claim.verdict for claim in claims)
    failing = sum(claim.control_verdict == "not reproduced" for claim in claims)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return f"{verdicts}; controls: {failing} of {len(claims)} fail as they must"


def markdown_table(claims: Sequence[Claim]) -> str:
    """The table that ``summary.md`` holds."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _row(claim)) + " |" for claim in claims]
    return "\n".join(lines)


def terminal_table(claims: Sequence[Claim], width: int) -> "Table":
    """The same for a terminal, shorter: statements, sources and controls are left to the file, as far as it is wide."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("claim", no_wrap=True)
    table.add_column("measured (95 % interval)", no_wrap=True)
    if width >= 100:
        table.add_column("published", no_wrap=True)
        table.add_column("criterion", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        measured = _number(claim.measured, digits=3)
        if claim.low is not None and claim.high is not None:
            measured += f" ({_number(claim.low, digits=3)} to {_number(claim.high, digits=3)})"
        published = claim.published if isinstance(claim.published, str) else _number(claim.published)
        colour = _COLOURS[claim.verdict]
        warning = "" if claim.control_verdict == "not reproduced" else " (control does not fail)"
        verdict = f"[{colour}]{claim.verdict}[/{colour}]{warning}"
        wide = (published, claim.criterion) if width >= 100 else ()
        table.add_row(claim.id, measured, *wide, verdict)
    return table


def _row(claim: Claim) -> tuple[str, ...]:
    published = claim.published if isinstance(claim.published, str) else _number(claim.published)
    interval = "exact" if claim.kind == "exact" else "one seed"
    if claim.low is not None and claim.high is not None:
        interval = f"{_number(claim.low)} to {_number(claim.high)} (n = {claim.num_seeds})"
    control = f"{claim.control}: {_number(claim.control_measured)}, {claim.control_verdict}"
    return (
        f"**{claim.id}**: {claim.statement} ({claim.unit})", claim.source, published, _number(claim.measured),
        interval, claim.criterion, control, claim.verdict,
    )  # fmt: skip


def _number(value: float | None, *, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"
