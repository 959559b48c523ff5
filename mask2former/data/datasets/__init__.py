"""Loaders of data-set formats, and the functions that register data sets under a name."""

from mask2former.data.datasets.builtin import register_builtin_datasets
from mask2former.data.datasets.cityscapes import (
    load_cityscapes_instances,
    load_cityscapes_panoptic,
    load_cityscapes_sem_seg,
)
from mask2former.data.datasets.coco import load_coco_json, load_sem_seg, register_coco_instances, register_sem_seg
from mask2former.data.datasets.coco_panoptic import load_coco_panoptic_json, register_coco_panoptic
from mask2former.data.datasets.ytvis import load_ytvis_json

__all__ = [
    "load_cityscapes_instances",
    "load_cityscapes_panoptic",
    "load_cityscapes_sem_seg",
    "load_coco_json",
    "load_coco_panoptic_json",
    "load_sem_seg",
    "load_ytvis_json",
    "register_builtin_datasets",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_sem_seg",
]
