"""Average several predictions of one image, made from copies of other sizes and mirrored ones.

A query need not stand for the same object in every copy. So the queries of each copy are assigned to those of the first
copy, by mask overlap times class similarity, and class probabilities and mask logits of assigned queries are averaged:
logits, because they do not saturate and are what is resized afterwards. A query of the first copy whose mask overlaps
no mask of another copy is not changed by that copy. The number of queries, and with it memory, does not grow with the
number of copies, and equal copies change nothing, bit by bit.

Letters: Q queries, N assigned queries, K classes, H W size of the first copy's mask logits, h w of another copy's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.modeling.mask_geometry import MaskGeometry

_SAME_MASK = 0.5  # overlap from which two masks of an image are one, as in panoptic quality
_TINY = 1e-12


class QueryMean:
    """The running mean; its queries and the frame of its masks are those of the first prediction."""

    def __init__(self, class_logits: Tensor, mask_logits: Tensor, *, geometry: MaskGeometry) -> None:
        """The first copy's class logits (Q, K + 1), "no object" last, and mask logits (Q, H, W) of the padded input."""
        self.geometry = geometry
        self.class_logits, self.mask_logits = class_logits.float(), mask_logits.float()
        self.class_probs, self.mask_probs = self.class_logits.softmax(-1), self.mask_logits.sigmoid()
        self.mean_class_probs, self.mean_mask_logits = self.class_probs.clone(), self.mask_logits.clone()
        self.counts = torch.ones(len(class_logits), device=class_logits.device)

    def add(self, class_logits: Tensor, mask_logits: Tensor, *, geometry: MaskGeometry, is_mirrored: bool) -> None:
        """Add class logits (Q, K + 1) and mask logits (Q, h, w) of another copy, mirrored left to right or not."""
        class_probs = class_logits.float().softmax(-1)
        size = (int(self.mask_logits.shape[-2]), int(self.mask_logits.shape[-1]))
        moved = move_masks(
            mask_logits.float(), size=size, source=geometry, target=self.geometry, is_mirrored=is_mirrored
        )
        mask_probs = moved.sigmoid()
        own, theirs = self._assign(class_probs, mask_probs)
        self.counts[own] += 1
        weights = self.counts[own].reciprocal()[:, None]  # (N, 1)
        # A step towards the new value, not a sum to be divided: equal values stay what they are.
        self.mean_class_probs[own] = self.mean_class_probs[own].lerp(class_probs[theirs], weights)
        self.mean_mask_logits[own] = self.mean_mask_logits[own].lerp(moved[theirs], weights[..., None])

    def result(self) -> tuple[Tensor, Tensor]:
        """Return class logits (Q, K + 1) and mask logits (Q, H, W) of the mean, in the first copy's frame."""
        is_same = (self.mean_class_probs == self.class_probs).all(-1, keepdim=True)
        class_logits = self.class_logits.where(is_same, self.mean_class_probs.clamp(min=_TINY).log())
        return class_logits, self.mean_mask_logits

    def _assign(self, class_probs: Tensor, mask_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (N,) of the first prediction, and those (N,) of the other that are assigned to them."""
        height, width = self.mask_probs.shape[-2:]
        rows = -(-self.geometry.image[0] * height // self.geometry.padded[0])  # without the padding
        columns = -(-self.geometry.image[1] * width // self.geometry.padded[1])
        inside = [probs[:, :rows, :columns].flatten(1) for probs in (self.mask_probs, mask_probs)]
        overlap = soft_overlap(*inside)
        likeness = self.class_probs.sqrt() @ class_probs.sqrt().T  # 1 for equal distributions, less for all others
        similarity = (overlap * likeness).cpu()
        own, theirs = (torch.from_numpy(index) for index in linear_sum_assignment(similarity, maximize=True))
        is_same = overlap.cpu()[own, theirs] >= _SAME_MASK
        device = mask_probs.device
        return own[is_same].to(device), theirs[is_same].to(device)


def soft_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the Tanimoto coefficient (N, M) of mask probabilities (N, P) and (M, P): IoU if they are binary.

    It is 1 only for equal masks, however soft they are, and 0 where both are empty.
    """
    products = first @ second.T
    squares = first.square().sum(1)[:, None] + second.square().sum(1)  # (N, M)
    return products / (squares - products).clamp(min=_TINY)


def move_masks(
    mask_logits: Tensor, *, size: tuple[int, int], source: MaskGeometry, target: MaskGeometry, is_mirrored: bool
) -> Tensor:
    """Map mask logits (Q, h, w) of one copy of an image to (Q, *size) in the frame of another, bilinearly.

    Both cover padded inputs; outside the first copy its border is continued.
    """
    is_same_frame = (source.padded, source.image) == (target.padded, target.image)
    if is_same_frame and not is_mirrored and tuple(mask_logits.shape[-2:]) == size:
        return mask_logits
    axes = []
    for side, length in enumerate(size):
        centers = (torch.arange(length, device=mask_logits.device, dtype=torch.float32) + 0.5) / length
        shares = centers * (target.padded[side] / target.image[side])  # 0..1 across the image, more in the padding
        if is_mirrored and side == 1:
            shares = 1 - shares
        axes.append(shares * (2 * source.image[side] / source.padded[side]) - 1)  # -1..1 across the padded copy
    rows, columns = torch.meshgrid(axes[0], axes[1], indexing="ij")
    grid = torch.stack((columns, rows), dim=-1)  # (H, W, 2)
    moved = F.grid_sample(mask_logits[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return moved[0]
