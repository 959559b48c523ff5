"""ResNet and ResNeXt as feature extractors (He et al. 2016; dilation and multi-grid: Chen et al. 2017).

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.backbone.backbone import Backbone
from mask2former.modeling.layers import NORM_NAMES, Conv2d, NormSpec, freeze_batch_norm, get_norm
from mask2former.modeling.registry import BACKBONE_REGISTRY
from mask2former.structures import ShapeSpec

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = ("res2", "res3", "res4", "res5")
STEM_TYPES = ("basic", "deeplab")
_BASIC_BLOCK_DEPTHS = (18, 34)
_BASIC_BLOCK_WIDTH = 64  # channels of res2
_STEM_STRIDE = 4


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    norm: NormSpec,
    relu: bool = True,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Conv2d:
    """Return a convolution that keeps the size but for its stride, with norm and, if wanted, ReLU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=F.relu if relu else None,
    )


class Stem(nn.Sequential):
    """Convolutions of stride 2, then max pooling of stride 2: (N, 3, H, W) -> (N, C, H / 4, W / 4).

    "basic" is one 7 × 7 convolution, "deeplab" three of 3 × 3, of which the first two have half the channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stem_type: str, norm: NormSpec) -> None:
        super().__init__()
        if stem_type == "basic":
            self.conv1 = _conv(in_channels, out_channels, 7, stride=2, norm=norm)
            return
        half = out_channels // 2
        self.conv1 = _conv(in_channels, half, 3, stride=2, norm=norm)
        self.conv1_2 = _conv(half, half, 3, norm=norm)
        self.conv1_3 = _conv(half, out_channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(super().forward(x), kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormSpec, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = _shortcut(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride=stride, dilation=dilation, norm=norm)
        self.conv2 = _conv(out_channels, out_channels, 3, dilation=dilation, norm=norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv2(self.conv1(x)) + shortcut)


class BottleneckBlock(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions and a shortcut: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride).

    ``stride_in_1x1`` puts the stride into the first convolution, as the original weights have it, else into the second.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        norm: NormSpec,
        stride: int,
        dilation: int,
        num_groups: int,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        width = bottleneck_channels
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = _conv(in_channels, width, 1, stride=stride_1x1, norm=norm)
        self.conv2 = _conv(width, width, 3, stride=stride_3x3, dilation=dilation, groups=num_groups, norm=norm)
        self.conv3 = _conv(width, out_channels, 1, norm=norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class BottleneckStage(nn.Sequential):
    """Bottleneck blocks one after the other."""


def _shortcut(in_channels: int, out_channels: int, *, stride: int, norm: NormSpec) -> Conv2d | None:
    if in_channels == out_channels:
        return None
    return _conv(in_channels, out_channels, 1, stride=stride, norm=norm, relu=False)


def _block_type(depth: int, *, norm: NormSpec, **bottleneck_options: Any) -> Callable[..., nn.Module]:
    """Return the block of a network of this depth; channels, stride and dilation are still to be given."""
    if depth in _BASIC_BLOCK_DEPTHS:
        return partial(BasicBlock, norm=norm)
    return partial(BottleneckBlock, norm=norm, **bottleneck_options)


def _stage(
    block: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    dilations: Sequence[int],
) -> nn.Sequential:
    """Return one block for each dilation; the first changes channels and size."""
    blocks: list[Any] = [block(in_channels, out_channels, stride=stride, dilation=dilations[0])]
    blocks += [block(out_channels, out_channels, stride=1, dilation=dilation) for dilation in dilations[1:]]
    return BottleneckStage(*blocks) if isinstance(blocks[0], BottleneckBlock) else nn.Sequential(*blocks)


class ResNet(Backbone):
    """Stem and four stages; features "stem", "res2" to "res5" at strides 4, 4, 8, 16, 32 (less if dilated).

    Stages after the last requested feature are not built.

    Args:
        freeze_at: number of frozen stages, the stem being the first: no gradient, constant batch norms.
        dilations: of res2 to res5; a dilated stage has no stride.
        res5_multi_grid: factors on the dilation of each block of res5.

    Raises:
        ConfigError: options do not fit together.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        in_channels: int = 3,
        stem_type: str = "basic",
        stem_out_channels: int = 64,
        res2_out_channels: int = 256,
        num_groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        dilations: Sequence[int] = (1, 1, 1, 1),
        res5_multi_grid: Sequence[int] = (1, 1, 1),
        norm: NormSpec = "FrozenBN",
        freeze_at: int = 0,
        out_features: Sequence[str] = STAGES,
    ) -> None:
        _check_options(
            depth, stem_type=stem_type, res2=res2_out_channels, num_groups=num_groups, multi_grid=res5_multi_grid
        )
        strides = (1, *(1 if dilation > 1 else 2 for dilation in dilations[1:]))
        widths = tuple(res2_out_channels * 2**index for index in range(len(STAGES)))
        super().__init__(_describe_features((stem_out_channels, *widths), strides), out_features=out_features)
        self.stage_names = tuple(name for i, name in enumerate(STAGES) if not set(STAGES[i:]).isdisjoint(out_features))

        self.stem = Stem(in_channels, stem_out_channels, stem_type=stem_type, norm=norm)
        block_type = partial(_block_type, depth, norm=norm, num_groups=num_groups, stride_in_1x1=stride_in_1x1)
        for index, name in enumerate(self.stage_names):
            block = block_type(bottleneck_channels=num_groups * width_per_group * 2**index)
            num_blocks = BLOCKS_PER_STAGE[depth][index]
            factors = res5_multi_grid[:num_blocks] if name == "res5" else [1] * num_blocks
            block_dilations = [dilations[index] * factor for factor in factors]
            before = widths[index - 1] if index else stem_out_channels
            stage = _stage(block, before, widths[index], stride=strides[index], dilations=block_dilations)
            self.add_module(name, stage)
        self.apply(_init_weights)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        x = features["stem"] = self.stem(x)
        for name in self.stage_names:
            x = features[name] = self.get_submodule(name)(x)
        return {name: features[name] for name in self.out_features}

    def freeze(self, freeze_at: int) -> None:
        """Freeze the first ``freeze_at`` of stem, res2, ...: no gradients, frozen batch norms."""
        for part in [self.stem, *(self.get_submodule(name) for name in self.stage_names)][: max(freeze_at, 0)]:
            part.requires_grad_(False)
            freeze_batch_norm(part)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _describe_features(channels: Sequence[int], strides: Sequence[int]) -> dict[str, ShapeSpec]:
    features = {"stem": ShapeSpec(channels=channels[0], stride=_STEM_STRIDE)}
    total = _STEM_STRIDE
    for name, width, stride in zip(STAGES, channels[1:], strides):
        total *= stride
        features[name] = ShapeSpec(channels=width, stride=total)
    return features


