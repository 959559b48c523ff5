"""Resize masks from the model's grid to the output: enlarge to the padded input, crop, resize.

Bilinear resizing is linear and acts on rows and columns separately, so both resizings and the crop between them are one
matrix for the rows and one for the columns. Any strip of the output is then computed alone, from the few rows of the
small maps that it depends on: no map of the intermediate size is ever stored.

Letters: N maps, h w size of the maps, H W size of the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.ops import MaskStrip, bands_of, mask_strip, pixels_at_once


@dataclass(frozen=True)
class MaskGeometry:
    """Sizes (H, W) from masks to output: the ``padded`` input, the ``image`` cropped from it, the ``output``."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]

    def resize(self, maps: Tensor) -> Tensor:
        """Map (N, h, w) of the padded input to float32 (N, *output)."""
        resizer = MaskResizer(self, (maps.shape[-2], maps.shape[-1]), device=maps.device)
        resized = maps.new_empty((len(maps), *self.output), dtype=torch.float32)
        for strip in resizer.strips(len(maps)):
            resized[:, strip] = resizer(maps, strip)
        return resized

    def image_to_output(self, maps: Tensor) -> Tensor:
        """Map (N, *image) to (N, *output)."""
        if self.image == self.output:
            return maps
        return F.interpolate(maps[None], size=self.output, mode="bilinear", align_corners=False)[0]


class MaskResizer:
    """Resizes maps (N, h, w) of one ``geometry`` strip by strip to the output, or to the image inside it."""

    def __init__(
        self, geometry: MaskGeometry, size: tuple[int, int], *, device: torch.device, to_output: bool = True
    ) -> None:
        self.target = geometry.output if to_output else geometry.image
        rows, columns = (
            _interpolation(source, padded, image, target)
            for source, padded, image, target in zip(size, geometry.padded, geometry.image, self.target)
        )
        self._row_bands, self._column_bands = bands_of(rows), bands_of(columns)
        self._first = self._row_bands.first.tolist()
        self.rows = rows.to(device)  # (H, h)
        self.columns = columns.T.contiguous().to(device)  # (w, W)

    def strips(self, num_maps: int) -> Iterator[slice]:
        """Return ranges of target rows, each small enough to process ``num_maps`` maps at once."""
        height, width = self.target
        step = max(1, pixels_at_once(self.rows.device) // max(1, num_maps * width))
        for start in range(0, height, step):
            yield slice(start, min(start + step, height))

    def __call__(self, maps: Tensor, strip: slice) -> Tensor:
        """Map (N, h, w) to float32 (N, strip, W)."""
        first, last = min(self._first[strip]), max(self._first[strip]) + self._row_bands.num_taps
        band = maps[:, first:last].float()  # (N, n, w)
        return self.rows[strip, first:last] @ (band @ self.columns)  # (s, n) @ (N, n, W)

    def masks(self, maps: Tensor, strip: slice, *, least_logit: float) -> MaskStrip:
        """Return the masks of logits (N, h, w) in a strip of the target, where these exceed ``least_logit``."""
        bands = {"rows": self._row_bands, "columns": self._column_bands}
        return mask_strip(maps, strip, **bands, resize=self, least_logit=least_logit)


def _interpolation(source: int, padded: int, image: int, target: int) -> Tensor:
    """Return the matrix (target, source) of one axis: enlarge ``source`` to ``padded``, crop to ``image``, resize."""
    places = torch.eye(source, dtype=torch.float32, device="cpu")
    enlarged = _resize_line(places[None], padded)  # (1, source, padded): each place by itself
    return _resize_line(enlarged[..., :image], target)[0].T.contiguous()


def _resize_line(line: Tensor, size: int) -> Tensor:
    if line.shape[-1] == size:
        return line
    return F.interpolate(line, size=size, mode="linear", align_corners=False)
