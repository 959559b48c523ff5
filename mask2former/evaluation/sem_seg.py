"""Semantic evaluation against label maps, in the loop or on saved predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mask2former.distributed import gather_on_main
from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.panoptic_ground_truth import PanopticGroundTruth, panoptic_truth
from mask2former.evaluation.protocol import DatasetEvaluator, ModelInputs, ModelOutputs, Results, metadata_names
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.evaluation.semantic_confusion import SemanticConfusion
from mask2former.files.atomic import write_json
from mask2former.files.inputs import PathLike
from mask2former.files.json_files import read_json
from mask2former.files.maps import read_label_map
from mask2former.structures.ids import labels_to_train_ids, semantic_labels
from mask2former.structures.masks import bitmasks_to_rles
from mask2former.structures.metadata import MetadataCatalog
from mask2former.structures.segmentations import segmentation_to_bitmask

logger = logging.getLogger(__name__)

TASK = "sem_seg"
PREDICTIONS_FILE = "sem_seg_predictions.json"
DEFAULT_IGNORE_LABEL = 255
_LABEL_MAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


class SemSegEvaluator(DatasetEvaluator):
    """Mean and frequency-weighted IoU, accuracies, boundary IoU (BIoU), and all of them by class.

    Reads ``stuff_classes`` (all classes), ``ignore_label`` and, for the written file,
    ``stuff_dataset_id_to_contiguous_id`` of the data set's metadata. Takes ``outputs[i]["sem_seg"]``, scores (K, H, W)
    or labels (H, W), and the label map that ``inputs[i]["sem_seg_file_name"]`` names; without that key, the file in the
    metadata's ``sem_seg_root`` that is called as the image; without either, what the segments of ``panoptic_json`` say.
    Labels of files are classes, or ids that ``label_ids`` turns into them. With ``output_dir`` it writes
    sem_seg_predictions.json (run-length codes of the classes of each image).
    """

    def __init__(
        self, dataset_name: str, output_dir: PathLike | None = None, *, truth: PanopticGroundTruth | None = None
    ) -> None:
        """``truth`` is the ground truth that ``panoptic_json`` names, if another evaluator has read it."""
        metadata = MetadataCatalog.get(dataset_name)
        self._class_names = metadata_names(metadata, "stuff_classes", "SemSegEvaluator")
        self._ignore_label = metadata.get("ignore_label", DEFAULT_IGNORE_LABEL)
        mapping = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
        self._label_ids: dict[int, int] | None = metadata.get("label_ids")
        self._gt_root = metadata.get("sem_seg_root")
        self._panoptic: PanopticGroundTruth | None = None
        if self._gt_root is None and metadata.get("panoptic_json") is not None:
            self._panoptic = panoptic_truth(metadata, type(self).__name__) if truth is None else truth
        self._output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        self._confusion = SemanticConfusion(len(self._class_names))
        self._files: list[str] = []
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Add each image to the confusion matrices.

        Raises:
            InputError: a prediction has another size than its ground truth, or an unknown class.
            DatasetError: a ground-truth file is missing, corrupt or holds a label out of range.
        """
        for image, output in zip(inputs, outputs, strict=True):
            gt_file, truth = self._read_truth(image)
            name = f"prediction for {image.get('file_name', gt_file)}"
            if output.get(TASK) is None:
                raise InputError(f"{name}: no 'sem_seg' (MODEL.MASK_FORMER.TEST.SEMANTIC_ON is off?)")
            labels = semantic_labels(output[TASK])
            options = {"num_classes": len(self._class_names), "ignore_label": self._ignore_label}
            pair = _checked_pair(gt_file, labels, truth=truth, name=name, **options)
            self._confusion.add_image(pair.truth, pair.prediction)
            self._files.append(str(gt_file))
            if self._output_dir is not None:
                self._predictions += self._encode(labels, str(image.get("file_name", gt_file)))

    def evaluate(self) -> Results | None:
        """``{"sem_seg": {mIoU, fwIoU, IoU-NAME, …}}`` in percent on the main process, None elsewhere.

        Raises:
            InputError: no image was given, or one several times.
        """
        parts = gather_on_main((self._confusion, self._files, self._predictions))
        if parts is None:
            return None
        confusion = SemanticConfusion(len(self._class_names))
        for part, _, _ in parts:
            confusion += part
        if self._output_dir is not None:
            write_json([p for _, _, part in parts for p in part], self._output_dir / PREDICTIONS_FILE)
        files = [file for _, part_files, _ in parts for file in part_files]
        if not files:
            raise InputError("SemSegEvaluator: no image was evaluated")
        if len(set(files)) < len(files):
            twice = next(file for i, file in enumerate(files) if file in set(files[:i]))
            raise InputError(f"{twice}: predicted twice")
        return _report(confusion, self._class_names)

    def _read_truth(self, image: Mapping[str, Any]) -> tuple[Path, np.ndarray]:
        """Return the file of the ground truth, and its labels (H, W)."""
        if self._panoptic is not None and "sem_seg_file_name" not in image:
            return self._derive_truth(self._panoptic, image.get("image_id"))
        gt_file = self._gt_file_of(image)
        truth = read_label_map(gt_file)
        if self._label_ids is not None:
            truth = labels_to_train_ids(truth, self._label_ids, file_name=str(gt_file)).astype(np.int64)
        return gt_file, truth

    def _derive_truth(self, panoptic: PanopticGroundTruth, image_id: Any) -> tuple[Path, np.ndarray]:
        annotation = panoptic.annotation_of(image_id)
        ids, segments, _ = panoptic.read(annotation)
        contiguous_of = {dataset_id: contiguous for contiguous, dataset_id in self._dataset_ids.items()}
        truth = np.full(ids.shape, self._ignore_label, dtype=np.int64)
        for segment in segments:
            truth[ids == segment["id"]] = contiguous_of[segment["category_id"]]
        return panoptic.png_folder / annotation["file_name"], truth

    def _gt_file_of(self, image: Mapping[str, Any]) -> Path:
        if "sem_seg_file_name" in image:
            return Path(image["sem_seg_file_name"])
        if self._gt_root is not None and "file_name" in image:
            return Path(self._gt_root) / f"{Path(image['file_name']).stem}.png"
        raise DatasetError(
            f"SemSegEvaluator: image {image.get('file_name', image.get('image_id'))!r} has no 'sem_seg_file_name', "
            "and the data set's metadata no 'sem_seg_root'"
        )

    def _encode(self, labels: np.ndarray, file_name: str) -> list[dict[str, Any]]:
        present = np.unique(labels)
        rles = bitmasks_to_rles(labels == present[:, None, None])
        categories = [self._dataset_ids.get(label, label) for label in present.tolist()]
        return [
            {"file_name": file_name, "category_id": category, "segmentation": rle}
            for category, rle in zip(categories, rles)
        ]


