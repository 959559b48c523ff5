"""Metrics of panoptic, instance and semantic segmentation, in the loop and on saved predictions."""

from mask2former.evaluation.boundary import boundary_iou
from mask2former.evaluation.build import EVALUATOR_REGISTRY, BuildEvaluator, build_evaluator
from mask2former.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.coco import COCOEvaluator, LVISEvaluator, evaluate_coco
from mask2former.evaluation.inference import inference_on_dataset
from mask2former.evaluation.panoptic import COCOPanopticEvaluator, PanopticInstanceEvaluator, evaluate_panoptic
from mask2former.evaluation.panoptic_quality import evaluate_semantic_pq
from mask2former.evaluation.protocol import DatasetEvaluator, DatasetEvaluators
from mask2former.evaluation.results import check_percentages, verify_results
from mask2former.evaluation.sem_seg import SemSegEvaluator, evaluate_sem_seg
from mask2former.evaluation.video import YTVISEvaluator, evaluate_video

__all__ = [
    "EVALUATOR_REGISTRY",
    "BuildEvaluator",
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PanopticInstanceEvaluator",
    "SemSegEvaluator",
    "YTVISEvaluator",
    "boundary_iou",
    "build_evaluator",
    "check_percentages",
    "evaluate_coco",
    "evaluate_panoptic",
    "evaluate_sem_seg",
    "evaluate_semantic_pq",
    "evaluate_video",
    "inference_on_dataset",
    "verify_results",
]
