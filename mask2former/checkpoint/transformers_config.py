"""The ``config.json`` of the library transformers from a config of ours, and back. Neither needs the library."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mask2former.errors import CheckpointError, ConfigError
from mask2former.files import json_files
from mask2former.files.annotation_values import plain_number
from mask2former.structures.segmentations import MAX_PIXELS, shown, whole_number

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_MAX_DIGITS = 7  # of the number of a class
_BOTTLENECK_RATIO = 4  # of a stage's channels to those inside its blocks; theirs is fixed
_RESNET_DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
_SWIN_KEYS = {  # theirs: ours below MODEL.SWIN
    "embed_dim": "EMBED_DIM",
    "depths": "DEPTHS",
    "num_heads": "NUM_HEADS",
    "window_size": "WINDOW_SIZE",
    "image_size": "PRETRAIN_IMG_SIZE",
    "patch_size": "PATCH_SIZE",
    "mlp_ratio": "MLP_RATIO",
    "qkv_bias": "QKV_BIAS",
    "drop_path_rate": "DROP_PATH_RATE",
}
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
_COMMON_PARTS = {"SEM_SEG_HEAD.NAME": "MaskFormerHead", "SEM_SEG_HEAD.NORM": "GN"}
_BACKBONES = ("D2SwinTransformer", "build_resnet_backbone", "build_resnet_deeplab_backbone")
_SWIN_FEATURES = ["res2", "res3", "res4", "res5"]
_FEED_FORWARD_CHANNELS = 1024  # of the pixel decoder, which no key of ours changes


def is_maskformer(cfg: Any) -> bool:
    """Whether the config is of a MaskFormer, the model before Mask2Former."""
    return cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "StandardTransformerDecoder"


def config_to_transformers(
    cfg: Any, tensors: Mapping[str, Tensor], *, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of ``config.json`` for a Mask2Former or MaskFormer of this config, whose weights bear our names.

    Raises:
        ConfigError: an option that their model does not have; the message names the key.
    """
    model = cfg.MODEL
    _expect(model, "BACKBONE.NAME", _BACKBONES)
    names = list(class_names) or [f"LABEL_{index}" for index in range(model.SEM_SEG_HEAD.NUM_CLASSES)]
    content = _maskformer_to_transformers(model) if is_maskformer(cfg) else _mask2former_to_transformers(model)
    return {
        **content,
        "backbone_config": _backbone_to_transformers(model, tensors),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _mask2former_to_transformers(model: Any) -> dict[str, Any]:
    for key, value in (_MASK2FORMER_PARTS | _COMMON_PARTS).items():
        _expect(model, key, (value,))
    _expect(model, "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", (model.MASK_FORMER.NHEADS,))
    _expect(model, "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", (4,))
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        **{theirs: _plain(_get(model, ours)) for theirs, ours in _MASK2FORMER_KEYS.items()},
        "encoder_feedforward_dim": _FEED_FORWARD_CHANNELS,
        "feature_strides": [4, 8, 16, 32],
        "use_auxiliary_loss": bool(model.MASK_FORMER.DEEP_SUPERVISION),
    }


def _maskformer_to_transformers(model: Any) -> dict[str, Any]:
    for key, value in (_MASKFORMER_PARTS | _COMMON_PARTS).items():
        _expect(model, key, (value,))
    _expect(model, "MASK_FORMER.PRE_NORM", (False,))
    _expect(model, "MASK_FORMER.ENC_LAYERS", (0,))
    decoder = {theirs: _plain(model.MASK_FORMER[ours]) for theirs, ours in _DETR_DECODER_KEYS.items()}
    heads = {"encoder_attention_heads": model.MASK_FORMER.NHEADS, "encoder_layers": 0}
    return {
        "model_type": "maskformer",
        "architectures": ["MaskFormerForInstanceSegmentation"],
        **{theirs: _plain(_get(model, ours)) for theirs, ours in _MASKFORMER_KEYS.items()},
        "decoder_config": {"model_type": "detr", **decoder, **heads},
        "use_auxiliary_loss": False,  # with it theirs asks every caller for all hidden states
    }


