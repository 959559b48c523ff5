"""Draw results over images."""

from mask2former.visualization.canvas import Style
from mask2former.visualization.overlays import class_name, color_of_class, draw_instances, draw_panoptic, draw_semantic

__all__ = [
    "Style",
    "class_name",
    "color_of_class",
    "draw_instances",
    "draw_panoptic",
    "draw_semantic",
]
