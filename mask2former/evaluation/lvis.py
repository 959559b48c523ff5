"""LVIS' average precision (Gupta et al. 2019), computed by the package ``lvis``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mask2former.evaluation.average_precision import PrecisionTally
from mask2former.evaluation.coco import COCOEvaluator
from mask2former.evaluation.coco_matching import IouType
from mask2former.evaluation.optional import import_optional
from mask2former.evaluation.protocol import Results
from mask2former.evaluation.results import check_percentages, format_table

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 300  # by image, over all categories
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LVISEvaluator(COCOEvaluator):
    """AP of masks and boxes over all, rare (APr), common (APc) and frequent (APf) categories.

    Reads and takes what COCOEvaluator does, the json being LVIS'. TEST.DETECTIONS_PER_IMAGE should be 300 for it.
    Tasks are "segm" and "bbox".

    Raises:
        ConfigError: the package ``lvis`` is not installed.
    """

    def __init__(self, dataset_name: str, output_dir: Any = None, **options: Any) -> None:
        self._lvis = import_optional("lvis", extra="lvis")
        import_optional("lvis.eval", extra="lvis")
        super().__init__(dataset_name, output_dir, **options)
        if "boundary" in self._tasks:
            raise ValueError("tasks must be some of ['bbox', 'segm']: LVIS has no boundary AP")

    def _select(self, scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        best = np.argsort(-scores.numpy(), kind="stable")[:MAX_DETECTIONS]
        return torch.from_numpy(np.sort(best))

    def _add(self, image_id: Any, detections: list[dict[str, Any]]) -> None:
        self._detections += detections  # LVIS' package compares the whole data set at once

    def _report(
        self, tallies_of_processes: Sequence[Mapping[IouType, PrecisionTally]], detections: Sequence[dict[str, Any]]
    ) -> Results:
        if not detections:
            logger.warning("no detections at all: every AP is NaN")
            return {task: dict.fromkeys(_SUMMARY, float("nan")) for task in self._tasks}
        truth = self._lvis.LVIS(str(self._truth.json_file))
        return check_percentages({task: self._evaluate(truth, detections, task) for task in self._tasks})

    def _evaluate(self, truth: Any, detections: Sequence[dict[str, Any]], task: str) -> dict[str, float]:
        # Mask AP goes by the area of the mask: a box in the entry would take its place. Entries are written to.
        left_out = "bbox" if task == "segm" else "segmentation"
        own = [{k: copy.copy(v) for k, v in detection.items() if k != left_out} for detection in detections]
        found = self._lvis.LVISResults(truth, own, max_dets=MAX_DETECTIONS)
        evaluation = self._lvis.LVISEval(truth, found, task)
        evaluation.run()
        measured = evaluation.get_results()
        # -1 stands for nothing to measure.
        metrics = {name: 100.0 * float(v) if (v := measured[name]) >= 0 else float("nan") for name in _SUMMARY}
        logger.info("LVIS %s:\n%s", task, format_table(_SUMMARY, [[f"{metrics[name]:.2f}" for name in _SUMMARY]]))
        return metrics
