"""Writing weights in the layout of another family: ours, which is the published one, or that of transformers."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask2former.checkpoint.families import DERIVED, Converted, convert_to_ours
from mask2former.checkpoint.loading import find_weights, to_tensors
from mask2former.checkpoint.name_rules import rename_from_ours
from mask2former.checkpoint.reader import load_state
from mask2former.checkpoint.transformers_config import config_to_transformers, preprocessor_to_transformers
from mask2former.checkpoint.transformers_names import MASK2FORMER_RULES, MASKFORMER_RULES, ONEFORMER_RULES
from mask2former.errors import CheckpointError
from mask2former.files.atomic import save_atomic, write_bytes_atomic, write_text_atomic

_BACKBONE = "backbone."
_MASK2FORMER_QUERIES = "sem_seg_head.predictor.query_feat.weight"  # MaskFormer's begin at zero
_ONEFORMER_TASK = "task_mlp.layers.0.weight"
_FIRST_CONVOLUTIONS = ("backbone.stem.conv1.weight", "backbone.patch_embed.proj.weight")


def read_converted(path: str | Path, *, swap_channels: bool = False) -> Converted:
    """Return the weights of a file, folder or address of any known family, under our names.

    ``swap_channels``: the first convolution takes BGR images where it took RGB ones, or the other way round.

    Raises:
        CheckpointError: it cannot be read safely, or its names are of no known family.
    """
    tensors = to_tensors(find_weights(load_state(path)))
    converted = convert_to_ours(tensors, source=str(path))
    if converted.family is None:
        example = next(iter(tensors), "nothing")
        raise CheckpointError(f"{path}: weights of no known family: {len(tensors)} tensors, for instance {example!r}")
    if swap_channels:
        _swap_channels(converted.tensors, source=str(path))
    return converted


def _swap_channels(tensors: dict[str, Tensor], *, source: str) -> None:
    name = next((name for name in _FIRST_CONVOLUTIONS if name in tensors), None)
    if name is None or tensors[name].shape[1] != 3:
        raise CheckpointError(f"{source}: no first convolution of three channels to swap")
    tensors[name] = tensors[name].flip(1)


def write_ours(
    tensors: Mapping[str, Tensor], path: str | Path, *, description: Mapping[str, str] | None = None
) -> None:
    """One file by its ending: ``.pth`` of torch, ``.safetensors``, or ``.pkl`` as the published ones.

    A ``.pkl`` of a backbone alone bears names without ``backbone.``, as training configs of detectron2 expect it; it
    holds no ``description`` (``description.describe``).

    Raises:
        CheckpointError: another ending.
    """
    path = Path(path)
    plain = _separate(tensors)
    if path.suffix in (".pth", ".pt"):
        save_atomic({"model": plain, **(description or {})}, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save

        write_bytes_atomic(save(plain, metadata={"format": "pt", **(description or {})}), path)
    elif path.suffix == ".pkl":
        write_bytes_atomic(_pickle(plain), path)
    else:
        raise CheckpointError(f"{path}: expected a name in .pth, .pkl or .safetensors, or a folder for transformers")


def _pickle(tensors: Mapping[str, Tensor]) -> bytes:
    is_backbone = all(name.startswith(_BACKBONE) for name in tensors)
    # numpy has no bfloat16
    arrays = {
        name.removeprefix(_BACKBONE) if is_backbone else name: (
            tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        ).numpy()
        for name, tensor in tensors.items()
    }
    content: dict[str, Any] = {"model": arrays, "__author__": "mask2former"}
    if is_backbone:
        content["matching_heuristics"] = True
    return pickle.dumps(content, protocol=4)


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a Mask2Former, MaskFormer or OneFormer of ours under the names of transformers.

    Raises:
        CheckpointError: tensors that their model has no place for.
    """
    with_queries = MASK2FORMER_RULES if _MASK2FORMER_QUERIES in tensors else MASKFORMER_RULES
    rules = ONEFORMER_RULES if _ONEFORMER_TASK in tensors else with_queries
    renamed = rename_from_ours(tensors, rules, drop=(DERIVED,))
    if renamed.unknown:
        raise CheckpointError(
            f"{len(renamed.unknown)} tensors have no place in the model of transformers, for instance "
            f"{renamed.unknown[0]!r}"
        )
    result = _separate(renamed.tensors)
    for name in renamed.tensors:
        if name.endswith(".running_mean"):  # theirs are batch norms that count their steps
            result[re.sub(r"running_mean$", "num_batches_tracked", name)] = torch.zeros((), dtype=torch.int64)
    return result


def write_transformers(
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    cfg: Any,
    class_names: Sequence[str] = (),
    thing_ids: Sequence[int] | None = None,
) -> None:
    """A folder that ``from_pretrained`` of their Mask2Former, MaskFormer or OneFormer reads.

    ``thing_ids`` are the classes that are things (None: all), which OneFormer's processor is told with the names.

    Raises:
        CheckpointError, ConfigError: a part of the model that theirs does not have.
    """
    from safetensors.torch import save

    folder = Path(folder)
    renamed = to_transformers(tensors)
    config = config_to_transformers(cfg, tensors, class_names=class_names)
    preprocessor = preprocessor_to_transformers(cfg, class_names=class_names, thing_ids=thing_ids)
    write_bytes_atomic(save(renamed, metadata={"format": "pt"}), folder / "model.safetensors")
    write_text_atomic(json.dumps(preprocessor, indent=2) + "\n", folder / "preprocessor_config.json")
    write_text_atomic(json.dumps(config, indent=2) + "\n", folder / "config.json")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, which safetensors refuses and torch files would write whole."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
