"""From files to batches: catalogs, transforms, mapper, samplers and loaders."""

from mask2former.data.catalog import DatasetCatalog, MetadataCatalog, dataset_root
from mask2former.data.datasets import (
    register_builtin_datasets,
    register_coco_instances,
    register_coco_panoptic,
    register_sem_seg,
)
from mask2former.data.loader import TestLoader, TrainLoader, build_test_loader, build_train_loader
from mask2former.data.mapper import DatasetMapper
from mask2former.data.presets import MAPPER_REGISTRY
from mask2former.data.training_sets import format_class_histogram

__all__ = [
    "MAPPER_REGISTRY",
    "DatasetCatalog",
    "DatasetMapper",
    "MetadataCatalog",
    "TestLoader",
    "TrainLoader",
    "build_test_loader",
    "build_train_loader",
    "dataset_root",
    "format_class_histogram",
    "register_builtin_datasets",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_sem_seg",
]
