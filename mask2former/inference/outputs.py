"""Output files of prediction commands: pictures by task, and masks.

Masks: panoptic ids as PNG and json, semantic labels as PNG, instances as COCO results json. Category ids in the files
are those of the data set if its metadata have them, otherwise the contiguous ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.files.atomic import write_json
from mask2former.files.pictures import write_picture
from mask2former.structures import Instances, Metadata, bitmasks_to_rles, id_to_rgb
from mask2former.visualization import draw_instances, draw_panoptic, draw_semantic
from mask2former.visualization.overlays import class_name


def draw_results(
    image: np.ndarray, results: dict[str, Any], metadata: Metadata, *, threshold: float
) -> dict[str, np.ndarray]:
    """Return an overlay (h, w, 3) uint8 RGB by task; instances with scores below ``threshold`` are left out."""
    pictures = {}
    if "panoptic_seg" in results:
        pictures["panoptic"] = draw_panoptic(image, results["panoptic_seg"], metadata)
    if "instances" in results:
        pictures["instance"] = draw_instances(image, results["instances"], metadata, score_threshold=threshold)
    if "sem_seg" in results:
        pictures["semantic"] = draw_semantic(image, results["sem_seg"], metadata)
    return pictures


def save_results(stem: Path, results: dict[str, Any], metadata: Metadata, *, name: str, threshold: float) -> int:
    """Write the masks of all tasks to files whose names begin with ``stem``; return the number of files.

    ``name`` is the image name in the json files.
    """
    written = []
    if "panoptic_seg" in results:
        written += save_panoptic(stem, results["panoptic_seg"], metadata=metadata, image_name=name)
    if "instances" in results:
        written += save_instances(
            stem, results["instances"], metadata=metadata, image_name=name, score_threshold=threshold
        )
    if "sem_seg" in results:
        written += save_semantic(stem, results["sem_seg"])
    return len(written)


def save_panoptic(
    stem: str | os.PathLike[str],
    panoptic_seg: tuple[torch.Tensor | np.ndarray, list[dict[str, Any]]],
    *,
    metadata: Metadata | None = None,
    image_name: str = "",
) -> list[Path]:
    """Write ``<stem>_panoptic_ids.png`` (id = R + 256 G + 65536 B, 0 is void) and ``<stem>_panoptic.json``.

    panoptic_seg: ids (H, W), segments_info. Returns the paths of the two files.
    """
    ids, segments_info = panoptic_seg
    ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    areas = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
    dataset_ids = _dataset_ids(metadata)
    png, description = Path(f"{stem}_panoptic_ids.png"), Path(f"{stem}_panoptic.json")
    segments = [
        {
            "id": int(info["id"]),
            "category_id": dataset_ids.get(int(info["category_id"]), int(info["category_id"])),
            "category_name": class_name(metadata, int(info["category_id"])),
            "isthing": bool(info.get("isthing")),
            "score": None if info.get("score") is None else float(info["score"]),
            "area": int(areas.get(int(info["id"]), 0)),
            **({"track_id": int(info["track_id"])} if "track_id" in info else {}),
        }
        for info in segments_info
    ]
    write_picture(id_to_rgb(ids), png)
    write_json({"image": image_name, "file_name": png.name, "segments_info": segments}, description, is_durable=False)
    return [png, description]


def save_semantic(stem: str | os.PathLike[str], sem_seg: torch.Tensor | np.ndarray) -> list[Path]:
    """Write ``<stem>_semantic_labels.png``: the contiguous class of each pixel, 8 bits, or 16 from 256 classes on.

    sem_seg: scores (K, H, W), or labels (H, W) of an integer type.
    """
    values = sem_seg.detach().cpu().numpy() if isinstance(sem_seg, torch.Tensor) else np.asarray(sem_seg)
    num_classes = values.shape[0] if values.ndim == 3 else int(values.max(initial=0)) + 1
    labels = values.argmax(axis=0) if values.ndim == 3 else values
    png = Path(f"{stem}_semantic_labels.png")
    write_picture(labels.astype(np.uint8 if num_classes <= 256 else np.uint16), png)
    return [png]


def save_instances(
    stem: str | os.PathLike[str],
    instances: Instances,
    *,
    metadata: Metadata | None = None,
    image_name: str = "",
    score_threshold: float = 0.0,
) -> list[Path]:
    """Write ``<stem>_instances.json``: a list in COCO's results format, masks as compressed RLE, boxes as (x, y, w, h).

    instances: pred_masks (N, H, W), pred_classes (N,), scores (N,) in 0..1, pred_boxes (N, 4).
    """
    kept = instances[instances.scores >= score_threshold]
    dataset_ids = _dataset_ids(metadata)
    records = []
    rles = bitmasks_to_rles(kept.pred_masks.bool()) if len(kept) else []
    columns = (rles, kept.scores.tolist(), kept.pred_classes.tolist(), kept.pred_boxes.tensor.tolist())
    for rle, score, class_id, (x0, y0, x1, y1) in zip(*columns, strict=True):
        records.append(
            {
                "image_id": image_name,
                "category_id": dataset_ids.get(class_id, class_id),
                "category_name": class_name(metadata, class_id),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
                "segmentation": rle,
            }
        )
    path = Path(f"{stem}_instances.json")
    if kept.has("track_ids"):
        records = [
            {**record, "track_id": track} for record, track in zip(records, kept.track_ids.tolist(), strict=True)
        ]
    write_json(records, path, is_durable=False)
    return [path]


def _dataset_ids(metadata: Metadata | None) -> dict[int, int]:
    """Return the category id in the data set of each contiguous class id, as far as the metadata have them."""
    if metadata is None:
        return {}
    mapping: Mapping[int, int] = (
        metadata.get("stuff_dataset_id_to_contiguous_id") or metadata.get("thing_dataset_id_to_contiguous_id") or {}
    )
    return {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
