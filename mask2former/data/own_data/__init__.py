"""Data of users, in the formats they have it in: read, counted, checked, and registered for training.

Each format (``formats.DataFormat``) returns an ``OwnDataset``.
"""

from mask2former.data.own_data import builtin_formats as builtin_formats
from mask2former.data.own_data import cvat as cvat
from mask2former.data.own_data import label_studio as label_studio
from mask2former.data.own_data import mask_trees as mask_trees
from mask2former.data.own_data import supervisely as supervisely
from mask2former.data.own_data import via as via
from mask2former.data.own_data import voc as voc
from mask2former.data.own_data import yolo as yolo
from mask2former.data.own_data.classes import (
    format_own_histogram,
    parse_ignored,
    rare_ids_note,
    read_class_names,
    training_classes,
    without_empty,
)
from mask2former.data.own_data.coco import read_coco_instances, read_coco_panoptic
from mask2former.data.own_data.conversion import convert_own_data, is_zip, unpack_zip
from mask2former.data.own_data.dataset import (
    DataClass,
    FileMask,
    ImageEntry,
    OwnDataset,
    Segment,
    segment_masks,
)
from mask2former.data.own_data.datasets_library import is_datasets_folder
from mask2former.data.own_data.formats import (
    FORMAT_REGISTRY,
    DataFormat,
    all_formats,
    detect_format,
    format_named,
    read_own_data,
    register_format,
)
from mask2former.data.own_data.index import hold_out, write_index
from mask2former.data.own_data.labelme import read_labelme
from mask2former.data.own_data.opening import ClassChoice, OpenedData, list_left_out, open_own_data
from mask2former.data.own_data.png_tree import read_png_tree
from mask2former.data.own_data.register import own_names, register_own_data

__all__ = [
    "FORMAT_REGISTRY",
    "ClassChoice",
    "DataClass",
    "DataFormat",
    "FileMask",
    "ImageEntry",
    "OpenedData",
    "OwnDataset",
    "Segment",
    "all_formats",
    "convert_own_data",
    "detect_format",
    "format_named",
    "format_own_histogram",
    "hold_out",
    "is_datasets_folder",
    "is_zip",
    "list_left_out",
    "open_own_data",
    "own_names",
    "parse_ignored",
    "rare_ids_note",
    "read_class_names",
    "read_coco_instances",
    "read_coco_panoptic",
    "read_labelme",
    "read_own_data",
    "read_png_tree",
    "register_format",
    "register_own_data",
    "segment_masks",
    "training_classes",
    "unpack_zip",
    "without_empty",
    "write_index",
]