def _check_options(depth: int, *, stem_type: str, res2: int, num_groups: int, multi_grid: Sequence[int]) -> None:
    """Raise ConfigError for options that cannot be built, naming their keys below MODEL.RESNETS."""
    if depth not in BLOCKS_PER_STAGE:
        raise ConfigError(f"MODEL.RESNETS.DEPTH: expected one of {list(BLOCKS_PER_STAGE)}; found {depth!r}")
    if stem_type not in STEM_TYPES:
        raise ConfigError(f"MODEL.RESNETS.STEM_TYPE: expected one of {list(STEM_TYPES)}; found {stem_type!r}")
    if depth in _BASIC_BLOCK_DEPTHS and res2 != _BASIC_BLOCK_WIDTH:
        raise ConfigError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS: expected {_BASIC_BLOCK_WIDTH} at DEPTH {depth}, found {res2}"
        )
    if depth in _BASIC_BLOCK_DEPTHS and num_groups != 1:
        raise ConfigError(f"MODEL.RESNETS.NUM_GROUPS: expected 1 at DEPTH {depth}, found {num_groups}")
    num_blocks = BLOCKS_PER_STAGE[depth][-1]
    if len(multi_grid) < num_blocks:
        raise ConfigError(
            f"MODEL.RESNETS.RES5_MULTI_GRID: expected at least {num_blocks} factors, found {list(multi_grid)}"
        )


def _from_config(cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
    """Return the arguments that both builders read in the same way."""
    options = cfg.MODEL.RESNETS
    if any(options.DEFORM_ON_PER_STAGE):
        raise ConfigError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable convolutions are not supported, "
            f"expected false for every stage; found {list(options.DEFORM_ON_PER_STAGE)}"
        )
    if options.NORM not in NORM_NAMES:
        raise ConfigError(f"MODEL.RESNETS.NORM: expected one of {list(NORM_NAMES)}; found {options.NORM!r}")
    return {
        "depth": options.DEPTH,
        "in_channels": input_shape.channels,
        "stem_out_channels": options.STEM_OUT_CHANNELS,
        "res2_out_channels": options.RES2_OUT_CHANNELS,
        "num_groups": options.NUM_GROUPS,
        "width_per_group": options.WIDTH_PER_GROUP,
        "stride_in_1x1": options.STRIDE_IN_1X1,
        "norm": options.NORM,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        "out_features": options.OUT_FEATURES,
    }


def _checked_dilation(cfg: Any, key: str, allowed: tuple[int, ...]) -> int:
    value = cfg.MODEL.RESNETS[key]
    if value not in allowed:
        raise ConfigError(f"MODEL.RESNETS.{key}: expected one of {list(allowed)}; found {value!r}")
    return value


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Return a ResNet with the basic stem; STEM_TYPE is ignored, and RES5_DILATION is the only dilation."""
    # Parity: the published builder of this name ignores STEM_TYPE, whose default is "deeplab"
    # (test_resnet_builder_ignores_stem_type).
    res5_dilation = _checked_dilation(cfg, "RES5_DILATION", (1, 2))
    multi_grid = (1,) * max(blocks[-1] for blocks in BLOCKS_PER_STAGE.values())
    return ResNet(**_from_config(cfg, input_shape), dilations=(1, 1, 1, res5_dilation), res5_multi_grid=multi_grid)


@BACKBONE_REGISTRY.register()
def build_resnet_deeplab_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Return a ResNet with the stem that STEM_TYPE names, dilation in res4 and res5, and RES5_MULTI_GRID."""
    res4_dilation = _checked_dilation(cfg, "RES4_DILATION", (1, 2))
    # A res4 without stride leaves res5 at stride 16, where the same field of view takes dilation 4.
    res5_dilation = _checked_dilation(cfg, "RES5_DILATION", (4,) if res4_dilation == 2 else (1, 2, 4))
    return ResNet(
        **_from_config(cfg, input_shape),
        stem_type=cfg.MODEL.RESNETS.STEM_TYPE,
        dilations=(1, 1, res4_dilation, res5_dilation),
        res5_multi_grid=cfg.MODEL.RESNETS.RES5_MULTI_GRID,
    )
