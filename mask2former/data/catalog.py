"""Data sets by name: each name stands for a function that returns dataset dicts.

A dataset dict describes one image: ``file_name``, ``height``, ``width``, ``image_id``, and its annotation:
``annotations`` (instances), ``pan_seg_file_name`` with ``segments_info``, ``sem_seg_file_name``. Or one video:
``file_names``, ``height``, ``width``, ``video_id``, and ``annotations``, a list for each frame.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from mask2former.config.registry import DETECTRON2, LinkedNames, load_integration
from mask2former.errors import DatasetError
from mask2former.files.json_files import read_json_object, require_keys
from mask2former.structures import Metadata, MetadataCatalog

__all__ = [
    "DatasetCatalog",
    "DatasetDict",
    "Metadata",
    "MetadataCatalog",
    "annotated_objects",
    "dataset_root",
    "is_video",
    "name_of",
]

DatasetDict = dict[str, Any]

_logger = logging.getLogger(__name__)


def dataset_root() -> Path:
    """Return the folder that contains data sets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def is_video(record: DatasetDict) -> bool:
    """Return whether a dataset dict describes a video rather than an image."""
    return "file_names" in record


def name_of(record: DatasetDict) -> str:
    """Return the file of an image, or of the first frame of a video."""
    return str(record["file_names"][0] if is_video(record) else record["file_name"])


def annotated_objects(record: DatasetDict) -> list[dict[str, Any]]:
    """Return the objects or segments of an image; those of a video once each, in however many frames they are."""
    if "annotations" not in record:
        return record.get("segments_info", [])
    if is_video(record):
        return list({seen["id"]: seen for frame in record["annotations"] for seen in frame}.values())
    return record["annotations"]


class _DatasetCatalog:
    """Functions that load a data set, by its name. Nothing is read before ``get``."""

    def __init__(self) -> None:
        self._loaders: MutableMapping[str, Callable[[], list[DatasetDict]]] = {}
        self._register_builtin: Callable[[], None] | None = None

    def call_before_search(self, register: Callable[[], None]) -> None:
        """Call ``register``, which adds the built-in data sets, before every look-up of a name."""
        self._register_builtin = register

    def link(self, others: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Look names up in another catalog, too, after this one; return this catalog's functions by name."""
        own = self._loaders
        self._loaders = LinkedNames(own, others)
        return own

    def register(self, name: str, func: Callable[[], list[DatasetDict]]) -> None:
        """Register ``func``, which loads a data set, under ``name``.

        Raises:
            DatasetError: the name is taken.
        """
        if name in self._loaders:
            raise DatasetError(
                f"data set {name!r} is registered already; DatasetCatalog.remove({name!r}) frees the name"
            )
        self._loaders[name] = func

    def find(self, name: str) -> bool:
        """Return whether a data set has this name: registered, built in, or one of an installed detectron2."""
        if self._register_builtin is not None:
            self._register_builtin()
        if name not in self._loaders:
            try:
                load_integration(DETECTRON2)  # which lets its data sets be found here
            except ImportError as error:
                _logger.warning("detectron2 is there but cannot be imported, its data sets are unknown: %s", error)
        return name in self._loaders

    def get(self, name: str) -> list[DatasetDict]:
        """Load a data set.

        Raises:
            DatasetError: no data set has this name, or its files are missing or wrong.
        """
        if not self.find(name):
            raise DatasetError(f"no data set is called {name!r}{self._suggestion(name)}")
        try:
            return self._loaders[name]()
        except DatasetError as error:
            raise DatasetError(f"data set {name!r}: {error}") from error

    def remove(self, name: str) -> None:
        self._loaders.pop(name)

    def list(self) -> list[str]:
        return list(self._loaders)

    def __contains__(self, name: str) -> bool:
        return name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def _suggestion(self, name: str) -> str:
        close = difflib.get_close_matches(str(name), self._loaders, n=3, cutoff=0.5)
        if close:
            return f"; did you mean {' or '.join(close)}?"
        return f"; known are {', '.join(sorted(self._loaders))}"


DatasetCatalog = _DatasetCatalog()

RUN_METADATA_FILE = "metadata.json"
_IDS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
_KEYS = ("thing_classes", "stuff_classes", "thing_colors", "stuff_colors", "ignore_label", "label_divisor", *_IDS)


def format_run_metadata(names: Iterable[str]) -> str:
    """Return class names, colours, ids, and the ignore label of data sets as JSON text."""
    content = {}
    for name in dict.fromkeys(names):
        known = MetadataCatalog.get(name).as_dict()
        content[name] = {key: known[key] for key in _KEYS if known.get(key) is not None}
    return json.dumps(content, indent=1, default=int) + "\n"


def register_run_metadata(folder: str | Path) -> None:
    """Register the class metadata in a run folder, for data sets that are not registered or read yet.

    Raises:
        DatasetError: the file is damaged.
    """
    path = Path(folder) / RUN_METADATA_FILE
    if path.is_file():
        register_classes(read_json_object(path, ()), source=str(path))


def register_classes(content: Any, *, source: str) -> None:
    """Register class metadata as ``format_run_metadata`` wrote them, for data sets not registered or read yet.

    Raises:
        DatasetError: they are damaged.
    """
    for name, fields in require_keys(content, (), source).items():
        if not isinstance(fields, dict):
            raise DatasetError(f"{source}: expected an object for {name!r}, found {type(fields).__name__}")
        metadata = MetadataCatalog.get(name)
        learnt = _read_fields(fields, f"{source}: {name}")
        metadata.set(**{key: value for key, value in learnt.items() if metadata.get(key) is None})


def _read_fields(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the known fields, with the numeric keys that json stores as text."""
    known = {key: value for key, value in fields.items() if key in _KEYS}
    try:
        known |= {key: {int(old): int(new) for old, new in known[key].items()} for key in _IDS if key in known}
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{source}: expected ids as numbers, found {error}") from error
    return known
