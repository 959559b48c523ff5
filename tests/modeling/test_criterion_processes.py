"""The criterion in two processes: losses and gradients of one process with all images, or as published."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.errors import ConfigError, NonFiniteError
from mask2former.modeling import build_model
from mask2former.modeling import criterion as criterion_module
from mask2former.modeling.contrastive import ContrastiveSetCriterion
from mask2former.modeling.criterion import LOSS_NORMS, SetCriterion
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.prediction import QueryPrediction
from mask2former.structures import Instances
from tests.parity import NUM_CLASSES, fill_model, fixture_config, load_fixture, register_metadata

NUM_POINTS = 40
# Unequal numbers of images and targets, and an image without any: means of means would differ from the mean.
COUNTS = ((3, 0), (1,))


def build_tiny_model() -> nn.Module:
    register_metadata()
    cfg = fixture_config(load_fixture("tiny_resnet_panoptic"))
    cfg.merge_from_list(["MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", NUM_POINTS])
    cfg.MODEL.MASK_FORMER.LOSS_NORM = "global"
    model = build_model(cfg).train()
    fill_model(model, 5)
    model.double()  # convolutions sum in another order for another number of images
    model.criterion.float()  # which computes in float32 in any case
    return model


def build_batch(rank: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(rank)

    def sample(count: int) -> dict[str, Any]:
        classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
        masks = torch.rand(count, 64, 64, generator=generator) > 0.5
        image = torch.randint(256, (3, 64, 64), generator=generator).double()
        return {"image": image, "instances": Instances((64, 64), gt_classes=classes, gt_masks=masks)}

    return [sample(count) for count in COUNTS[rank]]


@contextmanager
def equal_points() -> Iterator[None]:
    """Every mask is compared at the same points, however the images are divided."""
    points_xy = torch.rand(NUM_POINTS, 2, generator=torch.Generator().manual_seed(9))
    with (
        mock.patch.object(torch, "rand", lambda *shape, **_: points_xy.expand(shape)),
        mock.patch.object(
            criterion_module, "sample_uncertain_points", lambda maps, **_: points_xy.expand(len(maps), -1, -1)
        ),
    ):
        yield


def losses_and_gradients(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with equal_points():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def _run_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    model = build_tiny_model()
    batch = build_batch(rank)
    losses, gradients = losses_and_gradients(DistributedDataParallel(model, broadcast_buffers=False), batch)

    # A pixel that is not finite on one process: the other does not wait for it, nor take its next message for a sum.
    if rank == 1:
        batch[0]["image"][0, 3, 3] = float("inf")
    refused = False
    try:
        after_refusal = float(model(batch)["loss_ce"])
    except NonFiniteError:
        refused, after_refusal = True, 0.0
    flag = torch.tensor([float(refused)])
    dist.all_reduce(flag)
    by_norm = {norm: losses_of_equal_queries(norm, rank) for norm in LOSS_NORMS}
    contrast = contrastive_loss_and_gradients(slice(2 * rank, 2 * rank + 2))
    torch.save(
        (losses, gradients, refused, after_refusal, flag.item(), contrast, by_norm), folder / f"result_{rank}.pt"
    )
    dist.destroy_process_group()


def contrastive_loss_and_gradients(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some of four images, and the gradients of the queries and texts of all, and of the temperature."""
    torch.manual_seed(3)
    queries, texts = (torch.randn(4, 5, 6, requires_grad=True) for _ in range(2))
    criterion = ContrastiveSetCriterion(
        2,
        contrastive_weight=0.5,
        temperature=0.07,
        matcher=HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=NUM_POINTS),
        loss_weights={},
        no_object_weight=0.1,
        num_points=NUM_POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    loss = criterion.contrastive_loss(queries[rows], texts[rows])
    loss.backward()
    leaves = {"queries": queries, "texts": texts, "scale": criterion.logit_scale}
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_run_process, args=(folder,), nprocs=2)
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(2)]


def test_two_processes_give_losses_and_gradients_of_one(processes: list[Any]) -> None:
    (first, gradients, *_), (second, second_gradients, *_) = processes
    expected, expected_gradients = losses_and_gradients(build_tiny_model(), build_batch(0) + build_batch(1))
    assert list(first) == list(expected)
    for name, loss in expected.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, loss, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients[name], second_gradients[name]), name
        assert (gradients[name] - gradient).abs().max() <= 1e-6 * scale, name


