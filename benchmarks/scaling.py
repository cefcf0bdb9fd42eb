"""How the time of a training step grows with batch, context, inputs, depth, seeds and threads.

    python -m benchmarks.scaling [--quick] [--rounds N] [--output DIR]

Every sweep changes one size of two tied layers on the paper's task. Three numbers are taken of each point and path: the
kernel alone (batch, loss, gradient), the whole step (with clip and Adam), and compiling. The kernel's arithmetic is
counted by the formulas of `innerloop.kernels.work` and compared with the fastest matrix product that this machine does.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.report import COLORS, cores, paths, save_json
from benchmarks.training_step import OurLoop
from innerloop.kernels import Kernel, jax_kernel, native, native_library
from innerloop.kernels.work import operations_per_task
from innerloop.keys import root_key
from innerloop.models import initialise
from innerloop.tasks import LinearRegression
from innerloop.training import Recipe, published
from innerloop.training.loop import compiler_options

BASE = {"batch": 2048, "context": 10, "inputs": 10, "layers": 2, "seeds": 1, "threads": 0}
"""What stays while one size changes; 0 threads means all."""
SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (64, 256, 1024, 2048, 4096, 16384),
    "context": (5, 10, 20, 40, 80),
    "inputs": (5, 10, 20, 40),
    "layers": (1, 2, 3, 5, 10, 20),
    "seeds": (1, 2, 5, 10),
}
QUICK_SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (256, 2048),
    "context": (10, 40),
    "inputs": (10, 40),
    "layers": (1, 2, 5),
    "seeds": (1, 5),
}
LABELS = {
    "batch": "tasks per step",
    "context": "context length N",
    "inputs": "input size n_i",
    "layers": "tied layers K",
    "seeds": "seeds trained together",
    "threads": "threads (kernel alone)",
}
_STEPS = {"native": 50, "JAX": 10}  # per timed call, of the kernel alone
_CHUNK_SECONDS = 0.1  # of whole training, at least: a chunk that is over sooner is done before its clock starts


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times training steps while one size after the other changes."""

    quick: bool = False
    """Fewer points and rounds: one to two minutes on two quiet cores."""
    rounds: int = 7
    """Timed rounds; medians are over them. At most 3 with --quick."""
    output: Path = Path("benchmarks/results")
    """Where the table (JSON) and the plot (PNG) go."""

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}; choose e.g. 5")


@dataclasses.dataclass(frozen=True)
class Point:
    """One path at one size.

    Attributes:
        sweep: which size changes.
        value: that size.
        path: ``native`` or ``JAX``.
        kernel_ms: milliseconds of one batch's loss and gradient, its random numbers included.
        step_ms: milliseconds per step and seed of whole training; None where only the kernel can be asked.
        kernel_compile_seconds: of the kernel's program.
        step_compile_seconds: of the training chunk, set-up included.
        tasks_per_second: that whole training gets through (the kernel, where there is no whole step).
        gflops: the kernel's arithmetic per second, in 1e9 operations.
        fraction_of_peak: the same over the measured peak.
        workspace_mb: temporary memory of the kernel's program, as XLA says; the native code's own is not in it.
        peak_rss_mb: the most memory that this process has had so far.
    """

    sweep: str
    value: int
    path: str
    kernel_ms: float
    step_ms: float | None
    kernel_compile_seconds: float
    step_compile_seconds: float | None
    tasks_per_second: float
    gflops: float
    fraction_of_peak: float
    workspace_mb: float | None
    peak_rss_mb: float | None


def points(settings: Settings) -> Iterator[tuple[str, int, str]]:
    """Sweep, value and path of everything that is measured."""
    for sweep, values in (QUICK_SWEEPS if settings.quick else SWEEPS).items():
        yield from ((sweep, value, path) for value in values for path in paths())
    if "native" in paths():
        counts = sorted({1, *(2**i for i in range(1, 8) if 2**i < cores()), cores()})
        yield from (("threads", count, "native") for count in counts)


def measure(sweep: str, value: int, path: str, *, rounds: int, peak_gflops: float) -> Point:
    """Times one point."""
    sizes = BASE | {sweep: value}
    steps = _STEPS[path]
    recipe = _recipe(sizes, steps)
    compile_seconds, seconds, workspace = _time_kernel(_kernel(recipe, path, sizes["threads"]), recipe, steps, rounds)
    step_ms = step_compile = None
    if sweep != "threads":
        steps = max(steps, math.ceil(_CHUNK_SECONDS / seconds))
        loop = OurLoop(_recipe(sizes, steps), paths()[path])
        step_ms = 1e3 * float(np.median([loop.run() for _ in range(rounds)])) / (steps * sizes["seeds"])
        step_compile = loop.compile_seconds
    gflops = 1e-9 * recipe.batch_size * operations_per_task(recipe.model, recipe.task, recipe.tokens()) / seconds
    return Point(
        sweep, value, path, 1e3 * seconds, step_ms, compile_seconds, step_compile,
        1e3 * recipe.batch_size / (1e3 * seconds if step_ms is None else step_ms),
        gflops, gflops / peak_gflops, workspace, _peak_rss_mb(),
    )  # fmt: skip


