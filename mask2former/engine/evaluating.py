"""Evaluation of a model on the data sets of ``DATASETS.TEST``, and what published weights are expected to reach."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from mask2former import distributed
from mask2former.checkpoint import load_state_dict
from mask2former.checkpoint.addresses import find_zoo_model
from mask2former.config import CfgNode
from mask2former.data import DatasetMapper, TestLoader, build_test_loader
from mask2former.data.catalog import DatasetDict
from mask2former.data.loader import named_worker_failures
from mask2former.data.own_data import register_own_data
from mask2former.engine.building import load_initial_weights
from mask2former.engine.checkpoint_folder import CheckpointFolder
from mask2former.engine.hooks import Results
from mask2former.engine.logging import describe_model, describe_results, describe_tasks
from mask2former.engine.run import begin_process, run_folder
from mask2former.errors import ConfigError
from mask2former.evaluation import (
    BuildEvaluator,
    DatasetEvaluator,
    build_evaluator,
    inference_on_dataset,
    verify_results,
)
from mask2former.inference.exported import load_exported
from mask2former.inference.test_time_augmentation import CopyMaker, with_test_time_augmentation
from mask2former.modeling import build_model
from mask2former.structures.tasks import test_sets

logger = logging.getLogger(__name__)

# Published name → where results hold it; cityscapesscripts calls the mean over classes IoU.
_PLACES = {
    "PQ": (("panoptic_seg", "PQ"),),
    "AP": (("segm", "AP"),),
    "AP50": (("segm", "AP50"),),
    "Boundary AP": (("boundary", "AP"),),
    "mIoU": (("sem_seg", "mIoU"), ("sem_seg", "IoU")),
}
_AUGMENTED = " (ms+flip)"  # with test-time augmentation


def expect_zoo_metrics(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> CfgNode:
    """``cfg`` with the metrics of TEST.EXPECTED_ZOO, those that were evaluated, added to TEST.EXPECTED_RESULTS.

    Raises:
        CheckpointError: the zoo has no such model.
        ConfigError: none of its metrics was evaluated.
    """
    if not cfg.TEST.EXPECTED_ZOO:
        return cfg
    model = find_zoo_model(cfg.TEST.EXPECTED_ZOO)
    expected, missing = [], []
    for name, value in model.metrics.items():
        is_augmented = name.endswith(_AUGMENTED)
        if is_augmented and not cfg.TEST.AUG.ENABLED:
            continue
        places = _PLACES.get(name.removesuffix(_AUGMENTED), ())
        if is_augmented:
            places = tuple((f"{task}_TTA", metric) for task, metric in places)
        found = next((place for place in places if place[1] in results.get(place[0], {})), None)
        if found is None:
            missing.append(name)
        else:
            expected.append([*found, float(value), float(cfg.TEST.EXPECTED_ZOO_TOLERANCE)])
    if not expected:
        raise ConfigError(
            f"TEST.EXPECTED_ZOO: {model.name} is published with {list(model.metrics)}, of which nothing was evaluated; "
            f"there are results for {sorted(results)}"
        )
    if missing:
        logger.warning("%s: published %s were not evaluated, and so not verified", model.name, ", ".join(missing))
    extended = cfg.clone()
    extended.defrost()
    extended.TEST.EXPECTED_RESULTS = [*cfg.TEST.EXPECTED_RESULTS, *expected]
    return extended


class TaskMapper:
    """Adds to each sample of a mapper the task that the model is told."""

    def __init__(self, mapper: DatasetMapper, task: str) -> None:
        self.mapper, self.task = mapper, task

    def __call__(self, dataset_dict: DatasetDict, rng: np.random.Generator) -> dict[str, Any]:
        """Map one image as the mapper does."""
        return {**self.mapper(dataset_dict, rng), "task": self.task}


class _TestSet(NamedTuple):
    loader: TestLoader
    evaluator: DatasetEvaluator


class TestSets:
    """The data sets of ``DATASETS.TEST``, each with its own evaluators and further ones.

    They are built once, by ``prepare`` or the first evaluation, so that faults in ground truth are found before
    training.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    def __init__(self, evaluators: Sequence[BuildEvaluator] = ()) -> None:
        self._others = tuple(evaluators)
        self._sets: dict[str, _TestSet] | None = None
        self._augmented_sets: dict[str, _TestSet] = {}

    def prepare(self, cfg: CfgNode) -> None:
        """Read the data sets and their ground truth.

        Raises:
            InputError: a data set or its ground truth is missing or wrong, or a name is not registered.
        """
        self._sets = self._build(cfg, "inference")
        if cfg.TEST.AUG.ENABLED:
            CopyMaker.from_config(cfg)
            self._augmented_sets = self._build(cfg, "inference_TTA")

    def __call__(self, cfg: CfgNode, model: nn.Module) -> Results:
        """Return results on each data set: task to metric to value; with several data sets, by data set first.

        With ``cfg.TEST.AUG.ENABLED`` those with test-time augmentation follow, under the same names with ``_TTA``. On
        processes other than the main one the results are empty.

        Raises:
            InputError: a data set is missing or wrong, or results differ from ``cfg.TEST.EXPECTED_RESULTS``.
        """
        if not test_sets(cfg):
            raise ConfigError("DATASETS.TEST is empty: there is nothing to evaluate on")
        augmented = with_test_time_augmentation(cfg, model) if cfg.TEST.AUG.ENABLED else None
        logger.info("%s", describe_tasks(cfg))
        if self._sets is None:
            self.prepare(cfg)
        assert self._sets is not None
        results = _evaluate(self._sets, model)
        if augmented is not None:
            logger.info("with test-time augmentation, %s", augmented.copy_maker.describe())
            added = _evaluate(self._augmented_sets, augmented)
            results = {**results, **{f"{name}_TTA": metrics for name, metrics in added.items()}}
        if distributed.is_main():
            logger.info("results on %s\n%s", ", ".join(name for name, _ in test_sets(cfg)), describe_results(results))
            verify_results(expect_zoo_metrics(cfg, results), results)
        return results

    def _build(self, cfg: CfgNode, folder: str) -> dict[str, _TestSet]:
        """Build the data sets and evaluators; what evaluators write goes below ``folder``."""
        sets = {}
        for name, task in test_sets(cfg):
            mapper = TaskMapper(DatasetMapper.from_config(cfg, is_train=False), task) if task else None
            # Before the evaluator, which reads the metadata that this registers.
            loader = build_test_loader(cfg, name, mapper=mapper)
            output_dir = Path(cfg.OUTPUT_DIR) / folder / name
            key = f"{name} ({task})" if name in sets else name
            sets[key] = _TestSet(loader, build_evaluator(cfg, name, output_dir, others=self._others))
        return sets


