"""Instances, boxes and masks of detectron2 and ours, turned into each other where they cross the border.

Tensors are handed over, not copied.

Letters: N instances, H W size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks as DetectronBitMasks
from detectron2.structures import Boxes as DetectronBoxes
from detectron2.structures import Instances as DetectronInstances
from detectron2.structures import PolygonMasks as DetectronPolygonMasks
from torch import Tensor

from mask2former.data.targets import semantic_targets
from mask2former.errors import InputError
from mask2former.structures import BitMasks, Boxes, Instances, PolygonMasks


def instances_from_detectron2(instances: Any) -> Instances:
    """Return ours for detectron2's instances; polygons are drawn at the image's size. Ours stay as they are."""
    if isinstance(instances, Instances):
        return instances
    size = (int(instances.image_size[0]), int(instances.image_size[1]))
    fields = {name: _from_detectron2(value, size) for name, value in instances.get_fields().items()}
    return Instances(size, **fields)


def instances_to_detectron2(instances: Any) -> DetectronInstances:
    """Detectron2's for our instances; target masks (N, H, W) become BitMasks. Theirs stay as they are."""
    if isinstance(instances, DetectronInstances):
        return instances
    fields = {name: _to_detectron2(value) for name, value in instances.get_fields().items()}
    if isinstance(fields.get("gt_masks"), Tensor):
        fields["gt_masks"] = DetectronBitMasks(fields["gt_masks"])
    return DetectronInstances(instances.image_size, **fields)


def sample_from_detectron2(sample: dict[str, Any], *, ignore_label: int) -> dict[str, Any]:
    """Return a sample with our instances, one of an image or those of a clip's frames.

    Where there are none, they follow from ``sem_seg`` (H, W): one for each class that is not ``ignore_label``.

    Raises:
        InputError: instances have no masks.
    """
    found = sample.get("instances")
    if isinstance(found, (list, tuple)):
        return {**sample, "instances": [_targets(frame, sample) for frame in found]}
    if found is not None:
        return {**sample, "instances": _targets(found, sample)}
    if "sem_seg" in sample:
        labels = np.asarray(sample["sem_seg"].cpu())
        return {**sample, "instances": semantic_targets(labels, ignore_label=ignore_label)}
    return sample


def result_to_detectron2(result: dict[str, Any]) -> dict[str, Any]:
    """Return the results of one image, with detectron2's instances."""
    if "instances" not in result:
        return result
    return {**result, "instances": instances_to_detectron2(result["instances"])}


def _targets(instances: Any, sample: dict[str, Any]) -> Instances:
    targets = instances_from_detectron2(instances)
    if targets.has("gt_masks"):
        return targets
    if len(targets):
        raise InputError(
            f"{sample.get('file_name', 'a sample')}: 'instances' lack gt_masks; the mapper of detectron2 keeps masks "
            "where MODEL.MASK_ON is True"
        )
    targets.gt_masks = torch.zeros(0, *targets.image_size, dtype=torch.bool)  # that mapper leaves them out then
    return targets


def _from_detectron2(value: Any, size: tuple[int, int]) -> Any:
    if isinstance(value, DetectronBoxes):
        return Boxes(value.tensor)
    if isinstance(value, DetectronBitMasks):
        return BitMasks(value.tensor)
    if isinstance(value, DetectronPolygonMasks):
        return BitMasks.from_polygon_masks(PolygonMasks(value.polygons), *size)
    return value


def _to_detectron2(value: Any) -> Any:
    if isinstance(value, Boxes):
        return DetectronBoxes(value.tensor)
    if isinstance(value, BitMasks):
        return DetectronBitMasks(value.tensor)
    if isinstance(value, PolygonMasks):
        return DetectronPolygonMasks(value.polygons)
    return value
