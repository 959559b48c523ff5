"""Pictures of results and of training targets: masks over their image with class names and scores.

Dimension letters: N instances or targets, T frames, K classes, H W image size, h w picture size (small images are
enlarged).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mask2former.errors import InputError
from mask2former.structures import Instances, Metadata
from mask2former.visualization.canvas import Style, class_color, instance_color, paint_segments
from mask2former.visualization.labels import Segment

# A class that covers less than this part of the picture in a semantic map is painted but not named.
MIN_NAMED_PART = 0.002


def draw_panoptic(
    image: np.ndarray,
    panoptic_seg: tuple[torch.Tensor | np.ndarray, list[dict[str, Any]]],
    metadata: Metadata | None = None,
    *,
    style: Style | None = None,
) -> np.ndarray:
    """Draw a panoptic result over its image.

    Args:
        image: (H, W, 3) uint8 RGB.
        panoptic_seg: ids (H, W), and segments_info with id, category_id, isthing, optionally score, and in a video
            track_id, which chooses the colour. Void is left as it is.
        metadata: names and colours of the data set.
        style: how it is drawn.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: the sizes differ.
    """
    ids, segments_info = panoptic_seg
    ids = _to_numpy(ids)
    _check_sizes(image, ids.shape, what="panoptic ids")
    seen: dict[int, int] = {}
    segments = []
    # Things over stuff, so that their halos are not cut.
    for info in sorted(segments_info, key=lambda info: bool(info.get("isthing"))):
        class_id, is_thing = int(info["category_id"]), bool(info.get("isthing"))
        ordinal = seen.get(class_id, 0) if is_thing else 0
        seen[class_id] = ordinal + 1
        segments.append(
            Segment(
                mask=ids == info["id"],
                color=_thing_color(metadata, class_id, ordinal=ordinal, track_id=info.get("track_id")),
                label=_label(metadata, class_id, info.get("score"), track_id=info.get("track_id")),
                is_thing=is_thing,
            )
        )
    return paint_segments(image, segments, style)


def draw_instances(
    image: np.ndarray,
    instances: Instances,
    metadata: Metadata | None = None,
    *,
    score_threshold: float = 0.0,
    style: Style | None = None,
) -> np.ndarray:
    """Draw instances over their image, those with better scores on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: pred_masks (N, H, W), pred_classes (N,), scores (N,) in 0..1, and in a video track_ids (N,), which
            choose the colours.
        metadata: names and colours of the data set.
        score_threshold: instances with lower scores are left out.
        style: how it is drawn.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: the sizes differ.
    """
    masks, scores = _to_numpy(instances.pred_masks).astype(bool), _to_numpy(instances.scores)
    classes = _to_numpy(instances.pred_classes)
    tracks = _to_numpy(instances.track_ids) if instances.has("track_ids") else None
    _check_sizes(image, masks.shape[1:], what="instance masks")
    seen: dict[int, int] = {}
    segments = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < score_threshold:
            break
        class_id = int(classes[index])
        track_id = None if tracks is None else int(tracks[index])
        color = _thing_color(metadata, class_id, ordinal=seen.get(class_id, 0), track_id=track_id)
        seen[class_id] = seen.get(class_id, 0) + 1
        label = _label(metadata, class_id, float(scores[index]), track_id=track_id)
        segments.append(Segment(mask=masks[index], color=color, label=label, is_thing=True))
    return paint_segments(image, segments[::-1], style)


def draw_semantic(
    image: np.ndarray,
    sem_seg: torch.Tensor | np.ndarray,
    metadata: Metadata | None = None,
    *,
    style: Style | None = None,
) -> np.ndarray:
    """Draw a semantic result over its image.

    Args:
        image: (H, W, 3) uint8 RGB.
        sem_seg: scores (K, H, W), or labels (H, W) of an integer type. Labels that are no class, such as the ignore
            label, are left as they are.
        metadata: names and colours of the data set.
        style: how it is drawn.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: the sizes differ.
    """
    values = _to_numpy(sem_seg)
    labels = values.argmax(axis=0) if values.ndim == 3 else values
    _check_sizes(image, labels.shape, what="semantic map")
    ignore_label = metadata.get("ignore_label") if metadata is not None else None
    segments = []
    for class_id in np.unique(labels):
        if class_id == ignore_label or class_id < 0:
            continue
        mask = labels == class_id
        named = mask.mean() >= MIN_NAMED_PART
        label = class_name(metadata, int(class_id)) if named else ""
        segments.append(Segment(mask=mask, color=color_of_class(metadata, int(class_id)), label=label, is_thing=False))
    return paint_segments(image, segments, style)


def class_name(metadata: Metadata | None, class_id: int) -> str:
    """Return the name of a contiguous class id; "class 7" if the metadata have none."""
    names = _of_all_classes(metadata, "stuff_classes", "thing_classes")
    return str(names[class_id]) if 0 <= class_id < len(names) else f"class {class_id}"


def color_of_class(metadata: Metadata | None, class_id: int) -> np.ndarray:
    """Return the colour (3,) uint8 RGB of a contiguous class id: the data set's own, or one derived from the id."""
    colors = _of_all_classes(metadata, "stuff_colors", "thing_colors")
    if 0 <= class_id < len(colors):
        return np.asarray(colors[class_id], dtype=np.uint8)
    return class_color(class_id)


def _of_all_classes(metadata: Metadata | None, all_classes_key: str, things_key: str) -> list[Any]:
    """Return the list of all classes: in panoptic and semantic metadata the "stuff" list, else that of things."""
    if metadata is None:
        return []
    return list(metadata.get(all_classes_key, None) or metadata.get(things_key, None) or [])


def _thing_color(metadata: Metadata | None, class_id: int, *, ordinal: int, track_id: int | None) -> np.ndarray:
    """Return the colour of a thing; in a video that of its track id, so that it does not change between frames."""
    if track_id is not None:
        return class_color(track_id)
    return instance_color(color_of_class(metadata, class_id), ordinal)


def _label(metadata: Metadata | None, class_id: int, score: float | None, *, track_id: int | None = None) -> str:
    name = class_name(metadata, class_id) + ("" if track_id is None else f" #{track_id}")
    return name if score is None else f"{name} {100 * float(score):.0f}%"


def _to_numpy(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _check_sizes(image: np.ndarray, found: tuple[int, ...], *, what: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"image to draw on: expected (H, W, 3) uint8 RGB, found {image.shape} {image.dtype}")
    if tuple(found) != image.shape[:2]:
        raise InputError(f"{what}: expected the size of the image {image.shape[:2]}, found {tuple(found)}")


_GAP = 8  # pixels between frames
_GAP_GREY = 255


def draw_targets(
    image: np.ndarray,
    classes: torch.Tensor | np.ndarray,
    masks: torch.Tensor | np.ndarray,
    metadata: Metadata | None = None,
    *,
    style: Style | None = None,
) -> np.ndarray:
    """Draw target masks over their image, small ones over large ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        classes: (N,) contiguous ids.
        masks: (N, H, W). Empty ones are not drawn, but count in the order of colours, so that an object keeps its
            colour in all frames.
        metadata: names and colours of the data set.
        style: how it is drawn.

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
    return paint_segments(image, segments, style)


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
