"""Atomic writing: a reader, also after a crash or power loss, finds the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch


def save_atomic(obj: Any, path: str | Path) -> None:
    """Writes a torch file; on any error ``path`` keeps what it held."""
    with _replacing(Path(path)) as file:
        torch.save(obj, file)


def write_text_atomic(text: str, path: str | Path) -> None:
    """Writes a UTF-8 text file; on any error ``path`` keeps what it held."""
    with _replacing(Path(path)) as file:
        file.write(text.encode("utf-8"))


def write_bytes_atomic(content: bytes, path: str | Path) -> None:
    """Writes a binary file; on any error ``path`` keeps what it held."""
    with _replacing(Path(path)) as file:
        file.write(content)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file in the same folder, which takes the place of ``path`` once it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def _umask() -> int:
    """The process's file-creation mask, which mkstemp overrides with owner-only access."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