def preprocessor_to_transformers(cfg: Any) -> dict[str, Any]:
    """The content of ``preprocessor_config.json``: sizes and statistics of the images.

    Raises:
        ConfigError: the model wants BGR images, which their pipelines do not make.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise ConfigError(f"INPUT.FORMAT: transformers feeds RGB images, found {cfg.INPUT.FORMAT!r}")
    return {
        "image_processor_type": "MaskFormerImageProcessor" if is_maskformer(cfg) else "Mask2FormerImageProcessor",
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
    """Dotted keys of ours and their values for a ``config.json`` of Mask2Former or MaskFormer.

    Raises:
        CheckpointError: another model, or a backbone that is not built here.
    """
    kind = content.get("model_type")
    if kind not in ("mask2former", "maskformer"):
        raise CheckpointError(f"{source}: model_type: expected 'mask2former' or 'maskformer', found {shown(kind)}")
    parts = _MASKFORMER_PARTS if kind == "maskformer" else _MASK2FORMER_PARTS
    read = _maskformer_values if kind == "maskformer" else _mask2former_values
    values: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        **{f"MODEL.{key}": value for key, value in (parts | _COMMON_PARTS).items()},
        "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": _SWIN_FEATURES,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        **read(content, source=source),
        **_backbone_from_transformers(_object(content, "backbone_config", source=source), source=source),
    }
    if "id2label" in content:
        values["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(_object(content, "id2label", source=source))
    return values


def _object(content: Mapping[str, Any], key: str, *, source: str) -> dict[str, Any]:
    value = content.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key}: expected an object, found {shown(value)}")
    return value or {}


def _mask2former_values(content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    width = content.get("encoder_feedforward_dim", _FEED_FORWARD_CHANNELS)
    if width != _FEED_FORWARD_CHANNELS:
        raise CheckpointError(
            f"{source}: encoder_feedforward_dim: expected {_FEED_FORWARD_CHANNELS}, found {shown(width)}"
        )
    values = {f"MODEL.{ours}": content[theirs] for theirs, ours in _MASK2FORMER_KEYS.items() if theirs in content}
    values["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"] = _SWIN_FEATURES[1:]
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
        "MODEL.MASK_FORMER.ENC_LAYERS": 0,
        "MODEL.MASK_FORMER.PRE_NORM": False,
        "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    }


def _expect(model: Any, key: str, allowed: Sequence[Any]) -> None:
    value = _plain(_get(model, key))
    if value not in allowed:
        raise ConfigError(
            f"MODEL.{key}: the model of transformers has {' or '.join(map(repr, allowed))}, found {value!r}"
        )


def _backbone_to_transformers(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if model.BACKBONE.NAME != "D2SwinTransformer":
        return _resnet_to_transformers(model, tensors)
    for key, allowed in (("APE", (False,)), ("PATCH_NORM", (True,)), ("QK_SCALE", (None,))):
        _expect(model, f"SWIN.{key}", allowed)
    options = {theirs: _plain(model.SWIN[ours]) for theirs, ours in _SWIN_KEYS.items()}
    return {"model_type": "swin", **options, "hidden_act": "gelu", "out_features": _STAGES}


def _resnet_to_transformers(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if "backbone.stem.conv1_2.weight" in tensors:
        raise ConfigError("MODEL.RESNETS.STEM_TYPE: the model of transformers has 'basic', found 'deeplab'")
    for key in ("RES4_DILATION", "RES5_DILATION", "NUM_GROUPS"):
        _expect(model, f"RESNETS.{key}", (1,))
    is_bottleneck = "backbone.res2.0.conv3.weight" in tensors
    res2 = model.RESNETS.RES2_OUT_CHANNELS
    if is_bottleneck:
        _expect(model, "RESNETS.WIDTH_PER_GROUP", (res2 // _BOTTLENECK_RATIO,))
    return {
        "model_type": "resnet",
        "embedding_size": model.RESNETS.STEM_OUT_CHANNELS,
        "hidden_sizes": [res2 * 2**stage for stage in range(len(_STAGES))],
        "depths": [_count_blocks(f"backbone.res{stage + 2}", tensors) for stage in range(len(_STAGES))],
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "downsample_in_bottleneck": bool(is_bottleneck and model.RESNETS.STRIDE_IN_1X1),
        "downsample_in_first_stage": False,
        "hidden_act": "relu",
        "out_features": _STAGES,
    }


def _backbone_from_transformers(backbone: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    kind = backbone.get("model_type")
    if kind in ("swin", "maskformer-swin"):
        return {
            "MODEL.BACKBONE.NAME": "D2SwinTransformer",
            "MODEL.SWIN.OUT_FEATURES": _SWIN_FEATURES,
            **{f"MODEL.SWIN.{ours}": backbone[theirs] for theirs, ours in _SWIN_KEYS.items() if theirs in backbone},
        }
    if kind != "resnet":
        raise CheckpointError(f"{source}: backbone_config.model_type: expected 'swin' or 'resnet', found {shown(kind)}")
    layer_type, depths = backbone.get("layer_type", "bottleneck"), backbone.get("depths", [3, 4, 6, 3])
    sizes = backbone.get("hidden_sizes", [256, 512, 1024, 2048])
    for key, value in (("depths", depths), ("hidden_sizes", sizes)):
        if not isinstance(value, list) or len(value) != len(_STAGES) or not all(type(v) is int for v in value):
            raise CheckpointError(
                f"{source}: backbone_config.{key}: expected {len(_STAGES)} whole numbers, found {shown(value)}"
            )
    depth = _RESNET_DEPTHS.get((str(layer_type), tuple(depths)))
    if depth is None or any(size != sizes[0] * 2**stage for stage, size in enumerate(sizes)):
        raise CheckpointError(
            f"{source}: backbone_config: no ResNet of {shown(layer_type)} blocks {depths} by {sizes} channels"
        )
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.STEM_TYPE": "basic",
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": backbone.get("embedding_size", 64),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": sizes[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": sizes[0] // _BOTTLENECK_RATIO,
        "MODEL.RESNETS.STRIDE_IN_1X1": bool(backbone.get("downsample_in_bottleneck", False)),
        "MODEL.RESNETS.OUT_FEATURES": _SWIN_FEATURES,
    }


def _count_blocks(stage: str, names: Mapping[str, Any]) -> int:
    pattern = re.compile(re.escape(stage) + r"\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def _get(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
