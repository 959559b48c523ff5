"""What the process has as default type and device is nothing to the kernels: results stay the same to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.modeling.mask_geometry import MaskGeometry, MaskResizer
from mask2former.modeling.postprocess import InferenceOptions, infer_image
from mask2former.ops import (
    WinogradWeight,
    add_layer_norm_,
    add_product_relu_,
    add_resized,
    conv3x3,
    group_norm_relu_,
    mask_winners,
    masked_attention,
    ms_deform_attn_fused,
    sample_uncertain_points,
    trained_conv3x3,
)

GEOMETRY = MaskGeometry(padded=(64, 96), image=(61, 90), output=(45, 77))


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def channels_last(*size: int) -> Tensor:
    return torch.randn(size).to(memory_format=torch.channels_last)


def convolution() -> Callable[[], Any]:
    x, weight = channels_last(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    return lambda: conv3x3(x, weight, relu=True, kept=WinogradWeight())


def trained_convolution() -> Callable[[], Any]:
    x, weight = channels_last(2, 64, 32, 32).requires_grad_(), torch.randn(64, 64, 3, 3, requires_grad=True)
    grad = channels_last(2, 64, 32, 32)

    @torch.enable_grad()
    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(trained_conv3x3(x, weight), (x, weight), grad)

    return gradients


def uncertain_points() -> Callable[[], Any]:
    logits, generator = torch.randn(3, 1, 9, 7), torch.Generator()
    ratios = {"oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    return lambda: sample_uncertain_points(logits, num_points=40, generator=generator.manual_seed(1), **ratios)


def group_norm() -> Callable[[], Any]:
    x, affine = channels_last(2, 32, 9, 7), torch.rand(2, 32)
    return lambda: group_norm_relu_(x.clone(), num_groups=4, weight=affine[0], bias=affine[1], eps=1e-5, relu=True)


def resized_sum() -> Callable[[], Any]:
    x, above = channels_last(1, 32, 8, 10), channels_last(1, 32, 4, 5)
    return lambda: add_resized(x.clone(), above)


def residual_sum() -> Callable[[], Any]:
    x, factor, weight, bias = channels_last(2, 32, 8, 10), channels_last(2, 16, 8, 10), *torch.randn(2, 32, 16)
    return lambda: add_product_relu_(x.clone(), factor, weight, bias[:, 0])


def layer_norm() -> Callable[[], Any]:
    x, y, affine = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.rand(2, 32)
    return lambda: add_layer_norm_(x.clone(), y, weight=affine[0], bias=affine[1], eps=1e-5)


def attention() -> Callable[[], Any]:
    query, key, value = torch.randn(1, 7, 64), torch.randn(1, 90, 64), torch.randn(1, 90, 64)
    mask = torch.rand(1, 1, 7, 90) < 0.9
    return lambda: masked_attention(query, key, value, mask, num_heads=2)


def deformable_attention() -> Callable[[], Any]:
    value, offsets, logits = torch.randn(1, 24, 2, 8), torch.randn(1, 24, 2, 1, 4, 2), torch.randn(1, 24, 2, 1, 4)
    centres = torch.rand(24, 2)
    return lambda: ms_deform_attn_fused(value, [(4, 6)], centres=centres, offsets=offsets, logits=logits)


def winners() -> Callable[[], Any]:
    probs, weights = torch.rand(4, 9, 11), torch.rand(4)
    return lambda: mask_winners(probs, weights, threshold=0.5)


def strip_of_masks() -> Callable[[], Any]:
    maps = torch.randn(3, 16, 24)
    return lambda: MaskResizer(GEOMETRY, (16, 24), device=maps.device).masks(maps, slice(0, 45), least_logit=0.0)


def resized_masks() -> Callable[[], Any]:
    maps = torch.randn(3, 16, 24)
    return lambda: GEOMETRY.resize(maps)


def results_of_an_image() -> Callable[[], Any]:
    class_logits, mask_logits = 3 * torch.randn(9, 7), 4 * torch.randn(9, 16, 24)
    options = InferenceOptions(semantic=True, panoptic=True, instance=True, object_mask_threshold=0.3)

    def infer() -> tuple[Tensor, ...]:
        found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=options, thing_ids={0, 1, 2})
        instances = found["instances"]
        return found["sem_seg"], found["panoptic_seg"][0], instances.scores, instances.pred_masks

    return infer


CASES = [
    convolution,
    trained_convolution,
    uncertain_points,
    group_norm,
    resized_sum,
    residual_sum,
    layer_norm,
    attention,
    deformable_attention,
    winners,
    strip_of_masks,
    resized_masks,
    results_of_an_image,
]


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("defaults", [default_float64, default_meta])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_results_do_not_depend_on_defaults(
    case: Callable[[], Callable[[], Any]], defaults: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    compute = case()
    expected = compute()
    with defaults():
        found = compute()
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for one, other in pairs:
        assert (one.dtype, one.device) == (other.dtype, other.device)
        assert torch.equal(one, other)
