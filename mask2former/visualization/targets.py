"""Draw training targets: the masks of an image, or of the frames of a clip side by side.

Dimension letters: N targets, T frames, H W image size, h w picture size (small images are enlarged).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mask2former.errors import InputError
from mask2former.structures import Metadata
from mask2former.visualization.canvas import paint_segments
from mask2former.visualization.overlays import class_name, color_of_class
from mask2former.visualization.palette import instance_color
from mask2former.visualization.segment import Segment

_GAP = 8  # pixels between frames
_GAP_GREY = 255


def draw_targets(
    image: np.ndarray,
    classes: torch.Tensor | np.ndarray,
    masks: torch.Tensor | np.ndarray,
    metadata: Metadata | None = None,
    *,
    alpha: float = 0.5,
) -> np.ndarray:
    """Draw target masks over their image, small ones over large ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        classes: (N,) contiguous ids.
        masks: (N, H, W). Empty ones are not drawn, but count in the order of colours, so that an object keeps its
            colour in all frames.
        metadata: names and colours of the data set.
        alpha: opacity of the fill, 0..1.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: the sizes differ.
    """
    masks = np.asarray(masks, dtype=bool)
    if masks.shape[1:] != image.shape[:2]:
        raise InputError(f"target masks: expected the size of the image {image.shape[:2]}, found {masks.shape[1:]}")
    thing_ids = _thing_ids(metadata)
    seen: dict[int, int] = {}
    segments = []
    for class_id, mask in zip(np.asarray(classes).tolist(), masks, strict=True):
        is_thing = thing_ids is None or class_id in thing_ids
        color = instance_color(color_of_class(metadata, class_id), seen.get(class_id, 0) if is_thing else 0)
        seen[class_id] = seen.get(class_id, 0) + 1
        segments.append(Segment(mask=mask, color=color, label=class_name(metadata, class_id), is_thing=is_thing))
    segments.sort(key=lambda segment: (segment.is_thing, -int(segment.mask.sum())))
    return paint_segments(image, segments, alpha=alpha)


def join_frames(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return T pictures (h, w, 3) of one height side by side, as one of (h, w', 3)."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), _GAP_GREY, dtype=np.uint8)
    row = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(row[1:], axis=1)


def _thing_ids(metadata: Metadata | None) -> set[int] | None:
    """Return the thing classes; None: all. In a data set with classes but no things, nothing is a thing."""
    things = None if metadata is None else metadata.get("thing_dataset_id_to_contiguous_id")
    if things is not None:
        return set(things.values())
    return set() if metadata is not None and metadata.get("stuff_classes") else None
