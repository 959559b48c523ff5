"""Which mask each pixel goes to: the one pass of the CPU beside the operators that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.ops import MaskWinners, mask_winners


def by_operators(probs: Tensor, weights: Tensor, *, threshold: float) -> MaskWinners:
    with torch.enable_grad():  # where gradients may be wanted, operators do it
        return mask_winners(probs, weights, threshold=threshold)


def assert_equal(found: MaskWinners, expected: MaskWinners) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 9), (5, 33, 70), (100, 3, 8195)])
@pytest.mark.parametrize("threshold", [0.5, 0.0, 1.1])
@torch.no_grad()
def test_winners_equal_those_of_operators(size: tuple[int, int, int], threshold: float) -> None:
    probs = (torch.rand(size) * 8).round() / 8  # with many equal ones
    weights = (torch.rand(size[0]) * 2).round() / 2
    found = mask_winners(probs, weights, threshold=threshold)
    assert_equal(found, by_operators(probs, weights, threshold=threshold))
    assert int(found.won.sum()) == size[1] * size[2]


@torch.no_grad()
def test_winners_treat_nan_as_the_largest() -> None:
    probs = torch.rand(4, 5, 40)
    probs[1, :, 3] = torch.nan
    probs[3, :, 3] = torch.nan
    probs[0, :, 7] = torch.nan
    found = mask_winners(probs, torch.rand(4), threshold=0.5)
    assert (found.numbers[:, 3] == 2).all()
    assert (found.numbers[:, 7] == 0).all()


@torch.no_grad()
def test_winners_of_a_strip_are_those_of_its_rows() -> None:
    probs, weights = torch.rand(3, 10, 21), torch.rand(3)
    whole = mask_winners(probs, weights, threshold=0.4)
    part = mask_winners(probs[:, 2:6], weights, threshold=0.4)
    assert torch.equal(part.numbers, whole.numbers[2:6])
    assert torch.equal(part.areas, (probs[:, 2:6] >= 0.4).sum((1, 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_winners_take_weights_of_any_type(dtype: torch.dtype) -> None:
    probs, weights = torch.rand(4, 9, 11), torch.rand(4).to(dtype)
    found = mask_winners(probs, weights, threshold=0.5)
    assert_equal(found, by_operators(probs, weights, threshold=0.5))
    assert_equal(found, mask_winners(probs, weights.float(), threshold=0.5))


@torch.no_grad()
def test_winners_of_no_pixel_are_none() -> None:
    found = mask_winners(torch.rand(2, 0, 4), torch.rand(2), threshold=0.5)
    assert_equal(found, by_operators(torch.rand(2, 0, 4), torch.rand(2), threshold=0.5))


@pytest.mark.parametrize(("masks", "weights"), [((0, 3, 4), (0,)), ((3, 4), (3,)), ((2, 3, 4), (3,)), ((2, 3, 4), ())])
@torch.no_grad()
def test_winners_refuse_shapes_that_do_not_fit(masks: tuple[int, ...], weights: tuple[int, ...]) -> None:
    for winners in (mask_winners, by_operators):
        with pytest.raises(ValueError, match=r"must have shape .* got"):
            winners(torch.rand(masks), torch.rand(weights), threshold=0.5)
