"""Weights between folders of transformers and the modules here: finding the files, and names both ways."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mask2former.checkpoint import load_state
from mask2former.checkpoint.addresses import SCHEME, fetch_from_hub, parse_hub_name
from mask2former.checkpoint.conversion import to_transformers
from mask2former.checkpoint.families import convert_to_ours
from mask2former.checkpoint.loading import find_weights, to_tensors
from mask2former.checkpoint.transformers_names import UNUSED_BY_HEADS
from mask2former.errors import CheckpointError

BASE = "model."  # what their names begin with for the part without heads, and what ours do
FINAL_NORM = "final_norm."
_THEIR_FINAL_NORM = "model.pixel_level_module.encoder.swin.layernorm."
_THEIRS_WITHOUT_HEADS = ("pixel_level_module.", "transformer_module.")
_PUBLISHED_CLASSES = "sem_seg_head.predictor.class_embed."
_CLASSES = "class_predictor."
_CRITERION = "criterion."
_DOWNLOAD_OPTIONS = ("cache_dir", "token", "local_files_only", "force_download")


def find_folder(name: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """Return the local folder called ``name``, or the downloaded one of a repository of the hub.

    ``options`` are those of ``from_pretrained``: revision, cache_dir, token, local_files_only, force_download,
    subfolder.

    Raises:
        CheckpointError: no such folder, or one without a config; a repository that cannot be had.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        hub_name = None if folder.exists() else parse_hub_name(str(name).removeprefix(SCHEME))
        if hub_name is None or hub_name.file is not None:
            raise CheckpointError(f"{name}: expected a folder with config.json and weights, found no such folder")
        hub_name = replace(hub_name, revision=options.get("revision") or hub_name.revision)
        download = {key: options[key] for key in _DOWNLOAD_OPTIONS if options.get(key) is not None}
        try:
            folder = fetch_from_hub(hub_name, options=download)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: neither a folder nor to be had from the hub: {error}") from error
    folder = folder / (options.get("subfolder") or "")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: expected a folder with config.json and weights, found no config.json")
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder under the names of ``Mask2FormerForUniversalSegmentation``.

    Raises:
        CheckpointError: no weights, damaged ones, or those of another model.
    """
    return to_own_names(to_tensors(find_weights(load_state(folder))), source=str(folder))


def to_own_names(tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Return tensors of their names, with or without heads, or of ours, under those of our model with heads.

    Raises:
        CheckpointError: names of another model.
    """
    if is_own(tensors):
        return dict(tensors)
    if any(name.startswith(_THEIRS_WITHOUT_HEADS) for name in tensors):
        tensors = {BASE + name: tensor for name, tensor in tensors.items()}
    converted = convert_to_ours(tensors, source=source)
    if not any(name.startswith("sem_seg_head.predictor.query_feat.") for name in converted.tensors):
        example = next(iter(tensors), "nothing")
        raise CheckpointError(f"{source}: expected the weights of a Mask2Former, found for instance {example!r}")
    result = {_own_name(name): tensor for name, tensor in converted.tensors.items()}
    for name, tensor in tensors.items():
        if re.search(UNUSED_BY_HEADS[0], name):
            result[BASE + FINAL_NORM + name.rpartition(".")[2]] = tensor
    return result


def to_their_names(tensors: Mapping[str, Tensor], *, with_heads: bool) -> dict[str, Tensor]:
    """Return the way back, of a state dict of the model with heads or of that without."""
    if not is_own(tensors):  # they were renamed already
        return dict(tensors)
    names = {name: name if with_heads else BASE + name for name in tensors}
    published = {_published_name(names[name]): tensor for name, tensor in tensors.items()}
    norms = {name: published.pop(name) for name in list(published) if name.startswith(FINAL_NORM)}
    result = to_transformers(published)
    result |= {_THEIR_FINAL_NORM + name.removeprefix(FINAL_NORM): tensor.cpu() for name, tensor in norms.items()}
    return result if with_heads else {name.removeprefix(BASE): tensor for name, tensor in result.items()}


def is_own(names: Iterable[str]) -> bool:
    """Return whether names are those of our models, with heads or without.

    In the published layout classes lie in the head.
    """
    listed = list(names)
    has_decoder = any(name.removeprefix(BASE).startswith("sem_seg_head.pixel_decoder.") for name in listed)
    return has_decoder and not any(name.startswith(_PUBLISHED_CLASSES) for name in listed)


def _own_name(published: str) -> str:
    if published.startswith(_PUBLISHED_CLASSES):
        return published.replace(_PUBLISHED_CLASSES, _CLASSES)
    return published if published.startswith(_CRITERION) else BASE + published


def _published_name(own: str) -> str:
    return own.replace(_CLASSES, _PUBLISHED_CLASSES) if own.startswith(_CLASSES) else own.removeprefix(BASE)
