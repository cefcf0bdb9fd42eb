"""Runs on disk: names, locks, checksums, atomic files. Knows nothing of models or training."""

from innerloop.store.environment import differences, environment
from innerloop.store.files import (
    StoreError,
    damaged,
    ensure_writable,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from innerloop.store.run_folder import (
    CHECKPOINT,
    ENVIRONMENT,
    METRICS,
    NUMERICS_VERSION,
    RECIPE,
    WEIGHTS,
    RunFolder,
    find_run,
    run_name,
)

__all__ = [
    "CHECKPOINT",
    "ENVIRONMENT",
    "METRICS",
    "NUMERICS_VERSION",
    "RECIPE",
    "WEIGHTS",
    "RunFolder",
    "StoreError",
    "damaged",
    "differences",
    "ensure_writable",
    "environment",
    "find_run",
    "read_json",
    "read_tensors",
    "run_name",
    "write_atomically",
    "write_json",
    "write_tensors",
]
