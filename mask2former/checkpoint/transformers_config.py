"""The ``config.json`` of the library transformers from a config of ours, and back. Neither needs the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mask2former.checkpoint.transformers_backbones import (
    FEATURES,
    backbone_from_transformers,
    backbone_to_transformers,
    expect,
    get,
    plain,
)
from mask2former.config.cfg_node import is_oneformer
from mask2former.errors import CheckpointError, ConfigError
from mask2former.files import json_files
from mask2former.files.annotation_values import plain_number
from mask2former.structures.segmentations import MAX_PIXELS, shown, whole_number

_MAX_DIGITS = 7  # of the number of a class
_MASK2FORMER_KEYS = {  # theirs: ours below MODEL
    "hidden_dim": "MASK_FORMER.HIDDEN_DIM",
    "num_attention_heads": "MASK_FORMER.NHEADS",
    "dim_feedforward": "MASK_FORMER.DIM_FEEDFORWARD",
    "decoder_layers": "MASK_FORMER.DEC_LAYERS",
    "num_queries": "MASK_FORMER.NUM_OBJECT_QUERIES",
    "pre_norm": "MASK_FORMER.PRE_NORM",
    "enforce_input_projection": "MASK_FORMER.ENFORCE_INPUT_PROJ",
    "no_object_weight": "MASK_FORMER.NO_OBJECT_WEIGHT",
    "class_weight": "MASK_FORMER.CLASS_WEIGHT",
    "mask_weight": "MASK_FORMER.MASK_WEIGHT",
    "dice_weight": "MASK_FORMER.DICE_WEIGHT",
    "train_num_points": "MASK_FORMER.TRAIN_NUM_POINTS",
    "oversample_ratio": "MASK_FORMER.OVERSAMPLE_RATIO",
    "importance_sample_ratio": "MASK_FORMER.IMPORTANCE_SAMPLE_RATIO",
    "feature_size": "SEM_SEG_HEAD.CONVS_DIM",
    "mask_feature_size": "SEM_SEG_HEAD.MASK_DIM",
    "encoder_layers": "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "common_stride": "SEM_SEG_HEAD.COMMON_STRIDE",
    "ignore_value": "SEM_SEG_HEAD.IGNORE_VALUE",
}
_ONEFORMER_KEYS = {  # theirs: ours
    "hidden_dim": "MODEL.ONE_FORMER.HIDDEN_DIM",
    "num_attention_heads": "MODEL.ONE_FORMER.NHEADS",
    "dim_feedforward": "MODEL.ONE_FORMER.DIM_FEEDFORWARD",
    "decoder_layers": "MODEL.ONE_FORMER.DEC_LAYERS",
    "query_dec_layers": "MODEL.ONE_FORMER.CLASS_DEC_LAYERS",
    "num_queries": "MODEL.ONE_FORMER.NUM_OBJECT_QUERIES",
    "pre_norm": "MODEL.ONE_FORMER.PRE_NORM",
    "enforce_input_proj": "MODEL.ONE_FORMER.ENFORCE_INPUT_PROJ",
    "use_task_norm": "MODEL.ONE_FORMER.USE_TASK_NORM",
    "dropout": "MODEL.ONE_FORMER.DROPOUT",
    "no_object_weight": "MODEL.ONE_FORMER.NO_OBJECT_WEIGHT",
    "class_weight": "MODEL.ONE_FORMER.CLASS_WEIGHT",
    "mask_weight": "MODEL.ONE_FORMER.MASK_WEIGHT",
    "dice_weight": "MODEL.ONE_FORMER.DICE_WEIGHT",
    "contrastive_weight": "MODEL.ONE_FORMER.CONTRASTIVE_WEIGHT",
    "contrastive_temperature": "MODEL.ONE_FORMER.CONTRASTIVE_TEMPERATURE",
    "train_num_points": "MODEL.ONE_FORMER.TRAIN_NUM_POINTS",
    "oversample_ratio": "MODEL.ONE_FORMER.OVERSAMPLE_RATIO",
    "importance_sample_ratio": "MODEL.ONE_FORMER.IMPORTANCE_SAMPLE_RATIO",
    "conv_dim": "MODEL.SEM_SEG_HEAD.CONVS_DIM",
    "mask_dim": "MODEL.SEM_SEG_HEAD.MASK_DIM",
    "encoder_layers": "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "common_stride": "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
    "ignore_value": "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
    "text_encoder_width": "MODEL.TEXT_ENCODER.WIDTH",
    "text_encoder_context_length": "MODEL.TEXT_ENCODER.CONTEXT_LENGTH",
    "text_encoder_num_layers": "MODEL.TEXT_ENCODER.NUM_LAYERS",
    "text_encoder_vocab_size": "MODEL.TEXT_ENCODER.VOCAB_SIZE",
    "text_encoder_proj_layers": "MODEL.TEXT_ENCODER.PROJ_NUM_LAYERS",
    "text_encoder_n_ctx": "MODEL.TEXT_ENCODER.N_CTX",
    "task_seq_len": "INPUT.TASK_SEQ_LEN",
}
_MASKFORMER_KEYS = {  # theirs: ours below MODEL
    "fpn_feature_size": "SEM_SEG_HEAD.CONVS_DIM",
    "mask_feature_size": "SEM_SEG_HEAD.MASK_DIM",
    "no_object_weight": "MASK_FORMER.NO_OBJECT_WEIGHT",
    "cross_entropy_weight": "MASK_FORMER.CLASS_WEIGHT",
    "mask_weight": "MASK_FORMER.MASK_WEIGHT",
    "dice_weight": "MASK_FORMER.DICE_WEIGHT",
}
_DETR_DECODER_KEYS = {  # theirs, below decoder_config: ours below MODEL.MASK_FORMER
    "d_model": "HIDDEN_DIM",
    "decoder_layers": "DEC_LAYERS",
    "decoder_attention_heads": "NHEADS",
    "decoder_ffn_dim": "DIM_FEEDFORWARD",
    "num_queries": "NUM_OBJECT_QUERIES",
    "dropout": "DROPOUT",
}
_MASK2FORMER_PARTS = {
    "MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
}
_MASKFORMER_PARTS = {
    "MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
}
_ONEFORMER_PARTS = {
    "ONE_FORMER.TRANSFORMER_DECODER_NAME": "ContrastiveMultiScaleMaskedTransformerDecoder",
    "ONE_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "SEM_SEG_HEAD.NAME": "OneFormerHead",
    "SEM_SEG_HEAD.NORM": "GN",
}
_COMMON_PARTS = {"SEM_SEG_HEAD.NAME": "MaskFormerHead", "SEM_SEG_HEAD.NORM": "GN"}
_FEED_FORWARD_CHANNELS = 1024  # of the pixel decoder, which no key of ours changes


def is_maskformer(cfg: Any) -> bool:
    """Whether the config is of a MaskFormer, the model before Mask2Former."""
    return cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "StandardTransformerDecoder"


def config_to_transformers(
    cfg: Any, tensors: Mapping[str, Tensor], *, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of ``config.json`` for the model of this config, whose weights bear our names.

    Raises:
        ConfigError: an option that their model does not have; the message names the key.
    """
    model = cfg.MODEL
    names = list(class_names) or [f"LABEL_{index}" for index in range(model.SEM_SEG_HEAD.NUM_CLASSES)]
    if is_oneformer(cfg):
        content = _oneformer_to_transformers(cfg)
    elif is_maskformer(cfg):
        content = _maskformer_to_transformers(model)
    else:
        content = _mask2former_to_transformers(model)
    return {
        **content,
        "backbone_config": backbone_to_transformers(model, tensors),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _mask2former_to_transformers(model: Any) -> dict[str, Any]:
    _expect_parts(model, _MASK2FORMER_PARTS | _COMMON_PARTS, num_heads=model.MASK_FORMER.NHEADS)
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        **{theirs: plain(get(model, ours)) for theirs, ours in _MASK2FORMER_KEYS.items()},
        "encoder_feedforward_dim": _FEED_FORWARD_CHANNELS,
        "feature_strides": [4, 8, 16, 32],
        "use_auxiliary_loss": bool(model.MASK_FORMER.DEEP_SUPERVISION),
    }


