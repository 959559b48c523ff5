"""Safe reading of checkpoint files: no format here can execute code."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mask2former.checkpoint.addresses import resolve_address, suggest_source
from mask2former.checkpoint.restricted_pickle import RestrictedUnpickler
from mask2former.errors import CheckpointError

_TRANSFORMERS_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")


def load_state(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint, tensors on the CPU; arrays of ``.pkl`` files stay numpy arrays.

    ``.pth``, ``.pt`` and ``.bin`` are torch files, ``.safetensors`` is flat name to tensor (returned as
    ``{"model": …}``), ``.pkl`` holds numpy arrays. A folder is one of transformers. Addresses (``zoo://…``,
    ``detectron2://…``, ``https://…``) are downloaded to the cache.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, of an unknown kind, or names code to run, or an
            address cannot be downloaded.
    """
    path = resolve_address(path)
    if path.is_dir():
        path = _find_transformers_file(path)
    reader = _read_sharded if path.name == _TRANSFORMERS_FILES[0] else _READERS.get(path.suffix.lower())
    if reader is None:
        raise CheckpointError(f"{path}: unknown kind of checkpoint, expected one of {', '.join(_READERS)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file{suggest_source(path)}")
    try:
        state = reader(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the readers raise whatever a damaged byte leads them to
        raise CheckpointError(f"{path}: truncated or corrupt: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, found {type(state).__name__}")
    return state


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        _verify_zip(path)
    elif path.stat().st_size == 0 or path.read_bytes()[:2] == b"PK":
        raise CheckpointError(f"{path}: truncated: {path.stat().st_size} bytes, and the end of the archive is missing")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # what it cannot read it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:Unsupported global: )?GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise
        raise CheckpointError(
            f"{path}: refused, nothing was run: the file names {refused.group(1)}, and only tensors and plain "
            "containers are read"
        ) from error


def _verify_zip(path: Path) -> None:
    """Compares every record with its checksum, which torch does not (about 5 GB/s)."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path}: corrupt: the checksum of the record {damaged} is wrong")


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return RestrictedUnpickler(file, source=str(path)).load()


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return {"model": load_file(path, device="cpu")}


def _find_transformers_file(folder: Path) -> Path:
    for name in _TRANSFORMERS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: a folder without weights, expected one of {', '.join(_TRANSFORMERS_FILES)} in it")


def _read_sharded(index: Path) -> Any:
    """Several safetensors files beside an index that lists them."""
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index}: refused: lists {shard!r}, expected .safetensors files of the same folder")
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index}: the listed file {shard} is missing")
        tensors |= _read_safetensors(index.parent / shard)["model"]
    return {"model": tensors}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0][:200] if text else ''}"


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".pkl": _read_pickle,
    ".safetensors": _read_safetensors,
}
