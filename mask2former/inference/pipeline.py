"""From a name of weights and an image to masks, labels and scores, in one line.

Letters: N masks, K classes, H W image size.
"""

from __future__ import annotations

import os
from typing import Any, TypedDict

import numpy as np
import torch

from mask2former.config import CfgNode
from mask2former.errors import ConfigError
from mask2former.files.images import ImageInput
from mask2former.inference.model_source import find_config
from mask2former.inference.predictor import TASKS, Predictor, copy_config
from mask2former.visualization.overlays import class_name

_INSTANCE_THRESHOLD = 0.5  # every query yields an instance, and most of them are wrong


class Segmentation(TypedDict):
    """The segments of an image.

    ``masks`` (N, H, W) bool, ``labels`` N names of classes, ``scores`` N numbers in 0..1.
    """

    masks: np.ndarray
    labels: list[str]
    scores: list[float]


class Pipeline:
    """A predictor for one task, whose results are arrays and names."""

    def __init__(self, predictor: Predictor, task: str) -> None:
        self.predictor = predictor
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
        masks, classes, scores = self._read(self.predictor(image))
        labels = [class_name(self.predictor.metadata, index) for index in classes]
        return Segmentation(masks=masks.cpu().numpy(), labels=labels, scores=scores)


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
