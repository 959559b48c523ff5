"""Ignored pixels train nothing: no gradient reaches what is predicted there, and matching does not see it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.errors import DatasetError
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ignored_pixels import certain_where_ignored, cover_ignored, ignored_by_target
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.meta_arch.inputs import pad_targets
from mask2former.modeling.prediction import QueryPrediction
from mask2former.structures import Instances

SIZE, NUM_QUERIES, NUM_CLASSES = 16, 5, 3
IGNORED = (slice(0, 8), slice(8, 16))  # the upper right quarter


def build_matcher() -> HungarianMatcher:
    return HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=400)


def build_criterion() -> SetCriterion:
    return SetCriterion(
        NUM_CLASSES,
        matcher=build_matcher(),
        loss_weights={},
        no_object_weight=0.1,
        num_points=400,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )


def ignored_map(frames: int = 1) -> Tensor:
    ignored = torch.zeros(frames, SIZE, SIZE, dtype=torch.bool)
    ignored[(slice(None), *IGNORED)] = True
    return ignored


def random_target(*, count: int = 2, frames: int = 1) -> dict[str, Tensor]:
    masks = torch.rand(count, frames, SIZE, SIZE) > 0.5
    labels, ignored = torch.randint(NUM_CLASSES, (count,)), ignored_map(frames)
    return {"labels": labels, "masks": masks & ~ignored, "ignored": ignored}


def gradients(targets: list[dict[str, Tensor]], *, frames: int = 1) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses, and the gradients of mask logits (B, Q, T, H, W) and class logits (B, Q, K + 1)."""
    masks = torch.randn(len(targets), NUM_QUERIES, frames, SIZE, SIZE, requires_grad=True)
    classes = torch.randn(len(targets), NUM_QUERIES, NUM_CLASSES + 1, requires_grad=True)
    losses = build_criterion()([QueryPrediction.from_logits(classes, masks)], targets)
    return losses, list(torch.autograd.grad(sum(losses.values()), [masks, classes]))


@pytest.mark.parametrize("frames", [1, 2])
def test_mask_gradients_are_exactly_zero_at_ignored_pixels_alone(frames: int) -> None:
    with_ignored, plain = random_target(frames=frames), random_target(frames=frames)
    del plain["ignored"]
    _, (masks, _) = gradients([with_ignored, plain], frames=frames)
    touched = masks.abs().sum((1, 2))  # (B, H, W)
    assert not touched[0][IGNORED].any()
    assert touched[0][~ignored_map()[0]].count_nonzero() > 180  # of 192: points are drawn at random
    assert touched[1][IGNORED].any()


def test_mask_gradients_are_exactly_zero_in_the_frames_that_ignore_a_pixel() -> None:
    target = random_target(frames=3)
    target["ignored"][1] = target["ignored"][1].flip(-1)
    target["ignored"][2] = False
    target["masks"] &= ~target["ignored"]
    samples = [{"image": [torch.zeros(3, SIZE, SIZE)] * 3, "ignore_mask": list(target["ignored"])}]
    samples[0]["instances"] = [
        Instances((SIZE, SIZE), gt_classes=target["labels"], gt_masks=masks) for masks in target["masks"].unbind(1)
    ]
    targets = pad_targets(samples, size=(SIZE, SIZE), num_classes=NUM_CLASSES, device=torch.device("cpu"))
    _, (masks, _) = gradients(targets, frames=3)
    touched = masks.abs().sum((0, 1))  # (T, H, W)
    assert not touched[target["ignored"]].any()
    for time in range(3):
        assert touched[time][~target["ignored"][time]].count_nonzero() > 180