def evaluate_sem_seg(
    gt_dir: PathLike,
    predictions: PathLike,
    *,
    class_names: Sequence[str],
    ignore_label: int = DEFAULT_IGNORE_LABEL,
    dataset_id_to_contiguous_id: Mapping[int, int] | None = None,
) -> Results:
    """Evaluate saved label maps: a folder that mirrors ``gt_dir``, or a sem_seg_predictions.json.

    Every file of ``gt_dir`` (searched with its subfolders) needs a prediction. In the json, images are known by the
    stem of their file name; ``dataset_id_to_contiguous_id`` maps its category ids, without it they are the labels.

    Raises:
        InputError: a prediction is missing, unreadable, of another size, or of an unknown image or class.
        DatasetError: the same of the ground truth.
    """
    confusion = SemanticConfusion(len(class_names))
    pairs = read_label_pairs(
        gt_dir,
        predictions,
        num_classes=len(class_names),
        ignore_label=ignore_label,
        dataset_id_to_contiguous_id=dataset_id_to_contiguous_id,
    )
    for pair in pairs:
        confusion.add_image(pair.truth, pair.prediction)
    return _report(confusion, class_names)


class LabelPair(NamedTuple):
    """Label maps (H, W) of one image: truth in 0..K, where K is to be ignored, and prediction in 0..K-1."""

    truth: np.ndarray
    prediction: np.ndarray
    truth_file: Path
    name: str  # of the prediction, for errors


def read_label_pairs(
    gt_dir: PathLike,
    predictions: PathLike,
    *,
    num_classes: int,
    ignore_label: int = DEFAULT_IGNORE_LABEL,
    dataset_id_to_contiguous_id: Mapping[int, int] | None = None,
) -> Iterator[LabelPair]:
    """Yield the checked label maps of every image below ``gt_dir``.

    Arguments and errors are those of ``evaluate_sem_seg``.
    """
    gt_files = _label_maps_below(Path(gt_dir), DatasetError)
    found: Iterable[tuple[Path, str, Callable[[], np.ndarray]]]
    if Path(predictions).is_dir():
        predicted_files = _label_maps_below(Path(predictions), InputError)
        _check_same_images(gt_files, predicted_files, gt_dir, predictions)
        found = (
            (gt_file, str(predicted_files[key]), partial(read_label_map, predicted_files[key], error=InputError))
            for key, gt_file in gt_files.items()
        )
    else:
        by_stem = {Path(key).name: gt_file for key, gt_file in gt_files.items()}
        if len(by_stem) < len(gt_files):
            raise InputError(f"{gt_dir}: file names are not unique across folders, which predictions in json need")
        by_image = _read_predictions(predictions)
        _check_same_images(by_stem, by_image, gt_dir, predictions)
        names = {stem: f"{predictions}: image {stem}" for stem in by_stem}
        found = (
            (gt_file, names[stem], partial(_decode, by_image[stem], dataset_id_to_contiguous_id, names[stem]))
            for stem, gt_file in by_stem.items()
        )
    for gt_file, name, read in found:
        labels, truth = read(), read_label_map(gt_file)
        yield _checked_pair(gt_file, labels, truth=truth, name=name, num_classes=num_classes, ignore_label=ignore_label)


