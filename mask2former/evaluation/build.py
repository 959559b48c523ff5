"""Which evaluators a data set and a config ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mask2former.errors import ConfigError
from mask2former.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.coco import COCOEvaluator
from mask2former.evaluation.coco_matching import IouType
from mask2former.evaluation.lvis import LVISEvaluator
from mask2former.evaluation.optional import is_installed
from mask2former.evaluation.panoptic import COCOPanopticEvaluator
from mask2former.evaluation.panoptic_instances import PanopticInstanceEvaluator
from mask2former.evaluation.protocol import DatasetEvaluator, DatasetEvaluators
from mask2former.evaluation.sem_seg import SemSegEvaluator
from mask2former.evaluation.video import YTVISEvaluator
from mask2former.files.opening import PathLike
from mask2former.structures.metadata import MetadataCatalog

logger = logging.getLogger(__name__)

_CITYSCAPES = "cityscapesscripts"
# Panoptic annotations that stand for the instances too; "panoptic_seg" is that of data of no published set.
_INSTANCES_OF_PANOPTIC = ("mapillary_vistas_panoptic_seg", "panoptic_seg")


def build_evaluator(cfg: Any, dataset_name: str, output_dir: PathLike | None = None) -> DatasetEvaluator:
    """The evaluator for the data set's ``evaluator_type`` and the tasks that cfg.MODEL.MASK_FORMER.TEST switches on.

    ``output_dir`` is where predictions are written (default cfg.OUTPUT_DIR/inference).

    Raises:
        ConfigError: the type is unknown, a package that it needs is not installed, or the config switches off every
            task that the data set can be evaluated for.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _BUILDERS:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator type {evaluator_type!r}, there are {list(EVALUATOR_TYPES)}"
        )
    output_dir = Path(cfg.OUTPUT_DIR) / "inference" if output_dir is None else Path(output_dir)
    evaluators = _BUILDERS[evaluator_type](cfg, dataset_name, output_dir)
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on {dataset_name!r} ({evaluator_type}): MODEL.MASK_FORMER.TEST switches on none of "
            "SEMANTIC_ON, INSTANCE_ON (with annotations), PANOPTIC_ON"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _instances(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [COCOEvaluator(dataset_name, output_dir, tasks=_instance_tasks(cfg))]


def _lvis(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [LVISEvaluator(dataset_name, output_dir)]


def _videos(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [YTVISEvaluator(dataset_name, output_dir)]


def _semantic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [SemSegEvaluator(dataset_name, output_dir)]


def _cityscapes_instances(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [CityscapesInstanceEvaluator(dataset_name)]


def _cityscapes_semantic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [CityscapesSemSegEvaluator(dataset_name)]


def _panoptic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    test = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    if test.PANOPTIC_ON:
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir))
    if test.INSTANCE_ON:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("json_file") is not None:
            evaluators += _instances(cfg, dataset_name, output_dir)
        elif metadata.evaluator_type in _INSTANCES_OF_PANOPTIC:
            evaluators.append(PanopticInstanceEvaluator(dataset_name, output_dir, tasks=_instance_tasks(cfg)))
        else:
            logger.warning("%s has no instance annotations (json_file): no AP", dataset_name)
    if test.SEMANTIC_ON:
        evaluators += _semantic(cfg, dataset_name, output_dir)
    return evaluators


def _cityscapes_panoptic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    """PQ by ourselves, the rest by cityscapesscripts; where it is not installed, mean IoU by ourselves and no AP."""
    test = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    if test.PANOPTIC_ON:
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir))
    has_scripts = is_installed(_CITYSCAPES)
    if not has_scripts and (test.INSTANCE_ON or test.SEMANTIC_ON):
        logger.warning(
            "%s is not installed (pip install 'mask2former[cityscapes]'): mean IoU without iIoU, no AP", _CITYSCAPES
        )
    if test.INSTANCE_ON and has_scripts:
        evaluators += _cityscapes_instances(cfg, dataset_name, output_dir)
    if test.SEMANTIC_ON:
        build_semantic = _cityscapes_semantic if has_scripts else _semantic
        evaluators += build_semantic(cfg, dataset_name, output_dir)
    return evaluators


def _instance_tasks(cfg: Any) -> tuple[IouType, ...]:
    return ("segm", "bbox", "boundary") if cfg.TEST.BOUNDARY_AP else ("segm", "bbox")


_Builder = Callable[[Any, str, Path], list[DatasetEvaluator]]
_BUILDERS: Mapping[str, _Builder] = MappingProxyType(
    {
        "coco": _instances,
        "lvis": _lvis,
        "sem_seg": _semantic,
        "cityscapes_instance": _cityscapes_instances,
        "cityscapes_sem_seg": _cityscapes_semantic,
        "coco_panoptic_seg": _panoptic,
        "ade20k_panoptic_seg": _panoptic,
        "cityscapes_panoptic_seg": _cityscapes_panoptic,
        "mapillary_vistas_panoptic_seg": _panoptic,
        "panoptic_seg": _panoptic,
        "ytvis": _videos,
    }
)
EVALUATOR_TYPES = tuple(_BUILDERS)
