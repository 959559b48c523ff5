"""Class metadata of a run's data sets, stored in the run folder, so that prediction needs neither data nor code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mask2former.errors import DatasetError
from mask2former.files.atomic import write_text_atomic
from mask2former.files.json_files import read_json_object
from mask2former.structures import MetadataCatalog

RUN_METADATA_FILE = "metadata.json"
_IDS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
_KEYS = ("thing_classes", "stuff_classes", "thing_colors", "stuff_colors", "ignore_label", "label_divisor", *_IDS)


def write_run_metadata(names: Iterable[str], folder: str | Path) -> None:
    """Write class names, colours, ids, and the ignore label of data sets to the run folder."""
    content = {}
    for name in dict.fromkeys(names):
        known = MetadataCatalog.get(name).as_dict()
        content[name] = {key: known[key] for key in _KEYS if known.get(key) is not None}
    write_text_atomic(json.dumps(content, indent=1, default=int) + "\n", Path(folder) / RUN_METADATA_FILE)


def register_run_metadata(folder: str | Path) -> None:
    """Register the class metadata in a run folder, for data sets that are not registered or read yet.

    Raises:
        DatasetError: the file is damaged.
    """
    path = Path(folder) / RUN_METADATA_FILE
    if not path.is_file():
        return
    for name, fields in read_json_object(path, ()).items():
        if not isinstance(fields, dict):
            raise DatasetError(f"{path}: expected an object for {name!r}, found {type(fields).__name__}")
        metadata = MetadataCatalog.get(name)
        learnt = _read_fields(fields, f"{path}: {name}")
        metadata.set(**{key: value for key, value in learnt.items() if metadata.get(key) is None})


def _read_fields(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the known fields, with the numeric keys that json stores as text."""
    known = {key: value for key, value in fields.items() if key in _KEYS}
    try:
        known |= {key: {int(old): int(new) for old, new in known[key].items()} for key in _IDS if key in known}
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{source}: expected ids as numbers, found {error}") from error
    return known
