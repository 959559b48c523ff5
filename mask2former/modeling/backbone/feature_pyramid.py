"""Simple feature pyramid: four scales from the one map of a plain vision transformer (Li et al. 2022, ViTDet).

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers import Conv2d, LayerNorm2d

PYRAMID_STRIDES = (4, 8, 16, 32)


class SimpleFeaturePyramid(nn.Module):
    """Map (N, C, H / patch, W / patch) to maps (N, out_channels, h, w), one for each of ``strides``.

    Transposed convolutions or pooling by two bring the map near each stride. If the patch is no power of two (14), the
    maps have 3.5, 7, 14, 28 pixels a cell and are resampled so that each cell covers exactly ``stride`` pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, patch_size: int, strides: Sequence[int] = PYRAMID_STRIDES
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.patch_size = patch_size
        self.scales = nn.ModuleList()
        for stride in self.strides:
            layers, channels = _scaling_layers(in_channels, doublings=_num_doublings(patch_size, stride))
            self.scales.append(nn.Sequential(*layers, *_projection(channels, out_channels)))

    def forward(self, x: Tensor, *, size: tuple[int, int]) -> list[Tensor]:
        """Return maps of ceil(size / stride) cells.

        ``size`` (height, width) of the image is at most what ``x`` covers.
        """
        maps = []
        for stride, scale in zip(self.strides, self.scales, strict=True):
            feature = scale(x)
            cell = self.patch_size * 2.0 ** -_num_doublings(self.patch_size, stride)  # pixels that one value covers
            if cell != stride:
                # The factor is given, not the size, so that positions stay those of the image.
                feature = F.interpolate(
                    feature, scale_factor=cell / stride, mode="bilinear", recompute_scale_factor=False
                )
            maps.append(feature[..., : -(-size[0] // stride), : -(-size[1] // stride)])
        return maps


def _num_doublings(patch_size: int, stride: int) -> int:
    """Return how often to double the map (halve if negative) to come nearest to ``stride``."""
    candidates = range(-3, 5)
    return min(candidates, key=lambda doublings: abs(patch_size * 2.0**-doublings / stride - 1))


def _scaling_layers(channels: int, *, doublings: int) -> tuple[list[nn.Module], int]:
    """Return layers that double (or halve) the map that many times, and the number of channels they return."""
    layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
    for index in range(doublings):
        if index:
            layers += [LayerNorm2d(channels), nn.GELU()]
        halved = max(channels // 2, 1)
        layers.append(nn.ConvTranspose2d(channels, halved, kernel_size=2, stride=2))
        channels = halved
    return layers, channels


def _projection(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        Conv2d(in_channels, out_channels, 1, bias=False, norm=LayerNorm2d(out_channels)),
        Conv2d(out_channels, out_channels, 3, padding=1, bias=False, norm=LayerNorm2d(out_channels)),
    ]
