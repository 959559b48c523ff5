"""The model that fine-tuning starts from: a folder of transformers, a checkpoint of ours, or a config alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.conversion import write_transformers
from mask2former.checkpoint.transformers_config import read_json_object
from mask2former.config import CfgNode, get_cfg
from mask2former.errors import CheckpointError, ConfigError
from mask2former.integrations.transformers.configuration import Mask2FormerConfig, OneFormerConfig
from mask2former.integrations.transformers.image_processing import Mask2FormerImageProcessor
from mask2former.integrations.transformers.loading import find_folder
from mask2former.integrations.transformers.modeling import Mask2FormerForUniversalSegmentation
from mask2former.integrations.transformers.one_former import OneFormerForUniversalSegmentation
from mask2former.integrations.transformers.task_processing import OneFormerImageProcessor, OneFormerProcessor
from mask2former.modeling import build_model

_LEARNING_NORMS = ("BN", "SyncBN")
_WAYS = (
    "--model_name_or_path FOLDER of transformers, --config_file YAML of this project with or without "
    "--model_name_or_path CHECKPOINT, or --config_name CONFIG of transformers"
)


@dataclass(frozen=True)
class _Kind:
    """The classes of a model type."""

    config: Any
    model: Any
    processor: Any


_ONEFORMER = _Kind(OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor)
_MASK2FORMER = _Kind(Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor)


@dataclass(frozen=True)
class StartRequest:
    """What the command line says; ``train_batch_norms`` None leaves it to where the model comes from."""

    model: str | None = None
    config_file: str | None = None
    config_name: str | None = None
    train_batch_norms: bool | None = None


def load_start(
    request: StartRequest, *, label2id: Mapping[str, int], size: Mapping[str, int], hub: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Return the model with these classes, its classifier anew where it had others, and its processor.

    Both are of Mask2Former or of OneFormer, which gets its text branch.

    Raises:
        CheckpointError: no such folder or file, or weights of another model.
        ConfigError: nothing to start from, too many things, or a model that transformers does not have.
    """
    if request.config_name is not None and (request.model is not None or request.config_file is not None):
        raise ConfigError("--config_name: a model from scratch; it goes with no other model or config")
    if request.config_file is not None:
        with tempfile.TemporaryDirectory() as folder:
            cfg = _write_folder(request, Path(folder), num_classes=len(label2id))
            norms = cfg.MODEL.RESNETS.NORM in _LEARNING_NORMS
            return _load_folder(Path(folder), request, label2id, size, {}, learns_norms=norms)
    if request.config_name is not None:
        return _build(request, label2id, size)
    if request.model is None:
        raise ConfigError(f"no model to start from; expected {_WAYS}")
    if Path(request.model).is_file() or "://" in request.model:
        raise ConfigError(f"--model_name_or_path {request.model}: --config_file FILE: needed to know its model")
    return _load_folder(find_folder(request.model, hub), request, label2id, size, hub, learns_norms=None)


def _load_folder(
    folder: Path,
    request: StartRequest,
    label2id: Mapping[str, int],
    size: Mapping[str, int],
    hub: Mapping[str, Any],
    *,
    learns_norms: bool | None,
) -> tuple[Any, Any]:
    kind = _kind_of(read_json_object(folder / "config.json"))
    options = _options(kind, label2id)
    learns_norms = learns_norms if request.train_batch_norms is None else request.train_batch_norms
    if learns_norms is not None:
        options["train_batch_norms"] = learns_norms
    model = kind.model.from_pretrained(folder, ignore_mismatched_sizes=True, **options)
    has_processor = (folder / "preprocessor_config.json").is_file()
    processor = kind.processor.from_pretrained(folder) if has_processor else kind.processor()
    return model, _processor_of(model, _resizing(processor, size), label2id)


def _build(request: StartRequest, label2id: Mapping[str, int], size: Mapping[str, int]) -> tuple[Any, Any]:
    assert request.config_name is not None
    path = Path(request.config_name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        content = read_json_object(path)
    except CheckpointError as error:
        raise ConfigError(f"--config_name {error}") from error
    norms = True if request.train_batch_norms is None else request.train_batch_norms
    kind = _kind_of(content)
    model = kind.model(kind.config.from_dict({**content, **_options(kind, label2id), "train_batch_norms": norms}))
    return model, _processor_of(model, _resizing(kind.processor(), size), label2id)


def _kind_of(content: Mapping[str, Any]) -> _Kind:
    return _ONEFORMER if content.get("model_type") == OneFormerConfig.model_type else _MASK2FORMER


def _options(kind: _Kind, label2id: Mapping[str, int]) -> dict[str, Any]:
    labels = {"label2id": dict(label2id), "id2label": {class_id: name for name, class_id in label2id.items()}}
    return {**labels, "is_training": True} if kind is _ONEFORMER else labels


def _resizing(processor: Any, size: Mapping[str, int]) -> Any:
    """Return the processor for images of one size, by the published rules."""
    content = processor.to_dict() | {"do_resize": True, "size": dict(size), "parity": "published"}
    if isinstance(processor, Mask2FormerImageProcessor):
        content["pad_size"] = None
    return type(processor).from_dict(content)


def _processor_of(model: Any, processor: Any, label2id: Mapping[str, int]) -> Any:
    """Return a OneFormer's image processor with its classes, all of them things, and tokens; others as they are."""
    if not isinstance(processor, OneFormerImageProcessor):
        return processor
    names = sorted(label2id, key=label2id.__getitem__)
    ids = range(len(names))
    processor.metadata = {**{str(i): names[i] for i in ids}, "class_names": names, "thing_ids": list(ids)}
    processor.num_text = model.model.num_texts
    return OneFormerProcessor(processor, task_seq_length=model.config.task_seq_len)


def _write_folder(request: StartRequest, folder: Path, *, num_classes: int) -> CfgNode:
    """Return a folder of transformers with the model of our config and what of the weights fits it; returns the config.

    What the checkpoint lacks, such as all but the backbone of ImageNet's, begins anew.
    """
    assert request.config_file is not None
    cfg = get_cfg()
    cfg.merge_from_file(request.config_file)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    model = build_model(cfg)
    if request.model is not None:
        load_weights(model, request.model)
    write_transformers(model.state_dict(), folder, cfg=cfg)
    return cfg
