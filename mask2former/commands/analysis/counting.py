"""Operations and activations of a model, module by module, out of a trace of one forward pass.

The counting is fvcore's, where a multiplication with its addition is one operation. Two operators are added that it
does not know: fused attention and multi-scale deformable attention.

Letters: B batch, T frames, Q queries, S tokens, M heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.meta_arch.segmentation_model import SegmentationModel

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
