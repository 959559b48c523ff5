"""The published config files: ``configs/`` of the repository, or the copy inside an installed package."""

from __future__ import annotations

import difflib
import functools
import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDER = "configs"


@functools.cache
def configs_folder() -> Path:
    """Return the folder of the published config files: inside an installed package, beside the package in a clone."""
    installed = _PACKAGE / _FOLDER
    return installed if installed.is_dir() else _PACKAGE.parent / _FOLDER


def locate_config(name: str | os.PathLike[str]) -> str:
    """Return the path of a config file: ``name`` itself if there is such a file, else that of the published one.

    Published names may begin with ``configs/``. A name that is not found is returned unchanged.
    """
    given = os.fspath(name)
    path = Path(given).expanduser()
    if os.path.exists(path) or path.is_absolute():
        return given
    below = Path(*path.parts[1:]) if path.parts[:1] == (_FOLDER,) else path
    found = configs_folder() / below
    return str(found) if os.path.isfile(found) else given  # which takes names that are too long


def suggest_config(name: str) -> str:
    """Return published config names similar to a missing one, as text; empty if there is none."""
    known = {path.name: path for path in sorted(configs_folder().rglob("*.yaml"))}
    nearest = difflib.get_close_matches(Path(name).name, known, n=2, cutoff=0.8)
    paths = [known[match].relative_to(configs_folder()).as_posix() for match in nearest]
    return f"; did you mean {' or '.join(paths)}?" if paths else ""
