"""``InstanceSegEvaluator`` where the published project has it: COCO's evaluation, for ADE20K and Cityscapes too."""

from mask2former.evaluation.coco import COCOEvaluator as InstanceSegEvaluator

__all__ = ["InstanceSegEvaluator"]
