"""Swin Transformer as a feature extractor for inputs of any size (Liu et al. 2021).

Letters: B batch, H W height and width of the map in question, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.backbone.backbone import Backbone
from mask2former.modeling.backbone.window_attention import (
    WindowAttention,
    masks_of_windows,
    merge_shifted_windows,
    merge_windows,
    partition_shifted_windows,
    partition_windows,
    shift_masks,
)
from mask2former.modeling.layers import DropPath, run_checkpointed
from mask2former.modeling.registry import BACKBONE_REGISTRY
from mask2former.structures import ShapeSpec


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Pad (B, H, W, C) with zeros at bottom and right until ``divisor`` divides its sides."""
    bottom, right = -x.shape[1] % divisor, -x.shape[2] % divisor
    # An exporter is asked first: the test of sizes would bind the graph to those that are (or are not) padded.
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if torch.compiler.is_exporting() or bottom or right else x


class FeedForward(nn.Module):
    """Two linear layers with GELU between them: (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden_dim: int, *, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class PatchEmbed(nn.Module):
    """One token for each patch, the last ones padded: images (B, 3, H, W) -> (B, ceil(H / p), ceil(W / p), C)."""

    def __init__(self, in_channels: int, dim: int, *, patch_size: int, has_norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if has_norm else None

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if torch.compiler.is_exporting() or bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = self.proj(x).permute(0, 2, 3, 1)  # (B, H/p, W/p, C)
        return x.contiguous() if self.norm is None else self.norm(x)


class PatchMerging(nn.Module):
    """Joins 2 × 2 neighbours to one token, padding odd sizes: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2)
        B, H, W, C = x.shape
        # The order of the four is that of the weights: down the first column, then down the second.
        x = x.view(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        return self.reduction(self.norm(x))


class SwinBlock(nn.Module):
    """Window attention and feed-forward, each with norm before and residual around: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(
        self, dim: int, *, attn: WindowAttention, window_size: int, mlp_ratio: float, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), drop=drop)

    def forward(self, x: Tensor, masks: Tensor | None) -> Tensor:
        """Map (B, H, W, C) to the same shape; ``masks`` (4, 1, S, S) are needed if windows are shifted."""
        x = x + self.drop_path(self._attend(self.norm1(x), masks))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, masks: Tensor | None) -> Tensor:
        B, H, W, _ = x.shape
        w = self.window_size
        x = pad_to_multiple(x, w)
        size = (x.shape[1], x.shape[2])
        if masks is None:
            x = merge_windows(self.attn(partition_windows(x, w)), w, size=size, batch_size=B)
        elif torch.compiler.is_exporting():  # one sequence of windows, for a graph of any size: parts may be empty
            shift = w // 2
            windows = partition_windows(x.roll((-shift, -shift), dims=(1, 2)), w)
            each = masks_of_windows(masks, w, size=size, batch_size=B)
            x = merge_windows(self.attn(windows, masks=each), w, size=size, batch_size=B)
            x = x.roll((shift, shift), dims=(1, 2))
        else:
            windows, counts = partition_shifted_windows(x, w)
            x = merge_shifted_windows(self.attn(windows, masks=masks, counts=counts), w, size=size, batch_size=B)
        return x[:, :H, :W]


class SwinStage(nn.Module):
    """Blocks, every second one with shifted windows, then a patch merging except in the last stage."""

    shift_masks: Tensor

    def __init__(
        self, blocks: Sequence[SwinBlock], window_size: int, *, downsample: PatchMerging | None, use_checkpoint: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint
        self.register_buffer("shift_masks", shift_masks(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the blocks without the merging: (B, H, W, C) -> (B, H, W, C)."""
        for index, block in enumerate(self.blocks):
            masks = self.shift_masks if index % 2 else None
            x = run_checkpointed(block, x, masks, enabled=self.use_checkpoint and self.training)
        return x


def _check_options(embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    """Raise ConfigError for options that cannot be built, naming their keys below MODEL.SWIN."""
    if not depths or len(num_heads) != len(depths):
        raise ConfigError(
            f"MODEL.SWIN.NUM_HEADS: expected one number for each of the {len(depths)} stages of DEPTHS, "
            f"found {list(num_heads)}"
        )
    for index, heads in enumerate(num_heads):
        if (embed_dim * 2**index) % heads:
            raise ConfigError(
                f"MODEL.SWIN.NUM_HEADS: expected divisors of the {embed_dim * 2**index} channels of stage {index}, "
                f"found {heads}"
            )


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Four stages of shifted-window attention; features "res2" to "res5" at strides 4, 8, 16, 32 (patch size 4).

    With ``ape`` there is an absolute position embedding of images with sides of ``pretrain_img_size``, resized to other
    inputs.

    Raises:
        ConfigError: options do not fit together.
    """

    size_divisibility = 32

    def __init__(
        self,
        *,
        in_channels: int = 3,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
    ) -> None:
        _check_options(embed_dim, depths, num_heads)
        dims = [embed_dim * 2**index for index in range(len(depths))]
        features = {f"res{i + 2}": ShapeSpec(channels=dim, stride=patch_size * 2**i) for i, dim in enumerate(dims)}
        super().__init__(features, out_features=out_features)
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size=patch_size, has_norm=patch_norm)
        side = pretrain_img_size // patch_size
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        attention = partial(WindowAttention, window_size=window_size, qkv_bias=qkv_bias, qk_scale=qk_scale)
        attention = partial(attention, attn_drop=attn_drop_rate, proj_drop=drop_rate)
        block = partial(SwinBlock, window_size=window_size, mlp_ratio=mlp_ratio, drop=drop_rate)
        drops = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList()
        for dim, depth, heads in zip(dims, depths, num_heads, strict=True):
            blocks = [block(dim, attn=attention(dim, num_heads=heads), drop_path=next(drops)) for _ in range(depth)]
            merging = PatchMerging(dim) if dim != dims[-1] else None
            self.layers.append(SwinStage(blocks, window_size, downsample=merging, use_checkpoint=use_checkpoint))
        self._add_norms(dims)
        self._init_weights()

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the constructor's arguments from MODEL.SWIN."""
        options = cfg.MODEL.SWIN
        return {
            "in_channels": input_shape.channels,
            "pretrain_img_size": options.PRETRAIN_IMG_SIZE,
            "patch_size": options.PATCH_SIZE,
            "embed_dim": options.EMBED_DIM,
            "depths": options.DEPTHS,
            "num_heads": options.NUM_HEADS,
            "window_size": options.WINDOW_SIZE,
            "mlp_ratio": options.MLP_RATIO,
            "qkv_bias": options.QKV_BIAS,
            "qk_scale": options.QK_SCALE,
            "drop_rate": options.DROP_RATE,
            "attn_drop_rate": options.ATTN_DROP_RATE,
            "drop_path_rate": options.DROP_PATH_RATE,
            "ape": options.APE,
            "patch_norm": options.PATCH_NORM,
            "out_features": options.OUT_FEATURES,
            "use_checkpoint": options.USE_CHECKPOINT,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pos_drop(self._add_absolute_position(self.patch_embed(x)))  # (B, H, W, C)
        features = {}
        for index, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            name = f"res{index + 2}"
            x = stage(x)
            if name in self.out_features:
                features[name] = self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2)  # (B, C, H, W)
            if len(features) == len(self.out_features):
                break
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features

    def parameter_layers(self) -> dict[str, int]:
        """Return the layer of each parameter: the embedding, then each block.

        Patch merging and norm belong to the last block of their stage.
        """
        layers = {name: 0 for name, _ in self.named_parameters() if name.startswith(("patch_embed", "absolute_pos"))}
        last = 0
        for index, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            first, last = last + 1, last + len(stage.blocks)
            for name, _ in stage.named_parameters():
                block = name.split(".")[1] if name.startswith("blocks.") else -1
                layers[f"layers.{index}.{name}"] = range(first, last + 1)[int(block)]
            layers.update({f"norm{index}.{name}": last for name in ("weight", "bias")})
        return layers

    def _add_absolute_position(self, x: Tensor) -> Tensor:
        if self.absolute_pos_embed is None:
            return x
        embedding = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")  # (1, C, H, W)
        return x + embedding.permute(0, 2, 3, 1)

    def _add_norms(self, dims: Sequence[int]) -> None:
        for index, dim in enumerate(dims):
            self.add_module(f"norm{index}", nn.LayerNorm(dim))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
