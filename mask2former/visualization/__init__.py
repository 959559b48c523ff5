"""Draw results over images."""

from mask2former.visualization.overlays import class_name, color_of_class, draw_instances, draw_panoptic, draw_semantic

__all__ = [
    "class_name",
    "color_of_class",
    "draw_instances",
    "draw_panoptic",
    "draw_semantic",
]
