"""Panoptic evaluation on COCO-format ground truth (json and RGB PNG), in the loop or on saved predictions.

Also average precision against the things of panoptic annotations, for data sets without an instances json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.distributed import gather_on_main
from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.coco import COCOEvaluator
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.evaluation.panoptic_ground_truth import PanopticGroundTruth, ReadAhead, panoptic_truth
from mask2former.evaluation.panoptic_quality import PanopticScorer, PanopticTally
from mask2former.evaluation.protocol import DatasetEvaluator, ModelInputs, ModelOutputs, Results, metadata_ids
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.files.annotation_values import Id, safe_name
from mask2former.files.atomic import write_json
from mask2former.files.coco_panoptic import read_panoptic
from mask2former.files.inputs import PathLike
from mask2former.files.maps import read_panoptic_ids
from mask2former.files.pictures import write_picture
from mask2former.structures.ids import id_to_rgb
from mask2former.structures.masks import bitmasks_to_rles
from mask2former.structures.metadata import Metadata, MetadataCatalog

logger = logging.getLogger(__name__)

TASK = "panoptic_seg"
PREDICTIONS_FILE = "predictions.json"
PNG_FOLDER = "panoptic_predictions"


class COCOPanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ over all, thing and stuff categories.

    Reads ``panoptic_json``, ``panoptic_root`` and the dataset-id maps of things and stuff of the data set's metadata.
    Takes ``outputs[i]["panoptic_seg"] = (ids (H, W) integer, [{id, category_id (contiguous), isthing}, …])`` for the
    image ``inputs[i]["image_id"]``. With ``output_dir`` it writes predictions.json, with ``save_pngs`` also the id
    maps, in the form that ``evaluate_panoptic`` reads.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: PathLike | None = None,
        *,
        save_pngs: bool = False,
        truth: PanopticGroundTruth | None = None,
    ) -> None:
        """``truth`` is the ground truth that the metadata name, if another evaluator has read it."""
        if save_pngs and output_dir is None:
            raise ValueError("save_pngs needs an output_dir")
        metadata = MetadataCatalog.get(dataset_name)
        self._truth = panoptic_truth(metadata, type(self).__name__) if truth is None else truth
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._thing_ids = {contiguous: dataset_id for dataset_id, contiguous in things.items()}
        self._stuff_ids = {contiguous: dataset_id for dataset_id, contiguous in stuff.items()}
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._save_pngs = save_pngs
        self.reset()

    def reset(self) -> None:
        self._scorer = PanopticScorer(self._truth.category_ids, takes_unlisted=False)
        self._image_ids: list[Id] = []
        self._predictions: list[dict[str, Any]] = []  # only if they are written

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Compare each image and keep the counts.

        Raises:
            InputError: an image is not in the ground truth, or a prediction has another size or an unknown category.
            DatasetError: a ground-truth PNG is missing or corrupt.
        """
        for image, output in zip(inputs, outputs, strict=True):
            annotation = self._truth.annotation_of(image.get("image_id"))
            image_id = annotation["image_id"]
            name = f"prediction for image {image_id!r}"
            if output.get(TASK) is None or output[TASK][1] is None:
                raise InputError(
                    f"{name}: no 'panoptic_seg' with segments (MODEL.MASK_FORMER.TEST.PANOPTIC_ON is off?)"
                )
            ids = _to_numpy(output[TASK][0])
            segments = [self._with_dataset_category(segment, name) for segment in output[TASK][1]]
            truth_ids, truth_segments, truth_name = self._truth.read(annotation)
            self._scorer.add_image(
                (truth_ids, truth_segments), (ids, segments), truth_name=truth_name, prediction_name=name
            )
            self._image_ids.append(image_id)
            if self._output_dir is not None:
                position = self._truth.position_of(image_id)
                file_name = safe_name(annotation["file_name"], position, suffix=".png")
                self._predictions.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
                if self._save_pngs:
                    write_picture(id_to_rgb(ids), self._output_dir / PNG_FOLDER / file_name)

    def evaluate(self) -> Results | None:
        """``{"panoptic_seg": {PQ, SQ, RQ, PQ_th, …, RQ_st}}`` in percent on the main process, None elsewhere.

        Raises:
            InputError: an image has no prediction or several.
        """
        parts = gather_on_main((self._scorer.tally, self._image_ids, self._predictions))
        if parts is None:
            return None
        tally = PanopticTally.zeros(len(self._truth.category_ids))
        for part, _, _ in parts:
            tally += part
        if self._output_dir is not None:
            predictions = [prediction for _, _, part in parts for prediction in part]
            categories = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in self._truth.categories]
            content = {"images": self._truth.images, "annotations": predictions, "categories": categories}
            write_json(content, self._output_dir / PREDICTIONS_FILE)
        self._truth.check_complete(image_id for _, part_ids, _ in parts for image_id in part_ids)
        return _report(tally, self._truth)

    def _with_dataset_category(self, segment: Mapping[str, Any], name: str) -> dict[str, Any]:
        if "id" not in segment or "category_id" not in segment:
            raise InputError(f"{name}: a segment needs 'id' and 'category_id', found {sorted(segment)}")
        category = int(segment["category_id"])
        if "isthing" in segment and (self._thing_ids or self._stuff_ids):
            dataset_ids = self._thing_ids if segment["isthing"] else self._stuff_ids
            if category not in dataset_ids:
                kind = "thing" if segment["isthing"] else "stuff"
                raise InputError(
                    f"{name}: segment {segment['id']} has {kind} category {category}, there are {sorted(dataset_ids)}"
                )
            category = dataset_ids[category]
        converted: dict[str, Any] = {"id": int(segment["id"]), "category_id": category}
        if segment.get("score") is not None:
            converted["score"] = float(segment["score"])
        return converted


