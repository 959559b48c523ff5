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
from mask2former.integrations.transformers.configuration import Mask2FormerConfig
from mask2former.integrations.transformers.image_processing import Mask2FormerImageProcessor
from mask2former.integrations.transformers.loading import find_folder
from mask2former.integrations.transformers.modeling import Mask2FormerForUniversalSegmentation
from mask2former.modeling import build_model

_LEARNING_NORMS = ("BN", "SyncBN")
_WAYS = (
    "--model_name_or_path FOLDER of transformers, --config_file YAML of this project with or without "
    "--model_name_or_path CHECKPOINT, or --config_name CONFIG of transformers"
)


@dataclass(frozen=True)
class StartRequest:
    """What the command line says; ``train_batch_norms`` None leaves it to where the model comes from."""

    model: str | None = None
    config_file: str | None = None
    config_name: str | None = None
    train_batch_norms: bool | None = None


def load_start(
    request: StartRequest, *, label2id: Mapping[str, int], size: Mapping[str, int], hub: Mapping[str, Any]
) -> tuple[Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor]:
    """Return the model with these classes, its classifier anew where it had others, and its image processor.

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
) -> tuple[Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor]:
    options = _labels(label2id)
    learns_norms = learns_norms if request.train_batch_norms is None else request.train_batch_norms
    if learns_norms is not None:
        options["train_batch_norms"] = learns_norms
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder, ignore_mismatched_sizes=True, **options)
    has_processor = (folder / "preprocessor_config.json").is_file()
    processor = Mask2FormerImageProcessor.from_pretrained(folder) if has_processor else Mask2FormerImageProcessor()
    return model, _resizing(processor, size)


def _build(
    request: StartRequest, label2id: Mapping[str, int], size: Mapping[str, int]
) -> tuple[Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor]:
    assert request.config_name is not None
    path = Path(request.config_name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        content = read_json_object(path)
    except CheckpointError as error:
        raise ConfigError(f"--config_name {error}") from error
    norms = True if request.train_batch_norms is None else request.train_batch_norms
    config = Mask2FormerConfig.from_dict({**content, **_labels(label2id), "train_batch_norms": norms})
    return Mask2FormerForUniversalSegmentation(config), _resizing(Mask2FormerImageProcessor(), size)


def _labels(label2id: Mapping[str, int]) -> dict[str, Any]:
    return {"label2id": dict(label2id), "id2label": {class_id: name for name, class_id in label2id.items()}}


def _resizing(processor: Mask2FormerImageProcessor, size: Mapping[str, int]) -> Mask2FormerImageProcessor:
    """Return the processor for images of one size, by the published rules."""
    content = processor.to_dict() | {"do_resize": True, "size": dict(size), "parity": "published", "pad_size": None}
    return Mask2FormerImageProcessor.from_dict(content)


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
