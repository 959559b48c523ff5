"""Dilated neighbourhood attention transformer as a feature extractor (Hassani and Shi 2022, arXiv:2209.15001).

Letters: B batch, H W height and width of the map in question, C channels, M heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.backbone.backbone import Backbone
from mask2former.modeling.backbone.swin import FeedForward
from mask2former.modeling.layers import DropPath
from mask2former.modeling.registry import BACKBONE_REGISTRY
from mask2former.ops import neighbourhood_attention, neighbourhood_attention_reference
from mask2former.structures import ShapeSpec

_INIT_STD = 0.02
_PATCH_STRIDE = 4


class NeighbourhoodAttention(nn.Module):
    """Each token attends to the k x k nearest of those ``dilation`` apart: (B, H, W, C) -> the same.

    A map of fewer than k * ``dilation`` tokens along a side is padded with zeros, which take part as keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        kernel_size: int,
        dilation: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.rpb, std=_INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        query, key_value = self.qkv(x).tensor_split((x.shape[-1],), dim=-1)
        key, value = self._pad(key_value).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)) for x in (query, key, value))  # (B, H, W, M, D)
        attend: Callable[..., Tensor] = neighbourhood_attention
        if self.attn_drop and self.training:
            attend = partial(neighbourhood_attention_reference, dropout=self.attn_drop)
        out = attend(
            *(query, key, value, self.rpb), kernel_size=self.kernel_size, dilation=self.dilation, scale=self.scale
        )
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _pad(self, key_value: Tensor) -> Tensor:
        """Append what the linear layer makes of zeros at bottom and right of (B, H, W, 2 C), where the map is small."""
        B, H, W, channels = key_value.shape
        least = self.kernel_size * self.dilation
        bias = self.qkv.bias
        of_zeros = key_value.new_zeros(channels) if bias is None else bias[-channels:].to(key_value.dtype)
        if W < least:
            key_value = torch.cat([key_value, of_zeros.expand(B, H, least - W, channels)], dim=2)
        if H < least:
            below = of_zeros.expand(B, least - H, key_value.shape[2], channels)
            key_value = torch.cat([key_value, below], dim=1)
        return key_value


class DiNATBlock(nn.Module):
    """Attention and feed-forward, each with norm before and residual around: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(
        self, dim: int, *, attn: NeighbourhoodAttention, mlp_ratio: float, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvTokenizer(nn.Module):
    """Two convolutions of stride 2 without activation between: (B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1), nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    """Convolution of stride 2 to twice the channels: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class DiNATLevel(nn.Module):
    """Blocks of one map size, then a downsampling except in the last level."""

    def __init__(self, blocks: Sequence[DiNATBlock], downsample: ConvDownsampler | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Compute the blocks without the downsampling: (B, H, W, C) -> (B, H, W, C)."""
        return self.blocks(x)  # type: ignore[no-any-return]


