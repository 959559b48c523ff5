"""The embedded data set: pictures and clips of shapes over painted ground, drawn from a seed."""

from mask2former.data.shapes.classes import ShapeClass, shape_classes, stuff_classes, thing_classes
from mask2former.data.shapes.scene import Scene, Segment, draw_scene
from mask2former.data.shapes.video import Track, Video, draw_video

__all__ = [
    "Scene",
    "Segment",
    "ShapeClass",
    "Track",
    "Video",
    "draw_scene",
    "draw_video",
    "shape_classes",
    "stuff_classes",
    "thing_classes",
]
