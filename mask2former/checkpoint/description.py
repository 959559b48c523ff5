"""What a file of weights says of itself: the config of its model, and the class metadata of its data sets.

Both are text beside the tensors. They are read without the tensors, so that a config is found before a model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.checkpoint.addresses import resolve_address
from mask2former.checkpoint.reader import read_guarded
from mask2former.checkpoint.torch_archive import read_outline
from mask2former.runtime.exported_info import SUFFIXES, read_info

_CONFIG, _METADATA = "config", "metadata"
_MAX_LETTERS = 1 << 24


class Description(NamedTuple):
    """``config``: YAML; ``metadata``: JSON as of a run's metadata.json, empty where the file has none."""

    config: str
    metadata: str = ""


def describe(config: str, metadata: str = "") -> dict[str, str]:
    """Return the entries of a checkpoint, or of the metadata of safetensors, that hold a description."""
    return {_CONFIG: config, **({_METADATA: metadata} if metadata else {})}


def read_description(path: str | Path) -> Description | None:
    """Return what a file of weights, or an exported one, says of itself; None where it says nothing.

    Addresses are downloaded to the cache.

    Raises:
        CheckpointError: the file cannot be read, or an address cannot be downloaded.
    """
    local = resolve_address(path)
    reader = _READERS.get(local.suffix.lower())
    if reader is None or not local.is_file():
        return None
    entries = read_guarded(local, reader)
    texts = [entries.get(name, "") for name in (_CONFIG, _METADATA)]
    is_text = all(isinstance(text, str) and len(text) <= _MAX_LETTERS for text in texts)
    return Description(*texts) if is_text and texts[0] else None


def _read_torch(path: Path) -> Mapping[Any, Any]:
    with path.open("rb") as file:
        outline = read_outline(file, source=str(path), size=path.stat().st_size)
    return outline if isinstance(outline, dict) else {}


def _read_safetensors(path: Path) -> Mapping[Any, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _read_exported(path: Path) -> Mapping[Any, Any]:
    return read_info(path).model


_READERS: dict[str, Callable[[Path], Mapping[Any, Any]]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    **dict.fromkeys(SUFFIXES, _read_exported),
}
