"""What a model costs: operations, activations and parameters by module, seconds by stage, peak memory.

Operations and activations come out of a trace of one forward pass. The counting is fvcore's, where a multiplication
with its addition is one operation. Two operators are added that it does not know: fused attention and multi-scale
deformable attention. Images and clips of noise stand in where the data set is not.

Letters: B batch, T frames, Q queries, S tokens, M heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mask2former.config import CfgNode
from mask2former.data.presets import build_test_augmentations
from mask2former.errors import ConfigError
from mask2former.modeling import takes_clips
from mask2former.modeling.meta_arch.segmentation_model import SegmentationModel
from mask2former.structures import Boxes, Instances, masks_to_boxes_xyxy

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of losses in fvcore.nn that nobody uses here
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    from fvcore.nn.jit_handles import generic_activation_jit, get_shape

_ATTENTION = "aten::scaled_dot_product_attention"
_DEFORMABLE_ATTENTION = "mask2former::ms_deform_attn"
# Multiply-adds for one channel of one sampled point: four corners of the bilinear weight, then the attention weight.
_OPERATIONS_A_SAMPLE = 5


@dataclass(frozen=True)
class Counts:
    """Numbers by module (the whole is ""), numbers by operator, and calls of operators that were not counted."""

    by_module: Mapping[str, float]
    by_operator: Mapping[str, float]
    uncounted: Mapping[str, int]


def count_flops(model: nn.Module, images: Tensor, *, num_frames: int | None = None) -> Counts:
    """Return operations of backbone and head for normalised, padded ``images`` (B, 3, H, W), or clips (BT, 3, H, W).

    Post-processing is not part of it: what it costs depends on what is detected.

    Raises:
        ConfigError: the model is none of this project's meta-architectures.
    """
    handles = {_ATTENTION: _attention_flops, _DEFORMABLE_ATTENTION: _deformable_attention_flops}
    return _count(FlopCountAnalysis, handles, model, images, num_frames=num_frames)


def count_activations(model: nn.Module, images: Tensor, *, num_frames: int | None = None) -> Counts:
    """Return values that convolutions, products and attentions put out.

    Arguments and errors are those of ``count_flops``.
    """
    handles = {name: generic_activation_jit() for name in (_ATTENTION, _DEFORMABLE_ATTENTION)}
    return _count(ActivationCountAnalysis, handles, model, images, num_frames=num_frames)


class _Network(nn.Module):
    """What of a model computes, under the model's own names: images in, what the last layer predicts out."""

    def __init__(self, model: SegmentationModel, *, num_frames: int | None) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.sem_seg_head = model.sem_seg_head
        self.num_frames = num_frames
        self._features = model.features

    def forward(self, images: Tensor) -> Any:
        features = self._features(images, num_frames=self.num_frames)
        prediction = self.sem_seg_head.predict(features)[-1]
        if isinstance(prediction, Tensor):
            return prediction
        return prediction.class_logits, prediction.mask_logits()


def _count(
    analysis_class: Callable[..., Any],
    handles: Mapping[str, Any],
    model: nn.Module,
    images: Tensor,
    *,
    num_frames: int | None,
) -> Counts:
    if not isinstance(model, SegmentationModel):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: only models of backbone and head can be counted, not {type(model).__name__}"
        )
    was_training = model.training
    analysis = analysis_class(_Network(model.eval(), num_frames=num_frames), images)
    analysis.set_op_handle(**handles)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        with torch.no_grad():
            by_module = dict(analysis.by_module())
    finally:
        model.train(was_training)
    return Counts(by_module, dict(analysis.by_operator()), dict(analysis.unsupported_ops()))


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> float:
    """Return scores of queries (…, Q, D) with keys (…, S, D), then their product with values (…, S, Dv)."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return float(math.prod(query[:-1])) * key[-2] * (key[-1] + value[-1])


def _deformable_attention_flops(inputs: list[Any], outputs: list[Any]) -> float:
    """value (B, S, M, D), shapes, locations (B, Q, M, L, P, 2)."""
    channels, locations = get_shape(inputs[0])[-1], get_shape(inputs[2])
    return float(math.prod(locations[:-1])) * channels * _OPERATIONS_A_SAMPLE


_USUAL_PHOTO = (480, 640)  # (height, width) of most images of COCO


def usual_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) that a photo of 480 x 640 is resized to for inference."""
    transform = build_test_augmentations(cfg).sample(np.random.default_rng(0), _USUAL_PHOTO)
    return transform.output_size(_USUAL_PHOTO)


