"""Atomic writing: readers, even after a crash or power loss, find the old file or the new one, never a part.

A temporary file lies beside the target, with a dot before its name and ``.tmp`` after it; it is removed on any error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from mask2former.errors import InputError
from mask2former.files.opening import PathLike

_TEMPORARY = ".tmp"
_IS_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\.[^.]+)?", re.DOTALL)  # as temporary_path names them
_MAX_NAME_KEPT = 40  # characters, of up to four bytes each, so that a name that fits still does with what is added


def save_atomic(obj: Any, path: PathLike) -> None:
    """Write a torch file; on any error ``path`` keeps what it held."""
    with replacing(path) as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:  # torch's own, of a disk that took less than it should
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def write_text_atomic(text: str, path: PathLike) -> None:
    """Write a UTF-8 text file; on any error ``path`` keeps what it held."""
    write_bytes_atomic(text.encode("utf-8"), path)


def write_bytes_atomic(content: bytes, path: PathLike, *, is_durable: bool = True) -> None:
    """Write a binary file; on any error ``path`` keeps what it held.

    ``is_durable``: wait until it is on the disk; unnecessary for one of thousands of files that can be made again.
    """
    with replacing(path, is_durable=is_durable) as file:
        file.write(content)


def write_json(content: Any, path: PathLike, *, is_durable: bool = True) -> None:
    """Write compact JSON; on any error ``path`` keeps what it held."""
    write_bytes_atomic(json.dumps(content, separators=(",", ":")).encode(), path, is_durable=is_durable)


def link_or_copy(source: Path, target: Path) -> bool:
    """Make ``target`` a link to ``source``, or a copy on another disk; return False if it exists already."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return False
    with replacing_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
    return True


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of killed runs below ``folder``."""
    for path in folder.rglob(f".*{_TEMPORARY}*"):
        if _IS_TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: PathLike, *, is_durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a temporary file that replaces ``path`` when the block ends.

    Raises:
        InputError: it cannot be written; with the path and the reason.
    """
    # Made by open, which follows the process's mask of permissions; "x" never opens what is there.
    with replacing_path(path, is_durable=is_durable) as temporary, open(temporary, "xb") as file:
        yield file
        file.flush()
        if is_durable:
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing_path(path: PathLike, *, is_durable: bool = False) -> Iterator[Path]:
    """Yield the name of a temporary file that the block writes, and that then replaces ``path``.

    Raises:
        InputError: it cannot be written; with the path and the reason.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        if is_durable:
            _sync_directory(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path, *, keeps_suffix: bool = False) -> Path:
    """Return where the content of ``path`` is written first.

    ``keeps_suffix``: for writers that choose a format by the suffix.
    """
    suffix = path.suffix if keeps_suffix else ""
    return path.with_name(f".{path.stem[:_MAX_NAME_KEPT]}.{secrets.token_hex(4)}{_TEMPORARY}{suffix}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
