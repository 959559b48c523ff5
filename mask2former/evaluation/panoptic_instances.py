"""Average precision against the things of panoptic annotations, for data sets without an instances json."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError
from mask2former.evaluation.coco import COCOEvaluator
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.evaluation.panoptic_ground_truth import PanopticGroundTruth, panoptic_truth
from mask2former.evaluation.protocol import metadata_field
from mask2former.structures.masks import bitmasks_to_rles
from mask2former.structures.metadata import Metadata


class PanopticInstanceEvaluator(COCOEvaluator):
    """COCOEvaluator whose true instances are the thing segments of ``panoptic_json`` and ``panoptic_root``.

    A segment's ``iscrowd`` is that of the instance. Each process reads the PNGs of the images it predicts.
    """

    def __init__(
        self, dataset_name: str, output_dir: Any = None, *, truth: PanopticGroundTruth | None = None, **options: Any
    ) -> None:
        """``truth`` is the ground truth that the metadata name, if another evaluator has read it."""
        self._given = truth
        super().__init__(dataset_name, output_dir, **options)

    def _read_truth(self, metadata: Metadata) -> CocoGroundTruth:
        owner = type(self).__name__
        self._panoptic = panoptic_truth(metadata, owner) if self._given is None else self._given
        self._thing_ids = set(metadata_field(metadata, "thing_dataset_id_to_contiguous_id", owner))
        things = [{"id": c.id, "name": c.name} for c in self._panoptic.categories if c.id in self._thing_ids]
        content = {"images": self._panoptic.images, "categories": things, "annotations": []}
        return CocoGroundTruth(self._panoptic.json_file, self._tasks, content=content)

    def _true_instances(self, image_id: Any) -> list[dict[str, Any]]:
        ids, segments, name = self._panoptic.read(self._panoptic.annotation_of(image_id))
        if ids.shape != tuple(self._truth.image_sizes[image_id]):
            size = self._truth.image_sizes[image_id]
            raise DatasetError(f"{name}: (height, width) is {ids.shape}, in {self._truth.json_file} it is {size}")
        things = [segment for segment in segments if segment.get("category_id") in self._thing_ids]
        masks = ids == np.array([segment["id"] for segment in things], dtype=ids.dtype).reshape(-1, 1, 1)
        annotations = []
        for segment, rle in zip(things, bitmasks_to_rles(masks)):
            annotations.append(
                {
                    "id": segment["id"],
                    "image_id": image_id,
                    "category_id": segment["category_id"],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": rle,
                }
            )
        return annotations
