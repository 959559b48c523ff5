from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling import LOSS_REGISTRY
from mask2former.modeling import criterion as criterion_module
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.interfaces import Matched
from mask2former.modeling.losses import dice_losses, sigmoid_ce_losses
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.meta_arch.assembly import build_criterion as assemble_criterion
from mask2former.modeling.prediction import QueryPrediction
from mask2former.ops import point_sample

NUM_CLASSES = 4
NUM_POINTS = 48
LOSSES = ("loss_ce", "loss_mask", "loss_dice")


def build_criterion() -> SetCriterion:
    return SetCriterion(
        NUM_CLASSES,
        matcher=HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=NUM_POINTS),
        loss_weights={"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        no_object_weight=0.1,
        num_points=NUM_POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )


def random_layers(batch: int, *, queries: int = 6, frames: int = 1, layers: int = 3) -> list[QueryPrediction]:
    features = torch.randn(batch, frames, 8, 9, 11, requires_grad=True)
    return [
        QueryPrediction(
            torch.randn(batch, queries, NUM_CLASSES + 1, requires_grad=True),
            torch.randn(batch, queries, 8, requires_grad=True),
            features,
        )
        for _ in range(layers)
    ]


def random_target(count: int, *, frames: int = 1) -> dict[str, Tensor]:
    return {"labels": torch.randint(NUM_CLASSES, (count,)), "masks": torch.rand(count, frames, 36, 44) > 0.6}


def leaves(layers: list[QueryPrediction]) -> list[Tensor]:
    return [layers[0].mask_features, *[t for layer in layers for t in (layer.class_logits, layer.mask_embed)]]


def naive_losses(
    layer: QueryPrediction, targets: list[dict[str, Tensor]], rows: list[Tensor], points_xy: Tensor
) -> dict[str, Tensor]:
    """The definition, from full masks, one matched pair after another; every mask is read at the same points."""
    classes = torch.full(layer.class_logits.shape[:2], NUM_CLASSES)
    mask_loss, dice_loss, count = torch.zeros(()), torch.zeros(()), 0
    full = layer.mask_logits()
    for image, (target, row) in enumerate(zip(targets, rows)):
        count += len(row)
        for index, query in enumerate(row.tolist()):
            if query < 0:
                continue
            classes[image, query] = target["labels"][index]
            for frame, mask in enumerate(target["masks"][index]):
                logits = point_sample(full[image, query, frame][None, None], points_xy[None])[:, 0]
                labels = point_sample(mask[None, None].float(), points_xy[None])[:, 0]
                mask_loss = mask_loss + sigmoid_ce_losses(logits, labels).sum()
                dice_loss = dice_loss + dice_losses(logits, labels).sum()
    weight = torch.tensor([1.0] * NUM_CLASSES + [0.1])
    class_loss = F.cross_entropy(layer.class_logits.transpose(1, 2), classes, weight)
    return {"loss_ce": class_loss, "loss_mask": mask_loss / max(count, 1), "loss_dice": dice_loss / max(count, 1)}


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (8, 2)])
def test_criterion_equals_the_definition(monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], frames: int) -> None:
    layers, targets = random_layers(2, frames=frames), [random_target(n, frames=frames) for n in counts]
    points_xy = torch.rand(NUM_POINTS, 2)
    monkeypatch.setattr(
        criterion_module, "sample_uncertain_points", lambda logits, **_: points_xy.expand(len(logits), -1, -1)
    )
    criterion = build_criterion()
    table = criterion.matcher(layers, targets)
    monkeypatch.setattr(criterion, "matcher", lambda *_: table)
    losses = criterion(layers, targets)
    for suffix, layer, row in zip(("_0", "_1", ""), layers, table):
        expected = naive_losses(layer, targets, list(row.split(list(counts))), points_xy)
        for name in LOSSES:
            torch.testing.assert_close(losses[name + suffix], expected[name], rtol=1e-4, atol=1e-5)


def test_criterion_draws_its_own_points_for_each_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    sample = criterion_module.sample_uncertain_points

    def record(logits: Tensor, **options: float) -> Tensor:
        shapes.append(tuple(logits.shape))
        return sample(logits, **options)

    monkeypatch.setattr(criterion_module, "sample_uncertain_points", record)
    build_criterion()(random_layers(2, frames=2), [random_target(3, frames=2), random_target(1, frames=2)])
    assert shapes == [(3 * (3 + 1) * 2, 1, 9, 11)]  # layers, targets of both images, frames


