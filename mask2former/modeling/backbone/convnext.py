"""ConvNeXt with a norm on each output, as OneFormer uses it (Liu et al. 2022, arXiv:2201.03545).

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.backbone.backbone import Backbone
from mask2former.modeling.layers import DropPath
from mask2former.modeling.registry import BACKBONE_REGISTRY
from mask2former.structures import ShapeSpec

_EPS = 1e-6
_INIT_STD = 0.02
_STEM_STRIDE = 4


class ChannelNorm(nn.Module):
    """Layer norm over the channels: (N, C, H, W), or with ``channels_last`` (N, H, W, C), to the same shape."""

    # Parity: weight decay applies, as to no other norm, because recipes spare torch's norm classes alone;
    # tests/modeling/test_convnext.py, test_norms_of_convnext_are_decayed.
    def __init__(self, num_channels: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, _EPS)
        x = x.permute(0, 2, 3, 1)  # (N, H, W, C)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, _EPS).permute(0, 3, 1, 2)


class PatchConv(nn.Conv2d):
    """Convolution of patches side by side, the last ones padded: (N, C, H, W) -> (N, C', ceil(H / p), ceil(W / p))."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[2] % self.stride[0], -x.shape[3] % self.stride[1]
        return super().forward(F.pad(x, (0, right, 0, bottom)) if bottom or right else x)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7 convolution, then a feed-forward network, with a residual around: (N, C, H, W) -> the same."""

    def __init__(self, dim: int, *, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = ChannelNorm(dim, channels_last=True)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        residual = self.pwconv2(F.gelu(self.pwconv1(residual)))
        residual = residual if self.gamma is None else self.gamma * residual
        return x + self.drop_path(residual).permute(0, 3, 1, 2)


@BACKBONE_REGISTRY.register()
class D2ConvNeXt(Backbone):
    """Four stages of convolutions; features "res2" to "res5" at strides 4, 8, 16, 32.

    ``layer_scale`` is what each block's output is multiplied by at first; 0: it is not.

    Raises:
        ConfigError: options do not fit together.
    """

    size_divisibility = 32

    def __init__(
        self,
        *,
        in_channels: int = 3,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (192, 384, 768, 1536),
        drop_path_rate: float = 0.4,
        layer_scale: float = 1.0,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    ) -> None:
        if not depths or len(dims) != len(depths):
            raise ConfigError(
                f"MODEL.CONVNEXT.DIMS: expected one number for each of the {len(depths)} stages of DEPTHS, "
                f"found {list(dims)}"
            )
        strides = [_STEM_STRIDE * 2**index for index in range(len(depths))]
        features = {f"res{i + 2}": ShapeSpec(channels=dim, stride=strides[i]) for i, dim in enumerate(dims)}
        super().__init__(features, out_features=out_features)
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(PatchConv(in_channels, dims[0], _STEM_STRIDE), ChannelNorm(dims[0]))]
        )
        for index in range(1, len(dims)):
            steps = ChannelNorm(dims[index - 1]), PatchConv(dims[index - 1], dims[index], 2)
            self.downsample_layers.append(nn.Sequential(*steps))
        drops = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for dim, depth in zip(dims, depths, strict=True):
            blocks = [ConvNeXtBlock(dim, drop_path=next(drops), layer_scale=layer_scale) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        for index, dim in enumerate(dims):
            self.add_module(f"norm{index}", ChannelNorm(dim))
        self._init_weights()

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the constructor's arguments from MODEL.CONVNEXT."""
        options = cfg.MODEL.CONVNEXT
        return {
            "in_channels": input_shape.channels,
            "depths": options.DEPTHS,
            "dims": options.DIMS,
            "drop_path_rate": options.DROP_PATH_RATE,
            "layer_scale": options.LSIT,
            "out_features": options.OUT_FEATURES,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            name = f"res{index + 2}"
            x = stage(downsample(x))
            if name in self.out_features:
                features[name] = self.get_submodule(f"norm{index}")(x)
            if len(features) == len(self.out_features):
                break
        return features

    def parameter_layers(self) -> dict[str, int]:
        """Return the layer of each parameter: the stem, then each block.

        What makes a stage's map smaller belongs to the first block of the stage, the norm of its output to the last.
        """
        layers = {name: 0 for name, _ in self.downsample_layers[0].named_parameters("downsample_layers.0")}
        last = 0
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, nn.Sequential)
            first, last = last + 1, last + len(stage)
            if index:
                smaller = self.downsample_layers[index].named_parameters(f"downsample_layers.{index}")
                layers.update({name: first for name, _ in smaller})
            layers.update({f"stages.{index}.{n}": first + int(n.split(".")[0]) for n, _ in stage.named_parameters()})
            layers.update({f"norm{index}.{name}": last for name in ("weight", "bias")})
        return layers

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