def _oneformer_to_transformers(cfg: Any) -> dict[str, Any]:
    _expect_parts(cfg.MODEL, _ONEFORMER_PARTS, num_heads=cfg.MODEL.ONE_FORMER.NHEADS)
    return {
        "model_type": "oneformer",
        "architectures": ["OneFormerForUniversalSegmentation"],
        **{theirs: plain(get(cfg, ours)) for theirs, ours in _ONEFORMER_KEYS.items()},
        # Published folders are of inference alone; a model in training would ask every caller for texts.
        "is_training": False,
        "encoder_feedforward_dim": _FEED_FORWARD_CHANNELS,
        "strides": [4, 8, 16, 32],
        "norm": "GN",
        "use_auxiliary_loss": bool(cfg.MODEL.ONE_FORMER.DEEP_SUPERVISION),
    }


def _expect_parts(model: Any, parts: Mapping[str, str], *, num_heads: int) -> None:
    for key, value in parts.items():
        expect(model, key, (value,))
    expect(model, "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", (num_heads,))
    expect(model, "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", (4,))


def _maskformer_to_transformers(model: Any) -> dict[str, Any]:
    for key, value in (_MASKFORMER_PARTS | _COMMON_PARTS).items():
        expect(model, key, (value,))
    expect(model, "MASK_FORMER.PRE_NORM", (False,))
    expect(model, "MASK_FORMER.ENC_LAYERS", (0,))
    decoder = {theirs: plain(model.MASK_FORMER[ours]) for theirs, ours in _DETR_DECODER_KEYS.items()}
    heads = {"encoder_attention_heads": model.MASK_FORMER.NHEADS, "encoder_layers": 0}
    return {
        "model_type": "maskformer",
        "architectures": ["MaskFormerForInstanceSegmentation"],
        **{theirs: plain(get(model, ours)) for theirs, ours in _MASKFORMER_KEYS.items()},
        "decoder_config": {"model_type": "detr", **decoder, **heads},
        "use_auxiliary_loss": False,  # with it theirs asks every caller for all hidden states
    }


