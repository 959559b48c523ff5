"""Random images and clips, for machines where the data set is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mask2former.config import CfgNode
from mask2former.data.presets import build_test_augmentations
from mask2former.modeling import takes_clips
from mask2former.structures import Boxes, Instances, masks_to_boxes_xyxy

_USUAL_PHOTO = (480, 640)  # (height, width) of most images of COCO


def usual_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) that a photo of 480 x 640 is resized to for inference."""
    transform = build_test_augmentations(cfg).sample(np.random.default_rng(0), _USUAL_PHOTO)
    return transform.output_size(_USUAL_PHOTO)


def frames_of(cfg: CfgNode) -> int | None:
    """Return frames of a clip where the config is one of a video model, None for images."""
    return int(cfg.INPUT.SAMPLING_FRAME_NUM) if takes_clips(cfg.MODEL.META_ARCHITECTURE) else None


def random_sample(
    cfg: CfgNode,
    size: tuple[int, int],
    *,
    num_frames: int | None = None,
    num_objects: int = 12,
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """Return what a mapper yields: an image of noise (3, H, W), or a clip of them, with rectangles as objects."""
    rng = np.random.default_rng(0) if rng is None else rng
    frames = [_noise(rng, size) for _ in range(num_frames or 1)]
    targets = _rectangles(rng, size, num_objects=num_objects, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    sample: dict[str, Any] = {"file_name": "random image", "height": size[0], "width": size[1]}
    if num_frames is None:
        return {**sample, "image": frames[0], "instances": targets}
    return {**sample, "image": frames, "instances": [targets] * num_frames}


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))


def _rectangles(rng: np.random.Generator, size: tuple[int, int], *, num_objects: int, num_classes: int) -> Instances:
    masks = torch.zeros((num_objects, *size), dtype=torch.bool)
    for mask in masks:
        (top, bottom), (left, right) = (sorted(rng.choice(length + 1, 2, replace=False)) for length in size)
        mask[top:bottom, left:right] = True
    classes = torch.from_numpy(rng.integers(0, num_classes, num_objects))
    return Instances(size, gt_classes=classes, gt_masks=masks, gt_boxes=Boxes(masks_to_boxes_xyxy(masks)))
