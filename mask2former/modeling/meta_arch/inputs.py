"""Turn the dictionaries that a model is called with into padded batches of images and targets.

Letters: B batch, T frames, N targets, H W size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.errors import DatasetError, InputError
from mask2former.modeling.losses import IGNORED
from mask2former.structures import ImageList, Instances


def is_clip(sample: dict[str, Any]) -> bool:
    """Return whether a sample's ``image`` is a list of frames or a tensor (T, C, H, W), not one image (C, H, W)."""
    image = sample["image"]
    return not isinstance(image, Tensor) or image.ndim == 4


def count_frames(batch: Sequence[dict[str, Any]]) -> int | None:
    """Return the number of frames of every sample of a batch of clips; None for a batch of images.

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


def unfold_frames(maps: Tensor, num_frames: int) -> Tensor:
    """Map (BT, C, H, W) to (B, T, C, H, W)."""
    return maps.unsqueeze(1) if num_frames == 1 else maps.unflatten(0, (-1, num_frames))


def fold_frames(maps: Tensor) -> Tensor:
    """Map (B, T, C, H, W) to (BT, C, H, W)."""
    return maps.squeeze(1) if maps.shape[1] == 1 else maps.flatten(0, 1)


def pad_images(
    batch: Sequence[dict[str, Any]], *, mean: Tensor, std: Tensor, size_divisibility: int
) -> tuple[ImageList, list[tuple[int, int]]]:
    """Return normalised, zero-padded images or frames (BT, C, H, W), and the size (h, w) of each sample."""
    frames, sizes = [], []
    for index, sample in enumerate(batch):
        images = list(sample["image"]) if is_clip(sample) else [sample["image"]]
        for image in images:
            if image.ndim != 3 or image.shape[0] != len(mean):
                name = sample.get("file_name", f"sample {index}")
                raise InputError(f"{name}: expected an image ({len(mean)}, H, W), found shape {tuple(image.shape)}")
            # The loader pins what goes to a GPU: the copy runs while the CPU goes on.
            frames.append((image.to(mean.device, non_blocking=True).to(mean.dtype) - mean) / std)
        sizes.append((int(images[0].shape[-2]), int(images[0].shape[-1])))
    return ImageList.from_tensors(frames, size_divisibility), sizes


def pad_targets(
    batch: Sequence[dict[str, Any]], *, size: tuple[int, int], num_classes: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Return for each sample ``labels`` (N,) and ``masks`` (N, T, *size) bool, padded with background.

    T is 1 for an image.

    Where a sample has ``ignore_mask`` (H, W) bool, or one a frame: ``ignored`` (T, *size). Padding is not ignored.

    Raises:
        DatasetError: a class id is out of range, or a mask is larger than its padded image.
    """
    targets = []
    for index, sample in enumerate(batch):
        name = _name(sample, index)
        if "instances" not in sample:
            raise DatasetError(f"{name}: training needs 'instances', found keys {sorted(sample)}")
        frames = sample["instances"] if is_clip(sample) else [sample["instances"]]
        labels, masks = _stack_frames(frames)
        _check_labels(labels, num_classes, name)
        _check_size((masks.shape[-2], masks.shape[-1]), size, name)
        target = {"labels": labels.to(device), "masks": _padded(masks, size, device)}
        if sample.get("ignore_mask") is not None:
            ignored = torch.stack(list(sample["ignore_mask"])) if is_clip(sample) else sample["ignore_mask"][None]
            if ignored.shape != masks.shape[1:]:
                expected, found = tuple(masks.shape[1:]), tuple(ignored.shape)
                raise DatasetError(f"{name}: expected an 'ignore_mask' like masks {expected}, found {found}")
            target["ignored"] = _padded(ignored, size, device)
        targets.append(target)
    return targets


def _padded(masks: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    height, width = masks.shape[-2:]
    padded = torch.zeros((*masks.shape[:-2], *size), dtype=torch.bool, device=device)
    padded[..., :height, :width] = masks.to(device, non_blocking=True)
    return padded


def pad_label_maps(
    batch: Sequence[dict[str, Any]], *, size: tuple[int, int], num_classes: int, ignore_value: int, device: torch.device
) -> Tensor:
    """Return the class ids (B, *size) int64 of pixels; IGNORED in the padding and where no class is known.

    A sample's ``sem_seg`` (H, W), with ``ignore_value``, is preferred to its ``instances``, of which the last covers
    the others.

    Raises:
        DatasetError: a class id is out of range, or a map is larger than its padded image.
    """
    padded = torch.full((len(batch), *size), IGNORED, dtype=torch.int64)
    for index, (labels, sample) in enumerate(zip(padded, batch, strict=True)):
        name = _name(sample, index)
        found = _label_map(sample, name, ignore_value=ignore_value)
        height, width = found.shape
        _check_size((height, width), size, name)
        _check_labels(found[found != IGNORED], num_classes, name)
        labels[:height, :width] = found
    return padded.to(device)


def label_map_of(targets: Instances, *, fill: int) -> Tensor:
    """Return class ids (H, W) int64 on the host, later targets over earlier ones; ``fill`` where there is none."""
    masks = _bitmaps(targets).cpu()
    labels = torch.full(masks.shape[1:], fill, dtype=torch.int64)
    for mask, label in zip(masks, targets.gt_classes.tolist(), strict=True):
        labels.masked_fill_(mask, label)
    return labels


def _label_map(sample: dict[str, Any], name: str, *, ignore_value: int) -> Tensor:
    """Return the class ids (H, W) int64 of one sample, IGNORED where none is known."""
    if "sem_seg" in sample:
        labels = torch.as_tensor(sample["sem_seg"]).long().cpu()
        if labels.ndim != 2:
            raise DatasetError(f"{name}: expected 'sem_seg' (H, W), found shape {tuple(labels.shape)}")
        return labels.masked_fill(labels == ignore_value, IGNORED)
    if "instances" not in sample:
        raise DatasetError(f"{name}: training needs 'sem_seg' or 'instances', found keys {sorted(sample)}")
    return label_map_of(sample["instances"], fill=IGNORED)


def _stack_frames(frames: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Return classes (N,) and masks (N, T, h, w) of instances that are listed in the same order in each frame.

    ``gt_ids``, if given, are -1 for an instance that a frame does not show; an instance in no frame is left out.
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


def _name(sample: dict[str, Any], index: int) -> str:
    return str(sample.get("file_name", f"sample {index} of the batch"))


def _check_size(found: tuple[int, int], padded: tuple[int, int], name: str) -> None:
    if found[0] > padded[0] or found[1] > padded[1]:
        raise DatasetError(f"{name}: masks of size {found} exceed the padded image {padded}")


def _check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    if not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DatasetError(
            f"{name}: class ids must lie in 0..{num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}), "
            f"found {low}..{high}"
        )
