"""Families of checkpoints: how each is recognised and what its tensors are called here.

Ours are the published names of Mask2Former. Classification weights become a backbone; their classifier is left out,
and so is their final norm: the norms of a Swin backbone's features are learnt with the head, as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mask2former.checkpoint.name_rules import Renamed, Rule, rename_to_ours
from mask2former.checkpoint.transformers_names import (
    MASK2FORMER_RULES,
    MASKFORMER_RULES,
    ONEFORMER_RULES,
    UNUSED_BY_HEADS,
)
from mask2former.errors import CheckpointError

# Tensors that follow from the architecture (or count steps that nothing reads): their absence means nothing.
DERIVED = r"(^|\.)(relative_position_index|num_batches_tracked|attn_mask)$"
_CLASSIFIER = r"^(head|fc|stem\.fc|linear|norm)\."
_FROZEN_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class ImageStatistics:
    """The images that weights were trained on: 0..255, less ``mean``, by ``std``, in the channel order ``order``."""

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


RGB_BY_DEVIATION = ImageStatistics("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
BGR_UNSCALED = ImageStatistics("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Family:
    """How one kind of file names its tensors. ``signature`` is found in one of its names, and in no family before."""

    name: str
    signature: str
    rules: tuple[Rule, ...] = ()
    drop: tuple[str, ...] = (DERIVED,)
    images: ImageStatistics | None = None
    hint: str = ""
    refuse: Mapping[str, str] = field(default_factory=dict)  # pattern of a name → why such files do not fit
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Converted:
    """Tensors under our names; ``family`` is None where the file's names are of no known family."""

    tensors: dict[str, Tensor]
    family: Family | None
    dropped: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def convert_to_ours(tensors: Mapping[str, Tensor], *, source: str) -> Converted:
    """Rename tensors of any known family to ours; the values stay the same.

    Raises:
        CheckpointError: an architecture that no backbone here has.
    """
    family = find_family(tensors)
    if family is None:
        return Converted(dict(tensors), None)
    for pattern, reason in family.refuse.items():
        found = next((name for name in tensors if re.search(pattern, name)), None)
        if found is not None:
            raise CheckpointError(f"{source}: {family.name}: {reason} (it holds {found!r})")
    renamed = rename_older_layout(tensors) if family is PUBLISHED else None
    if renamed is None:
        renamed = rename_to_ours(tensors, family.rules, drop=family.drop)
    result = family.finish(renamed.tensors) if family.finish else renamed.tensors
    return Converted(result, family, tuple(renamed.dropped), tuple(renamed.unknown))


def find_family(names: Iterable[str]) -> Family | None:
    """Return the family whose signature occurs in the names."""
    listed = list(names)
    return next((family for family in FAMILIES if any(re.search(family.signature, name) for name in listed)), None)


def rename_older_layout(tensors: Mapping[str, Tensor]) -> Renamed:
    """Return names of the version before 2: the pixel decoder lay in the head itself, query features were "static"."""
    renamed = Renamed()
    for name, tensor in tensors.items():
        new = name
        if re.match(r"sem_seg_head\.(?!predictor\.|pixel_decoder\.)", name):
            new = name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
        renamed.tensors[new.replace("static_query", "query_feat")] = tensor
    return renamed


