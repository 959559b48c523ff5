"""An exported file as a function from an image to a result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask2former.errors import ConfigError, InputError
from mask2former.runtime.exported_info import RAW, ExportedInfo, read_info
from mask2former.runtime.resizing import resize_image, shortest_edge_size
from mask2former.runtime.results import Instances, Options, Result, Segment, Sizes, labels_of_maps, results_of_queries
from mask2former.runtime.sessions import open_session


class Model:
    """A loaded file: ``model(image)`` returns a ``Result``; ``run`` passes arrays to the file as they are."""

    def __init__(self, info: ExportedInfo, **options: Any) -> None:
        """``options``: see ``load``."""
        self.info = info
        self._session = open_session(info, **options)
        self._takes_task = bool(info.image.get("takes_task"))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the file's outputs by name for its inputs by name, as docs/guides/export.md lists them."""
        return self._session.run(inputs)

    def __call__(
        self, image: np.ndarray, *, tasks: Sequence[str] | None = None, score_threshold: float | None = None
    ) -> Result:
        """Return what the model finds in an image.

        Args:
            image: (H, W, C) uint8, RGB if it has three channels; results have its size.
            tasks: of panoptic, instance and semantic, those that are wanted; by default all that the file does.
            score_threshold: 0..1; instances below it are dropped, and panoptic segments must exceed it. Only for files
                of raw outputs; by default the thresholds of the file.

        Raises:
            InputError: the image has another form, or the file another size.
            ConfigError: the file does not do a task, or its thresholds are fixed.
        """
        self._check(image)
        wanted = self._tasks(tasks)
        size = (image.shape[0], image.shape[1])
        edges = self.info.image["shortest_edge"], self.info.image["longest_edge"]
        resized = resize_image(image, self._fixed_size() or shortest_edge_size(size, *edges))
        inputs = {"images": resized[None].astype(self.info.image["dtype"], copy=False)}
        if self.info.image["takes_output_size"]:
            inputs["output_size"] = np.array(size, np.int64)
        if self.info.outputs != RAW and score_threshold is not None:
            raise ConfigError(f"{self.info.path}: the thresholds of finished results are fixed in the file")
        divisor = self.info.image["size_divisibility"]
        height, width = resized.shape[:2]
        padded = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
        sizes, found = Sizes(padded, (height, width), size), Result()
        for told in [[task] for task in wanted] if self._takes_task else [wanted]:
            if self._takes_task:
                inputs["task"] = np.array([_TASKS.index(told[0])], np.int64)
            outputs = {name: values[0] for name, values in self.run(inputs).items()}
            if self.info.outputs != RAW:
                part = self._finished(outputs, told)
            else:
                part = self._results(outputs, sizes, told, score_threshold)
            found = found.merged(part)
        return found

    def _results(
        self, outputs: Mapping[str, np.ndarray], sizes: Sizes, tasks: Sequence[str], score_threshold: float | None
    ) -> Result:
        if "class_maps" in outputs:
            maps, stride = outputs["class_maps"], self.info.image["map_stride"]
            enlarged = (maps.shape[1] * stride, maps.shape[2] * stride)
            return Result(semantic_labels=labels_of_maps(maps, enlarged, sizes))
        thresholds = dict(self.info.thresholds)
        if score_threshold is not None:
            thresholds |= {"score": score_threshold, "object_mask": score_threshold}
        if self._takes_task:  # as if the results of all tasks were made together
            thresholds["resize_before_inference"] |= self.info.tasks != ["semantic"]
        options = Options(tasks, thresholds, self.info.classes, self.info.is_thing, things_only=self._takes_task)
        return results_of_queries(outputs["class_logits"], outputs["mask_logits"], sizes=sizes, options=options)

    def _finished(self, outputs: Mapping[str, np.ndarray], tasks: Sequence[str]) -> Result:
        found: dict[str, Any] = {}
        names, things = self.info.classes, self.info.is_thing
        if "panoptic" in tasks:
            found["panoptic_ids"] = outputs["panoptic_ids"]
            pairs = zip(outputs["segment_classes"].tolist(), outputs["segment_scores"].tolist(), strict=True)
            found["segments"] = [
                Segment(number, label, names[label], things[label], score)
                for number, (label, score) in enumerate(pairs, start=1)
                if label >= 0
            ]
        if "instance" in tasks:
            kept = outputs["instance_classes"] >= 0
            scores, class_ids, masks, boxes = (
                outputs[f"instance_{name}"][kept] for name in ("scores", "classes", "masks", "boxes")
            )
            labels = [names[label] for label in class_ids]
            found["instances"] = Instances(scores, class_ids.astype(np.int64), labels, masks.astype(bool), boxes)
        if "semantic" in tasks:
            found["semantic_labels"] = outputs["semantic_labels"]
        return Result(**found)

    def _check(self, image: np.ndarray) -> None:
        channels = self.info.image["channels"]
        is_image = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == channels and image.size
        if not is_image or image.dtype != np.uint8:
            found = f"{image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"image: expected an array (H, W, {channels}) of uint8, found {found}")
        if self.info.image["takes_clips"]:
            raise ConfigError(f"{self.info.path}: takes the frames of a video window, which Model.run passes to it")

    def _tasks(self, tasks: Sequence[str] | None) -> Sequence[str]:
        if tasks is None:
            return self.info.tasks
        known = self.info.tasks if self.info.outputs != RAW or self.info.tasks == ["semantic"] else _TASKS
        unknown = [task for task in tasks if task not in known]
        if unknown or not tasks:
            raise ConfigError(f"tasks: {self.info.path} does {', '.join(known)}; found {', '.join(unknown) or 'none'}")
        return tasks

    def _fixed_size(self) -> tuple[int, int] | None:
        size = self.info.image["size"]
        return None if size is None else (size[0], size[1])


_TASKS = ("panoptic", "instance", "semantic")


def load(path: str | os.PathLike[str], *, num_threads: int | None = None, **options: Any) -> Model:
    """Return an exported file of onnx or openvino as a function from an image to a result.

    Args:
        path: the file.
        num_threads: of the CPU; by default the library's choice.
        options: ``providers`` of ONNX Runtime, by default its CPU's; ``device`` of OpenVINO, by default CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of another program, or needs torch.
        ConfigError: the library that runs it is not installed, or has no such provider.
    """
    return Model(read_info(path), num_threads=num_threads, **options)
