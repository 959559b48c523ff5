"""Which evaluators a data set and a config ask for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mask2former.errors import ConfigError
from mask2former.evaluation.coco import COCOEvaluator
from mask2former.evaluation.files import PathLike
from mask2former.evaluation.panoptic import COCOPanopticEvaluator
from mask2former.evaluation.protocol import DatasetEvaluator, DatasetEvaluators
from mask2former.evaluation.sem_seg import SemSegEvaluator
from mask2former.structures.metadata import MetadataCatalog

logger = logging.getLogger(__name__)

_PANOPTIC_TYPES = (
    "coco_panoptic_seg",
    "ade20k_panoptic_seg",
    "cityscapes_panoptic_seg",
    "mapillary_vistas_panoptic_seg",
)
EVALUATOR_TYPES = ("coco", "sem_seg", *_PANOPTIC_TYPES)


def build_evaluator(cfg: Any, dataset_name: str, output_dir: PathLike | None = None) -> DatasetEvaluator:
    """The evaluator for the data set's ``evaluator_type`` and the tasks that cfg.MODEL.MASK_FORMER.TEST switches on.

    ``output_dir`` is where predictions are written (default cfg.OUTPUT_DIR/inference).

    Raises:
        ConfigError: the type is unknown, or the config switches off every task that the data set can be evaluated for.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type = metadata.get("evaluator_type")
    if evaluator_type not in EVALUATOR_TYPES:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator type {evaluator_type!r}, there are {list(EVALUATOR_TYPES)}"
        )
    output_dir = Path(cfg.OUTPUT_DIR) / "inference" if output_dir is None else output_dir
    if evaluator_type == "coco":
        return COCOEvaluator(dataset_name, output_dir)
    if evaluator_type == "sem_seg":
        return SemSegEvaluator(dataset_name, output_dir)
    tasks = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    if tasks.PANOPTIC_ON:
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir))
    if tasks.INSTANCE_ON:
        if metadata.get("json_file") is None:
            logger.warning("%s has no instance annotations (json_file): no AP", dataset_name)
        else:
            evaluators.append(COCOEvaluator(dataset_name, output_dir))
    if tasks.SEMANTIC_ON:
        evaluators.append(SemSegEvaluator(dataset_name, output_dir))
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on {dataset_name!r} ({evaluator_type}): MODEL.MASK_FORMER.TEST switches on none of "
            "SEMANTIC_ON, INSTANCE_ON (with annotations), PANOPTIC_ON"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