def preprocessor_to_transformers(
    cfg: Any, *, class_names: Sequence[str] = (), thing_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """The content of ``preprocessor_config.json``: sizes and statistics of the images; of OneFormer classes, too.

    Raises:
        ConfigError: the model wants BGR images, which their pipelines do not make.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise ConfigError(f"INPUT.FORMAT: transformers feeds RGB images, found {cfg.INPUT.FORMAT!r}")
    name = "MaskFormer" if is_maskformer(cfg) else "Mask2Former"
    return {
        "image_processor_type": f"{'OneFormer' if is_oneformer(cfg) else name}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(cfg.INPUT.MIN_SIZE_TEST), "longest_edge": int(cfg.INPUT.MAX_SIZE_TEST)},
        "size_divisor": 32,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": int(cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
        "num_labels": int(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
        **(_class_information(cfg, class_names, thing_ids) if is_oneformer(cfg) else {}),
    }


def _class_information(cfg: Any, class_names: Sequence[str], thing_ids: Sequence[int] | None) -> dict[str, Any]:
    """Return what their OneFormer's processor makes texts of, as it keeps it once it has read its own class file."""
    num_classes = int(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    names = list(class_names) or [f"LABEL_{index}" for index in range(num_classes)]
    things = list(range(num_classes)) if thing_ids is None else list(thing_ids)
    metadata = {**{str(index): name for index, name in enumerate(names)}, "thing_ids": things, "class_names": names}
    return {
        "metadata": metadata,
        "class_info_file": None,
        "repo_path": None,
        "num_text": int(cfg.MODEL.ONE_FORMER.NUM_OBJECT_QUERIES - cfg.MODEL.TEXT_ENCODER.N_CTX),
    }


def read_transformers_folder(folder: Path) -> dict[str, Any]:
    """Dotted keys of ours and their values for the model of a folder, and for its images where it says them.

    Raises:
        CheckpointError: no ``config.json``, one that is damaged, or one of another model.
    """
    values = config_from_transformers(read_json_object(folder / "config.json"), source=str(folder / "config.json"))
    if (folder / "preprocessor_config.json").is_file():
        path = folder / "preprocessor_config.json"
        values |= _image_values(read_json_object(path), source=str(path))
    return values


def read_image_statistics(folder: Path) -> tuple[list[float], list[float]] | None:
    """Mean and deviation, for pixels in 0..255, of the RGB images that a folder's model wants; None if it is silent."""
    path = folder / "preprocessor_config.json"
    values = _image_values(read_json_object(path), source=str(path)) if path.is_file() else {}
    found = [values.get(key) for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")]
    return (found[0], found[1]) if found[0] and found[1] else None


def read_class_names(folder: Path) -> list[str]:
    """The names of a folder's classes in the order of their ids; empty where it does not say them."""
    path = folder / "config.json"
    names = _object(read_json_object(path), "id2label", source=str(path))
    if not all(index.isdecimal() and len(index) < _MAX_DIGITS for index in names):
        raise CheckpointError(f"{path}: id2label: expected names by their numbers, found {shown(names)}")
    return [str(names[index]) for index in sorted(names, key=int)]


def read_json_object(path: Path) -> dict[str, Any]:
    """What a json file of a folder of transformers holds.

    Raises:
        CheckpointError: it cannot be read, or is no json object.
    """
    return json_files.read_json_object(path, (), error=CheckpointError)


def _image_values(preprocessor: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Statistics of the images, and their size where it is one by edges, as ours are."""
    values: dict[str, Any] = {}
    factor = plain_number(preprocessor.get("rescale_factor", 1 / 255)) if preprocessor.get("do_rescale", True) else 1
    if not factor or not 0 < factor < math.inf:
        raise CheckpointError(f"{source}: rescale_factor: expected a number above 0, found {shown(factor)}")
    for theirs, ours, neutral in (("image_mean", "MODEL.PIXEL_MEAN", 0), ("image_std", "MODEL.PIXEL_STD", 1)):
        if preprocessor.get(theirs) or not preprocessor.get("do_normalize", True):
            numbers = preprocessor[theirs] if preprocessor.get("do_normalize", True) else [neutral] * 3
            if not isinstance(numbers, list) or any(plain_number(number) is None for number in numbers):
                raise CheckpointError(f"{source}: {theirs}: expected a list of numbers, found {shown(numbers)}")
            values[ours] = [round(float(number) / factor, 4) for number in numbers]
    size = preprocessor.get("size")
    if isinstance(size, dict) and {"shortest_edge", "longest_edge"} <= size.keys():
        for theirs, ours in (("shortest_edge", "MIN_SIZE_TEST"), ("longest_edge", "MAX_SIZE_TEST")):
            edge = whole_number(size[theirs])
            if edge is None or not 0 < edge <= MAX_PIXELS:
                raise CheckpointError(f"{source}: size: {theirs}: expected pixels, found {shown(size[theirs])}")
            values[f"INPUT.{ours}"] = edge
    return values


def config_from_transformers(content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Dotted keys of ours and their values for a ``config.json`` of Mask2Former, MaskFormer or OneFormer.

    Raises:
        CheckpointError: another model, or a backbone that is not built here.
    """
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise CheckpointError(f"{source}: model_type: expected {', '.join(map(repr, _READERS))}, found {shown(kind)}")
    read, parts = _READERS[kind]
    values: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "OneFormer" if kind == "oneformer" else "MaskFormer",
        **{f"MODEL.{key}": value for key, value in parts.items()},
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": FEATURES,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        **read(content, source=source),
        **backbone_from_transformers(_object(content, "backbone_config", source=source), source=source),
    }
    if "id2label" in content:
        values["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(_object(content, "id2label", source=source))
    return values


def _mask2former_values(content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    values = {f"MODEL.{ours}": content[theirs] for theirs, ours in _MASK2FORMER_KEYS.items() if theirs in content}
    return {"MODEL.MASK_FORMER.DEEP_SUPERVISION": True, **values, **_pixel_decoder_values(content, source=source)}


def _oneformer_values(content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    return {
        "MODEL.ONE_FORMER.DEEP_SUPERVISION": True,
        "MODEL.ONE_FORMER.ENC_LAYERS": 0,
        "MODEL.IS_TRAIN": bool(content.get("is_training", False)),
        "MODEL.TEST.SEMANTIC_ON": True,
        "MODEL.TEST.INSTANCE_ON": True,
        "MODEL.TEST.PANOPTIC_ON": True,
        "MODEL.TEST.OBJECT_MASK_THRESHOLD": 0.8,  # as in the published recipes
        "MODEL.TEST.OVERLAP_THRESHOLD": 0.8,
        **{ours: content[theirs] for theirs, ours in _ONEFORMER_KEYS.items() if theirs in content},
        **_pixel_decoder_values(content, source=source),
    }


def _pixel_decoder_values(content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    width = content.get("encoder_feedforward_dim", _FEED_FORWARD_CHANNELS)
    if width != _FEED_FORWARD_CHANNELS:
        raise CheckpointError(
            f"{source}: encoder_feedforward_dim: expected {_FEED_FORWARD_CHANNELS}, found {shown(width)}"
        )
    values = {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": FEATURES[1:]}
    if "num_attention_heads" in content:  # theirs are the same in both decoders
        values["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"] = content["num_attention_heads"]
    return values


def _maskformer_values(content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    decoder = _object(content, "decoder_config", source=source)
    if decoder.get("model_type", "detr") != "detr":
        raise CheckpointError(
            f"{source}: decoder_config.model_type: expected 'detr', found {shown(decoder['model_type'])}"
        )
    return {
        **{f"MODEL.{ours}": content[theirs] for theirs, ours in _MASKFORMER_KEYS.items() if theirs in content},
        **{
            f"MODEL.MASK_FORMER.{ours}": decoder[theirs]
            for theirs, ours in _DETR_DECODER_KEYS.items()
            if theirs in decoder
        },
        "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
        "MODEL.MASK_FORMER.ENC_LAYERS": 0,
        "MODEL.MASK_FORMER.PRE_NORM": False,
        "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    }


_READERS: dict[Any, tuple[Callable[..., dict[str, Any]], Mapping[str, str]]] = {
    "mask2former": (_mask2former_values, _MASK2FORMER_PARTS | _COMMON_PARTS),
    "maskformer": (_maskformer_values, _MASKFORMER_PARTS | _COMMON_PARTS),
    "oneformer": (_oneformer_values, _ONEFORMER_PARTS),
}


def _object(content: Mapping[str, Any], key: str, *, source: str) -> dict[str, Any]:
    value = content.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key}: expected an object, found {shown(value)}")
    return value or {}
