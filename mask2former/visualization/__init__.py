"""Pictures and mask files made of results."""

from mask2former.visualization.mask_files import save_instances, save_panoptic, save_semantic, write_png
from mask2former.visualization.overlays import class_name, color_of_class, draw_instances, draw_panoptic, draw_semantic

__all__ = [
    "class_name",
    "color_of_class",
    "draw_instances",
    "draw_panoptic",
    "draw_semantic",
    "save_instances",
    "save_panoptic",
    "save_semantic",
    "write_png",
]
