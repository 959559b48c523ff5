from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.losses import class_costs, dice_costs, dice_losses, sigmoid_ce_costs, sigmoid_ce_losses
from tests.parity import load_fixture


def test_costs_match_the_published() -> None:
    fixture = load_fixture("ops")
    logits, targets = fixture.tensor("cost/pred_logits_at_points"), fixture.tensor("cost/gt_at_points").float()
    torch.testing.assert_close(dice_costs(logits, targets), fixture.tensor("cost/dice"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sigmoid_ce_costs(logits, targets), fixture.tensor("cost/sigmoid_ce"), rtol=1e-5, atol=1e-6
    )


def test_losses_match_the_published() -> None:
    fixture = load_fixture("ops")
    num_masks = float(fixture.array("loss/num_masks"))
    logits = fixture.tensor("cost/pred_logits_at_points")[: len(fixture.array("cost/gt_at_points"))]
    targets = fixture.tensor("cost/gt_at_points").float()
    dice, cross_entropy = dice_losses(logits, targets), sigmoid_ce_losses(logits, targets)
    assert dice.sum().item() / num_masks == pytest.approx(float(fixture.array("loss/dice")), rel=1e-5)
    assert cross_entropy.sum().item() / num_masks == pytest.approx(float(fixture.array("loss/sigmoid_ce")), rel=1e-5)


def test_costs_are_losses_of_all_pairs() -> None:
    logits, targets = 3 * torch.randn(2, 6, 50), torch.rand(4, 50)
    pairs = logits[:, :, None].expand(-1, -1, 4, -1), targets.expand(2, 6, -1, -1)
    torch.testing.assert_close(dice_costs(logits, targets), dice_losses(*pairs))
    torch.testing.assert_close(sigmoid_ce_costs(logits, targets), sigmoid_ce_losses(*pairs))


def test_dice_losses_are_zero_for_a_perfect_mask_and_near_one_for_a_wrong_one() -> None:
    targets = torch.tensor([[1.0] * 40 + [0.0] * 40])
    logits = 100 * (targets - 0.5)
    assert dice_losses(logits, targets).item() == pytest.approx(0, abs=1e-6)
    assert dice_losses(-logits, targets).item() > 0.98


def test_class_costs_are_negated_probabilities_of_the_target_classes() -> None:
    logits, labels = torch.randn(3, 5, 8), torch.tensor([2, 2, 6])
    expected = -F.softmax(logits, -1)[:, :, labels]
    assert torch.equal(class_costs(logits, labels), expected)


def test_costs_of_no_targets_are_empty() -> None:
    logits, targets = torch.randn(3, 5, 10), torch.zeros(0, 10)
    assert dice_costs(logits, targets).shape == (3, 5, 0)
    assert sigmoid_ce_costs(logits, targets).shape == (3, 5, 0)
    assert class_costs(torch.randn(3, 5, 8), torch.zeros(0, dtype=torch.long)).shape == (3, 5, 0)
