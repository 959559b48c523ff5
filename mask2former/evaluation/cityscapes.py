"""Cityscapes' own evaluation of pixels and instances, computed by cityscapesscripts.

Each process compares its images as they come, through files in a temporary folder of its own; only counts and matches
travel to the main process. No folder has to be shared, and nothing is written next to the data.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mask2former.distributed import gather_on_main
from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.protocol import (
    DatasetEvaluator,
    ModelInputs,
    ModelOutputs,
    Results,
    import_optional,
    metadata_names,
    metadata_path,
)
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.files.atomic import write_text_atomic
from mask2former.files.inputs import PathLike
from mask2former.files.pictures import write_picture
from mask2former.structures.ids import semantic_labels
from mask2former.structures.metadata import MetadataCatalog

logger = logging.getLogger(__name__)

EXTRA = "cityscapes"
_IMAGE_SUFFIX = "_leftImg8bit.png"


class _CityscapesEvaluator(DatasetEvaluator):
    """Common part of both evaluators: the package, the images seen, and the ground-truth files.

    With ``predictions_dir`` the predictions stay there, in the format of the Cityscapes server.
    """

    module_name: str

    def __init__(self, dataset_name: str, *, predictions_dir: PathLike | None = None) -> None:
        self._module = import_optional(self.module_name, extra=EXTRA)
        self._labels = import_optional("cityscapesscripts.helpers.labels", extra=EXTRA)
        metadata = MetadataCatalog.get(dataset_name)
        self._gt_dir = Path(metadata_path(metadata, "gt_dir", type(self).__name__))
        self._metadata = metadata
        self._predictions_dir = None if predictions_dir is None else Path(predictions_dir)
        self._args = copy.copy(self._module.args)
        self._args.quiet, self._args.colorized, self._args.JSONOutput = True, False, False
        self.reset()

    def reset(self) -> None:
        self._images: list[str] = []

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Compare each image with its ground truth, which is found by file name.

        Raises:
            InputError: an output is missing, has another size, or names an unknown class.
            DatasetError: a ground-truth file is missing, or cityscapesscripts cannot use it.
        """
        for image, output in zip(inputs, outputs, strict=True):
            with self._folder() as folder, _errors_of(self._module, f"{image['file_name']}"):
                self._compare(Path(image["file_name"]), output, folder)
            self._images.append(str(image["file_name"]))

    def _compare(self, image: Path, output: Mapping[str, Any], folder: Path) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        if self._predictions_dir is not None:
            self._predictions_dir.mkdir(parents=True, exist_ok=True)
            yield self._predictions_dir
            return
        with tempfile.TemporaryDirectory(prefix="cityscapes_") as folder:
            yield Path(folder)

    def _truth_file(self, image: Path, kind: str) -> Path:
        path = self._gt_dir / image.parent.name / f"{_stem(image)}_gtFine_{kind}.png"
        if not path.is_file():
            raise DatasetError(f"{path}: {kind} of {image} not found")
        return path

    def _check_images(self, parts: Sequence[Sequence[str]]) -> None:
        images = [image for part in parts for image in part]
        if not images:
            raise InputError(f"{type(self).__name__}: no image was evaluated")
        if len(set(images)) < len(images):
            twice = next(image for i, image in enumerate(images) if image in images[:i])
            raise InputError(f"{twice}: predicted twice")


