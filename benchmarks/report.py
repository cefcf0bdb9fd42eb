"""What the benchmarks report: rows of timings as a table, as JSON and as a plot."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from innerloop.kernels import native_library

COLORS = {"native": "tab:blue", "JAX": "tab:orange", "reference": "tab:gray"}
"""Of each side in plots."""

_PACKAGES = ("jax", "jaxlib", "numpy", "innerloop")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of one number per round."""

    median: float
    min: float
    max: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """Summarises the rounds' values."""
        return cls(float(np.median(values)), min(values), max(values))

    def text(self, digits: int) -> str:
        """``median (min to max)``."""
        return f"{self.median:.{digits}f} ({self.min:.{digits}f} to {self.max:.{digits}f})"


@dataclasses.dataclass(frozen=True)
class Row:
    """Timings of one side on one recipe."""

    recipe: str
    """Which training recipe."""
    side: str
    """``native`` or ``JAX``, which are innerloop's paths, or ``reference``."""
    seeds: int
    """Seeds that are trained together."""
    batch_size: int
    """Tasks per step and seed."""
    compile_seconds: float
    """Time of the first call beyond that of its steps."""
    rounds_ms: tuple[float, ...]
    """Milliseconds per step per seed, one number a round."""
    reference_ms: tuple[float, ...] | None = None
    """The reference's milliseconds per step in the same rounds; None where it was not run, or is this row itself."""

    @property
    def ms_per_step_per_seed(self) -> Spread:
        """Milliseconds per step per seed."""
        return Spread.over(self.rounds_ms)

    @property
    def tasks_per_second(self) -> float:
        """Tasks that all seeds together train on in a second, at the median time."""
        return 1e3 * self.batch_size / self.ms_per_step_per_seed.median

    @property
    def ratio(self) -> Spread | None:
        """The reference's time over this row's, per step and seed, round by round."""
        if self.reference_ms is None:
            return None
        return Spread.over([theirs / ours for theirs, ours in zip(self.reference_ms, self.rounds_ms, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """All fields and summaries as plain values."""
        return {
            **dataclasses.asdict(self),
            "ms_per_step_per_seed": dataclasses.asdict(self.ms_per_step_per_seed),
            "tasks_per_second": self.tasks_per_second,
            "ratio": None if self.ratio is None else dataclasses.asdict(self.ratio),
        }


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    result = Table(
        title="One training step",
        caption="spreads: median (min to max) over rounds; ratio: the reference's time over this row's",
    )
    result.add_column("recipe", no_wrap=True)
    result.add_column("side", no_wrap=True)
    for heading in ("seeds", "compile s", "ms/step/seed", "tasks/s", "ratio"):
        result.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        result.add_row(
            row.recipe,
            row.side,
            str(row.seeds),
            f"{row.compile_seconds:.1f}",
            row.ms_per_step_per_seed.text(3),
            f"{row.tasks_per_second:,.0f}",
            "" if row.ratio is None else row.ratio.text(1),
            end_section=index + 1 == len(rows) or rows[index + 1].recipe != row.recipe,
        )
    return result


def save(rows: Sequence[Row], settings: dict[str, Any], folder: Path) -> list[Path]:
    """Writes ``training_step.json`` and, where matplotlib is installed, ``training_step.png``; returns their paths."""
    path = save_json("training_step", [row.to_json() for row in rows], settings, folder)
    plot = _plot(rows, folder / "training_step.png")
    return [path] if plot is None else [path, plot]


def save_json(name: str, rows: list[dict[str, Any]], settings: dict[str, Any], folder: Path, **more: Any) -> Path:
    """Writes rows with date, versions, machine and settings into ``name.json``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "machine": machine(),
        "settings": settings,
        **more,
        "rows": rows,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, its load, instruction set, and the device that JAX computes on."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "instruction_set": native_library.instruction_set() if native_library.library_problem() is None else None,
        "jax_platform": device.platform,
        "jax_device": device.device_kind,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def paths() -> dict[str, str]:
    """Innerloop's paths that can run here, with the value of ``INNERLOOP_NATIVE`` that asks for each."""
    has_native = native_library.library_problem() is None and jax.default_backend() == "cpu"
    return {"native": "required", "JAX": "off"} if has_native else {"JAX": "off"}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _plot(rows: Sequence[Row], path: Path) -> Path | None:
    """Dots at the medians with lines from minimum to maximum, on a logarithmic axis; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(8.0, 0.9 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(rows):
        time = row.ms_per_step_per_seed
        color = COLORS[row.side]
        axes.plot([time.min, time.max], [height, height], color=color, linewidth=2)
        axes.plot(time.median, height, "o", color=color)
        if row.ratio is not None:
            axes.annotate(
                f"ratio {row.ratio.median:.1f}", (time.max, height), (6, 0), textcoords="offset points", va="center"
            )
    axes.set_yticks(range(len(rows)), [f"{row.recipe}: {row.side}, {_seeds(row.seeds)}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.3)
    axes.set_xlabel("ms per step and seed (median, min to max)")
    figure.savefig(path, dpi=150)
    return path


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