def _with_constant_statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms that are stored as scale and shift alone get the statistics that make them exactly that."""
    completed = dict(tensors)
    for name, scale in tensors.items():
        if name.endswith(".norm.weight"):
            stem = name.removesuffix("weight")
            completed.setdefault(f"{stem}running_mean", torch.zeros_like(scale))
            completed.setdefault(f"{stem}running_var", torch.full_like(scale, 1 - _FROZEN_NORM_EPSILON))
    return completed


def _resnet_rules(stem: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """torchvision and timm: ``layer1`` is our res2, norms lie beside their convolutions."""
    return (
        *stem,
        Rule("layer{i}.{j}.conv{k}.weight", "backbone.res{i+1}.{j}.conv{k}.weight"),
        Rule("layer{i}.{j}.bn{k}.{p}", "backbone.res{i+1}.{j}.conv{k}.norm.{p}"),
        Rule("layer{i}.{j}.downsample.0.weight", "backbone.res{i+1}.{j}.shortcut.weight"),
        Rule("layer{i}.{j}.downsample.1.{p}", "backbone.res{i+1}.{j}.shortcut.norm.{p}"),
    )


_BASIC_STEM = (
    Rule("conv1.weight", "backbone.stem.conv1.weight"),
    Rule("bn1.{p}", "backbone.stem.conv1.norm.{p}"),
)
_DEEP_STEM = (
    Rule("conv1.0.weight", "backbone.stem.conv1.weight"),
    Rule("conv1.1.{p}", "backbone.stem.conv1.norm.{p}"),
    Rule("conv1.3.weight", "backbone.stem.conv1_2.weight"),
    Rule("conv1.4.{p}", "backbone.stem.conv1_2.norm.{p}"),
    Rule("conv1.6.weight", "backbone.stem.conv1_3.weight"),
    Rule("bn1.{p}", "backbone.stem.conv1_3.norm.{p}"),
)
_OTHER_RESNETS = {
    r"downsample\.2\.": "shortcuts with average pooling are another architecture",
    r"^layer1\.0\.(se|attn|bn4|conv4)\b": "blocks with further layers are another architecture",
}


def _caffe2_rules() -> tuple[Rule, ...]:
    """Return the original ResNets: ``branch1`` is the shortcut, ``branch2a`` to ``branch2c`` the convolutions."""
    rules = [
        Rule("conv1_w", "backbone.stem.conv1.weight"),
        Rule("res_conv1_bn_s", "backbone.stem.conv1.norm.weight"),
        Rule("res_conv1_bn_b", "backbone.stem.conv1.norm.bias"),
    ]
    for theirs, ours in (("1", "shortcut"), ("2a", "conv1"), ("2b", "conv2"), ("2c", "conv3")):
        convolution, norm = f"res{{i}}_{{j}}_branch{theirs}", f"backbone.res{{i}}.{{j}}.{ours}"
        rules += [
            Rule(f"{convolution}_w", f"{norm}.weight"),
            Rule(f"{convolution}_bn_s", f"{norm}.norm.weight"),
            Rule(f"{convolution}_bn_b", f"{norm}.norm.bias"),
        ]
    return tuple(rules)


_SWIN_BLOCK_PARTS = {  # ours: torchvision's
    "norm1.{p}": "norm1.{p}",
    "norm2.{p}": "norm2.{p}",
    "attn.relative_position_bias_table": "attn.relative_position_bias_table",
    "attn.qkv.{p}": "attn.qkv.{p}",
    "attn.proj.{p}": "attn.proj.{p}",
    "mlp.fc1.{p}": "mlp.0.{p}",
    "mlp.fc2.{p}": "mlp.3.{p}",
}


def _swin_rules(merging: str) -> tuple[Rule, ...]:
    """Return the rules of the original names, which are ours but for the place of patch merging.

    ``merging`` says in which stage the file keeps the merging after stage i.
    """
    ours = "backbone.layers.{i}"
    return (
        Rule("patch_embed.proj.{p}", "backbone.patch_embed.proj.{p}"),
        Rule("patch_embed.norm.{p}", "backbone.patch_embed.norm.{p}"),
        Rule(f"layers.{merging}.downsample.reduction.weight", f"{ours}.downsample.reduction.weight"),
        Rule(f"layers.{merging}.downsample.norm.{{p}}", f"{ours}.downsample.norm.{{p}}"),
        *(Rule(f"layers.{{i}}.blocks.{{j}}.{part}", f"{ours}.blocks.{{j}}.{part}") for part in _SWIN_BLOCK_PARTS),
    )


def _torchvision_swin_rules() -> tuple[Rule, ...]:
    """Return a flat list: embedding, then stage and merging in turn."""
    rules = [
        Rule("features.0.0.{p}", "backbone.patch_embed.proj.{p}"),
        Rule("features.0.2.{p}", "backbone.patch_embed.norm.{p}"),
    ]
    for stage in range(4):
        blocks, merging, ours = (
            f"features.{2 * stage + 1}.{{j}}",
            f"features.{2 * stage + 2}",
            f"backbone.layers.{stage}",
        )
        rules += [Rule(f"{blocks}.{part}", f"{ours}.blocks.{{j}}.{own}") for own, part in _SWIN_BLOCK_PARTS.items()]
        rules += [
            Rule(f"{merging}.reduction.weight", f"{ours}.downsample.reduction.weight"),
            Rule(f"{merging}.norm.{{p}}", f"{ours}.downsample.norm.{{p}}"),
        ]
    return tuple(rules)


_DETECTRON2_RULES = (
    Rule("stem.{p}.weight", "backbone.stem.{p}.weight"),
    Rule("stem.conv1.norm.{p}", "backbone.stem.conv1.norm.{p}"),
    Rule("stem.conv1_2.norm.{p}", "backbone.stem.conv1_2.norm.{p}"),
    Rule("stem.conv1_3.norm.{p}", "backbone.stem.conv1_3.norm.{p}"),
    *(
        rule
        for part in ("shortcut", "conv1", "conv2", "conv3")
        for rule in (
            Rule(f"res{{i}}.{{j}}.{part}.weight", f"backbone.res{{i}}.{{j}}.{part}.weight"),
            Rule(f"res{{i}}.{{j}}.{part}.norm.{{p}}", f"backbone.res{{i}}.{{j}}.{part}.norm.{{p}}"),
        )
    ),
)
_SWIN_V2 = {r"logit_scale|cpb_mlp": "Swin Transformer V2 is another architecture"}

PUBLISHED = Family("Mask2Former, MaskFormer, OneFormer (published layout)", r"^(sem_seg_head|backbone)\.", drop=())
TRANSFORMERS_MASKFORMER = Family(
    "transformers MaskFormer",
    r"^model\.pixel_level_module\.decoder\.fpn\.",
    MASKFORMER_RULES,
    drop=(DERIVED, *UNUSED_BY_HEADS),
    images=RGB_BY_DEVIATION,
)
TRANSFORMERS_ONEFORMER = Family(
    "transformers OneFormer",
    r"^model\.task_encoder\.",
    ONEFORMER_RULES,
    drop=(DERIVED, *UNUSED_BY_HEADS),
    images=RGB_BY_DEVIATION,
)
TRANSFORMERS_MASK2FORMER = Family(
    "transformers Mask2Former",
    r"^model\.pixel_level_module\.decoder\.",
    MASK2FORMER_RULES,
    drop=(DERIVED, *UNUSED_BY_HEADS),
    images=RGB_BY_DEVIATION,
)

FAMILIES = (
    PUBLISHED,
    TRANSFORMERS_MASKFORMER,
    TRANSFORMERS_ONEFORMER,
    TRANSFORMERS_MASK2FORMER,
    Family(
        "caffe2 ResNet (MSRA)",
        r"^conv1_w$",
        _caffe2_rules(),
        drop=(r"^pred_[wb]$", r"_momentum$", r"^(conv1_b|fc1000_[wb]|lr|model_iter)$"),
        images=BGR_UNSCALED,
        hint="these weights have the stride in the first convolution of a block: MODEL.RESNETS.STRIDE_IN_1X1 True",
        finish=_with_constant_statistics,
    ),
    Family(
        "ResNet with deep stem (timm)",
        r"^conv1\.0\.weight$",
        _resnet_rules(_DEEP_STEM),
        drop=(DERIVED, _CLASSIFIER),
        images=RGB_BY_DEVIATION,
        hint="these weights have three convolutions as stem: MODEL.BACKBONE.NAME build_resnet_deeplab_backbone",
        refuse=_OTHER_RESNETS,
    ),
    Family(
        "ResNet (torchvision, timm)",
        r"^layer1\.0\.conv1\.weight$",
        _resnet_rules(_BASIC_STEM),
        drop=(DERIVED, _CLASSIFIER),
        images=RGB_BY_DEVIATION,
        refuse=_OTHER_RESNETS,
    ),
    Family(
        "Swin Transformer (torchvision)",
        r"^features\.1\.0\.attn\.qkv\.weight$",
        _torchvision_swin_rules(),
        drop=(DERIVED, _CLASSIFIER),
        images=RGB_BY_DEVIATION,
        refuse=_SWIN_V2,
    ),
    Family(
        "Swin Transformer (original)",
        r"^layers\.0\.downsample\.reduction\.weight$",
        _swin_rules("{i}"),
        drop=(DERIVED, _CLASSIFIER),
        images=RGB_BY_DEVIATION,
        refuse=_SWIN_V2,
    ),
    Family(
        "Swin Transformer (timm)",
        r"^layers\.1\.downsample\.reduction\.weight$",
        _swin_rules("{i+1}"),
        drop=(DERIVED, _CLASSIFIER),
        images=RGB_BY_DEVIATION,
        refuse=_SWIN_V2,
    ),
    Family(
        "detectron2 ResNet",
        r"^(stem\.conv1|res2\.0\.conv1)\.",
        _DETECTRON2_RULES,
        drop=(DERIVED, _CLASSIFIER),
        images=RGB_BY_DEVIATION,
    ),
)
