"""The mean of predictions whose queries stand in another order, in frames of other sizes and mirrored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.query_merging import QueryMean, move_masks, soft_overlap

GEOMETRY = MaskGeometry(padded=(64, 96), image=(61, 93), output=(50, 70))


def random_prediction(num_queries: int, *, num_classes: int = 4, sharpness: float = 8.0) -> tuple[Tensor, Tensor]:
    return torch.randn(num_queries, num_classes + 1) * 2, torch.randn(num_queries, 16, 24) * sharpness


@settings(max_examples=25, deadline=None)
@given(
    num_queries=st.integers(1, 12),
    num_copies=st.integers(1, 7),
    sharpness=st.sampled_from([0.1, 5.0, 200.0]),
    seed=st.integers(0, 9),
)
def test_query_mean_of_equal_copies_in_any_order_is_the_first_bit_by_bit(
    num_queries: int, num_copies: int, sharpness: float, seed: int
) -> None:
    torch.manual_seed(seed)
    classes, masks = random_prediction(num_queries, sharpness=sharpness)
    mean = QueryMean(classes, masks, geometry=GEOMETRY)
    for _ in range(num_copies):
        order = torch.randperm(num_queries)
        mean.add(classes[order], masks[order], geometry=GEOMETRY, is_mirrored=False)
    merged_classes, merged_masks = mean.result()
    assert torch.equal(merged_classes, classes)
    assert torch.equal(merged_masks, masks)


def test_query_mean_averages_class_probabilities_and_mask_logits_of_assigned_queries() -> None:
    classes = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    masks = torch.full((2, 16, 24), -9.0)
    masks[0, :, :12], masks[1, :, 12:] = 9.0, 9.0
    other_classes, other_masks = torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0]]), masks.flip(0).clone()
    other_masks[1, :8, :4] = -9.0  # a part of the first query's mask, which is second here
    mean = QueryMean(classes, masks, geometry=GEOMETRY)
    mean.add(other_classes, other_masks, geometry=GEOMETRY, is_mirrored=False)
    merged_classes, merged_masks = mean.result()
    torch.testing.assert_close(
        merged_classes.softmax(-1), (classes.softmax(-1) + other_classes.flip(0).softmax(-1)) / 2
    )
    torch.testing.assert_close(merged_masks, (masks + other_masks.flip(0)) / 2)
    assert torch.equal(merged_masks[1], masks[1])


def test_query_mean_copy_without_the_mask_says_nothing_of_it() -> None:
    classes, masks = torch.randn(2, 5), torch.full((2, 16, 24), -20.0)
    masks[0, :8], masks[1, 8:] = 20.0, 20.0
    other_classes, other_masks = torch.randn(3, 5), torch.full((3, 16, 24), -20.0)
    other_masks[1, :8], other_masks[2, :, :2] = 20.0, 20.0  # one mask is shared, one empty, one of nothing known
    mean = QueryMean(classes, masks, geometry=GEOMETRY)
    mean.add(other_classes, other_masks, geometry=GEOMETRY, is_mirrored=False)
    merged_classes, merged_masks = mean.result()
    assert mean.counts.tolist() == [2, 1]
    assert torch.equal(merged_classes[1], classes[1])
    assert torch.equal(merged_masks, masks)
    torch.testing.assert_close(
        merged_classes[0].softmax(-1), (classes[0].softmax(-1) + other_classes[1].softmax(-1)) / 2
    )


def test_query_mean_prefers_the_likelier_class_among_equal_masks() -> None:
    classes = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    masks = torch.full((2, 16, 24), 3.0)
    mean = QueryMean(classes, masks, geometry=GEOMETRY)
    mean.add(classes.flip(0), masks, geometry=GEOMETRY, is_mirrored=False)
    assert torch.equal(mean.result()[0], classes)


def test_query_mean_of_empty_masks_stays_finite() -> None:
    classes, masks = torch.randn(3, 5), torch.full((3, 16, 24), -500.0)
    mean = QueryMean(classes, masks, geometry=GEOMETRY)
    mean.add(torch.randn(3, 5), masks, geometry=GEOMETRY, is_mirrored=True)
    merged_classes, merged_masks = mean.result()
    assert torch.equal(merged_classes, classes)
    assert torch.equal(merged_masks, masks)


def test_soft_overlap_is_intersection_over_union_of_binary_masks() -> None:
    first, second = (torch.rand(4, 100) > 0.5 for _ in range(2))
    expected = (first[:, None] & second).sum(-1) / (first[:, None] | second).sum(-1)
    torch.testing.assert_close(soft_overlap(first.float(), second.float()), expected)
    soft = torch.rand(5, 100)
    overlap = soft_overlap(soft, soft)
    torch.testing.assert_close(overlap.diagonal(), torch.ones(5))
    assert (overlap <= 1 + 1e-6).all()


@pytest.mark.parametrize("size", [(64, 96), (61, 93), (33, 64)])
def test_move_masks_mirrors_the_image_not_its_padding(size: tuple[int, int]) -> None:
    """A ramp over the image, in cells of one pixel, mirrored and brought back."""
    geometry = MaskGeometry(padded=(64, 96), image=size, output=size)
    ramp = (torch.arange(96) + 0.5).expand(1, 64, 96).clone()
    moved = move_masks(ramp, size=(64, 96), source=geometry, target=geometry, is_mirrored=True)
    torch.testing.assert_close(
        moved[:, : size[0], : size[1]], size[1] - ramp[:, : size[0], : size[1]], atol=1e-3, rtol=0
    )
    assert move_masks(ramp, size=(64, 96), source=geometry, target=geometry, is_mirrored=False) is ramp


def test_move_masks_brings_other_sizes_to_the_same_place() -> None:
    source = MaskGeometry(padded=(128, 160), image=(122, 150), output=(61, 75))
    target = MaskGeometry(padded=(64, 96), image=(61, 75), output=(61, 75))
    columns = ((torch.arange(40) + 0.5) * 4 / 150).expand(1, 32, 40)  # share of the image's width, in cells of stride 4
    moved = move_masks(columns.contiguous(), size=(16, 24), source=source, target=target, is_mirrored=False)
    expected = (torch.arange(24) + 0.5) * 4 / 75
    inside = slice(1, 18)  # without the borders, where bilinear resizing clamps
    torch.testing.assert_close(moved[0, 5, inside], expected[inside], atol=1e-4, rtol=0)
