"""Reserve a folder for one process, by a lock of the system that ends with the process, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mask2former.errors import ConfigError

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
