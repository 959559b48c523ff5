"""Masks at output size from the logits of small maps, strip by strip, and the mask that each pixel belongs to.

On the CPU, for inference, resizing, sigmoid, decision and sums are one pass per map, which stays in the cache;
comparison and counts are one pass over the probabilities.
Letters: N G maps, h w their size, H W size of the output, S rows of a strip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.ops import native

_CPU_STRIP_PIXELS = 1 << 22
_STRIP_PIXELS = 1 << 26


class MaskStrip(NamedTuple):
    """Probabilities (N, S, W) and bool masks (N, S, W); of each mask its pixels and the sum of their probabilities."""

    probs: Tensor
    masks: Tensor
    areas: Tensor  # (N,) float32, as the next: exact up to 2**24 pixels
    inside_sums: Tensor


class Bands(NamedTuple):
    """An interpolation matrix (target, source): ``weights`` (target, num_taps) from column ``first`` (target,) on."""

    first: Tensor  # int32
    weights: Tensor

    @property
    def num_taps(self) -> int:
        """Return the largest number of source places that a target place depends on."""
        return self.weights.shape[1]


def bands_of(matrix: Tensor) -> Bands:
    """Return the bands of a matrix (target, source) whose rows are zero but for neighbouring places."""
    used = matrix != 0
    size = matrix.shape[1]
    first = used.long().argmax(1)
    last = size - 1 - used.flip(1).long().argmax(1)
    num_taps = int((last - first).max()) + 1 if len(matrix) else 1
    first = first.clamp(max=size - num_taps)  # the last places, too, are within the map
    taps = first[:, None] + torch.arange(num_taps, device=first.device)
    return Bands(first.int(), matrix.gather(1, taps).contiguous())


def pixels_at_once(device: torch.device) -> int:
    """Return how many output pixels of all maps to compute at a time: what fits a CPU's cache or keeps a GPU busy."""
    return _CPU_STRIP_PIXELS if device.type == "cpu" else _STRIP_PIXELS


def _mask_strip_of(logits: Tensor, *, least_logit: float) -> MaskStrip:
    """Return the masks of logits (N, S, W) of output size; the logits are overwritten."""
    masks = logits > least_logit
    probs = logits.sigmoid_()
    # By way of uint8, whose conversion is several times as fast.
    inside = masks.flatten(1).view(torch.uint8).float()  # (N, SW)
    return MaskStrip(probs, masks, inside.sum(1), torch.einsum("np,np->n", probs.flatten(1), inside))


def _is_strip_fused(maps: Tensor) -> bool:
    if not native.is_eager_cpu_inference(maps) or maps.dtype != torch.float32 or not maps.numel() or maps.ndim != 3:
        return False
    return maps.is_contiguous() and native.cpu_library() is not None


def mask_strip(
    maps: Tensor,
    strip: slice,
    *,
    rows: Bands,
    columns: Bands,
    resize: Callable[[Tensor, slice], Tensor],
    least_logit: float,
) -> MaskStrip:
    """Return the masks of maps of logits (N, h, w) in the rows ``strip`` of the output.

    Args:
        maps: logits (N, h, w).
        strip: the range of rows.
        rows: bands (H, h) of the resizing.
        columns: bands (W, w) of the resizing.
        resize: does the resizing where there is no kernel: returns strips (N, S, W) float32 of the maps.
        least_logit: pixels with larger logits are inside a mask.

    Raises:
        MemoryError: there is none for the kernel's working space.
    """
    if not _is_strip_fused(maps):
        return _mask_strip_of(resize(maps, strip), least_logit=least_logit)
    library = native.cpu_library()
    assert library is not None
    num, height, width = maps.shape
    _check_bands("rows", rows, size=height)
    _check_bands("columns", columns, size=width)
    if not 0 <= strip.start <= strip.stop <= len(rows.first):
        raise ValueError(f"strip must lie in the {len(rows.first)} rows of the output, got {strip.start}:{strip.stop}")
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


def _check_bands(name: str, bands: Bands, *, size: int) -> None:
    """Raise ValueError if the bands read outside a map of this size."""
    first, weights = bands
    is_laid_out = first.ndim == 1 and first.is_contiguous() and weights.ndim == 2 and weights.is_contiguous()
    if not is_laid_out or first.dtype != torch.int32 or not first.is_cpu:
        raise ValueError(f"{name}: first must be (target,) of int32, contiguous and on the CPU")
    native.check_tensor(f"{name}: weights", weights, (len(first), weights.shape[1]), dtype=torch.float32)
    if len(first):
        least, most = (int(value) for value in first.aminmax())
        if least < 0 or most + weights.shape[1] > size or not weights.shape[1]:
            raise ValueError(f"{name}: {least} to {most + weights.shape[1] - 1} are read of a map of {size} places")


class MaskWinners(NamedTuple):
    """For each pixel, (S, W) int32: twice the index of its mask, plus 1 if it lies inside that mask; and counts."""

    numbers: Tensor
    won: Tensor  # (2 G,) int64: pixels of each number
    areas: Tensor  # (G,) int64: pixels inside each mask


def mask_winners(probs: Tensor, weights: Tensor, *, threshold: float) -> MaskWinners:
    """Assign each pixel to the first mask with the largest product of probability (G, S, W) and weight (G,).

    A pixel is inside a mask from the probability ``threshold`` on.

    Raises:
        ValueError: there is no mask, or not one weight for each.
        MemoryError: there is none for the kernel's working space.
    """
    if probs.ndim != 3 or not len(probs):
        raise ValueError(f"probs must have shape (G, S, W) with G of at least 1, got {tuple(probs.shape)}")
    if weights.shape != probs.shape[:1] or weights.device != probs.device:
        raise ValueError(
            f"weights must have shape ({len(probs)},) on {probs.device}, got {tuple(weights.shape)} on {weights.device}"
        )
    if native.is_eager_cpu_inference(probs) and probs.dtype == torch.float32 and native.cpu_library() is not None:
        return _winners_of_one_pass(probs.contiguous(), weights.float().contiguous(), threshold=threshold)
    winner = (probs * weights[:, None, None]).argmax(dim=0)
    numbers = 2 * winner + (probs.gather(0, winner[None])[0] >= threshold)
    won = numbers.flatten().bincount(minlength=2 * len(probs))
    return MaskWinners(numbers.int(), won, (probs >= threshold).sum((1, 2)))


def _winners_of_one_pass(probs: Tensor, weights: Tensor, *, threshold: float) -> MaskWinners:
    library = native.cpu_library()
    assert library is not None
    num_masks, num_pixels = len(probs), probs[0].numel()
    numbers = torch.empty(probs.shape[1:], dtype=torch.int32, device=probs.device)
    num_blocks = -(-num_pixels // library.m2f_winner_pixels())
    counts = torch.empty((num_blocks, 3 * num_masks), dtype=torch.int64, device=probs.device)
    status = library.m2f_winners(
        *(probs.data_ptr(), weights.data_ptr(), num_masks, num_pixels, threshold),
        *(numbers.data_ptr(), counts.data_ptr(), torch.get_num_threads()),
    )
    native.check_status(status)
    won, areas = counts.sum(0).split((2 * num_masks, num_masks))
    return MaskWinners(numbers, won, areas)
