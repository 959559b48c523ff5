"""The proof of an exported file: its logits and results beside those of the model it was made from, on real images.

Letters: N M instances or segments, H W size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.errors import InputError

MIN_IOU = 0.999  # of detections that are the same
MAX_SCORE_DIFFERENCE = 2e-3


@dataclass(frozen=True)
class Limits:
    """How far a file may be from its model: ``error`` relative to the largest logit, and detections that differ."""

    error: float
    detections: int | None = 0  # None: any number


LIMITS: Mapping[str, Limits] = {
    "float32": Limits(1e-4),
    "float16": Limits(5e-2, None),
    "bfloat16": Limits(2e-1, None),
}


@dataclass
class Verification:
    """What was compared, and how far it differs. Errors are relative to the largest magnitude of the model's."""

    images: int = 0
    class_logit_error: float = 0.0
    mask_logit_error: float = 0.0
    mask_signs: int = 0  # of the small maps, one for each query and place
    mask_signs_differing: int = 0
    detections: int = 0  # instances and segments of the model
    detections_differing: int = 0
    pixels: int = 0  # with a class, where there are semantic results
    pixels_differing: int = 0

    def add_logits(self, expected: Mapping[str, Tensor], found: Mapping[str, np.ndarray]) -> None:
        """Compare raw outputs by name."""
        for name, reference in expected.items():
            values = torch.from_numpy(found[name]).float()
            error = float((values - reference).abs().max() / reference.abs().max().clamp(min=1e-12))
            error = error if np.isfinite(error) else float("inf")
            if name == "class_logits":
                self.class_logit_error = max(self.class_logit_error, error)
                continue
            self.mask_logit_error = max(self.mask_logit_error, error)
            self.mask_signs += reference.numel()
            self.mask_signs_differing += int(((values > 0) != (reference > 0)).sum())

    def add_results(self, expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
        """Compare the results of images."""
        for ours, theirs in zip(expected, found, strict=True):
            self.images += 1
            for read in (_instances, _segments):
                self._compare(read(ours), read(theirs))
            if "sem_seg" in ours:
                labels, others = (_labels(results["sem_seg"]) for results in (ours, theirs))
                self.pixels += labels.numel()
                self.pixels_differing += int((labels != others).sum())

    def _compare(self, expected: _Found | None, found: _Found | None) -> None:
        if expected is None or found is None:
            return
        self.detections += len(expected.scores)
        self.detections_differing += count_differing(expected, found)

    @property
    def largest_error(self) -> float:
        """Return the larger of both errors."""
        return max(self.class_logit_error, self.mask_logit_error)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        return [
            f"{self.images} images",
            f"largest error of class logits {self.class_logit_error:.2e}, of mask logits {self.mask_logit_error:.2e} "
            "(relative)",
            f"{self.mask_signs_differing} of {self.mask_signs} mask signs differ",
            f"{self.detections_differing} of {self.detections} detections differ (class, IoU {MIN_IOU}, score "
            f"{MAX_SCORE_DIFFERENCE})",
            *([f"{self.pixels_differing} of {self.pixels} pixels differ in their class"] if self.pixels else []),
        ]

    def check(self, limits: Limits, *, name: str) -> None:
        """Raise InputError where the file differs from its model by more than it may."""
        faults = []
        if self.largest_error > limits.error or not np.isfinite(self.largest_error):
            faults.append(f"a relative error of logits of {self.largest_error:.2e}, expected at most {limits.error:g}")
        if limits.detections is not None and self.detections_differing > limits.detections:
            faults.append(f"{self.detections_differing} differing detections, expected at most {limits.detections}")
        if faults:
            raise InputError(f"{name}: does not agree with its model: {'; '.join(faults)}; the file was not written")

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for the file's metadata."""
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """Classes, scores (N,) and masks (N, H, W) bool."""

    classes: list[int]
    scores: list[float]
    masks: Tensor


def count_differing(expected: _Found, found: _Found) -> int:
    """Return how many of the expected have no equal among the found.

    Equal are those of the same class with IoU of at least MIN_IOU and scores at most MAX_SCORE_DIFFERENCE apart. Of a
    list that ends at a number of results, what has the score of its end may be in either list.
    """
    ious = _ious(expected.masks, found.masks)
    free = set(range(len(found.scores)))
    end = min(found.scores, default=0.0) + MAX_SCORE_DIFFERENCE if len(found.scores) == len(expected.scores) else -1.0
    num_differing = 0
    for place, (label, score) in enumerate(zip(expected.classes, expected.scores, strict=True)):
        equal = [
            other
            for other in free
            if found.classes[other] == label
            and abs(found.scores[other] - score) <= MAX_SCORE_DIFFERENCE
            and ious[place, other] >= MIN_IOU
        ]
        if equal:
            free.discard(max(equal, key=lambda other: (float(ious[place, other]), -abs(found.scores[other] - score))))
        elif score > end:
            num_differing += 1
    return num_differing


def _ious(masks: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (N, M) of masks (N, H, W) and (M, H, W) bool; 1 of two empty ones."""
    flat, flat_others = masks.flatten(1).float(), others.flatten(1).float()
    intersections = flat @ flat_others.T
    unions = flat.sum(1)[:, None] + flat_others.sum(1) - intersections
    return torch.where(unions > 0, intersections / unions.clamp(min=1), 1.0)


def _instances(results: dict[str, Any]) -> _Found | None:
    if "instances" not in results:
        return None
    found = results["instances"]
    return _Found(found.pred_classes.tolist(), found.scores.tolist(), found.pred_masks.bool())


def _segments(results: dict[str, Any]) -> _Found | None:
    if "panoptic_seg" not in results:
        return None
    ids, segments = results["panoptic_seg"]
    numbers = torch.tensor([segment["id"] for segment in segments], dtype=ids.dtype, device=ids.device)
    classes, scores = ([segment[key] for segment in segments] for key in ("category_id", "score"))
    return _Found(classes, scores, ids == numbers.view(-1, 1, 1))


def _labels(sem_seg: Tensor) -> Tensor:
    return sem_seg if sem_seg.ndim == 2 else sem_seg.argmax(0)


VERIFICATION_KEYS = tuple(field.name for field in fields(Verification))
