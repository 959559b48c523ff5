"""The backbones of transformers' models: their part of ``config.json`` from a config of ours, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mask2former.errors import CheckpointError, ConfigError
from mask2former.structures.segmentations import shown

FEATURES = ["res2", "res3", "res4", "res5"]
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
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
_DINAT_KEYS = {  # theirs: ours below MODEL.DiNAT
    "embed_dim": "EMBED_DIM",
    "depths": "DEPTHS",
    "num_heads": "NUM_HEADS",
    "kernel_size": "KERNEL_SIZE",
    "dilations": "DILATIONS",
    "mlp_ratio": "MLP_RATIO",
    "qkv_bias": "QKV_BIAS",
    "drop_path_rate": "DROP_PATH_RATE",
}
_WRITERS = ("D2SwinTransformer", "D2DiNAT", "build_resnet_backbone", "build_resnet_deeplab_backbone")
# The only values that our DiNAT has.
_FIXED_DINAT = {"patch_size": 4, "layer_norm_eps": 1e-5, "layer_scale_init_value": 0.0, "hidden_act": "gelu"}


def expect(model: Any, key: str, allowed: Sequence[Any]) -> None:
    """Refuse a key below MODEL whose value the model of transformers does not have.

    Raises:
        ConfigError: the value is none of those allowed.
    """
    value = plain(get(model, key))
    if value not in allowed:
        raise ConfigError(
            f"MODEL.{key}: the model of transformers has {' or '.join(map(repr, allowed))}, found {value!r}"
        )


def backbone_to_transformers(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return ``backbone_config`` for a config's MODEL, whose weights bear our names.

    Raises:
        ConfigError: a backbone or an option that their models do not have; the message names the key.
    """
    expect(model, "BACKBONE.NAME", _WRITERS)
    if model.BACKBONE.NAME == "D2DiNAT":
        expect(model, "DiNAT.QK_SCALE", (None,))
        options = {theirs: plain(model.DiNAT[ours]) for theirs, ours in _DINAT_KEYS.items()}
        return {"model_type": "dinat", **options, **_FIXED_DINAT, "out_features": _STAGES}
    if model.BACKBONE.NAME != "D2SwinTransformer":
        return _resnet_to_transformers(model, tensors)
    for key, allowed in (("APE", (False,)), ("PATCH_NORM", (True,)), ("QK_SCALE", (None,))):
        expect(model, f"SWIN.{key}", allowed)
    options = {theirs: plain(model.SWIN[ours]) for theirs, ours in _SWIN_KEYS.items()}
    return {"model_type": "swin", **options, "hidden_act": "gelu", "out_features": _STAGES}


def _resnet_to_transformers(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if "backbone.stem.conv1_2.weight" in tensors:
        raise ConfigError("MODEL.RESNETS.STEM_TYPE: the model of transformers has 'basic', found 'deeplab'")
    for key in ("RES4_DILATION", "RES5_DILATION", "NUM_GROUPS"):
        expect(model, f"RESNETS.{key}", (1,))
    is_bottleneck = "backbone.res2.0.conv3.weight" in tensors
    res2 = model.RESNETS.RES2_OUT_CHANNELS
    if is_bottleneck:
        expect(model, "RESNETS.WIDTH_PER_GROUP", (res2 // _BOTTLENECK_RATIO,))
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


def backbone_from_transformers(backbone: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return our keys and values for a ``backbone_config``.

    Raises:
        CheckpointError: a backbone that is not built here.
    """
    kind = backbone.get("model_type")
    if kind == "dinat":
        _check_dinat(backbone, source=source)
        return {
            "MODEL.BACKBONE.NAME": "D2DiNAT",
            "MODEL.DiNAT.OUT_FEATURES": FEATURES,
            **{f"MODEL.DiNAT.{ours}": backbone[theirs] for theirs, ours in _DINAT_KEYS.items() if theirs in backbone},
        }
    if kind in ("swin", "maskformer-swin"):
        return {
            "MODEL.BACKBONE.NAME": "D2SwinTransformer",
            "MODEL.SWIN.OUT_FEATURES": FEATURES,
            **{f"MODEL.SWIN.{ours}": backbone[theirs] for theirs, ours in _SWIN_KEYS.items() if theirs in backbone},
        }
    if kind != "resnet":
        raise CheckpointError(
            f"{source}: backbone_config.model_type: expected 'swin', 'dinat' or 'resnet', found {shown(kind)}"
        )
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
        "MODEL.RESNETS.OUT_FEATURES": FEATURES,
    }


def _check_dinat(backbone: Mapping[str, Any], *, source: str) -> None:
    for key, value in _FIXED_DINAT.items():
        if backbone.get(key, value) != value:
            raise CheckpointError(f"{source}: backbone_config.{key}: expected {value!r}, found {shown(backbone[key])}")


def _count_blocks(stage: str, names: Mapping[str, Any]) -> int:
    pattern = re.compile(re.escape(stage) + r"\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def get(node: Any, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        node = node[part]
    return node


def plain(value: Any) -> Any:
    """Return a value of a config as json has it: sequences as lists."""
    return list(value) if isinstance(value, list | tuple) else value