def _checked_pair(
    gt_file: PathLike, labels: np.ndarray, *, truth: np.ndarray, name: str, num_classes: int, ignore_label: int
) -> LabelPair:
    if labels.shape != truth.shape:
        raise InputError(
            f"{name}: size (height, width) is {labels.shape}, that of the ground truth {gt_file} is {truth.shape}"
        )
    is_ignored = truth == ignore_label
    out_of_range = ~is_ignored & ((truth < 0) | (truth >= num_classes))
    if out_of_range.any():
        raise DatasetError(
            f"{gt_file}: label {truth[out_of_range][0]} is neither a class (0..{num_classes - 1}) "
            f"nor the ignore label ({ignore_label})"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise InputError(f"{name}: labels must lie in 0..{num_classes - 1}, found {labels.min()}..{labels.max()}")
    # Wide: the number of classes, and sums with labels, need not fit into the type of a file.
    truth = np.where(is_ignored, np.int64(num_classes), truth)
    return LabelPair(truth, labels.astype(np.int64, copy=False), Path(gt_file), name)


def _label_maps_below(folder: Path, error: type[InputError]) -> dict[str, Path]:
    """Return files by their path below the folder, without suffix."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _LABEL_MAP_SUFFIXES)
    if not files:
        raise error(f"{folder}: no label maps ({', '.join(_LABEL_MAP_SUFFIXES)}) found")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _check_same_images(
    truth: Mapping[str, Any], predictions: Mapping[str, Any], gt_dir: PathLike, source: PathLike
) -> None:
    missing, unknown = sorted(set(truth) - set(predictions)), sorted(set(predictions) - set(truth))
    if missing:
        raise InputError(
            f"{source}: no prediction for {len(missing)} of {len(truth)} images of {gt_dir}: {missing[:5]}"
        )
    if unknown:
        raise InputError(f"{source}: {len(unknown)} images are not in the ground truth {gt_dir}: {unknown[:5]}")


def _read_predictions(path: PathLike) -> dict[str, list[Mapping[str, Any]]]:
    entries = read_json(path, error=InputError)
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    fields = ("file_name", "category_id", "segmentation")
    for i, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        if not isinstance(entry, dict) or any(field not in entry for field in fields):
            raise InputError(f"{path}: entry {i} needs {list(fields)}, found {str(entry)[:200]}")
        by_image.setdefault(Path(entry["file_name"]).stem, []).append(entry)
    return by_image


def _decode(entries: Sequence[Mapping[str, Any]], mapping: Mapping[int, int] | None, name: str) -> np.ndarray:
    labels: np.ndarray | None = None
    for entry in entries:
        category = entry["category_id"]
        if mapping is not None and category not in mapping:
            raise InputError(f"{name}: category id {category} is not among {sorted(mapping)[:20]}")
        rle = entry["segmentation"]
        size = rle.get("size") if isinstance(rle, dict) else None
        height, width = labels.shape if labels is not None else (size or (0, 0))
        mask = segmentation_to_bitmask(rle, height, width, context=name)
        if labels is None:
            labels = np.full((height, width), -1, dtype=np.int64)
        labels[mask] = category if mapping is None else mapping[category]
    assert labels is not None
    return labels


def _report(confusion: SemanticConfusion, class_names: Sequence[str]) -> Results:
    metrics = confusion.metrics(class_names)
    results = check_percentages({TASK: metrics})
    means = ["mIoU", "fwIoU", "mACC", "pACC", "mBIoU"]
    logger.info("semantic segmentation:\n%s", format_table(means, [[f"{metrics[name]:.2f}" for name in means]]))
    columns = ["IoU", "BIoU", "ACC"]
    rows = [[name, *(metrics.get(f"{column}-{name}", np.nan) for column in columns)] for name in class_names]
    logger.info("by class:\n%s", format_table(["class", *columns], rows))
    return results
