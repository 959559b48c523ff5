"""Metrics of panoptic, instance and semantic segmentation, in the loop and on saved predictions."""

from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.coco import COCOEvaluator, evaluate_coco
from mask2former.evaluation.inference import inference_on_dataset
from mask2former.evaluation.panoptic import COCOPanopticEvaluator, evaluate_panoptic
from mask2former.evaluation.protocol import DatasetEvaluator, DatasetEvaluators
from mask2former.evaluation.results import check_percentages, verify_results
from mask2former.evaluation.sem_seg import SemSegEvaluator, evaluate_sem_seg

__all__ = [
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "SemSegEvaluator",
    "build_evaluator",
    "check_percentages",
    "evaluate_coco",
    "evaluate_panoptic",
    "evaluate_sem_seg",
    "inference_on_dataset",
    "verify_results",
]