def _check_options(
    embed_dim: int,
    depths: Sequence[int],
    *,
    num_heads: Sequence[int],
    dilations: Sequence[Sequence[int]],
    kernel_size: int,
) -> None:
    """Raise ConfigError for options that cannot be built, naming their keys below MODEL.DiNAT."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"MODEL.DiNAT.KERNEL_SIZE: expected an odd number, found {kernel_size}")
    for name, values in (("NUM_HEADS", num_heads), ("DILATIONS", dilations)):
        if not depths or len(values) != len(depths):
            raise ConfigError(
                f"MODEL.DiNAT.{name}: expected one entry for each of the {len(depths)} levels of DEPTHS, "
                f"found {list(values)}"
            )
    for index, (depth, heads, of_level) in enumerate(zip(depths, num_heads, dilations, strict=True)):
        if heads < 1 or (embed_dim * 2**index) % heads:
            raise ConfigError(
                f"MODEL.DiNAT.NUM_HEADS: expected divisors of the {embed_dim * 2**index} channels of level {index}, "
                f"found {heads}"
            )
        if len(of_level) < depth or not all(isinstance(d, int) and d >= 1 for d in of_level):
            raise ConfigError(
                f"MODEL.DiNAT.DILATIONS: expected a positive number for each of the {depth} blocks of level {index}, "
                f"found {list(of_level)}"
            )


@BACKBONE_REGISTRY.register()
class D2DiNAT(Backbone):
    """Four levels of dilated neighbourhood attention; features "res2" to "res5" at strides 4, 8, 16, 32.

    ``dilations`` has a number for each block of each level; more than there are blocks are not used.

    Raises:
        ConfigError: options do not fit together.
    """

    size_divisibility = 32

    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] = ((1, 16, 1), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2, 1, 2, 1)),
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    ) -> None:
        _check_options(embed_dim, depths, num_heads=num_heads, dilations=dilations, kernel_size=kernel_size)
        dims = [embed_dim * 2**index for index in range(len(depths))]
        features = {f"res{i + 2}": ShapeSpec(channels=dim, stride=_PATCH_STRIDE * 2**i) for i, dim in enumerate(dims)}
        super().__init__(features, out_features=out_features)
        self.patch_embed = ConvTokenizer(in_channels, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        attention = partial(NeighbourhoodAttention, kernel_size=kernel_size, qkv_bias=qkv_bias, qk_scale=qk_scale)
        attention = partial(attention, attn_drop=attn_drop_rate, proj_drop=drop_rate)
        drops = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.levels = nn.ModuleList()
        for dim, depth, heads, of_level in zip(dims, depths, num_heads, dilations, strict=True):
            attentions = [attention(dim, num_heads=heads, dilation=dilation) for dilation in of_level[:depth]]
            blocks = [
                DiNATBlock(dim, attn=attn, mlp_ratio=mlp_ratio, drop=drop_rate, drop_path=next(drops))
                for attn in attentions
            ]
            self.levels.append(DiNATLevel(blocks, ConvDownsampler(dim) if dim != dims[-1] else None))
        for index, dim in enumerate(dims):
            self.add_module(f"norm{index}", nn.LayerNorm(dim))
        self._init_weights()

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the constructor's arguments from MODEL.DiNAT."""
        options = cfg.MODEL.DiNAT
        return {
            "in_channels": input_shape.channels,
            "embed_dim": options.EMBED_DIM,
            "depths": options.DEPTHS,
            "num_heads": options.NUM_HEADS,
            "kernel_size": options.KERNEL_SIZE,
            "dilations": options.DILATIONS,
            "mlp_ratio": options.MLP_RATIO,
            "qkv_bias": options.QKV_BIAS,
            "qk_scale": options.QK_SCALE,
            "drop_rate": options.DROP_RATE,
            "attn_drop_rate": options.ATTN_DROP_RATE,
            "drop_path_rate": options.DROP_PATH_RATE,
            "out_features": options.OUT_FEATURES,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pos_drop(self.patch_embed(x))  # (B, H, W, C)
        features = {}
        for index, level in enumerate(self.levels):
            assert isinstance(level, DiNATLevel)
            name = f"res{index + 2}"
            x = level(x)
            if name in self.out_features:
                features[name] = self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2)  # (B, C, H, W)
            if len(features) == len(self.out_features):
                break
            if level.downsample is not None:
                x = level.downsample(x)
        return features

    def parameter_layers(self) -> dict[str, int]:
        """Return the layer of each parameter: the embedding, then each block.

        Downsampling and norm belong to the last block of their level.
        """
        layers = {name: 0 for name, _ in self.named_parameters() if name.startswith("patch_embed")}
        last = 0
        for index, level in enumerate(self.levels):
            assert isinstance(level, DiNATLevel)
            first, last = last + 1, last + len(level.blocks)
            for name, _ in level.named_parameters():
                block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
                layers[f"levels.{index}.{name}"] = range(first, last + 1)[block]
            layers.update({f"norm{index}.{name}": last for name in ("weight", "bias")})
        return layers

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
