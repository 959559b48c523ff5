"""Training targets of one image, classes and masks, from label maps, panoptic ids or annotations.

N targets, H and W of the transformed image. An image without targets is a normal case: tensors of length 0, with H and
W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from mask2former.data.transforms import Transform
from mask2former.errors import DatasetError
from mask2former.structures import (
    Boxes,
    Instances,
    check_segmentation,
    decode_segmentation,
    draw_polygons,
    masks_to_boxes_xyxy,
)

VOID_ID = -1  # fills panoptic ids where there was no image; no segment has it


def build_instances(classes: torch.Tensor, masks: torch.Tensor, *, keep_empty: bool) -> Instances:
    """Return instances with gt_classes (N,) int64, gt_masks (N, H, W) bool and gt_boxes around the masks.

    Unless ``keep_empty``, targets whose mask has no pixel are left out.
    """
    boxes = Boxes(masks_to_boxes_xyxy(masks))
    visible = boxes.nonempty()
    if not keep_empty and not visible.all():
        classes, masks, boxes = classes[visible], masks[visible], boxes[visible]
    return Instances((masks.shape[1], masks.shape[2]), gt_classes=classes, gt_masks=masks, gt_boxes=boxes)


def semantic_targets(labels: np.ndarray, *, ignore_label: int) -> Instances:
    """Return one target per class present in ``labels`` (H, W), in ascending order."""
    classes = [c for c in present_values(labels) if c != ignore_label]
    return build_instances(torch.tensor(classes, dtype=torch.int64), _equal_masks(labels, classes), keep_empty=True)


def panoptic_targets(ids: np.ndarray, segments_info: Sequence[dict[str, Any]], *, keep_empty: bool) -> Instances:
    """Return one target per segment that is not a crowd; ``ids`` (H, W) int32 are segment ids."""
    segments = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
    classes = torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64)
    masks = _equal_masks(ids, [segment["id"] for segment in segments])
    return build_instances(classes, masks, keep_empty=keep_empty)


def instance_targets(
    annotations: Sequence[dict[str, Any]],
    transform: Transform,
    *,
    size: tuple[int, int],
    context: str,
    keep_empty: bool,
) -> Instances:
    """Return one target per annotation that is not a crowd, transformed from an image of ``size`` (height, width).

    Polygons are transformed as points and drawn at the new size; run-length codes and bitmaps as pixels.

    Raises:
        DatasetError: a segmentation is missing or wrong; the message starts with ``context`` and names it.
    """
    objects = [(index, a) for index, a in enumerate(annotations) if not a.get("iscrowd", 0)]
    height, width = transform.output_size(size)
    masks = torch.zeros((len(objects), height, width), dtype=torch.bool)
    for mask, (index, annotation) in zip(masks, objects, strict=True):
        where = f"{context}: annotation {annotation.get('id', index)}"
        segmentation = annotation.get("segmentation")
        if segmentation is None:
            raise DatasetError(f"{where} has no segmentation")
        checked = check_segmentation(segmentation, size, where)
        # Drawing the original first costs less than it seems, but only points keep outlines sharp when enlarged.
        if isinstance(checked, list):
            draw_polygons(transform.apply_polygons(checked), mask.numpy())
        else:
            bitmap = decode_segmentation(checked, size)
            mask.numpy()[...] = transform.apply_segmentation(bitmap, fill=0)  # which may be read-only
    classes = torch.tensor([a["category_id"] for _, a in objects], dtype=torch.int64)
    return build_instances(classes, masks, keep_empty=keep_empty)


def clip_targets(
    annotations: Sequence[Sequence[dict[str, Any]]],
    transforms: Sequence[Transform],
    *,
    size: tuple[int, int],
    file_names: Sequence[str],
) -> list[Instances]:
    """Return the targets of each of T frames: the same N objects in the same order.

    There is one for each ``id`` that is visible and not a crowd. Beside the fields of ``build_instances`` they have
    gt_ids (N,): the ``id``, or -1 in a frame that does not show the object. Objects that no frame shows after its
    transform are left out.

    Raises:
        DatasetError: a segmentation is missing or wrong; the message names its frame and object.
    """
    seen = [[a for a in frame if not a.get("iscrowd", 0)] for frame in annotations]
    class_of = {a["id"]: a["category_id"] for frame in seen for a in frame}
    place_of = {identity: place for place, identity in enumerate(class_of)}
    classes = torch.tensor(list(class_of.values()), dtype=torch.int64)
    ids = torch.tensor(list(class_of), dtype=torch.int64)
    frames = []
    for objects, transform, file_name in zip(seen, transforms, file_names, strict=True):
        drawn = instance_targets(objects, transform, size=size, context=file_name, keep_empty=True)
        masks = torch.zeros((len(classes), *drawn.image_size), dtype=torch.bool)
        masks[[place_of[a["id"]] for a in objects]] = drawn.gt_masks
        frame = build_instances(classes, masks, keep_empty=True)
        frame.gt_ids = torch.where(frame.gt_boxes.nonempty(), ids, -1)
        frames.append(frame)
    is_shown = torch.stack([frame.gt_ids != -1 for frame in frames]).any(dim=0)
    return frames if is_shown.all() else [frame[is_shown] for frame in frames]


def semantic_from_panoptic(
    ids: np.ndarray, segments_info: Sequence[dict[str, Any]], *, ignore_label: int
) -> np.ndarray:
    """Return class labels (H, W) int32 of segment ids (H, W), ``ignore_label`` outside of segments."""
    if not segments_info:
        return np.full(ids.shape, ignore_label, dtype=np.int32)
    segments = sorted(segments_info, key=lambda segment: segment["id"])
    segment_ids = np.array([segment["id"] for segment in segments], dtype=np.int64)
    classes = np.array([segment["category_id"] for segment in segments], dtype=np.int32)
    place = np.searchsorted(segment_ids, ids).clip(max=len(segments) - 1)
    return np.where(segment_ids[place] == ids, classes[place], np.int32(ignore_label))


def void_of_panoptic(ids: np.ndarray, segments_info: Sequence[dict[str, Any]]) -> np.ndarray:
    """Which of segment ids (H, W) belong to no segment, or to a crowd: bool."""
    segments = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
    return semantic_from_panoptic(ids, segments, ignore_label=VOID_ID) == VOID_ID


def crowds_of(annotations: Sequence[dict[str, Any]], *, size: tuple[int, int], context: str) -> np.ndarray:
    """Which pixels of an image of ``size`` (height, width) crowds cover: bool.

    Raises:
        DatasetError: a segmentation is wrong; the message starts with ``context`` and names it.
    """
    covered = np.zeros(size, dtype=bool)
    for index, annotation in enumerate(annotations):
        if annotation.get("iscrowd", 0) and annotation.get("segmentation") is not None:
            where = f"{context}: annotation {annotation.get('id', index)}"
            covered |= decode_segmentation(check_segmentation(annotation["segmentation"], size, where), size)
    return covered


def ignored_after(ignored: np.ndarray, transform: Transform, targets: Instances) -> torch.Tensor:
    """Which pixels train nothing after a transform: bool, of ``ignored`` (H, W) before it.

    What comes from outside the image is known to be nothing, and an object is an object.
    """
    moved = torch.from_numpy(transform.apply_segmentation(ignored, fill=0).astype(bool))
    return moved & ~targets.gt_masks.any(0)


def present_values(labels: np.ndarray) -> list[int]:
    """Return the distinct values in ``labels``, ascending."""
    if labels.dtype == np.uint8:
        return np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256])).tolist()
    return np.unique(labels).tolist()


def check_labels(labels: np.ndarray, *, num_classes: int, ignore_label: int, file_name: str) -> None:
    """Check that labels (H, W) are classes or ignored.

    Raises:
        DatasetError: the message names the file and the values.
    """
    wrong = [v for v in present_values(labels) if not 0 <= v < num_classes and v != ignore_label]
    if wrong:
        raise DatasetError(
            f"{file_name}: labels must lie in 0..{num_classes - 1} or be {ignore_label} (ignored), found {wrong[:10]}"
        )


def _equal_masks(values: np.ndarray, wanted: Sequence[int]) -> torch.Tensor:
    """Return where (N, H, W) bool ``values`` (H, W) equals each of ``wanted`` (N)."""
    # NumPy compares ten times faster than torch here.
    return torch.from_numpy(values.astype(np.int32, copy=False) == np.array(wanted, dtype=np.int32)[:, None, None])