def test_criterion_names_final_layer_first() -> None:
    losses = build_criterion()(random_layers(1), [random_target(2)])
    assert list(losses) == [name + suffix for suffix in ("", "_0", "_1") for name in LOSSES]
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())


def test_criterion_weights_every_layer_alike() -> None:
    weighted = build_criterion().weight({"loss_ce": torch.ones(()), "loss_mask_12": torch.ones(())})
    assert {name: loss.item() for name, loss in weighted.items()} == {"loss_ce": 2.0, "loss_mask_12": 5.0}


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (9, 9)])
def test_criterion_losses_are_finite_and_reach_every_input(counts: tuple[int, ...]) -> None:
    layers = random_layers(2)
    losses = build_criterion()(layers, [random_target(n) for n in counts])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for tensor in leaves(layers):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_criterion_of_no_targets_has_no_mask_loss() -> None:
    losses = build_criterion()(random_layers(2), [random_target(0), random_target(0)])
    assert losses["loss_mask"].item() == 0
    assert losses["loss_dice"].item() == 0
    assert losses["loss_ce"].item() > 0


def test_criterion_does_not_depend_on_target_order(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, target = random_layers(1), random_target(5)
    order = torch.randperm(5)
    permuted = {"labels": target["labels"][order], "masks": target["masks"][order]}
    points_xy = torch.rand(1, NUM_POINTS, 2)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: points_xy)
    monkeypatch.setattr(
        criterion_module, "sample_uncertain_points", lambda logits, **_: points_xy.expand(len(logits), -1, -1)
    )
    losses, of_permuted = build_criterion()(layers, [target]), build_criterion()(layers, [permuted])
    for name, loss in losses.items():
        torch.testing.assert_close(of_permuted[name], loss)


def test_criterion_accepts_masks_without_a_frame_axis() -> None:
    layers, target = random_layers(1), random_target(3)
    torch.manual_seed(1)
    losses = build_criterion()(layers, [target])
    torch.manual_seed(1)
    flat = build_criterion()(layers, [{**target, "masks": target["masks"][:, 0]}])
    assert all(torch.equal(flat[name], loss) for name, loss in losses.items())


def test_criterion_computes_in_float32_under_autocast() -> None:
    layers, target = random_layers(1), random_target(3)
    torch.manual_seed(1)
    expected = build_criterion()(layers, [target])
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = build_criterion()(layers, [target])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert torch.equal(losses["loss_ce"], expected["loss_ce"])  # matching and class loss know no bfloat16


def edge_loss(matched: Matched) -> Tensor:
    """Largest error of each mask."""
    errors = (matched.point_logits.sigmoid() - matched.point_labels).abs().amax(-1)  # (L, M, T)
    return matched.mean(errors)


def test_registered_loss_is_added_by_name_and_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSS_REGISTRY, "_obj_map", {**LOSS_REGISTRY._obj_map, "worst_edge": edge_loss})
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = NUM_POINTS
    torch.manual_seed(0)
    layers, targets = random_layers(2), [random_target(3), random_target(0)]
    torch.manual_seed(1)
    criterion = assemble_criterion(cfg)
    published = criterion.weight(criterion(layers, targets))
    cfg.MODEL.MASK_FORMER.LOSSES = [["worst_edge", 3.0]]
    torch.manual_seed(1)
    criterion = assemble_criterion(cfg)
    unweighted = criterion(layers, targets)
    losses = criterion.weight(unweighted)
    added = {f"loss_worst_edge{suffix}" for suffix in ("", "_0", "_1")}
    assert losses.keys() - published.keys() == added
    assert all(torch.equal(losses[name], value) for name, value in published.items())
    for name in added:
        torch.testing.assert_close(losses[name], 3 * unweighted[name])
        assert 0 < unweighted[name] <= 1
    sum(losses[name] for name in added).backward()
    assert layers[0].mask_features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([["edgy", 1.0]], r"MODEL\.MASK_FORMER\.LOSSES: expected one of dice, mask"),
        ([["mask"]], r"\[name, weight\]"),
        ([["edge_2", 1.0]], "edge_2: a name must not end"),
    ],
)
def test_wrong_losses_of_the_config_are_refused(losses: list[object], message: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.MASK_FORMER.LOSSES = losses
    with pytest.raises(ConfigError, match=message):
        assemble_criterion(cfg)
