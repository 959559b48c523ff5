"""Opening what a data set names: folders, JSON files, and errors that say which of them is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mask2former.errors import DatasetError, InputError
from mask2former.files.opening import PathLike


def root_note() -> str:
    """For errors about missing files: what the dataset root is, in brackets."""
    return f"(DETECTRON2_DATASETS is {os.environ.get('DETECTRON2_DATASETS', 'not set: ./datasets')})"


def require_folder(path: str | os.PathLike[str], role: str) -> Path:
    """``path``, checked to be a folder with something in it; ``role`` says in an error what it should hold.

    Raises:
        DatasetError: the folder is missing or empty.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DatasetError(f"{role} folder not found: {folder} {root_note()}")
    if next(os.scandir(folder), None) is None:
        raise DatasetError(f"{role} folder is empty: {folder}")
    return folder


def read_json_object(path: str | os.PathLike[str], keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that has ``keys``, each a list.

    Raises:
        DatasetError: the file is missing, is no JSON object, or lacks a key.
    """
    file = Path(path)
    if not file.is_file():
        raise DatasetError(f"annotation file not found: {file} {root_note()}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:  # also undecodable text
        raise DatasetError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} must hold a JSON object, found {type(content).__name__}")
    for key in keys:
        if not isinstance(content.get(key), list):
            found = type(content[key]).__name__ if key in content else "no such key"
            raise DatasetError(f"{file}: expected a list under {key!r}, found {found}")
    return content


def read_json(path: PathLike, *, error: type[InputError] = DatasetError) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError (or ``error``): it is missing or not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    except ValueError as cause:
        raise error(f"{path}: not a valid JSON file: {cause}") from cause


def read_json_if_whole(path: Path) -> Any:
    """The content of a JSON file, None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def require_keys(entry: Any, keys: tuple[str, ...], context: str) -> dict[str, Any]:
    """``entry``, checked to be an object with ``keys``; ``context`` says in an error where it stands.

    Raises:
        DatasetError: it is no object or lacks a key.
    """
    if not isinstance(entry, dict):
        raise DatasetError(f"{context}: expected an object, found {type(entry).__name__}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise DatasetError(f"{context}: missing {', '.join(map(repr, missing))}, found {sorted(entry)}")
    return entry