def measured_peak(size: int = 2048, rounds: int = 8) -> float:
    """GFLOP/s of the fastest of several dense float32 matrix products, on all threads."""
    matrix = jax.random.normal(root_key(0), (size, size), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    jax.block_until_ready(product(matrix))
    return 1e-9 * 2 * size**3 / min(_seconds(product, matrix) for _ in range(rounds))


def _recipe(sizes: dict[str, int], steps: int) -> Recipe:
    task = LinearRegression(input_size=sizes["inputs"], context_length=sizes["context"])
    recipe = published(num_layers=sizes["layers"], task=task, num_steps=2 * steps, seeds=tuple(range(sizes["seeds"])))
    model = dataclasses.replace(recipe.model, token_clip=None)  # one arrangement for all depths
    return dataclasses.replace(
        recipe, model=model, batch_size=sizes["batch"], evaluation_interval=steps, evaluation_tasks=1
    )


def _kernel(recipe: Recipe, path: str, num_threads: int) -> Kernel:
    arguments = recipe.model, recipe.tokens(), recipe.task, recipe.batch_size
    if path == "JAX":
        return jax_kernel(*arguments)
    with native_library.using("required"):
        kernel = native.native_kernel(*arguments, num_threads=num_threads)
    assert kernel is not None
    return kernel


def _time_kernel(kernel: Kernel, recipe: Recipe, steps: int, rounds: int) -> tuple[float, float, float | None]:
    """Seconds to compile and per batch, and the program's temporary memory in MB."""
    weights = initialise(recipe.model, recipe.token_size, root_key(0))

    def program(weights, stream):
        def body(carry, step):
            draw, total = carry  # the next batch's numbers are made a step ahead, as training does it
            loss, gradient = kernel.loss_and_gradient(weights, draw)
            total = jax.tree.map(jnp.add, total, gradient)
            return (kernel.prepare(stream, step + 1), total), loss

        carry = kernel.prepare(stream, jnp.int32(0)), jax.tree.map(jnp.zeros_like, weights)
        (_, total), losses = jax.lax.scan(body, carry, jnp.arange(steps, dtype=jnp.int32))
        return total, losses

    start = time.perf_counter()
    # As training compiles; XLA's default takes up to four times as long for the same program.
    compiled = jax.jit(program, compiler_options=compiler_options()).lower(weights, root_key(0)).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(weights, root_key(0)))
    seconds = float(np.median([_seconds(compiled, weights, root_key(0)) for _ in range(rounds)])) / steps
    memory: Any = compiled.memory_analysis()
    return compile_seconds, seconds, None if memory is None else memory.temp_size_in_bytes / 2**20


def _seconds(call, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start


def _peak_rss_mb() -> float | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if sys.platform == "darwin" else used / 2**10


def table(rows: Sequence[Point], peak_gflops: float) -> Table:
    """The points for a terminal."""
    result = Table(
        title="Scaling of a training step",
        caption=f"medians over rounds; measured peak: {peak_gflops:.0f} GFLOP/s; other sizes: 2 tied layers, "
        "batch 2048, N = n_i = 10, 1 seed, all threads",
    )
    for heading in ("sweep", "value", "path"):
        result.add_column(heading, no_wrap=True)
    headings = ("kernel ms", "step ms/seed", "tasks/s", "GFLOP/s", "% of peak", "compile s", "temp MB", "peak RSS MB")
    for heading in headings:
        result.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        result.add_row(
            row.sweep, str(row.value), row.path, f"{row.kernel_ms:.3f}", _text(row.step_ms, 3),
            f"{row.tasks_per_second:,.0f}", f"{row.gflops:.1f}", f"{100 * row.fraction_of_peak:.1f}",
            f"{row.kernel_compile_seconds:.1f} + {_text(row.step_compile_seconds, 1)}", _text(row.workspace_mb, 1),
            _text(row.peak_rss_mb, 0),
            end_section=index + 1 == len(rows) or rows[index + 1].sweep != row.sweep,
        )  # fmt: skip
    return result


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def plot(rows: Sequence[Point], path: Path) -> Path | None:
    """One panel a sweep, whole steps solid and the kernel alone dashed; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    sweeps = list(dict.fromkeys(row.sweep for row in rows))
    figure = Figure(figsize=(11.0, 6.5), layout="constrained")
    for panel, sweep in zip(figure.subplots(2, 3).flat, sweeps, strict=False):
        for side in paths():
            own = [row for row in rows if (row.sweep, row.path) == (sweep, side)]
            values = [row.value for row in own]
            panel.plot(values, [row.kernel_ms for row in own], "o--", color=COLORS[side], label=f"{side}, kernel alone")
            steps = [np.nan if row.step_ms is None else row.step_ms for row in own]
            panel.plot(values, steps, "o-", color=COLORS[side], label=f"{side}, whole step")
        panel.set(xscale="log", yscale="log", xlabel=LABELS[sweep], ylabel="ms per step and seed")
        values = sorted({row.value for row in rows if row.sweep == sweep})
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xticks([], minor=True)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return path


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    settings = tyro.cli(Settings)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)  # the table would wrap at the 80 columns that rich assumes
    rounds = min(settings.rounds, 3) if settings.quick else settings.rounds
    rows: list[Point] = []
    with console.status("measuring this machine's peak") as status:
        peak_gflops = measured_peak()
        base: dict[str, Point] = {}  # the sizes that all sweeps share are measured once
        for sweep, value, path in points(settings):
            is_base = value == BASE[sweep]
            if is_base and path in base:
                rows.append(dataclasses.replace(base[path], sweep=sweep, value=value))
                continue
            status.update(f"timing {path} with {value} {sweep}")
            rows.append(measure(sweep, value, path, rounds=rounds, peak_gflops=peak_gflops))
            if is_base:
                base[path] = rows[-1]
    console.print(table(rows, peak_gflops))
    used = {"quick": settings.quick, "rounds": rounds, "steps": _STEPS, "chunk_seconds": _CHUNK_SECONDS, "base": BASE}
    as_json = [dataclasses.asdict(row) for row in rows]
    saved = [save_json("scaling", as_json, used, settings.output, peak_gflops=peak_gflops)]
    if (picture := plot(rows, settings.output / "scaling.png")) is not None:
        saved.append(picture)
    for path in saved:
        console.print(f"saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
