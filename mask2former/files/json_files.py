"""Read JSON files, and check that they hold the keys and lists that are needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mask2former.errors import DatasetError, InputError
from mask2former.files.inputs import PathLike, open_file

_MAX_BYTES = 16 << 30


def root_note() -> str:
    """Return the dataset root in brackets, for errors about missing files."""
    return f"(DETECTRON2_DATASETS is {os.environ.get('DETECTRON2_DATASETS', 'not set: ./datasets')})"


def require_folder(path: PathLike, role: str) -> Path:
    """Return ``path`` after checking that it is a folder that is not empty; errors say its ``role``.

    Raises:
        DatasetError: the folder is missing or empty.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DatasetError(f"{role} folder not found: {folder} {root_note()}")
    if next(os.scandir(folder), None) is None:
        raise DatasetError(f"{role} folder is empty: {folder}")
    return folder


def read_json(path: PathLike, *, error: type[InputError] = DatasetError) -> Any:
    """Return what a JSON file holds; it may begin with a byte-order mark.

    Raises:
        DatasetError (or ``error``): it is missing, no file, too large, no JSON, or nested too deeply.
    """
    if error is DatasetError and not os.path.lexists(path):
        raise error(f"{path}: file not found {root_note()}")
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise error(f"{path}: {size >> 30} GiB are too large for JSON (at most {_MAX_BYTES >> 30})")
        try:
            content = file.read()
        except OSError as cause:
            raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    return parse_json(content, source=f"{path}", error=error)


def parse_json(content: str | bytes, *, source: str, error: type[InputError] = DatasetError) -> Any:
    """Return what JSON text holds.

    Raises:
        DatasetError (or ``error``): it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as cause:
        raise error(f"{source}: not a valid JSON file: nested too deeply") from cause
    except ValueError as cause:  # also undecodable text
        raise error(f"{source}: not a valid JSON file: {str(cause)[:200]}") from cause


def read_json_object(
    path: PathLike, keys: tuple[str, ...], *, error: type[InputError] = DatasetError
) -> dict[str, Any]:
    """Return a JSON object that has ``keys``, each a list.

    Raises:
        DatasetError (or ``error``): the file cannot be read, is no JSON object, or lacks a key.
    """
    return require_lists(read_json(path, error=error), keys, path, error=error)


def require_lists(
    content: Any,
    keys: tuple[str, ...],
    source: PathLike,
    *,
    optional: tuple[str, ...] = (),
    error: type[InputError] = DatasetError,
) -> dict[str, Any]:
    """Return ``content`` of the file ``source`` after checking that it has a list under each of ``keys``.

    The value under an ``optional`` key is a list, null or missing.

    Raises:
        DatasetError (or ``error``): it is not.
    """
    if not isinstance(content, dict):
        raise error(f"{source} must hold a JSON object, found {type(content).__name__}")
    for key in (*keys, *(key for key in optional if content.get(key) is not None)):
        if not isinstance(content.get(key), list):
            found = type(content[key]).__name__ if key in content else "no such key"
            raise error(f"{source}: expected a list under {key!r}, found {found}")
    return content


def read_json_if_whole(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or damaged."""
    try:
        return read_json(path)
    except DatasetError:
        return None


def require_keys(entry: Any, keys: tuple[str, ...], context: str) -> dict[str, Any]:
    """Return ``entry`` after checking that it is an object with ``keys``; errors say its ``context``.

    Raises:
        DatasetError: it is no object or lacks a key.
    """
    if not isinstance(entry, dict):
        raise DatasetError(f"{context}: expected an object, found {type(entry).__name__}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise DatasetError(f"{context}: missing {', '.join(map(repr, missing))}, found {sorted(map(str, entry))[:20]}")
    return entry
