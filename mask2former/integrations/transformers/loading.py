"""``from_pretrained`` and ``save_pretrained`` for models whose tensors bear other names than their files.

Files bear the names of transformers, or the published ones.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mask2former.checkpoint import load_state
from mask2former.checkpoint.addresses import SCHEME, fetch_from_hub, parse_hub_name
from mask2former.checkpoint.conversion import to_transformers
from mask2former.checkpoint.families import DERIVED, convert_to_ours
from mask2former.checkpoint.loading import find_weights, to_tensors
from mask2former.checkpoint.transformers_names import UNUSED_BY_HEADS
from mask2former.errors import CheckpointError, ConfigError

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


@dataclass(frozen=True)
class Naming:
    """How the tensors of a model here are named, beside the published names.

    ``mark`` begins a published name that only such a model has. ``classes_apart``: the classifier lies beside the model
    without heads, as in transformers, and not within it, as published.
    """

    model: str
    mark: str
    classes_apart: bool

    def is_own(self, names: Iterable[str]) -> bool:
        """Return whether names are those of our models, with heads or without."""
        listed = list(names)
        has_decoder = any(name.removeprefix(BASE).startswith("sem_seg_head.pixel_decoder.") for name in listed)
        if self.classes_apart:
            return has_decoder and not any(name.startswith(_PUBLISHED_CLASSES) for name in listed)
        return has_decoder and not any(name.startswith("sem_seg_head.") for name in listed)

    def to_own(self, tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Return tensors of their names, with or without heads, or of published ones, under those with heads.

        Raises:
            CheckpointError: names of another model.
        """
        if self.is_own(tensors):
            return dict(tensors)
        if any(name.startswith(_THEIRS_WITHOUT_HEADS) for name in tensors):
            tensors = {BASE + name: tensor for name, tensor in tensors.items()}
        converted = convert_to_ours(tensors, source=source)
        if not any(name.startswith(self.mark) for name in converted.tensors):
            example = next(iter(tensors), "nothing")
            raise CheckpointError(f"{source}: expected the weights of a {self.model}, found for instance {example!r}")
        result = {self._own_name(name): tensor for name, tensor in converted.tensors.items()}
        for name, tensor in tensors.items():
            if re.search(UNUSED_BY_HEADS[0], name):
                result[BASE + FINAL_NORM + name.rpartition(".")[2]] = tensor
        return result

    def to_theirs(self, tensors: Mapping[str, Tensor], *, with_heads: bool) -> dict[str, Tensor]:
        """Return the way back, of a state dict of the model with heads or of that without."""
        if _is_theirs(tensors):  # they were renamed already
            return dict(tensors)
        names = {name: name if with_heads else BASE + name for name in tensors}
        published = {self._published_name(names[name]): tensor for name, tensor in tensors.items()}
        norms = {name: published.pop(name) for name in list(published) if name.startswith(FINAL_NORM)}
        result = to_transformers(published)
        result |= {_THEIR_FINAL_NORM + name.removeprefix(FINAL_NORM): tensor.cpu() for name, tensor in norms.items()}
        return result if with_heads else {name.removeprefix(BASE): tensor for name, tensor in result.items()}

    def _own_name(self, published: str) -> str:
        if self.classes_apart and published.startswith(_PUBLISHED_CLASSES):
            return published.replace(_PUBLISHED_CLASSES, _CLASSES)
        return published if published.startswith(_CRITERION) else BASE + published

    def _published_name(self, own: str) -> str:
        return own.replace(_CLASSES, _PUBLISHED_CLASSES) if own.startswith(_CLASSES) else own.removeprefix(BASE)


_logger = logging.getLogger(__name__)

_LOADING_OPTIONS = (
    *("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder"),
    *("proxies", "trust_remote_code", "use_safetensors", "low_cpu_mem_usage", "weights_only", "_from_auto"),
    *("_from_pipeline", "_commit_hash", "adapter_kwargs", "variant", "attn_implementation", "code_revision"),
)
_OPTIONAL = rf"{DERIVED}|{re.escape(FINAL_NORM)}"  # not in every file, and nothing depends on it