def frames_of(cfg: CfgNode) -> int | None:
    """Return frames of a clip where the config is one of a video model, None for images."""
    return int(cfg.INPUT.SAMPLING_FRAME_NUM) if takes_clips(cfg.MODEL.META_ARCHITECTURE) else None


def random_sample(
    cfg: CfgNode,
    size: tuple[int, int],
    *,
    num_frames: int | None = None,
    num_objects: int = 12,
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """Return what a mapper yields: an image of noise (3, H, W), or a clip of them, with rectangles as objects."""
    rng = np.random.default_rng(0) if rng is None else rng
    frames = [_noise(rng, size, len(cfg.MODEL.PIXEL_MEAN)) for _ in range(num_frames or 1)]
    targets = _rectangles(rng, size, num_objects=num_objects, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    sample: dict[str, Any] = {"file_name": "random image", "height": size[0], "width": size[1]}
    if num_frames is None:
        return {**sample, "image": frames[0], "instances": targets}
    return {**sample, "image": frames, "instances": [targets] * num_frames}


def _noise(rng: np.random.Generator, size: tuple[int, int], num_channels: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, (num_channels, *size), dtype=np.uint8))


def _rectangles(rng: np.random.Generator, size: tuple[int, int], *, num_objects: int, num_classes: int) -> Instances:
    masks = torch.zeros((num_objects, *size), dtype=torch.bool)
    for mask in masks:
        (top, bottom), (left, right) = (sorted(rng.choice(length + 1, 2, replace=False)) for length in size)
        mask[top:bottom, left:right] = True
    classes = torch.from_numpy(rng.integers(0, num_classes, num_objects))
    return Instances(size, gt_classes=classes, gt_masks=masks, gt_boxes=Boxes(masks_to_boxes_xyxy(masks)))


class StageTimer:
    """Seconds by stage, run by run; a CUDA device is waited for wherever the clock is read.

    A stage that happens several times in a run counts with the sum.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._runs: list[dict[str, float]] = []
        self._current: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as that of a stage, or of a part of it."""
        start = self._now()
        yield
        self._current[name] = self._current.get(name, 0.0) + self._now() - start

    @contextlib.contextmanager
    def wrap(self, stages: Mapping[str, tuple[Any, str]]) -> Iterator[None]:
        """Time each call of methods, given as (object, name) by stage, until the block ends; skip unknown ones."""
        wrapped = []
        for stage, (owner, name) in stages.items():
            method = getattr(owner, name, None)
            if method is not None:
                setattr(owner, name, self._timed(stage, method))
                wrapped.append((owner, name))
        try:
            yield
        finally:
            for owner, name in wrapped:
                delattr(owner, name)  # the instance's attribute, which hid the method of the class

    def end_run(self) -> None:
        """What was measured since the last call is one run."""
        self._runs.append(self._current)
        self._current = {}

    def forget(self) -> None:
        """Drop all runs: the first ones pay for caches and allocations."""
        self._runs.clear()

    def median(self, name: str) -> float:
        """Return the median seconds of a stage over the runs that had it; 0 where none did."""
        seconds = [run[name] for run in self._runs if name in run]
        return statistics.median(seconds) if seconds else 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _timed(self, stage: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return method(*args, **kwargs)

        return call


def peak_memory(device: torch.device) -> tuple[str, int] | None:
    """Return what was measured and its bytes.

    The most that CUDA's allocator gave out, or the largest size of this process.

    None where the system does not say (Windows).
    """
    if device.type == "cuda":
        return "peak memory of the device's tensors", torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return "peak memory of the process", peak if sys.platform == "darwin" else peak * 1024
