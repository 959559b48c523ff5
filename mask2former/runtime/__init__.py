"""Run exported models without torch: numpy, and onnxruntime or openvino.

Example:
    from mask2former import runtime

    segment = runtime.load("model.onnx")
    result = segment(image)  # (H, W, 3) uint8 RGB
    result.panoptic_ids, result.segments, result.instances, result.semantic_labels
"""

from mask2former.runtime.exported_info import ExportedInfo, is_exported, read_info
from mask2former.runtime.model import Model, load
from mask2former.runtime.results import Instances, Result, Segment

__all__ = ["ExportedInfo", "Instances", "Model", "Result", "Segment", "is_exported", "load", "read_info"]
