"""Atomic writing, and folders reserved for one process.

Readers, even after a crash or power loss, find the old file or the new one, never a part: a temporary file lies beside
the target, with a dot before its name and ``.tmp`` after it; it is removed on any error. A folder is reserved by a
lock of the system that ends with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from mask2former.errors import ConfigError, InputError
from mask2former.files.inputs import PathLike

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


LOCK_FILE = ".run.lock"

_held: set[tuple[int, Path]] = set()  # process and folder: a forked process inherits no lock

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Hold ``folder``, which is created if missing; one process may hold it several times.

    Raises:
        ConfigError: another process holds it, or nothing can be written there.
    """
    key = os.getpid(), Path(os.path.realpath(folder))
    if key in _held:
        yield
        return
    path = Path(folder) / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder}: cannot be written to: {error.strerror}") from error
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: whoever waits at the old file sees that it is no longer the one
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Of the process, not of the open file: data workers, which inherit that, may outlive their parent a little.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise ConfigError(
                    f"OUTPUT_DIR {path.parent}: another run writes there (process {holder or 'unknown'}); wait for it, "
                    "or choose another OUTPUT_DIR"
                ) from None
            logger.warning(
                "%s: no lock on this file system (%s): see that no two runs write there", path, error.strerror
            )
            return descriptor
        try:
            is_current = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            is_current = False
        if is_current:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)  # the run that held it has ended, and removed it, in between