def test_contrastive_loss_of_two_processes_is_that_of_one(processes: list[Any]) -> None:
    (*_, (first, gradients), _), (*_, (second, others), _) = processes
    expected, of_one = contrastive_loss_and_gradients(slice(0, 4))
    assert first != second  # each is of its own images, beside all others
    torch.testing.assert_close((first + second) / 2, expected, rtol=1e-6, atol=1e-6)
    for name, gradient in of_one.items():  # the mean over processes, as DistributedDataParallel makes it
        torch.testing.assert_close((gradients[name] + others[name]) / 2, gradient, rtol=1e-5, atol=1e-7)


def test_processes_stay_in_step_when_one_meets_a_value_that_is_not_finite(processes: list[Any]) -> None:
    (*_, refused, loss, flags, _, _), (*_, second_refused, _, second_flags, _, _) = processes
    assert (refused, second_refused) == (False, True)
    assert math.isfinite(loss)
    assert flags == second_flags == 1.0  # what is sent after the losses arrives as what it is


# Two images of 100 queries in each process, with 2 and 24 targets in all; every query has the same cross-entropy.
_NUM_TARGETS, _NUM_QUERIES, _CROSS_ENTROPIES = (2, 24), 100, (3.2985, 2.3578)


def criterion_of_two_classes(norm: str) -> SetCriterion:
    return SetCriterion(
        2,
        matcher=HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=NUM_POINTS),
        loss_weights={},
        no_object_weight=0.1,
        num_points=NUM_POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        loss_norm=norm,
    )


def losses_of_equal_queries(norm: str, rank: int) -> dict[str, float]:
    """Losses of a process: classes 0 and "no object" have logit 0, and class 1 one that makes them equally wrong."""
    criterion = criterion_of_two_classes(norm)
    class_logits = torch.zeros(2, _NUM_QUERIES, 3)
    class_logits[..., 1] = math.log(math.exp(_CROSS_ENTROPIES[rank]) - 2)
    # Masks are 0 everywhere, so that each binary cross-entropy is log 2.
    prediction = QueryPrediction(class_logits, torch.zeros(2, _NUM_QUERIES, 4), torch.ones(2, 1, 4, 8, 8))
    count = _NUM_TARGETS[rank] // 2
    target = {"labels": torch.zeros(count, dtype=torch.long), "masks": torch.ones(count, 8, 8, dtype=torch.bool)}
    return {name: float(loss) for name, loss in criterion([prediction], [target, target]).items()}


@pytest.fixture(scope="module")
def losses_by_norm(processes: list[Any]) -> list[dict[str, dict[str, float]]]:
    return [result[-1] for result in processes]


@pytest.mark.parametrize(
    ("norm", "expected", "mean"),
    [("per_process", (3.2985, 2.3578), 2.828), ("global", (2.2684, 3.0941), 2.681)],
)
def test_class_loss_of_two_processes_is_the_published_or_that_of_one(
    losses_by_norm: list[dict[str, dict[str, float]]], norm: str, expected: tuple[float, float], mean: float
) -> None:
    found = [losses[norm]["loss_ce"] for losses in losses_by_norm]
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(found) / 2 == pytest.approx(mean, abs=6e-4)
    # In closed form: weights of each process are those of its targets and a tenth for every other query.
    weights = [0.1 * (2 * _NUM_QUERIES - count) + count for count in _NUM_TARGETS]
    sums = [weight * value for weight, value in zip(weights, _CROSS_ENTROPIES, strict=True)]
    divisors = weights if norm == "per_process" else [sum(weights) / 2] * 2
    assert found == pytest.approx([total / by for total, by in zip(sums, divisors, strict=True)], rel=1e-5)


@pytest.mark.parametrize("norm", LOSS_NORMS)
def test_masks_are_divided_by_their_mean_over_processes(
    losses_by_norm: list[dict[str, dict[str, float]]], norm: str
) -> None:
    found = [losses[norm]["loss_mask"] for losses in losses_by_norm]
    assert found == pytest.approx([count * math.log(2) / 13 for count in _NUM_TARGETS], rel=1e-5)


@pytest.mark.parametrize(("norm", "expected"), [("per_process", 1.0), ("global", 0.5)])
def test_mean_of_less_than_one_mask_a_process_counts_as_one_as_published(norm: str, expected: float) -> None:
    criterion = criterion_of_two_classes(norm)
    with (
        mock.patch.object(criterion_module, "average", lambda values: values / 2),  # another process has no target
        mock.patch.object(criterion_module, "get_world_size", return_value=2),
    ):
        _, num_masks = criterion._norms(torch.ones(1), 1)
    assert float(num_masks) == expected


def test_unknown_loss_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LOSS_NORM must be per_process or global, found 'mean'"):
        criterion_of_two_classes("mean")
