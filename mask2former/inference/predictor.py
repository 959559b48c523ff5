"""Predict images and clips: a model with its weights, and the preparation of images."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from mask2former.checkpoint import LoadReport, load_weights
from mask2former.config import CfgNode, build_from_config, inference_node, is_oneformer
from mask2former.data import MetadataCatalog
from mask2former.data.presets import build_test_augmentations
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.files.channels import channels_to_rgb, read_channels
from mask2former.files.images import ImageInput, to_rgb_array
from mask2former.files.videos import VideoSource
from mask2former.inference.exported import load_exported
from mask2former.inference.frame_tracker import TRACKER_REGISTRY, Tracker
from mask2former.inference.model_source import check_device, find_config, locate_weights, read_config, register_data
from mask2former.inference.test_time_augmentation import with_test_time_augmentation
from mask2former.modeling import MaskFormer, build_model, prepare_for_inference
from mask2former.modeling.execution import set_float32_precision
from mask2former.modeling.video_windows import SettledFrames, WindowOptions, instances_of_frame, join_settled
from mask2former.structures import Metadata
from mask2former.structures.tasks import ALL_TASKS, TASKS, test_sets

ClipInput: TypeAlias = "Iterable[ImageInput] | str | os.PathLike[str]"


class Predictor:
    """Predicts images, lists of images, clips and videos.

    ``model`` is prepared for inference (``prepare_for_inference``) after its weights are loaded, so it cannot be saved
    as a checkpoint.

    Example:
        predictor = Predictor("configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", "model_final.pkl")
        ids, segments_info = predictor("photo.jpg")["panoptic_seg"]
    """

    def __init__(
        self,
        cfg: CfgNode | str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        task: str | Sequence[str] | None = None,
        score_threshold: float | None = None,
        augment: bool | None = None,
        precision: str | None = None,
    ) -> None:
        """Build the model and load its weights.

        Args:
            cfg: a config, which is not changed, or a config file; by default that of the weights. The other
                arguments override it.
            weights: as MODEL.WEIGHTS.
            device: as MODEL.DEVICE.
            task: one or several of "panoptic", "instance", "semantic"; OneFormer is told each, in one pass of its
                backbone.
            score_threshold: 0..1; instances below it are dropped, and panoptic segments must exceed it.
            augment: average over resized and mirrored copies of the image, those of TEST.AUG.
            precision: "float32", "bfloat16" or, on a GPU, "float16".

        Raises:
            ConfigError: a config or argument is wrong.
            CheckpointError: weights cannot be used.
        """
        self.cfg = _resolve_config(
            cfg, weights=weights, device=device, task=task, score_threshold=score_threshold, precision=precision
        )
        self.metadata = _find_metadata(self.cfg)  # before the model, which learns from it which classes are things
        self.model: Any = load_exported(self.cfg) or _build_prepared(self.cfg)
        set_float32_precision(self.cfg.FLOAT32_PRECISION)
        is_augmented = self.cfg.TEST.AUG.ENABLED if augment is None else augment
        self._infer = with_test_time_augmentation(self.cfg, self.model) if is_augmented else self.model
        self.prepare = ImagePreparation(self.cfg)

    def __call__(
        self,
        image: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        *,
        channel_order: str = "RGB",
        batch_size: int = 4,
    ) -> Any:
        """Predict one image, or each image of a list.

        Args:
            image: anything that ``to_rgb_array`` accepts, or a list.
            channel_order: "RGB" or "BGR", of arrays and tensors.
            batch_size: how many images of a list, of equal padded size, pass the model together at most.

        Returns:
            For an image a dict of the results that the config asks for, at the size of the image: "sem_seg" (K, H, W),
                or (H, W) with TEST.SEMANTIC_LABELS; "panoptic_seg" (ids (H, W), segments_info); "instances". For a
                list, a list of them.

        Raises:
            InputError: an image is missing, corrupt or of a wrong form, or ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        if isinstance(image, (list, tuple)):
            samples = (self.prepare(item, channel_order=channel_order) for item in image)
            return self._run_in_batches(samples, batch_size=batch_size)
        return self._predict(image, channel_order=channel_order)

    def predict_clip(self, frames: ClipInput, *, channel_order: str = "RGB") -> dict[str, Any]:
        """Predict T frames of one clip of any length, with one set of results; needs the config of a video model.

        Args:
            frames: images, or the path of a video file. They are read as needed: a clip longer than TEST.VIDEO.WINDOW
                is never in memory as a whole.
            channel_order: "RGB" or "BGR", of arrays and tensors.

        Returns:
            "image_size", and lists "pred_scores", "pred_labels" and "pred_masks". A mask is (T, H, W) bool, or for
                longer clips a MaskTrack, which decodes one frame at a time.

        Raises:
            InputError: there is no frame, a frame is wrong, or frames differ in size.
        """
        (height, width), arrays = _peek_size(self._to_arrays(frames, channel_order))
        inputs = (self.prepare.resize(array) for array in arrays)
        windows = WindowOptions(self.cfg.TEST.VIDEO.WINDOW, self.cfg.TEST.VIDEO.OVERLAP)
        first = list(islice(inputs, windows.length + 1 if windows.length else None))
        if windows.covers(len(first)):
            return self._run({"image": first, "height": height, "width": width})
        settled = self._track(chain(first, inputs), (height, width))
        return join_settled(settled, image_size=(height, width))

    def video(
        self, frames: ClipInput, *, channel_order: str = "RGB", score_threshold: float = 0.0
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Predict a video of any length, and yield each frame with its results, in order.

        A video model infers windows of frames; an image model infers each frame alone, and things are matched with
        those of earlier frames.

        Args:
            frames: the path of a video file, or its frames.
            channel_order: "RGB" or "BGR", of arrays and tensors.
            score_threshold: instances with lower scores are left out.

        Yields:
            (frame (H, W, 3) uint8 RGB, results). Results are those of an image. In addition "instances" have
                ``track_ids`` (N,) and hold only those visible in the frame, ids of "panoptic_seg" stay the same from
                frame to frame, and things in segments_info have a "track_id".

        Raises:
            InputError: as ``predict_clip`` does.
        """
        size, arrays = _peek_size(self._to_arrays(frames, channel_order))
        if getattr(self.model, "takes_clips", False):
            yield from self._video_by_windows(arrays, size=size, score_threshold=score_threshold)
            return
        tracker = TRACKER_REGISTRY.lookup(self.cfg.TEST.VIDEO.TRACKER)
        trackers: dict[str, Tracker] = {
            name: build_from_config(tracker, self.cfg) for name in ("panoptic_seg", "instances")
        }
        for array in arrays:
            results = self._predict(array, channel_order="RGB")
            if "panoptic_seg" in results:
                results["panoptic_seg"] = trackers["panoptic_seg"].track_panoptic(*results["panoptic_seg"])
            if "instances" in results:
                instances = results["instances"]
                kept = instances[instances.scores >= score_threshold]
                results["instances"] = trackers["instances"].track_instances(kept)
            yield array, results

    def _video_by_windows(
        self, arrays: Iterator[np.ndarray], *, size: tuple[int, int], score_threshold: float
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        waiting: deque[np.ndarray] = deque()  # frames whose window is not done

        def inputs() -> Iterator[torch.Tensor]:
            for array in arrays:
                waiting.append(array)
                yield self.prepare.resize(array)

        for settled in self._track(inputs(), size):
            for frame in range(settled.start, settled.stop):
                instances = instances_of_frame(settled, frame, image_size=size, score_threshold=score_threshold)
                yield waiting.popleft(), {"instances": instances}

    def _track(self, frames: Iterable[torch.Tensor], size: tuple[int, int]) -> Iterator[SettledFrames]:
        if not isinstance(self.model, MaskFormer):
            raise ConfigError(
                "MODEL.META_ARCHITECTURE: long clips need MaskFormer or VideoMaskFormer, "
                f"found {self.cfg.MODEL.META_ARCHITECTURE}"
            )
        return self.model.track(frames, height=size[0], width=size[1])

    def _predict(self, image: ImageInput, *, channel_order: str) -> dict[str, Any]:
        return self._run(self.prepare(image, channel_order=channel_order))

    def _run(self, sample: dict[str, Any]) -> dict[str, Any]:
        return self._run_in_batches([sample], batch_size=1)[0]

    def _run_in_batches(self, samples: Iterable[dict[str, Any]], *, batch_size: int) -> list[dict[str, Any]]:
        """Return results in the order of the samples.

        Only samples of equal padded size form a batch, so batching changes no result.
        """
        results: dict[int, dict[str, Any]] = {}
        waiting: dict[Any, dict[int, dict[str, Any]]] = {}  # samples by padded size and by place

        def run(batch: dict[int, dict[str, Any]]) -> None:
            with torch.inference_mode():
                results.update(zip(batch, self._infer(list(batch.values())), strict=True))
            batch.clear()

        for place, sample in enumerate(samples):
            batch = waiting.setdefault(self._padded_size(sample), {})
            batch[place] = sample
            if len(batch) == batch_size:
                run(batch)
        for batch in filter(None, waiting.values()):
            run(batch)
        return [results[place] for place in range(len(results))]

    def _padded_size(self, sample: dict[str, Any]) -> Any:
        image = sample["image"]
        if not isinstance(image, torch.Tensor):
            return None  # a clip
        divisor = max(getattr(self.model, "size_divisibility", 1), 1)
        return tuple(-(-side // divisor) for side in image.shape[-2:])

    def read(self, image: ImageInput, *, channel_order: str = "RGB") -> np.ndarray:
        """Return an image as the model takes it, see ``ImagePreparation.read``."""
        return self.prepare.read(image, channel_order=channel_order)

    def picture_of(self, image: np.ndarray) -> np.ndarray:
        """Return the picture (H, W, 3) uint8 RGB of an image that ``read`` returned, to draw on."""
        return channels_to_rgb(image, self.cfg.INPUT.SHOWN_CHANNELS) if self.cfg.INPUT.CHANNELS else image

    def _to_arrays(self, frames: ClipInput, channel_order: str) -> Iterator[np.ndarray]:
        return _of_one_size(frames, lambda frame, order: self.read(frame, channel_order=order), channel_order)


class ImagePreparation:
    """Makes the input of a model of an image: read, resized as for the test, in the config's channel order."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self._resize = build_test_augmentations(cfg)

    def __call__(self, image: ImageInput, *, channel_order: str = "RGB") -> dict[str, Any]:
        """Return ``image`` (C, h, w) with the original ``height`` and ``width``.

        Raises:
            InputError: the image is missing, corrupt or of a wrong form.
        """
        array = self.read(image, channel_order=channel_order)
        height, width = array.shape[:2]
        return {"image": self.resize(array), "height": height, "width": width}

    def read(self, image: ImageInput, *, channel_order: str = "RGB") -> np.ndarray:
        """Return an image as the model takes it: (H, W, 3) uint8 RGB, or (H, W, C) of ``INPUT.CHANNELS``.

        Raises:
            InputError: it is missing, corrupt or of another form.
        """
        channels = self.cfg.INPUT.CHANNELS
        if channels:
            return read_channels(image, channels)
        return to_rgb_array(image, channel_order=channel_order, bits=self.cfg.INPUT.IMAGE_BITS)

    def resize(self, array: np.ndarray) -> torch.Tensor:
        """Return the image (C, h, w) at test size of an array (H, W, C), RGB if it is one of three channels."""
        is_turned = self.cfg.INPUT.FORMAT == "BGR" and not self.cfg.INPUT.CHANNELS
        ordered = np.ascontiguousarray(array[:, :, ::-1]) if is_turned else array
        # Test-time resizing has one length to choose from: nothing is random.
        transform = self._resize.sample(np.random.default_rng(0), (ordered.shape[0], ordered.shape[1]))
        resized = transform.apply_image(ordered)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _of_one_size(frames: ClipInput, read: Callable[[Any, str], np.ndarray], channel_order: str) -> Iterator[np.ndarray]:
    """Yield frames as ``read`` returns them, all of one size."""
    if isinstance(frames, (str, os.PathLike)):
        frames, channel_order = VideoSource(Path(frames)), "RGB"
    elif isinstance(frames, (bytes, bytearray, memoryview)) or not isinstance(frames, Iterable):
        raise InputError(
            f"clip: expected frames, each an image, or the path of a video file; found {type(frames).__name__}"
        )
    size: tuple[int, ...] | None = None
    for frame in frames:
        array = read(frame, channel_order)
        size = array.shape[:2] if size is None else size
        if array.shape[:2] != size:
            found = [size, array.shape[:2]]
            raise InputError(f"clip: expected frames of one size, found (height, width) {found}")
        yield array


def _peek_size(arrays: Iterator[np.ndarray]) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
    """Return (height, width) of the first frame, and an iterator over all frames."""
    first = next(arrays, None)
    if first is None:
        raise InputError("clip: expected at least one frame, found none")
    return (first.shape[0], first.shape[1]), chain([first], arrays)


def _find_metadata(cfg: CfgNode) -> Metadata:
    """Return the metadata of the config's first data set; empty if it is not registered."""
    register_data(cfg)
    names = [*(name for name, _ in test_sets(cfg)), *cfg.DATASETS.TRAIN]
    return MetadataCatalog.get(names[0]) if names else Metadata("unknown")


def _build_prepared(cfg: CfgNode) -> torch.nn.Module:
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        _refuse_backbone_alone(load_weights(model, cfg.MODEL.WEIGHTS))
    else:
        logging.getLogger(__name__).warning("MODEL.WEIGHTS is empty: the model predicts from random weights")
    return prepare_for_inference(model)


def _refuse_backbone_alone(report: LoadReport) -> None:
    """Raise CheckpointError for weights of a backbone alone, whose randomly initialised head would predict nothing."""
    if all(name.startswith("backbone.") for name in (*report.matched, *report.adapted)):
        raise CheckpointError(
            f"{report.source}: holds weights of a backbone alone, expected those of a trained model; without any, "
            "MODEL.WEIGHTS is to be empty (--random-weights)"
        )


def copy_config(cfg: CfgNode | str | os.PathLike[str]) -> CfgNode:
    """Return a copy, which can be changed, of a config or of that of a file."""
    if isinstance(cfg, (str, os.PathLike)):
        return read_config(cfg)
    copied = cfg.clone()
    copied.defrost()
    return copied


def _resolve_config(
    cfg: CfgNode | str | os.PathLike[str] | None,
    *,
    weights: str | os.PathLike[str] | None,
    device: str | torch.device | None,
    task: str | Sequence[str] | None,
    score_threshold: float | None,
    precision: str | None,
) -> CfgNode:
    if cfg is None and weights is None:
        raise ConfigError("Predictor: expected a config, or weights that have one; found neither")
    resolved = copy_config(find_config(os.fspath(weights or "")) if cfg is None else cfg)
    if weights is not None:
        resolved.MODEL.WEIGHTS = locate_weights(weights)
    if device is not None:
        resolved.MODEL.DEVICE = str(device)
    check_device(resolved)
    if precision is not None:
        resolved.MODEL.PRECISION = precision
    test = inference_node(resolved)
    if task is not None:
        tasks = [task] if isinstance(task, str) else list(task)
        if not tasks or set(tasks) - set(TASKS):
            raise ConfigError(f"task: expected one or several of {', '.join(TASKS)}, found {task!r}")
        test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = (name in tasks for name in TASKS)
        if is_oneformer(resolved):  # it is also told which
            test.TASK = tasks[0] if len(tasks) == 1 else ALL_TASKS
    if score_threshold is not None:
        if not 0 <= score_threshold <= 1:
            raise ConfigError(f"score_threshold: expected 0..1, found {score_threshold}")
        resolved.TEST.SCORE_THRESHOLD = test.OBJECT_MASK_THRESHOLD = float(score_threshold)
    if resolved.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.FORMAT: expected RGB or BGR, found {resolved.INPUT.FORMAT!r}")
    resolved.freeze()
    return resolved