class PretrainedFolder:
    """The part of ``PreTrainedModel`` that reads and writes folders, in the names of transformers."""

    config: Any
    config_class: Any
    base_model_prefix: str
    naming: ClassVar[Naming]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """The model of a folder that transformers or we saved, or of a repository of the hub, ready for inference.

        Options as theirs: config, dtype, device_map (one device), ignore_mismatched_sizes, output_loading_info,
        state_dict (with None for the folder), those of a download, and keys of the config, such as num_labels.

        Raises:
            CheckpointError: no such folder, no weights in it, or weights of another model or of other shapes.
            ConfigError: the config of another model, or an unknown option.
            RuntimeError: under a context manager of the device "meta", where nothing can be loaded.
        """
        if torch.get_default_device().type == "meta":
            raise RuntimeError(
                "You are using `from_pretrained` with a meta device context manager: expected a real device"
            )
        state_dict, config = kwargs.pop("state_dict", None), kwargs.pop("config", None)
        dtype, torch_dtype = kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None)
        device = _single_device(kwargs.pop("device_map", None))
        ignore_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        with_info = kwargs.pop("output_loading_info", False)
        options = {key: kwargs.pop(key) for key in _LOADING_OPTIONS if key in kwargs}
        source = str(pretrained_model_name_or_path or "state_dict")
        if pretrained_model_name_or_path is not None:
            folder = find_folder(pretrained_model_name_or_path, options)
            config, kwargs = _resolve_config(cls, config, folder, kwargs)
            state_dict = to_tensors(find_weights(load_state(folder)))
        elif state_dict is None or config is None:
            raise CheckpointError("from_pretrained: expected a folder, or both config and state_dict")
        if kwargs:
            raise ConfigError(f"from_pretrained: unknown options {', '.join(sorted(kwargs))}")
        model: Any = cls(config)  # type: ignore[call-arg]
        tensors = model.to_own_state(state_dict, source=source)
        dtype = _resolve_dtype(dtype if dtype is not None else torch_dtype, config, tensors)
        info = _load(model.to(dtype), tensors, source=source, ignore_shapes=ignore_shapes)
        model.config.name_or_path = source
        model = model.to(device).eval() if device is not None else model.eval()
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Config and weights as transformers saves and loads them; options as theirs."""
        state_dict = kwargs.pop("state_dict", None)
        tensors = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        kwargs["state_dict"] = self.naming.to_theirs(tensors, with_heads=self._has_heads())
        return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Return tensors of our names or of theirs; the latter is what ``Trainer`` reads from its checkpoints."""
        tensors = self.to_own_state(state_dict, source="state_dict") if _is_theirs(state_dict) else state_dict
        return super().load_state_dict(tensors, strict=strict, assign=assign)  # type: ignore[misc]

    def to_own_state(self, tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Tensors of any of both names as this model's state dict has them, with the derived ones that files lack."""
        named = self.naming.to_own(tensors, source=source)
        if self._has_heads():
            named = {name if _is_headed(name) else BASE + name: tensor for name, tensor in named.items()}
        else:
            heads = [name for name in named if name.startswith(("class_predictor.", "criterion."))]
            named = {name.removeprefix(BASE): tensor for name, tensor in named.items() if name not in heads}
        own = self.state_dict()  # type: ignore[attr-defined]
        return {name: tensor for name, tensor in own.items() if re.search(_OPTIONAL, name)} | named

    def _has_heads(self) -> bool:
        return hasattr(self, self.base_model_prefix)


def _is_theirs(names: Mapping[str, Any]) -> bool:
    return any("pixel_level_module." in name for name in names)


def _is_headed(name: str) -> bool:
    return name.startswith((BASE, "class_predictor.", "criterion."))


def _resolve_config(cls: Any, config: Any, folder: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the config given or that of the folder, changed by what of ``kwargs`` are its keys.

    And the rest of these.
    """
    if config is not None and not isinstance(config, str | os.PathLike):
        return copy.deepcopy(config), kwargs
    where = folder if config is None else config
    try:
        return cls.config_class.from_pretrained(where, return_unused_kwargs=True, **kwargs)
    except OSError as error:  # transformers' own words, of a file that is missing or damaged
        raise ConfigError(f"{where}: no usable config.json: {str(error).strip().splitlines()[0]}") from error


def _resolve_dtype(dtype: Any, config: Any, tensors: Mapping[str, Tensor]) -> torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, None)
    if isinstance(dtype, torch.dtype):
        return dtype
    known = getattr(config, "dtype", None)
    if isinstance(known, torch.dtype):
        return known
    return next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)


def _single_device(device_map: Any) -> torch.device | None:
    if isinstance(device_map, dict):
        places = set(device_map.values())
        if len(places) != 1:
            raise ConfigError(f"device_map: expected one device for the whole model, found {device_map!r}")
        device_map = places.pop()
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    return None if device_map is None else torch.device(device_map)


def _load(model: nn.Module, tensors: dict[str, Tensor], *, source: str, ignore_shapes: bool) -> dict[str, Any]:
    """Copy what fits; returns transformers' loading info: missing, unexpected and mismatched keys."""
    own = model.state_dict()
    mismatched = {
        (name, tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    }
    if mismatched and not ignore_shapes:
        listed = "; ".join(f"{name} {found} here {expected}" for name, found, expected in sorted(mismatched))
        raise CheckpointError(
            f"{source}: tensors of other shapes: {listed}. With ignore_mismatched_sizes=True they begin anew"
        )
    fitting = {name: tensor for name, tensor in tensors.items() if name not in {entry[0] for entry in mismatched}}
    outcome = nn.Module.load_state_dict(model, fitting, strict=False)
    missing = set(outcome.missing_keys) - {entry[0] for entry in mismatched}
    for title, names in (("begin anew, not in it", missing), ("unknown, left out", set(outcome.unexpected_keys))):
        if names:
            _logger.warning("%s: %d tensors %s: %s", source, len(names), title, ", ".join(sorted(names)[:8]))
    return {
        "missing_keys": missing,
        "unexpected_keys": set(outcome.unexpected_keys),
        "mismatched_keys": mismatched,
        "error_msgs": [],
    }
