"""Instance evaluation by the average precision of COCO, and by that of LVIS, in the loop or on saved predictions."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.distributed import gather_on_main
from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.average_precision import AveragePrecision, PrecisionTally, compute_average_precision
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth, needs_masks, read_detections
from mask2former.evaluation.coco_matching import MAX_DETECTIONS, IouType, match_image
from mask2former.evaluation.protocol import (
    DatasetEvaluator,
    ModelInputs,
    ModelOutputs,
    Results,
    check_each_once,
    import_optional,
    metadata_path,
)
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.files.atomic import write_json
from mask2former.files.inputs import PathLike
from mask2former.structures.containers import Instances
from mask2former.structures.masks import bitmasks_to_rles, masks_to_boxes_xyxy
from mask2former.structures.metadata import Metadata, MetadataCatalog

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TASK_TITLES = {"segm": "masks", "bbox": "boxes", "boundary": "masks and their boundaries"}


class COCOEvaluator(DatasetEvaluator):
    """AP of masks, boxes and, where asked for, boundaries, over all categories and for each.

    Reads ``json_file``, ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of the data set's metadata.
    Takes ``outputs[i]["instances"]`` with scores, pred_classes (contiguous), pred_masks (N, H, W) and pred_boxes (made
    from the masks where missing) for the image ``inputs[i]["image_id"]``. Only what COCO counts is encoded: the best
    100 of a category and image. Each image is matched as it comes and its masks are forgotten, unless ``output_dir``
    is given: coco_instances_results.json is written there at the end.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: PathLike | None = None,
        *,
        tasks: Sequence[IouType] = ("segm", "bbox"),
    ) -> None:
        self._tasks = _checked_tasks(tasks)
        metadata = MetadataCatalog.get(dataset_name)
        self._truth = self._read_truth(metadata)
        mapping = metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            mapping = {category_id: i for i, category_id in enumerate(sorted(self._truth.category_names))}
        self._dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
        self._class_names = _class_names(metadata, mapping, self._truth)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def _read_truth(self, metadata: Metadata) -> CocoGroundTruth:
        return CocoGroundTruth(metadata_path(metadata, "json_file", type(self).__name__), self._tasks)

    def reset(self) -> None:
        self._tallies = {task: PrecisionTally() for task in self._tasks}
        self._detections: list[dict[str, Any]] = []
        self._image_ids: list[Any] = []

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Match the instances of each image.

        Raises:
            InputError: an image is not in the ground truth, or instances have another size, an unknown class or a
                score that is not finite.
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = self._truth.image_id_of(image.get("image_id"))
            if output.get("instances") is None:
                raise InputError(f"image {image_id!r}: no 'instances' (MODEL.MASK_FORMER.TEST.INSTANCE_ON is off?)")
            self._image_ids.append(image_id)
            self._add(image_id, self._encode(output["instances"], image_id))

    def evaluate(self) -> Results | None:
        """``{"segm": {AP, AP50, AP75, APs, APm, APl, AP-NAME, …}, "bbox": …}`` in percent; None off the main process.

        Raises:
            InputError: an image of the ground truth was not processed, or twice.
        """
        parts = gather_on_main((self._tallies, self._detections, self._image_ids))
        if parts is None:
            return None
        detections = [detection for _, part, _ in parts for detection in part]
        if self._output_dir is not None:
            write_json(detections, self._output_dir / RESULTS_FILE)
        check_each_once(
            [image_id for _, _, image_ids in parts for image_id in image_ids],
            self._truth.image_sizes,
            kind="image",
            source=self._truth.json_file,
        )
        return self._report([tallies for tallies, _, _ in parts], detections)

    def _add(self, image_id: Any, detections: list[dict[str, Any]]) -> None:
        true_instances = self._true_instances(image_id)
        for task, tally in self._tallies.items():
            tally.add_image(image_id, match_image(true_instances, detections, iou_type=task))
        if self._output_dir is not None:
            self._detections += detections

    def _true_instances(self, image_id: Any) -> list[dict[str, Any]]:
        return self._truth.annotations_of(image_id)

    def _report(
        self, tallies_of_processes: Sequence[Mapping[IouType, PrecisionTally]], detections: Sequence[dict[str, Any]]
    ) -> Results:
        precisions = {}
        for task in self._tasks:
            total = PrecisionTally()
            for tallies in tallies_of_processes:
                total += tallies[task]
            if not total.num_detections:
                return _no_detections(self._tasks)
            precisions[task] = total.average_precision(self._truth.category_names)
        return _report(precisions, self._class_names)

    def _encode(self, instances: Instances, image_id: Any) -> list[dict[str, Any]]:
        name = f"prediction for image {image_id!r}"
        fields = ["scores", "pred_classes"] + (["pred_masks"] if needs_masks(self._tasks) else [])
        if missing := [field for field in fields if not instances.has(field)]:
            raise InputError(f"{name}: instances lack {missing}")
        scores, classes = instances.scores.detach().double().cpu(), instances.pred_classes.cpu()
        self._check(instances, scores, classes, name)
        kept = self._select(scores, classes)
        # Selecting copies masks: most images keep everything.
        selected = instances if len(kept) == len(scores) else instances[kept.to(instances.scores.device)]
        entries: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": self._dataset_ids[label], "score": score}
            for label, score in zip(classes[kept].tolist(), scores[kept].tolist())
        ]
        masks = _bool_masks(selected) if selected.has("pred_masks") else None
        for entry, box_xyxy in zip(entries, _boxes_xyxy(selected, masks, name)):
            x0, y0, x1, y1 = box_xyxy
            entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if masks is not None and len(entries):
            for entry, rle in zip(entries, bitmasks_to_rles(masks)):
                entry["segmentation"] = rle
        return entries

    def _select(self, scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return ascending indices of the instances of an image that can count."""
        return _best_of_each_class(scores, classes)

    def _check(self, instances: Instances, scores: torch.Tensor, classes: torch.Tensor, name: str) -> None:
        expected = tuple(self._truth.image_sizes[self._image_ids[-1]])
        masks = _mask_tensor(instances) if instances.has("pred_masks") else None
        size = instances.image_size if masks is None else tuple(masks.shape[-2:])
        if size != expected:
            raise InputError(
                f"{name}: size (height, width) is {size}, that of the image in {self._truth.json_file} is {expected}"
            )
        unknown = sorted(set(classes.tolist()) - set(self._dataset_ids))
        if unknown:
            raise InputError(
                f"{name}: classes {unknown[:10]} are no things, there are {sorted(self._dataset_ids)[:20]}"
            )
        if not torch.isfinite(scores).all():
            raise InputError(f"{name}: a score is not finite: {scores[~torch.isfinite(scores)][0].item()}")


def evaluate_coco(
    gt_json: PathLike,
    results_json: PathLike,
    *,
    tasks: Sequence[IouType] = ("segm", "bbox"),
    as_pycocotools: bool = False,
) -> Results:
    """Return AP of saved detections in COCO's results format (dataset category ids).

    An image without an entry has no detections.

    Args:
        gt_json: a COCO instances json.
        results_json: a list of detections.
        tasks: any of "segm", "bbox" and "boundary".
        as_pycocotools: take stated areas as they are, and never count the annotation of id 0 as found.

    Raises:
        InputError: a detection is incomplete, names an unknown image or category, or has another size than its image.
        DatasetError: the ground truth is missing or wrong.
    """
    tasks = _checked_tasks(tasks)
    truth = CocoGroundTruth(gt_json, tasks, as_pycocotools=as_pycocotools)
    detections = read_detections(results_json, truth, tasks)
    if not detections:
        return _no_detections(tasks)
    precisions = {task: compute_average_precision(truth, detections, iou_type=task) for task in tasks}
    return _report(precisions, truth.category_names)


def _no_detections(tasks: Sequence[IouType]) -> Results:
    logger.warning("no detections at all: every AP is NaN")
    # Parity: the published evaluator says NaN rather than 0 then; test_coco_evaluator_without_detections_is_nan.
    return {task: dict.fromkeys(_SUMMARY, float("nan")) for task in tasks}


def _report(precisions: Mapping[IouType, AveragePrecision], names: Mapping[int, str]) -> Results:
    results: Results = {}
    for task, precision in precisions.items():
        results[task] = dict(precision.summary)
        # With one category its AP is the AP.
        if len(names) > 1:
            results[task].update({f"AP-{name}": precision.by_category[i] for i, name in names.items()})
        title = f"average precision of {_TASK_TITLES[task]}"
        logger.info("%s:\n%s", title, format_table(_SUMMARY, [[f"{precision.summary[n]:.2f}" for n in _SUMMARY]]))
        rows = [[name, precision.by_category[i]] for i, name in names.items()]
        logger.info("%s by category:\n%s", title, format_table(["category", "AP"], rows))
    return check_percentages(results)


def _class_names(metadata: Metadata, mapping: Mapping[int, int], truth: CocoGroundTruth) -> dict[int, str]:
    """Return names by dataset id, in the order of the contiguous ids."""
    if missing := sorted(set(mapping) - set(truth.category_names)):
        raise DatasetError(f"{truth.json_file}: no categories with ids {missing[:10]}, which {metadata.name!r} names")
    dataset_ids = sorted(mapping, key=lambda dataset_id: mapping[dataset_id])
    if unmapped := sorted(set(truth.category_names) - set(mapping)):
        logger.warning("%s: categories %s can never be predicted", truth.json_file, unmapped[:10])
    names = metadata.get("thing_classes") or []
    if len(names) == len(dataset_ids):  # things alone are listed
        return dict(zip(dataset_ids, names))
    if len(names) > max(mapping.values(), default=0):  # all classes are listed
        return {dataset_id: names[mapping[dataset_id]] for dataset_id in dataset_ids}
    return {dataset_id: truth.category_names[dataset_id] for dataset_id in dataset_ids}


def _checked_tasks(tasks: Sequence[IouType]) -> tuple[IouType, ...]:
    if not tasks or not set(tasks) <= set(_TASK_TITLES):
        raise ValueError(f"tasks must be some of {sorted(_TASK_TITLES)}, found {tasks!r}")
    return tuple(tasks)


def _best_of_each_class(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return, ascending, the indices of the instances that can count.

    These are the first 100 of each class by score, ties by position.
    """
    order = np.argsort(-scores.numpy(), kind="stable")
    ordered_classes = classes.numpy()[order]
    kept = [order[ordered_classes == label][:MAX_DETECTIONS] for label in np.unique(ordered_classes)]
    return torch.from_numpy(np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *kept])))


