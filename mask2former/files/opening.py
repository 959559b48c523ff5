"""Open a file that a user named; report anything else at its place in one line with its name."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO, TypeAlias

from mask2former.errors import DatasetError, InputError

PathLike: TypeAlias = "str | os.PathLike[str]"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: PathLike, *, error: type[InputError] = DatasetError) -> BinaryIO:
    """Return the file, opened for reading bytes.

    Raises:
        DatasetError (or ``error``): it is missing, a dangling link, not a regular file, or not readable.
    """
    try:
        mode = os.stat(path).st_mode  # before opening: a pipe nobody writes to would be waited for
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as cause:
        what = "file not found" if not os.path.islink(path) else f"a link to {os.readlink(path)}, which is not there"
        raise error(f"{path}: {what}") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    except ValueError as cause:  # a NUL in the name
        raise error(f"{os.fspath(path)!r}: cannot be the name of a file: {cause}") from cause
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise error(f"{path}: expected a file, found {found}")


def read_file(path: PathLike, *, error: type[InputError] = DatasetError) -> bytes:
    """Return the bytes of a file.

    Raises:
        DatasetError (or ``error``): as ``open_file``, or the disk fails.
    """
    with open_file(path, error=error) as file:
        try:
            return file.read()
        except OSError as cause:
            raise error(f"{path}: cannot be read: {cause.strerror}") from cause
