"""Safe reading of checkpoint files: no format here can execute code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mask2former.checkpoint.addresses import (
    FINAL,
    TRANSFORMERS_FILES,
    find_weights_file,
    resolve_address,
    suggest_source,
)
from mask2former.checkpoint.pickle_machine import DamagedError
from mask2former.checkpoint.restricted_pickle import read_pickle
from mask2former.checkpoint.torch_archive import load_torch
from mask2former.checkpoint.transformers_config import read_json_object
from mask2former.errors import CheckpointError
from mask2former.files.addresses import cache_directory
from mask2former.files.inputs import open_file

_FOLDER_FILES = (*TRANSFORMERS_FILES, FINAL)


def load_state(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint, tensors on the CPU; arrays of ``.pkl`` files stay numpy arrays.

    ``.pth``, ``.pt`` and ``.bin`` are torch files, ``.safetensors`` is flat name to tensor (returned as
    ``{"model": …}``), ``.pkl`` holds numpy arrays. A folder is one of transformers or of a run. Addresses
    (``zoo://…``, ``detectron2://…``, ``https://…``, ``hf://…``) are downloaded to the cache.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, of an unknown kind, or names code to run, or an
            address cannot be downloaded.
    """
    local = resolve_address(path)
    state = _read(local)
    if not isinstance(state, dict):
        raise CheckpointError(f"{local}: expected a mapping of names to tensors, found {type(state).__name__}")
    return state


def _read(path: Path) -> Any:
    if os.path.isdir(path):  # which takes names that the system refuses for no folder
        found = find_weights_file(path)
        if found is None:
            raise CheckpointError(f"{path}: a folder without weights, expected one of {', '.join(_FOLDER_FILES)} in it")
        path = found
    reader = _read_sharded if path.name == TRANSFORMERS_FILES[0] else _READERS.get(path.suffix.lower())
    if reader is None:
        raise CheckpointError(f"{path}: unknown kind of checkpoint, expected one of {', '.join(_READERS)}")
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: no such checkpoint file{suggest_source(path)}")
    return read_guarded(path, reader)


def read_guarded(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Return what ``reader`` finds in a file; a damaged one is removed from the cache.

    Raises:
        CheckpointError: it is no readable file, or damaged.
    """
    open_file(path, error=CheckpointError).close()
    try:
        return reader(path)
    except DamagedError as error:
        raise _discard(path, str(error)) from error
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the readers raise whatever a damaged byte leads them to
        raise _discard(path, f"{path}: truncated or corrupt: {_first_line(error)}") from error


def _discard(path: Path, fault: str) -> CheckpointError:
    if not path.is_relative_to(cache_directory()):
        return DamagedError(fault)
    path.unlink(missing_ok=True)
    return CheckpointError(f"{fault}; removed from the cache, so that the next run downloads it anew")


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        return load_torch(file, source=str(path), size=path.stat().st_size)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return {"model": load_file(path, device="cpu")}


def _read_sharded(index: Path) -> Any:
    """Several safetensors files beside an index that lists them."""
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object that names the file of each tensor")
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(listed.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index}: refused: lists {shard!a}, expected .safetensors files of the same folder")
        open_file(index.parent / shard, error=CheckpointError).close()
        tensors |= _read_safetensors(index.parent / shard)["model"]
    absent = [name for name in listed if name not in tensors]
    if absent:
        raise CheckpointError(f"{index}: {len(absent)} tensors are in none of the listed files, such as {absent[0]!a}")
    return {"model": tensors}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0][:200] if text else ''}"


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".pkl": read_pickle,
    ".safetensors": _read_safetensors,
}
