"""From the dictionaries a model is called with to padded batches of images and targets.

Letters: B batch, T frames, N targets, H W size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.errors import DatasetError, InputError
from mask2former.structures import ImageList, Instances


def is_clip(sample: dict[str, Any]) -> bool:
    """Whether a sample's `image` is a list of frames, or a tensor (T, C, H, W), rather than one image (C, H, W)."""
    image = sample["image"]
    return not isinstance(image, Tensor) or image.ndim == 4


def count_frames(batch: Sequence[dict[str, Any]]) -> int | None:
    """Frames of every sample of a batch of clips; None for a batch of images.

    Raises:
        InputError: the batch is empty, mixes images and clips, or its clips differ in length.
    """
    counts = {len(sample["image"]) if is_clip(sample) else None for sample in batch}
    if len(counts) != 1 or counts == {0}:
        found = sorted("image" if count is None else f"clip of {count} frames" for count in counts)
        raise InputError(
            f"a batch must hold images, or clips of equally many frames: found {', '.join(found) or 'nothing'}"
        )
    return counts.pop()


def pad_images(
    batch: Sequence[dict[str, Any]], *, mean: Tensor, std: Tensor, size_divisibility: int
) -> tuple[ImageList, list[tuple[int, int]]]:
    """Normalised images or frames (BT, C, H, W), padded with zeros, and the size (h, w) of each sample of the batch."""
    frames, sizes = [], []
    for index, sample in enumerate(batch):
        images = list(sample["image"]) if is_clip(sample) else [sample["image"]]
        for image in images:
            if image.ndim != 3 or image.shape[0] != len(mean):
                name = sample.get("file_name", f"sample {index}")
                raise InputError(f"{name}: expected an image ({len(mean)}, H, W), found shape {tuple(image.shape)}")
            frames.append((image.to(mean.device).to(mean.dtype) - mean) / std)
        sizes.append((int(images[0].shape[-2]), int(images[0].shape[-1])))
    return ImageList.from_tensors(frames, size_divisibility), sizes


def pad_targets(
    batch: Sequence[dict[str, Any]], *, size: tuple[int, int], num_classes: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """For each sample `labels` (N,) and `masks` (N, T, *size) bool, padded with background; T is 1 for an image.

    Raises:
        DatasetError: a class id is out of range, or a mask is larger than its padded image.
    """
    targets = []
    for index, sample in enumerate(batch):
        name = str(sample.get("file_name", f"sample {index} of the batch"))
        if "instances" not in sample:
            raise DatasetError(f"{name}: training needs 'instances', found keys {sorted(sample)}")
        frames = sample["instances"] if is_clip(sample) else [sample["instances"]]
        labels, masks = _stack_frames(frames)
        _check_labels(labels, num_classes, name)
        height, width = masks.shape[-2:]
        if height > size[0] or width > size[1]:
            raise DatasetError(f"{name}: masks of size {(height, width)} exceed the padded image {size}")
        padded = torch.zeros((*masks.shape[:2], *size), dtype=torch.bool, device=device)
        padded[..., :height, :width] = masks.to(device)
        targets.append({"labels": labels.to(device), "masks": padded})
    return targets


def _stack_frames(frames: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Classes (N,) and masks (N, T, h, w) of instances that are listed in the same order in each frame.

    `gt_ids`, where there are, say -1 for an instance that a frame does not show; one in no frame is left out.
    """
    masks = torch.stack([_bitmaps(frame) for frame in frames], dim=1)  # (N, T, h, w)
    labels = frames[-1].gt_classes
    if not all(frame.has("gt_ids") for frame in frames):
        return labels, masks
    ids = torch.stack([frame.gt_ids for frame in frames], dim=1)  # (N, T)
    is_shown = (ids != -1).any(dim=1)
    return labels[is_shown], masks[is_shown]


def _bitmaps(frame: Instances) -> Tensor:
    masks = frame.gt_masks
    tensor = masks if isinstance(masks, Tensor) else masks.tensor
    return tensor.bool()


def _check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    if not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DatasetError(
            f"{name}: class ids must lie in 0..{num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}), "
            f"found {low}..{high}"
        )