class CityscapesSemSegEvaluator(_CityscapesEvaluator):
    """IoU and iIoU of classes and of categories ("sup").

    Takes ``outputs[i]["sem_seg"]``, scores (19, H, W) or labels (H, W), for the image ``inputs[i]["file_name"]`` and
    reads ``gt_dir`` of the data set's metadata.

    Raises:
        ConfigError: cityscapesscripts is not installed.
    """

    module_name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"

    def reset(self) -> None:
        super().reset()
        self._confusion = self._module.generateMatrix(self._args)
        self._instances = self._module.generateInstanceStats(self._args)

    def evaluate(self) -> Results | None:
        """``{"sem_seg": {IoU, iIoU, IoU_sup, iIoU_sup}}`` in percent on the main process, None elsewhere."""
        parts = gather_on_main((self._confusion, self._instances, self._images))
        if parts is None:
            return None
        self._check_images([images for _, _, images in parts])
        confusion = sum(part for part, _, _ in parts)
        instances = self._sum_instances([part for _, part, _ in parts])
        labels, categories = self._args.evalLabels, list(self._module.category2labels)
        names = {label: self._labels.id2label[label].name for label in labels}
        of = self._module
        scores = {
            "IoU": {names[i]: of.getIouScoreForLabel(i, confusion, self._args) for i in labels},
            "iIoU": {names[i]: of.getInstanceIouScoreForLabel(i, confusion, instances, self._args) for i in labels},
            "IoU_sup": {c: of.getIouScoreForCategory(c, confusion, self._args) for c in categories},
            "iIoU_sup": {c: of.getInstanceIouScoreForCategory(c, confusion, instances, self._args) for c in categories},
        }
        metrics = {name: 100.0 * float(of.getScoreAverage(values, self._args)) for name, values in scores.items()}
        results = check_percentages({"sem_seg": metrics})
        logger.info("Cityscapes, pixels:\n%s", format_table(list(metrics), [[f"{v:.2f}" for v in metrics.values()]]))
        rows = [[name, 100.0 * iou, 100.0 * scores["iIoU"][name]] for name, iou in scores["IoU"].items() if iou == iou]
        logger.info("by class:\n%s", format_table(["class", "IoU", "iIoU"], rows))
        return results

    def _compare(self, image: Path, output: Mapping[str, Any], folder: Path) -> None:
        if output.get("sem_seg") is None:
            raise InputError(f"prediction for {image}: no 'sem_seg' (MODEL.MASK_FORMER.TEST.SEMANTIC_ON is off?)")
        train_ids = semantic_labels(output["sem_seg"])
        ids_of = np.array([self._labels.trainId2label[i].id for i in range(train_ids.max() + 1)], dtype=np.uint8)
        truth = self._truth_file(image, "labelIds")
        self._truth_file(image, "instanceIds")  # read too, beside the other
        prediction = folder / f"{_stem(image)}_pred.png"
        write_picture(ids_of[train_ids], prediction)
        self._module.evaluatePair(str(prediction), str(truth), self._confusion, self._instances, {}, self._args)

    def _sum_instances(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the counts of all processes, entry by entry."""
        total = self._module.generateInstanceStats(self._args)
        for kind, names in total.items():
            for name, entry in names.items():
                for count in ("tp", "tpWeighted", "fn", "fnWeighted"):
                    entry[count] = sum(part[kind][name][count] for part in parts)
        return total


class CityscapesInstanceEvaluator(_CityscapesEvaluator):
    """AP and AP50 of the eight classes with instances.

    Takes ``outputs[i]["instances"]`` with scores, pred_classes (places in ``thing_classes``) and pred_masks (N, H, W)
    for the image ``inputs[i]["file_name"]``; reads ``gt_dir`` and ``thing_classes`` of the data set's metadata.

    Raises:
        ConfigError: cityscapesscripts is not installed.
    """

    module_name = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"

    def reset(self) -> None:
        super().reset()
        self._matches: dict[str, Any] = {}
        self._module.setInstanceLabels(self._args)

    def evaluate(self) -> Results | None:
        """``{"segm": {AP, AP50}}`` in percent on the main process, None elsewhere."""
        parts = gather_on_main((self._matches, self._images))
        if parts is None:
            return None
        self._check_images([images for _, images in parts])
        matches = {key: value for part, _ in parts for key, value in part.items()}
        with np.errstate(all="ignore"), _errors_of(self._module, str(self._gt_dir)):
            precision = self._module.evaluateMatches(matches, self._args)  # (distances, classes, overlaps)
        unlimited = 100.0 * precision[int(np.argmax(self._args.distanceThs))]
        metrics = {"AP": _mean(unlimited), "AP50": _mean(unlimited[:, np.isclose(self._args.overlaps, 0.5)])}
        logger.info("Cityscapes, instances:\n%s", format_table(list(metrics), [[*metrics.values()]]))
        rows = [[name, float(unlimited[i].mean())] for i, name in enumerate(self._args.instLabels)]
        logger.info("by class:\n%s", format_table(["class", "AP"], rows))
        return check_percentages({"segm": metrics})

    def _compare(self, image: Path, output: Mapping[str, Any], folder: Path) -> None:
        if output.get("instances") is None:
            raise InputError(f"prediction for {image}: no 'instances' (MODEL.MASK_FORMER.TEST.INSTANCE_ON is off?)")
        instances = output["instances"]
        names = metadata_names(self._metadata, "thing_classes", type(self).__name__)
        masks = getattr(instances.pred_masks, "tensor", instances.pred_masks)
        written = {}
        for i, (label, score) in enumerate(zip(instances.pred_classes.tolist(), instances.scores.tolist())):
            if not 0 <= label < len(names):
                raise InputError(f"prediction for {image}: class {label} is none of the {len(names)} of thing_classes")
            path = folder / f"{_stem(image)}_{i}_{names[label].replace(' ', '_')}.png"
            write_picture((masks[i] > 0.5).cpu().numpy().astype(np.uint8) * 255, path)
            written[str(path)] = {"labelID": self._labels.name2label[names[label]].id, "conf": score}
        if self._predictions_dir is not None:
            lines = [f"{Path(path).name} {entry['labelID']} {entry['conf']}\n" for path, entry in written.items()]
            write_text_atomic("".join(lines), folder / f"{_stem(image)}_pred.txt")
        truth_file = str(self._truth_file(image, "instanceIds"))
        every = self._module.instances2dict([truth_file])[str(Path(truth_file).absolute())]
        with self._module.readGTImage(truth_file, self._args) as truth:
            size = truth.size[::-1]
            if len(masks) and tuple(masks.shape[-2:]) != size:
                raise InputError(
                    f"prediction for {image}: size (height, width) is {tuple(masks.shape[-2:])}, not {size}"
                )
            things = self._module.filterGtInstances(every, self._args)
            true, found = self._module.assignGt2Preds(things, truth, written, self._args)
        self._matches[truth_file] = {"groundTruth": true, "prediction": found}


def _stem(image: Path) -> str:
    return image.name.removesuffix(_IMAGE_SUFFIX)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


@contextlib.contextmanager
def _errors_of(module: ModuleType, name: str) -> Iterator[None]:
    """Turn the exit of cityscapesscripts, which prints its error and ends the process, into an exception."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        reason = printed.getvalue().strip().splitlines()[-1:] or ["it gave no reason"]
        raise DatasetError(f"{name}: {module.__name__}: {reason[0]}") from error