def evaluate(cfg: CfgNode, model: nn.Module, *, evaluators: Sequence[BuildEvaluator] = ()) -> Results:
    """Return the results of the model on ``cfg.DATASETS.TEST``; see ``TestSets``.

    ``evaluators`` process each data set in addition to its own evaluators.

    Raises:
        InputError: a data set is missing or wrong, or results differ from ``cfg.TEST.EXPECTED_RESULTS``.
    """
    return TestSets(evaluators)(cfg, model)


def evaluate_only(cfg: CfgNode, *, resume: bool = False, evaluators: Sequence[BuildEvaluator] = ()) -> Results:
    """Evaluate the weights ``cfg.MODEL.WEIGHTS``, or with ``resume`` the newest checkpoint in ``cfg.OUTPUT_DIR``.

    Raises:
        InputError: configuration, data or checkpoint are wrong, or results are not the expected ones.
    """
    register_own_data(cfg)
    with distributed.process_group(cfg.MODEL.DEVICE), run_folder(cfg), named_worker_failures():
        begin_process(cfg)
        exported = load_exported(cfg)
        if exported is not None:
            logger.info("%s", exported.describe())
            return evaluate(cfg, exported, evaluators=evaluators)
        model = build_model(cfg)
        logger.info("%s", describe_model(cfg, model))
        newest = CheckpointFolder(cfg.OUTPUT_DIR).load_newest() if resume else None
        if newest is not None:
            path, state = newest
            logger.info("%s", load_state_dict(model, state["model"], source=str(path)).format())
        else:
            load_initial_weights(cfg, model)
        return evaluate(cfg, model, evaluators=evaluators)


def _evaluate(sets: dict[str, _TestSet], model: nn.Module) -> dict[str, Any]:
    """Return results by task, or with several data sets by data set."""
    results = {name: inference_on_dataset(model, *test_set) or {} for name, test_set in sets.items()}
    return results if len(results) > 1 else dict(next(iter(results.values())))
