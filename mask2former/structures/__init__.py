"""Containers that data, model, evaluation and visualization share."""

from mask2former.structures.boxes import Boxes
from mask2former.structures.containers import ImageList, Instances, ShapeSpec
from mask2former.structures.ids import id_to_rgb, rgb_to_id
from mask2former.structures.masks import (
    BitMasks,
    MaskTrack,
    PolygonMasks,
    bitmasks_to_rles,
    draw_polygons,
    mask_to_box_xywh,
    masks_to_boxes_xyxy,
    polygons_to_bitmask,
    track_ious,
)
from mask2former.structures.metadata import Metadata, MetadataCatalog
from mask2former.structures.segmentations import (
    check_segmentation,
    decode_segmentation,
    encode_segmentation,
    segmentation_to_bitmask,
    segmentation_to_rle,
)

__all__ = [
    "BitMasks",
    "Boxes",
    "ImageList",
    "Instances",
    "MaskTrack",
    "Metadata",
    "MetadataCatalog",
    "PolygonMasks",
    "ShapeSpec",
    "bitmasks_to_rles",
    "check_segmentation",
    "decode_segmentation",
    "draw_polygons",
    "encode_segmentation",
    "id_to_rgb",
    "mask_to_box_xywh",
    "masks_to_boxes_xyxy",
    "polygons_to_bitmask",
    "rgb_to_id",
    "segmentation_to_bitmask",
    "segmentation_to_rle",
    "track_ious",
]
