"""Which of several masks each pixel goes to, where they may not overlap.

On the CPU, for inference, comparison and counts are one pass over the probabilities.
Letters: G masks, S rows, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.eager import is_eager_cpu_inference


class MaskWinners(NamedTuple):
    """Of each pixel (S, W) int32 twice the mask that it goes to, plus 1 where it is inside that mask; and counts."""

    numbers: Tensor
    won: Tensor  # (2 G,) int64: pixels of each number
    areas: Tensor  # (G,) int64: pixels inside each mask


def mask_winners(probs: Tensor, weights: Tensor, *, threshold: float) -> MaskWinners:
    """Each pixel goes to the first mask with the largest product of probability (G, S, W) and weight (G,).

    threshold: the probability from which on a pixel is inside a mask.

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
    if is_eager_cpu_inference(probs) and probs.dtype == torch.float32 and native.cpu_library() is not None:
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