def _mask_tensor(instances: Instances) -> torch.Tensor:
    masks = instances.pred_masks  # a tensor, or BitMasks around one
    return getattr(masks, "tensor", masks)


def _bool_masks(instances: Instances) -> torch.Tensor:
    masks = _mask_tensor(instances)
    return masks if masks.dtype == torch.bool else masks > 0.5


def _boxes_xyxy(instances: Instances, masks: torch.Tensor | None, name: str) -> list[list[float]]:
    if instances.has("pred_boxes"):
        return instances.pred_boxes.tensor.float().cpu().tolist()
    if masks is None:
        raise InputError(f"{name}: instances have neither pred_boxes nor pred_masks")
    return masks_to_boxes_xyxy(masks).tolist()


LVIS_MAX_DETECTIONS = 300  # by image, over all categories
_LVIS_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


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
        best = np.argsort(-scores.numpy(), kind="stable")[:LVIS_MAX_DETECTIONS]
        return torch.from_numpy(np.sort(best))

    def _add(self, image_id: Any, detections: list[dict[str, Any]]) -> None:
        self._detections += detections  # LVIS' package compares the whole data set at once

    def _report(
        self, tallies_of_processes: Sequence[Mapping[IouType, PrecisionTally]], detections: Sequence[dict[str, Any]]
    ) -> Results:
        if not detections:
            logger.warning("no detections at all: every AP is NaN")
            return {task: dict.fromkeys(_LVIS_SUMMARY, float("nan")) for task in self._tasks}
        truth = self._lvis.LVIS(str(self._truth.json_file))
        return check_percentages({task: self._evaluate(truth, detections, task) for task in self._tasks})

    def _evaluate(self, truth: Any, detections: Sequence[dict[str, Any]], task: str) -> dict[str, float]:
        # Mask AP goes by the area of the mask: a box in the entry would take its place. Entries are written to.
        left_out = "bbox" if task == "segm" else "segmentation"
        own = [{k: copy.copy(v) for k, v in detection.items() if k != left_out} for detection in detections]
        found = self._lvis.LVISResults(truth, own, max_dets=LVIS_MAX_DETECTIONS)
        evaluation = self._lvis.LVISEval(truth, found, task)
        evaluation.run()
        measured = evaluation.get_results()
        # -1 stands for nothing to measure.
        metrics = {name: 100.0 * float(v) if (v := measured[name]) >= 0 else float("nan") for name in _LVIS_SUMMARY}
        logger.info("LVIS %s:\n%s", task, format_table(_LVIS_SUMMARY, [[f"{value:.2f}" for value in metrics.values()]]))
        return metrics
