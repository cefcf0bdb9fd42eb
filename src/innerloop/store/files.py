"""Files that are whole or absent: atomic writes, checksums, tensors with a checksum inside.

A file is written under a temporary name, flushed to the disk and renamed, so a reader (and a process killed at any
moment) sees the old file or the new one, never a part. Tensors go into safetensors files whose metadata hold a SHA-256
of the contents; reading verifies it.
"""

import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_TEMPORARY = ".partial-"


class StoreError(ValueError):
    """Something on the disk is not as it should be; the message says what, where, and what to do."""


def damaged(path: Path, why: str) -> StoreError:
    """The error for a file that cannot be trusted."""
    return StoreError(
        f"{path} is damaged ({why}); nothing was read from it. Restore it, or remove the folder {path.parent} "
        "to compute it again"
    )


def ensure_writable(folder: Path) -> None:
    """Creates a folder if need be and checks that files can be written there.

    Raises:
        StoreError: naming the folder and the system's reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it appears whole or not at all."""
    partial = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented for people, atomically. NaN is not JSON: say null."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode())


def remove_partial_files(folder: Path) -> None:
    """Removes what a killed process has left half-written. Call it while holding the folder's lock."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes arrays to a safetensors file that carries its own checksum, atomically."""
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={"sha256": _digest(contiguous)}))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads what `write_tensors` wrote.

    Raises:
        StoreError: if the file is missing, not a safetensors file, or its contents do not match its checksum.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from None
    if metadata.get("sha256") != _digest(tensors):
        raise damaged(path, "its contents do not match its checksum")
    return tensors


def read_json(path: Path):
    """Reads a JSON file.

    Raises:
        StoreError: if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise damaged(path, str(error)) from None


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
