"""Output files of prediction commands: pictures by task, and masks.

Masks: panoptic ids as PNG and json, semantic labels as PNG, instances as COCO results json. Category ids in the files
are those of the data set if its metadata have them, otherwise the contiguous ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from mask2former.files.atomic import write_json
from mask2former.files.pictures import write_picture
from mask2former.structures import Instances, Metadata, bitmasks_to_rles, id_to_rgb
from mask2former.visualization import Style, draw_instances, draw_panoptic, draw_semantic
from mask2former.visualization.overlays import class_name


@dataclass(frozen=True)
class Drawing:
    """How results become pictures; instances with scores below ``threshold``, 0..1, are left out."""

    threshold: float = 0.0
    style: Style = field(default_factory=Style)

    def draw(self, image: np.ndarray, results: dict[str, Any], metadata: Metadata) -> dict[str, np.ndarray]:
        """Return an overlay (h, w, 3) uint8 RGB by task."""
        pictures, style = {}, self.style
        if "panoptic_seg" in results:
            pictures["panoptic"] = draw_panoptic(image, results["panoptic_seg"], metadata, style=style)
        if "instances" in results:
            instances, limit = results["instances"], self.threshold
            pictures["instance"] = draw_instances(image, instances, metadata, score_threshold=limit, style=style)
        if "sem_seg" in results:
            pictures["semantic"] = draw_semantic(image, results["sem_seg"], metadata, style=style)
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
    ids, segments_info = _as_array(panoptic_seg[0]), panoptic_seg[1]
    png, description = Path(f"{stem}_panoptic_ids.png"), Path(f"{stem}_panoptic.json")
    segments = _segment_records(ids, segments_info, metadata)
    write_picture(id_to_rgb(ids), png)
    write_json({"image": image_name, "file_name": png.name, "segments_info": segments}, description, is_durable=False)
    return [png, description]


def _segment_records(
    ids: np.ndarray, segments_info: Sequence[dict[str, Any]], metadata: Metadata | None
) -> list[dict[str, Any]]:
    areas = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
    dataset_ids = _dataset_ids(metadata)
    return [
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


def save_semantic(stem: str | os.PathLike[str], sem_seg: torch.Tensor | np.ndarray) -> list[Path]:
    """Write ``<stem>_semantic_labels.png``: the contiguous class of each pixel, 8 bits, or 16 from 256 classes on.

    sem_seg: scores (K, H, W), or labels (H, W) of an integer type.
    """
    values = _as_array(sem_seg)
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
    path = Path(f"{stem}_instances.json")
    records = instance_records(instances[instances.scores >= score_threshold], metadata, image_name)
    write_json(records, path, is_durable=False)
    return [path]


def instance_records(kept: Instances, metadata: Metadata | None, image_id: int | str) -> list[dict[str, Any]]:
    """Return instances as results of COCO, with the category ids of the data set where it has some."""
    dataset_ids = _dataset_ids(metadata)
    records = []
    rles = bitmasks_to_rles(kept.pred_masks.bool()) if len(kept) else []
    columns = (rles, kept.scores.tolist(), kept.pred_classes.tolist(), kept.pred_boxes.tensor.tolist())
    for rle, score, class_id, (x0, y0, x1, y1) in zip(*columns, strict=True):
        records.append(
            {
                "image_id": image_id,
                "category_id": dataset_ids.get(class_id, class_id),
                "category_name": class_name(metadata, class_id),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
                "segmentation": rle,
            }
        )
    if kept.has("track_ids"):
        tracks = kept.track_ids.tolist()
        return [{**record, "track_id": track} for record, track in zip(records, tracks, strict=True)]
    return records


class CocoWriter:
    """Predictions of many images, gathered into one data set of COCO for each task, as labelling tools import them.

    ``coco_instances.json``: an annotation with its score for each instance; ``coco_semantic.json``: one for each class
    of an image; ``coco_panoptic.json``: segments, whose PNGs are below ``coco_panoptic``.
    """

    def __init__(self, folder: Path, metadata: Metadata, *, threshold: float) -> None:
        """Instances whose scores are below ``threshold`` are left out."""
        self.folder, self.metadata, self.threshold = folder, metadata, threshold
        self._images: list[dict[str, Any]] = []
        self._annotations: dict[str, list[dict[str, Any]]] = {}

    def add(self, file_name: str, size: tuple[int, ...], results: dict[str, Any]) -> None:
        """Add the results of an image of ``size`` (height, width).

        Raises:
            OSError: the PNG of its panoptic segments cannot be written.
        """
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": file_name, "height": size[0], "width": size[1]})
        if "instances" in results:
            instances = results["instances"]
            found = instance_records(instances[instances.scores >= self.threshold], self.metadata, number)
            self._extend("instances", [_annotation(record) for record in found])
        if "sem_seg" in results:
            self._extend("semantic", self._regions(_as_array(results["sem_seg"]), number))
        if "panoptic_seg" in results:
            ids = _as_array(results["panoptic_seg"][0])
            png = self.folder / "coco_panoptic" / f"{number:012d}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            write_picture(id_to_rgb(ids), png)
            segments = _segment_records(ids, results["panoptic_seg"][1], self.metadata)
            segments = [{**segment, "iscrowd": 0} for segment in segments]
            self._extend("panoptic", [{"image_id": number, "file_name": png.name, "segments_info": segments}])

    def write(self) -> list[Path]:
        """Write a JSON file for each task that there are results of; return them."""
        files = []
        for task, found in self._annotations.items():
            if task != "panoptic":
                found = [{"id": number, **entry} for number, entry in enumerate(found, start=1)]
            categories = self._categories(of_things=task == "instances")
            files.append(self.folder / f"coco_{task}.json")
            write_json({"images": self._images, "annotations": found, "categories": categories}, files[-1])
        return files

    def _extend(self, task: str, found: list[dict[str, Any]]) -> None:
        self._annotations.setdefault(task, []).extend(found)

    def _regions(self, sem_seg: np.ndarray, number: int) -> list[dict[str, Any]]:
        labels, dataset_ids = sem_seg.argmax(axis=0) if sem_seg.ndim == 3 else sem_seg, _dataset_ids(self.metadata)
        num_classes = len(self.metadata.get("stuff_classes") or ())
        present = [class_id for class_id in np.unique(labels).tolist() if 0 <= class_id < num_classes]
        rles = bitmasks_to_rles(np.stack([labels == class_id for class_id in present])) if present else []
        records = zip(present, rles, strict=True)
        return [
            _annotation({"image_id": number, "category_id": dataset_ids.get(class_id, class_id), "segmentation": rle})
            for class_id, rle in records
        ]

    def _categories(self, *, of_things: bool) -> list[dict[str, Any]]:
        things, stuff = (self.metadata.get(key) or () for key in ("thing_classes", "stuff_classes"))
        thing_ids = (self.metadata.get("thing_dataset_id_to_contiguous_id") or {}).values()
        dataset_ids, num_classes = _dataset_ids(self.metadata), len(stuff or things)
        is_thing = [class_id in thing_ids if thing_ids else not stuff for class_id in range(num_classes)]
        return [
            {"id": dataset_ids.get(i, i), "name": class_name(self.metadata, i), "isthing": int(is_thing[i])}
            for i in range(num_classes)
            if is_thing[i] or not of_things
        ]


def _annotation(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose segmentation is a run-length code, as data sets have it: with area, box and iscrowd."""
    rle = record["segmentation"]
    measured = {"area": int(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist(), "iscrowd": 0}
    return {**measured, **{key: value for key, value in record.items() if key != "category_name"}}


def _as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _dataset_ids(metadata: Metadata | None) -> dict[int, int]:
    """Return the category id in the data set of each contiguous class id, as far as the metadata have them."""
    if metadata is None:
        return {}
    mapping: Mapping[int, int] = (
        metadata.get("stuff_dataset_id_to_contiguous_id") or metadata.get("thing_dataset_id_to_contiguous_id") or {}
    )
    return {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
