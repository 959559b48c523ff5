"""Whether a path is a file that can be read: no pipe that nobody writes to, device without end, or link to nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def describe_irregular(path: Path, *, kind: str = "file") -> str | None:
    """What hinders reading `path` as a `kind`, as a message that begins with the path goes on; None for nothing."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"no such {kind}: a link to {os.readlink(path)}, which is not there"
        return f"no such {kind}"
    except ValueError:
        return f"no such {kind}: the name has a character that no file name has"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    for is_kind, name in _KINDS:
        if is_kind(mode):
            return f"expected a {kind}, found {name}"
    return None if os.access(path, os.R_OK) else "cannot be read: Permission denied"
