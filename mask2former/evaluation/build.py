"""Build the evaluators that a data set and a config name.

The data set's ``evaluator_type`` names its own evaluators, TEST.EVALUATORS further ones:

    @EVALUATOR_REGISTRY.register()
    class PixelCount(DatasetEvaluator):
        def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: Path) -> None: ...
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mask2former.config import Registry, build_from_config, inference_node
from mask2former.errors import ConfigError
from mask2former.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.coco import COCOEvaluator, LVISEvaluator
from mask2former.evaluation.coco_matching import IouType
from mask2former.evaluation.panoptic import COCOPanopticEvaluator, PanopticInstanceEvaluator
from mask2former.evaluation.panoptic_ground_truth import panoptic_truth
from mask2former.evaluation.protocol import DatasetEvaluator, DatasetEvaluators, RelabelledThings, is_installed
from mask2former.evaluation.sem_seg import SemSegEvaluator
from mask2former.evaluation.video import YTVISEvaluator
from mask2former.files.inputs import PathLike
from mask2former.structures.metadata import Metadata, MetadataCatalog

logger = logging.getLogger(__name__)

_CITYSCAPES = "cityscapesscripts"
# Panoptic annotations that stand for the instances too; "panoptic_seg" is that of data of no published set.
_INSTANCES_OF_PANOPTIC = ("mapillary_vistas_panoptic_seg", "panoptic_seg")


class BuildEvaluator(Protocol):
    """A registered class or function that returns evaluators; a ``from_config`` of it is called instead."""

    def __call__(
        self, cfg: Any, dataset_name: str, output_dir: Path, /
    ) -> DatasetEvaluator | Sequence[DatasetEvaluator]:
        """Return the evaluators of a data set; they may write below ``output_dir``."""


EVALUATOR_REGISTRY = Registry("evaluator", key="TEST.EVALUATORS")


def build_evaluator(
    cfg: Any,
    dataset_name: str,
    output_dir: PathLike | None = None,
    *,
    others: Sequence[BuildEvaluator] = (),
) -> DatasetEvaluator:
    """Return the evaluator for the data set's ``evaluator_type`` and the tasks of cfg.MODEL.MASK_FORMER.TEST.

    Args:
        cfg: the config; TEST.EVALUATORS names evaluators that run in addition.
        dataset_name: a registered data set.
        output_dir: where predictions are written; by default cfg.OUTPUT_DIR/inference.
        others: further evaluators for the same images.

    Raises:
        ConfigError: the type is unknown, a package that it needs is not installed, or the config switches off every
            task that the data set can be evaluated for.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    output_dir = Path(cfg.OUTPUT_DIR) / "inference" if output_dir is None else Path(output_dir)
    further = [*map(EVALUATOR_REGISTRY.lookup, cfg.TEST.EVALUATORS), *others]
    builders = further
    if evaluator_type is not None or not further:
        key = f"evaluator_type of data set {dataset_name!r}"
        builders = [EVALUATOR_REGISTRY.lookup(evaluator_type, key=key), *further]
    evaluators: list[DatasetEvaluator] = []
    for build in builders:
        built = build_from_config(build, cfg, dataset_name, output_dir)
        evaluators += built if isinstance(built, Sequence) else [built]
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on {dataset_name!r} ({evaluator_type}): MODEL.MASK_FORMER.TEST switches on none of "
            "SEMANTIC_ON, INSTANCE_ON (with annotations), PANOPTIC_ON"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


@EVALUATOR_REGISTRY.register(name="coco")
def _instances(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return _relabelled(cfg, dataset_name, [COCOEvaluator(dataset_name, output_dir, tasks=_instance_tasks(cfg))])


@EVALUATOR_REGISTRY.register(name="panoptic_instances")
def _instances_of_panoptic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [PanopticInstanceEvaluator(dataset_name, output_dir, tasks=_instance_tasks(cfg))]


@EVALUATOR_REGISTRY.register(name="lvis")
def _lvis(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [LVISEvaluator(dataset_name, output_dir)]


@EVALUATOR_REGISTRY.register(name="ytvis")
def _videos(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [YTVISEvaluator(dataset_name, output_dir)]


@EVALUATOR_REGISTRY.register(name="sem_seg")
def _semantic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [SemSegEvaluator(dataset_name, output_dir)]


@EVALUATOR_REGISTRY.register(name="cityscapes_instance")
def _cityscapes_instances(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return _relabelled(cfg, dataset_name, [CityscapesInstanceEvaluator(dataset_name)])


@EVALUATOR_REGISTRY.register(name="cityscapes_sem_seg")
def _cityscapes_semantic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    return [CityscapesSemSegEvaluator(dataset_name)]


@EVALUATOR_REGISTRY.register(name="coco_panoptic_seg")
@EVALUATOR_REGISTRY.register(name="ade20k_panoptic_seg")
@EVALUATOR_REGISTRY.register(name="mapillary_vistas_panoptic_seg")
@EVALUATOR_REGISTRY.register(name="panoptic_seg")
def _panoptic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    test, metadata = inference_node(cfg), MetadataCatalog.get(dataset_name)
    is_needed = test.PANOPTIC_ON or test.INSTANCE_ON or test.SEMANTIC_ON
    has_truth = is_needed and metadata.get("panoptic_json") is not None
    truth = panoptic_truth(metadata, "COCOPanopticEvaluator") if has_truth else None  # read once for all of them
    evaluators: list[DatasetEvaluator] = []
    if test.PANOPTIC_ON:
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir, truth=truth))
    if test.INSTANCE_ON:
        if metadata.get("json_file") is not None:
            evaluators += _instances(cfg, dataset_name, output_dir)
        elif metadata.evaluator_type in _INSTANCES_OF_PANOPTIC:
            tasks = _instance_tasks(cfg)
            evaluators.append(PanopticInstanceEvaluator(dataset_name, output_dir, tasks=tasks, truth=truth))
        else:
            logger.warning("%s has no instance annotations (json_file): no AP", dataset_name)
    if test.SEMANTIC_ON:
        evaluators.append(SemSegEvaluator(dataset_name, output_dir, truth=truth))
    return evaluators


@EVALUATOR_REGISTRY.register(name="cityscapes_panoptic_seg")
def _cityscapes_panoptic(cfg: Any, dataset_name: str, output_dir: Path) -> list[DatasetEvaluator]:
    """Return our own PQ, and cityscapesscripts for the rest; without that package, our own mean IoU and no AP."""
    test = inference_node(cfg)
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


def _relabelled(cfg: Any, dataset_name: str, evaluators: list[DatasetEvaluator]) -> list[DatasetEvaluator]:
    """Return evaluators that understand a model of things and stuff where the data set numbers its things alone."""
    trained = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else Metadata()
    known, wanted = (_thing_labels(metadata) for metadata in (trained, MetadataCatalog.get(dataset_name)))
    if len(known) != len(wanted) or known == wanted:
        return evaluators
    return [RelabelledThings(evaluator, known) for evaluator in evaluators]


def _thing_labels(metadata: Metadata) -> list[int]:
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    return sorted(mapping.values()) if mapping else list(range(len(metadata.get("thing_classes") or ())))


def _instance_tasks(cfg: Any) -> tuple[IouType, ...]:
    return ("segm", "bbox", "boundary") if cfg.TEST.BOUNDARY_AP else ("segm", "bbox")
