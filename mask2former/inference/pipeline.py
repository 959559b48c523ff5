"""From a name of weights and an image to masks, labels and scores, in one line.

Letters: N masks, K classes, H W image size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mask2former.config import CfgNode
from mask2former.data.own_data.samples import labelme_content
from mask2former.errors import ConfigError, InputError
from mask2former.files.images import ImageInput
from mask2former.files.pictures import write_picture
from mask2former.inference.model_source import find_config
from mask2former.inference.outputs import instance_records
from mask2former.inference.predictor import TASKS, Predictor, copy_config
from mask2former.structures import Boxes, Instances, Metadata, masks_to_boxes_xyxy
from mask2former.visualization import Style, class_name, draw_instances, draw_panoptic

_INSTANCE_THRESHOLD = 0.5  # every query yields an instance, and most of them are wrong


class Segmentation(dict[str, Any]):
    """The segments of an image.

    ``["masks"]`` (N, H, W) bool, ``["labels"]`` N names of classes, ``["scores"]`` N numbers in 0..1; beside them
    ``class_ids`` (contiguous), ``metadata`` of the classes, and ``image`` (H, W, 3) uint8 RGB.
    """

    def __init__(
        self, masks: np.ndarray, scores: Sequence[float], *, class_ids: Sequence[int], metadata: Metadata, task: str
    ) -> None:
        labels = [class_name(metadata, index) for index in class_ids]
        super().__init__(masks=masks, labels=labels, scores=list(scores))
        self.class_ids, self.metadata, self.task = list(class_ids), metadata, task
        self.image = np.zeros((*masks.shape[1:], 3), np.uint8)

    def draw(self, style: Style | None = None) -> np.ndarray:
        """Return the segments over the image: (h, w, 3) uint8 RGB, small images enlarged."""
        if self.task == "instance":
            return draw_instances(self.image, self._instances(), self.metadata, style=style)
        ids = (self["masks"] * np.arange(1, len(self["masks"]) + 1).reshape(-1, 1, 1)).sum(0)
        things = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        is_thing = [self.task == "panoptic" and index in things.values() for index in self.class_ids]
        infos = [
            {"id": number, "category_id": index, "isthing": thing, "score": score}
            for number, (index, thing, score) in enumerate(zip(self.class_ids, is_thing, self["scores"]), start=1)
        ]
        return draw_panoptic(self.image, (ids, infos), self.metadata, style=style)

    def save(self, path: str | os.PathLike[str], style: Style | None = None) -> None:
        """Write what ``draw`` returns, in the format of the suffix.

        Raises:
            InputError: the file cannot be written.
        """
        write_picture(self.draw(style), path)

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Return the segments as results of COCO: category, box (x, y, w, h), score, and mask as compressed RLE."""
        return instance_records(self._instances(), self.metadata, image_id)

    def to_labelme(self, image_name: str) -> dict[str, Any]:
        """Return the content of a labelme file for the image of this name, with the segments as masks."""
        height, width = self["masks"].shape[1:]
        return labelme_content(image_name, (height, width), zip(self["labels"], self["masks"], strict=True))

    def to_supervision(self) -> Any:
        """Return ``Detections`` of the package supervision, with ``data["class_name"]``.

        Raises:
            InputError: the package is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise InputError("to_supervision: the package is not installed: pip install supervision") from error
        return Detections(
            xyxy=self._instances().pred_boxes.tensor.numpy().astype(np.float32),
            mask=self["masks"],
            confidence=np.asarray(self["scores"], np.float32),
            class_id=np.asarray(self.class_ids, int),
            data={"class_name": np.asarray(self["labels"], dtype=str)},
        )

    def _instances(self) -> Instances:
        masks, (height, width) = torch.from_numpy(self["masks"]), self["masks"].shape[1:]
        return Instances(
            (height, width),
            pred_masks=masks,
            pred_boxes=Boxes(masks_to_boxes_xyxy(masks)),
            scores=torch.tensor(self["scores"]),
            pred_classes=torch.tensor(self.class_ids, dtype=torch.int64),
        )


class Pipeline:
    """A predictor for one task, whose results are arrays and names."""

    def __init__(self, predictor: Predictor, task: str) -> None:
        self.predictor, self._task = predictor, task
        self._read = {"panoptic": _read_panoptic, "instance": _read_instances, "semantic": _read_semantic}[task]

    def __call__(self, image: ImageInput | list[ImageInput] | tuple[ImageInput, ...]) -> Any:
        """Return the segmentation of an image, or a list of them for a list of images.

        An image is a path, PIL image, array (H, W, 3) or tensor (3, H, W), RGB. Masks of the panoptic and semantic
        tasks do not overlap; instances are sorted by score, best first. The score of a segment or instance is the
        model's, that of a semantic class its mean over the mask.

        Raises:
            InputError: an image is missing, corrupt or of a wrong form.
        """
        if isinstance(image, (list, tuple)):
            return [self(item) for item in image]
        array, metadata = self.predictor.read(image), self.predictor.metadata
        masks, classes, scores = self._read(self.predictor(array))
        found = Segmentation(masks.cpu().numpy(), scores, class_ids=classes, metadata=metadata, task=self._task)
        found.image = self.predictor.picture_of(array)
        return found


def pipeline(
    task: str,
    *,
    weights: str | os.PathLike[str],
    config: CfgNode | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    score_threshold: float | None = None,
    precision: str | None = None,
) -> Pipeline:
    """Return a function from images to masks, labels and scores.

    Args:
        task: "panoptic", "instance" or "semantic".
        weights: a checkpoint, a run folder, a zoo name such as coco/panoptic/r50, or a folder of transformers.
        config: needed if none is in the weights, or beside them as config.yaml or under the same name.
        device: by default a GPU if there is one.
        score_threshold: 0..1; results with lower scores are left out. By default 0.5 for instances, and the config's
            value for panoptic segments.
        precision: "bfloat16" is faster on GPUs and CPUs that support it; by default that of the config, float32.

    Raises:
        ConfigError: a task or config is wrong, or no config is found.
        CheckpointError: weights cannot be used.

    Example:
        result = mask2former.pipeline("panoptic", weights="zoo://coco/panoptic/r50")("photo.jpg")
    """
    if task not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, found {task!r}")
    cfg = copy_config(find_config(os.fspath(weights)) if config is None else config)
    cfg.TEST.SEMANTIC_LABELS = False  # results say how sure they are
    if score_threshold is None and task == "instance":
        score_threshold = _INSTANCE_THRESHOLD
    predictor = Predictor(cfg, weights, device=device, task=task, score_threshold=score_threshold, precision=precision)
    return Pipeline(predictor, task)


def _read_panoptic(results: dict[str, Any]) -> tuple[torch.Tensor, list[int], list[float]]:
    ids, segments = results["panoptic_seg"]
    masks = ids == torch.tensor([segment["id"] for segment in segments], device=ids.device).view(-1, 1, 1)
    return masks, [segment["category_id"] for segment in segments], [segment["score"] for segment in segments]


def _read_instances(results: dict[str, Any]) -> tuple[torch.Tensor, list[int], list[float]]:
    instances = results["instances"]
    return instances.pred_masks.bool(), instances.pred_classes.tolist(), instances.scores.tolist()


def _read_semantic(results: dict[str, Any]) -> tuple[torch.Tensor, list[int], list[float]]:
    scores, classes = results["sem_seg"].max(0)  # (H, W) each
    present = classes.unique()
    masks = classes == present.view(-1, 1, 1)
    means = [float(scores[mask].mean().clamp(0, 1)) for mask in masks]
    return masks, present.tolist(), means
