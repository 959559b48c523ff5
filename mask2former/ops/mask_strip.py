"""Probabilities and masks of a strip of the output, from the logits of small maps.

On the CPU, for inference, resizing, sigmoid, decision and sums are one pass per map, which stays in the cache.
Letters: N maps, h w their size, H W size of the output, S rows of a strip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.eager import is_eager_cpu_inference


class MaskStrip(NamedTuple):
    """Probabilities (N, S, W) and bool masks (N, S, W); of each mask its pixels and the sum of their probabilities."""

    probs: Tensor
    masks: Tensor
    areas: Tensor  # (N,) float32, as the next: exact up to 2**24 pixels
    inside_sums: Tensor


class Bands(NamedTuple):
    """An interpolation matrix (target, source): `weights` (target, num_taps) from column `first` (target,) on."""

    first: Tensor  # int32
    weights: Tensor

    @property
    def num_taps(self) -> int:
        """How many neighbouring places a target place depends on, at most."""
        return self.weights.shape[1]


def bands_of(matrix: Tensor) -> Bands:
    """The bands of a matrix (target, source) whose rows are zero but for neighbouring places."""
    used = matrix != 0
    size = matrix.shape[1]
    first = used.long().argmax(1)
    last = size - 1 - used.flip(1).long().argmax(1)
    num_taps = int((last - first).max()) + 1 if len(matrix) else 1
    first = first.clamp(max=size - num_taps)  # the last places, too, are within the map
    taps = first[:, None] + torch.arange(num_taps, device=first.device)
    return Bands(first.int(), matrix.gather(1, taps).contiguous())


def mask_strip_of(logits: Tensor, *, least_logit: float) -> MaskStrip:
    """The masks of logits (N, S, W) that have the output's size and are written over."""
    masks = logits > least_logit
    probs = logits.sigmoid_()
    # By way of uint8, whose conversion is several times as fast.
    inside = masks.flatten(1).view(torch.uint8).float()  # (N, SW)
    return MaskStrip(probs, masks, inside.sum(1), torch.einsum("np,np->n", probs.flatten(1), inside))


def is_mask_strip_fused(maps: Tensor) -> bool:
    """Whether `mask_strip` takes these maps (N, h, w)."""
    if not is_eager_cpu_inference(maps) or maps.dtype != torch.float32 or not maps.numel():
        return False
    return maps.is_contiguous() and native.cpu_library() is not None


def mask_strip(maps: Tensor, strip: slice, *, rows: Bands, columns: Bands, least_logit: float) -> MaskStrip:
    """The masks of maps of logits (N, h, w) in the rows `strip` of the output that two interpolations lead to.

    rows: bands (H, h); columns: bands (W, w). Raises MemoryError where there is none for the kernel's working space.
    """
    assert is_mask_strip_fused(maps)
    library = native.cpu_library()
    assert library is not None
    num, height, width = maps.shape
    size = (num, strip.stop - strip.start, len(columns.first))
    probs, masks = maps.new_empty(size), maps.new_empty(size, dtype=torch.bool)
    sums = maps.new_empty((num, 2))
    taps = columns.weights.T.contiguous()  # (num_taps, W)
    status = library.m2f_mask_strip(
        *(maps.data_ptr(), num, height, width),
        *(rows.first.data_ptr(), rows.weights.data_ptr(), rows.num_taps),
        *(columns.first.data_ptr(), taps.data_ptr(), columns.num_taps),
        *(strip.start, strip.stop, size[2], least_logit),
        *(probs.data_ptr(), masks.data_ptr(), sums.data_ptr(), torch.get_num_threads()),
    )
    native.check_status(status)
    return MaskStrip(probs, masks, areas=sums[:, 1], inside_sums=sums[:, 0])
