"""Data sets in a zip file, as tools hand them out: unpacked, then read as any other folder."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from mask2former.errors import DatasetError
from mask2former.files.inputs import open_file

_NO_DATA = "__MACOSX"  # what macOS adds


def is_zip(path: str | Path) -> bool:
    """Whether a path is called as a zip file and is no folder."""
    location = Path(path).expanduser()
    return location.suffix.lower() == ".zip" and location.is_file()


def unpack_zip(path: str | Path, folder: Path) -> Path:
    """Unpack into the new ``folder``, and return the folder that holds the data: the only one there, or ``folder``.

    Names that lead out of the folder stay within it.

    Raises:
        DatasetError: the file is no zip file, damaged, has a password, or the disk cannot hold its content.
    """
    location = Path(path).expanduser()
    try:
        folder.mkdir(parents=True)
        with open_file(location) as file, zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.filename.startswith(_NO_DATA)]
            needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
            if needed > free:
                raise DatasetError(f"{path}: unpacked it takes {needed >> 20} MiB, {folder} has {free >> 20} MiB free")
            archive.extractall(folder, members=entries)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: cannot be unpacked to {folder}: {error}") from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