def evaluate_panoptic(gt_json: PathLike, gt_folder: PathLike, pred_json: PathLike, pred_folder: PathLike) -> Results:
    """Return PQ, SQ and RQ of saved predictions in COCO panoptic format (dataset category ids).

    Raises:
        InputError: a prediction is missing, unreadable, of another size, of an unknown image or category.
        DatasetError: the same of the ground truth.
    """
    truth = PanopticGroundTruth(gt_json, gt_folder)
    predictions = read_panoptic(pred_json, error=InputError).annotations
    for image_id in predictions:
        truth.annotation_of(image_id)
    truth.check_complete(truth.annotation_of(image_id)["image_id"] for image_id in predictions)
    scorer = PanopticScorer(truth.category_ids, takes_unlisted=False)
    in_order = sorted(predictions.values(), key=lambda prediction: truth.position_of(prediction["image_id"]))
    paths = [Path(pred_folder) / prediction["file_name"] for prediction in in_order]
    predicted_ids = ReadAhead(lambda position: read_panoptic_ids(paths[position], error=InputError), len(paths))
    for position, prediction in enumerate(in_order):
        truth_ids, truth_segments, truth_name = truth.read(truth.annotation_of(prediction["image_id"]))
        predicted = (predicted_ids[position], prediction["segments_info"])
        name = f"{paths[position]} (image {prediction['image_id']!r})"
        scorer.add_image((truth_ids, truth_segments), predicted, truth_name=truth_name, prediction_name=name)
    return _report(scorer.tally, truth)


def _report(tally: PanopticTally, truth: PanopticGroundTruth) -> Results:
    groups = {"": np.ones_like(truth.is_thing), "_th": truth.is_thing, "_st": ~truth.is_thing}
    means = {suffix: tally.mean_quality(selected) for suffix, selected in groups.items()}
    metrics = {}
    for suffix, mean in means.items():
        metrics.update({f"PQ{suffix}": mean.pq, f"SQ{suffix}": mean.sq, f"RQ{suffix}": mean.rq})
    results = check_percentages({TASK: metrics})
    header = ["categories", "PQ", "SQ", "RQ", "number"]
    rows = [[label, *mean] for label, mean in zip(("all", "things", "stuff"), means.values())]
    logger.info("panoptic quality:\n%s", format_table(header, rows))
    per_category = tally.quality_per_category().T.tolist()
    counts = np.stack([tally.tp, tally.fp, tally.fn], axis=1).tolist()
    rows = [[name, *q, *c] for name, q, c in zip(truth.category_names, per_category, counts)]
    logger.info("by category:\n%s", format_table(["category", "PQ", "SQ", "RQ", "TP", "FP", "FN"], rows))
    return results


def _to_numpy(ids: Any) -> np.ndarray:
    return ids.cpu().numpy() if hasattr(ids, "cpu") else np.asarray(ids)


class PanopticInstanceEvaluator(COCOEvaluator):
    """COCOEvaluator whose true instances are the thing segments of ``panoptic_json`` and ``panoptic_root``.

    A segment's ``iscrowd`` is that of the instance. Each process reads the PNGs of the images it predicts.
    """

    def __init__(
        self, dataset_name: str, output_dir: Any = None, *, truth: PanopticGroundTruth | None = None, **options: Any
    ) -> None:
        """``truth`` is the ground truth that the metadata name, if another evaluator has read it."""
        self._given = truth
        super().__init__(dataset_name, output_dir, **options)

    def _read_truth(self, metadata: Metadata) -> CocoGroundTruth:
        owner = type(self).__name__
        self._panoptic = panoptic_truth(metadata, owner) if self._given is None else self._given
        self._thing_ids = set(metadata_ids(metadata, "thing_dataset_id_to_contiguous_id", owner))
        things = [{"id": c.id, "name": c.name} for c in self._panoptic.categories if c.id in self._thing_ids]
        content = {"images": self._panoptic.images, "categories": things, "annotations": []}
        return CocoGroundTruth(self._panoptic.json_file, self._tasks, content=content)

    def _true_instances(self, image_id: Any) -> list[dict[str, Any]]:
        ids, segments, name = self._panoptic.read(self._panoptic.annotation_of(image_id))
        if ids.shape != tuple(self._truth.image_sizes[image_id]):
            size = self._truth.image_sizes[image_id]
            raise DatasetError(f"{name}: (height, width) is {ids.shape}, in {self._truth.json_file} it is {size}")
        things = [segment for segment in segments if segment.get("category_id") in self._thing_ids]
        masks = ids == np.array([segment["id"] for segment in things], dtype=ids.dtype).reshape(-1, 1, 1)
        annotations = []
        for segment, rle in zip(things, bitmasks_to_rles(masks)):
            annotations.append(
                {
                    "id": segment["id"],
                    "image_id": image_id,
                    "category_id": segment["category_id"],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": rle,
                }
            )
        return annotations
