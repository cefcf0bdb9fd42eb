"""A run's folder: what lies in it, who may write it, when it counts as complete.

    recipe.json               canonical JSON of the recipe
    environment.json          what it is computed with
    checkpoint.safetensors    while it trains: weights, optimiser, step, measurements; replaced atomically
    weights.safetensors       final weights and the weights at every measurement
    metrics.nc                measurements as labelled arrays
    complete.json             written last: SHA-256 of the others

The folder's name hashes the recipe together with the kernel path, the backend and `NUMERICS_VERSION`, so the same name
means the same bits (on one instruction set and version of jaxlib). A lock beside the folder is held while it is
written; a second process waits, and the lock is released by the system when its holder dies.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from innerloop.store.files import (
    StoreError,
    checksum,
    damaged,
    ensure_writable,
    read_json,
    remove_partial_files,
    write_json,
)

NUMERICS_VERSION = 4
"""Changes whenever the same recipe would give other numbers."""

RECIPE, ENVIRONMENT, CHECKPOINT = "recipe.json", "environment.json", "checkpoint.safetensors"
WEIGHTS, METRICS, COMPLETE = "weights.safetensors", "metrics.nc", "complete.json"
_RESULTS = (RECIPE, ENVIRONMENT, WEIGHTS, METRICS)


def run_name(label: str, recipe_json: str, *, kernel_path: str, backend: str) -> str:
    """A readable label and a hash of all that determines the run's bits."""
    identity = json.dumps(
        {
            "recipe": json.loads(recipe_json),
            "kernel": kernel_path,
            "backend": backend,
            "numerics_version": NUMERICS_VERSION,
        },
        sort_keys=True,
    )
    return f"{label}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


class RunFolder:
    """The folder of one run inside a store."""

    def __init__(self, path: Path):
        self.path = path

    def file(self, name: str) -> Path:
        """Path of one of the folder's files."""
        return self.path / name

    def is_complete(self) -> bool:
        """Whether the run has finished (its contents may still be damaged; see `verify`)."""
        return self.file(COMPLETE).exists()

    def verify(self) -> None:
        """Checks every result against the checksums of the completion marker.

        Raises:
            StoreError: naming the damaged file, or saying that the run is not complete.
        """
        if not self.is_complete():
            raise StoreError(f"{self.path} holds no complete run; train it again to finish it")
        recorded = read_json(self.file(COMPLETE))
        if not isinstance(recorded, dict) or set(recorded) != set(_RESULTS):
            raise damaged(self.file(COMPLETE), "it does not list the run's files")
        for name, digest in recorded.items():
            if not self.file(name).exists():
                raise damaged(self.file(name), "it is missing")
            if checksum(self.file(name)) != digest:
                raise damaged(self.file(name), f"its contents do not match their checksum in {COMPLETE}")

    def mark_complete(self) -> None:
        """Writes the completion marker, then removes the checkpoint."""
        digests = {name: checksum(self.file(name)) for name in _RESULTS}
        write_json(self.file(COMPLETE), digests)
        self.file(CHECKPOINT).unlink(missing_ok=True)

    @contextmanager
    def locked(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds the folder for writing; waits while another process has it.

        Args:
            on_wait: called once if there is someone to wait for.
        """
        ensure_writable(self.path)
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait is not None:
                on_wait()
            lock.acquire()
        try:
            remove_partial_files(self.path)
            yield
        finally:
            lock.release()


def find_run(store: Path, reference: str) -> RunFolder:
    """Finds a run by the path of its folder, its name, or an unambiguous beginning of its name.

    Raises:
        StoreError: if there is none, or several.
    """
    if reference and Path(reference).is_dir():
        return RunFolder(Path(reference))
    names = sorted(path.name for path in store.iterdir() if path.is_dir()) if store.is_dir() else []
    matches = [name for name in names if name.startswith(reference)]
    if reference in names:
        matches = [reference]
    if len(matches) == 1:
        return RunFolder(store / matches[0])
    if matches:
        raise StoreError(f"{reference!r} fits several runs in {store}: {', '.join(matches)}; give more of the name")
    known = f"it holds {', '.join(names)}" if names else "it holds no runs"
    raise StoreError(f"no run {reference!r} in {store} ({known}); give a run's name or the path of its folder")
