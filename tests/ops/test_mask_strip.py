"""Masks of a strip of the output: the one pass of the CPU beside the operators that it stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.mask_geometry import MaskGeometry, MaskResizer
from mask2former.ops import bands_of
from mask2former.ops.masks import _is_strip_fused, _mask_strip_of

GEOMETRIES = [
    MaskGeometry((64, 96), (61, 90), (61, 90)),
    MaskGeometry((64, 96), (61, 90), (40, 131)),
    MaskGeometry((64, 96), (33, 96), (7, 5)),
    MaskGeometry((64, 96), (64, 96), (1, 1)),
    MaskGeometry((64, 96), (50, 70), (170, 33)),
    MaskGeometry((64, 96), (50, 70), (64, 96)),  # an output of the padded size is not padded
]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def resized(maps: Tensor, geometry: MaskGeometry) -> Tensor:
    """Both interpolations and the crop between them, in float64."""
    large = F.interpolate(maps[None].double(), size=geometry.padded, mode="bilinear", align_corners=False)
    image = large[..., : geometry.image[0], : geometry.image[1]]
    return F.interpolate(image, size=geometry.output, mode="bilinear", align_corners=False)[0]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("least_logit", [0.0, -0.7, math.inf])
def test_masks_of_strips_equal_interpolation(geometry: MaskGeometry, least_logit: float) -> None:
    maps = 3 * torch.randn(7, 16, 24)
    assert _is_strip_fused(maps)
    resizer = MaskResizer(geometry, (16, 24), device=maps.device)
    height = geometry.output[0]
    strips = [slice(start, min(start + 9, height)) for start in range(0, height, 9)]
    seen = [resizer.masks(maps, strip, least_logit=least_logit) for strip in strips]
    logits = resized(maps, geometry)
    assert logits.shape[1:] == geometry.output
    probs, masks = torch.cat([strip.probs for strip in seen], 1), torch.cat([strip.masks for strip in seen], 1)
    torch.testing.assert_close(probs, logits.sigmoid().float(), rtol=1e-5, atol=1e-6)
    is_sure = (logits - least_logit).abs() > 1e-5
    assert torch.equal(masks[is_sure], (logits > least_logit)[is_sure])
    assert torch.equal(sum(strip.areas for strip in seen), masks.sum((1, 2)).float())
    torch.testing.assert_close(sum(strip.inside_sums for strip in seen), (probs * masks).sum((1, 2)))


def test_one_pass_equals_the_operators() -> None:
    maps, geometry = 4 * torch.randn(5, 16, 24), GEOMETRIES[1]
    resizer = MaskResizer(geometry, (16, 24), device=maps.device)
    strip = slice(3, 30)
    expected = _mask_strip_of(resizer(maps, strip), least_logit=0.0)
    found = resizer.masks(maps, strip, least_logit=0.0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_masks_let_nan_through() -> None:
    maps = torch.randn(2, 16, 24)
    maps[1] = torch.nan
    seen = MaskResizer(GEOMETRIES[0], (16, 24), device=maps.device).masks(maps, slice(0, 61), least_logit=0.0)
    assert seen.probs[0].isfinite().all()
    assert seen.probs[1].isnan().all()
    assert not seen.masks[1].any()


def test_bands_hold_the_matrix() -> None:
    matrix = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75], [0.0, 0.0, 0.0, 1.0]])
    bands = bands_of(matrix)
    dense = torch.zeros(3, 4).scatter_add(1, bands.first[:, None].long() + torch.arange(bands.num_taps), bands.weights)
    assert bands.num_taps == 2
    assert torch.equal(dense, matrix)