def test_class_gradient_is_exactly_zero_of_a_query_that_lies_on_ignored_pixels() -> None:
    target = random_target(count=1)
    masks = torch.full((1, NUM_QUERIES, 1, SIZE, SIZE), -9.0)
    masks[0, 1, 0][IGNORED] = 9.0  # query 1 lies on the ignored quarter, 2 on another, 3 is the target's, others empty
    masks[0, 2, 0, 8:, :8] = 9.0
    masks[0, 3, 0] = torch.where(target["masks"][0, 0], 9.0, -9.0)
    classes = torch.zeros(1, NUM_QUERIES, NUM_CLASSES + 1, requires_grad=True)
    prediction = QueryPrediction.from_logits(classes, masks)
    (gradient,) = torch.autograd.grad(build_criterion()([prediction], [target])["loss_ce"], classes)
    assert gradient[0].abs().sum(-1).ne(0).tolist() == [True, False, True, True, True]


def test_image_that_is_ignored_altogether_gives_losses_and_gradients_of_zero() -> None:
    target = {
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 1, SIZE, SIZE, dtype=torch.bool),
        "ignored": torch.ones(1, SIZE, SIZE, dtype=torch.bool),
    }
    losses, (masks, classes) = gradients([target])
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]
    assert not masks.any()
    assert not classes.any()


def test_matching_does_not_see_ignored_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    points_xy, target = torch.rand(1, 400, 2), random_target()
    monkeypatch.setattr(torch, "rand", lambda *_, **__: points_xy)
    classes, masks = torch.randn(1, NUM_QUERIES, NUM_CLASSES + 1), torch.randn(1, NUM_QUERIES, 1, SIZE, SIZE)
    costs = build_matcher().costs([QueryPrediction.from_logits(classes, masks)], 0, target)
    masks[:, :, 0][(..., *IGNORED)] = 50.0
    changed = QueryPrediction.from_logits(classes, masks)
    torch.testing.assert_close(build_matcher().costs([changed], 0, target), costs)
    del target["ignored"]
    assert not torch.allclose(build_matcher().costs([changed], 0, target), costs)


def test_matching_where_no_point_is_known_goes_by_class() -> None:
    target = {**random_target(), "ignored": torch.ones(1, SIZE, SIZE, dtype=torch.bool)}
    classes, masks = torch.randn(1, NUM_QUERIES, NUM_CLASSES + 1), torch.randn(1, NUM_QUERIES, 1, SIZE, SIZE)
    costs = build_matcher().costs([QueryPrediction.from_logits(classes, masks)], 0, target)
    torch.testing.assert_close(costs[0], -2 * classes[0].softmax(-1)[:, target["labels"]])


def test_empty_mask_is_not_one_on_ignored_pixels() -> None:
    masks = torch.full((1, NUM_QUERIES, 1, SIZE, SIZE), -9.0)
    prediction = QueryPrediction.from_logits(torch.zeros(1, NUM_QUERIES, 4), masks)
    assert not cover_ignored([prediction], 0, ignored_map(), num_points=100).any()


def test_no_points_are_drawn_where_all_is_ignored() -> None:
    maps = certain_where_ignored(torch.zeros(6, 1, 4, 4), ignored_map()[None].expand(3, -1, -1, -1))
    assert (maps[:, 0, :2, 2:] > 1000).all()
    assert maps.count_nonzero() == 6 * 4


def test_targets_without_ignored_pixels_need_no_map() -> None:
    target = random_target()
    assert ignored_by_target([target, target]).shape == (4, 1, SIZE, SIZE)
    del target["ignored"]
    assert ignored_by_target([target]) is None


def test_padding_is_not_ignored() -> None:
    instances = Instances((4, 5), gt_classes=torch.tensor([1]), gt_masks=torch.ones(1, 4, 5, dtype=torch.bool))
    sample = {"image": torch.zeros(3, 4, 5), "instances": instances, "ignore_mask": torch.ones(4, 5, dtype=torch.bool)}
    (target,) = pad_targets([sample], size=(8, 8), num_classes=2, device=torch.device("cpu"))
    assert target["ignored"].shape == (1, 8, 8)
    assert target["ignored"].sum() == 20
    sample["ignore_mask"] = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(DatasetError, match="expected an 'ignore_mask' like masks"):
        pad_targets([sample], size=(8, 8), num_classes=2, device=torch.device("cpu"))
