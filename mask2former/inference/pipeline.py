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
    """What is seen in an image: `masks` (N, H, W) bool, `labels` N names of classes, `scores` N numbers in 0..1."""

    masks: np.ndarray
    labels: list[str]
    scores: list[float]


class Pipeline:
    """A predictor for one task, whose results are arrays and names."""

    def __init__(self, predictor: Predictor, task: str) -> None:
        self.predictor = predictor
        self._read = {"panoptic": _read_panoptic, "instance": _read_instances, "semantic": _read_semantic}[task]

    def __call__(self, image: ImageInput | list[ImageInput] | tuple[ImageInput, ...]) -> Any:
        """The segmentation of a path, PIL image, array (H, W, 3) or tensor (3, H, W), RGB; a list of them for a list.

        Masks of the panoptic and semantic tasks do not overlap; instances come best first. The score of a segment or
        instance is the model's, that of a semantic class its mean over the mask.
        Raises InputError where an image is missing, corrupt or of a wrong form.
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
    """A function from images to masks, labels and scores.

    task: "panoptic", "instance" or "semantic". weights: a checkpoint, a run folder, a name of the zoo such as
        coco/panoptic/r50, or a folder of transformers. config: needed where none lies beside the weights, as
        config.yaml or under the same name. device: by default a GPU where there is one. score_threshold: 0..1, what
        scores less is left out; by default 0.5 for instances, and what the config says for panoptic segments.
        precision: "bfloat16" is the faster on GPUs and on CPUs that have it; by default what the config says, float32.
    Raises ConfigError for a wrong task or config, or where none is found, CheckpointError for unusable weights.

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
