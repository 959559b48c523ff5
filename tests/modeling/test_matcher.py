from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mask2former.errors import NonFiniteError
from mask2former.modeling import prediction as prediction_module
from mask2former.modeling.losses import class_costs, dice_costs, sigmoid_ce_costs
from mask2former.modeling.matcher import UNMATCHED, HungarianMatcher
from mask2former.modeling.prediction import QueryPrediction
from mask2former.ops import point_sample


def matcher(num_points: int = 64) -> HungarianMatcher:
    return HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=num_points)


def random_layers(batch: int, *, queries: int = 6, frames: int = 1, layers: int = 3) -> list[QueryPrediction]:
    features = torch.randn(batch, frames, 8, 9, 11)
    return [
        QueryPrediction(torch.randn(batch, queries, 5), torch.randn(batch, queries, 8), features) for _ in range(layers)
    ]


def random_target(count: int, *, frames: int = 1) -> dict[str, Tensor]:
    return {"labels": torch.randint(4, (count,)), "masks": torch.rand(count, frames, 36, 44) > 0.6}


def image_of(layers: list[QueryPrediction], index: int) -> list[QueryPrediction]:
    features = layers[0].mask_features[index : index + 1]
    return [
        QueryPrediction(layer.class_logits[index : index + 1], layer.mask_embed[index : index + 1], features)
        for layer in layers
    ]


def fix_points(monkeypatch: pytest.MonkeyPatch, num_points: int = 64) -> Tensor:
    points_xy = torch.rand(1, num_points, 2)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: points_xy)
    return points_xy


@pytest.mark.parametrize("block_values", [1, 5 * 64, 1 << 22])
@pytest.mark.parametrize("frames", [1, 2])
def test_matcher_costs_equal_those_of_full_masks(
    monkeypatch: pytest.MonkeyPatch, frames: int, block_values: int
) -> None:
    monkeypatch.setattr(prediction_module, "_BLOCK_VALUES", block_values)
    layers, target = random_layers(2, frames=frames), random_target(4, frames=frames)
    points_xy = fix_points(monkeypatch)
    costs = matcher().costs(layers, 1, target)
    for layer, layer_costs in zip(layers, costs):
        full = layer.mask_logits()[1]  # (Q, T, H, W)
        logits = point_sample(full, points_xy.expand(len(full), -1, -1)).flatten(1)
        labels = point_sample(target["masks"].float(), points_xy.expand(4, -1, -1)).flatten(1)
        expected = (
            2 * class_costs(layer.class_logits[1], target["labels"])
            + 5 * sigmoid_ce_costs(logits, labels)
            + 5 * dice_costs(logits, labels)
        )
        torch.testing.assert_close(layer_costs, expected, rtol=1e-4, atol=1e-4)


def test_matcher_assigns_at_least_total_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, target = random_layers(1, queries=5), random_target(3)
    fix_points(monkeypatch)
    costs = matcher().costs(layers, 0, target)
    table = matcher()(layers, [target])
    for layer_costs, row in zip(costs, table):
        best = min(
            sum(layer_costs[query, index].item() for index, query in enumerate(choice))
            for choice in itertools.permutations(range(5), 3)
        )
        assert layer_costs[row, torch.arange(3)].sum().item() == pytest.approx(best, rel=1e-6)


def test_matcher_batch_matches_as_its_single_images_do(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, targets = random_layers(3), [random_target(count) for count in (2, 0, 5)]
    fix_points(monkeypatch)
    single = [matcher()(image_of(layers, index), [target]) for index, target in enumerate(targets)]
    assert torch.equal(matcher()(layers, targets), torch.cat(single, dim=1))


def test_matcher_follows_a_permutation_of_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, target = random_layers(1), random_target(5)
    fix_points(monkeypatch)
    order = torch.randperm(5)
    permuted = {"labels": target["labels"][order], "masks": target["masks"][order]}
    assert torch.equal(matcher()(layers, [permuted]), matcher()(layers, [target])[:, order])


def test_matcher_gives_no_query_twice_and_leaves_surplus_targets_unmatched() -> None:
    table = matcher()(random_layers(1, queries=4), [random_target(7)])
    assert table.shape == (3, 7)
    for row in table:
        assert sorted(row[row != UNMATCHED].tolist()) == [0, 1, 2, 3]


def test_matcher_of_no_targets_is_empty() -> None:
    assert matcher()(random_layers(2), [random_target(0), random_target(0)]).shape == (3, 0)


@pytest.mark.parametrize(("field", "name"), [("class_logits", "class logits"), ("mask_embed", "mask embeddings")])
def test_matcher_names_the_non_finite_tensor(field: str, name: str) -> None:
    layers = random_layers(2)
    broken = getattr(layers[1], field).clone()
    broken[1, 0, 0] = float("nan")
    layers[1] = layers[1]._replace(**{field: broken})
    with pytest.raises(NonFiniteError, match=rf"{name} of prediction layer 1 .*image 1"):
        matcher()(layers, [random_target(2), random_target(2)])


def test_matcher_needs_a_cost() -> None:
    with pytest.raises(ValueError, match="all zero"):
        HungarianMatcher(class_weight=0, mask_weight=0, dice_weight=0, num_points=4)


def test_more_targets_than_queries_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    matching, layers = matcher(), random_layers(2, queries=3)
    for _ in range(2):
        table = matching(layers, [random_target(2), random_target(5)])
        assert (table == UNMATCHED).sum(1).tolist() == [2, 2, 2]
    (record,) = caplog.records
    assert "5 objects and the model 3 queries" in record.message
    assert "the 2 costliest" in record.message
    assert "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES" in record.message
