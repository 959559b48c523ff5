"""The criterion of the real model in two processes: losses and gradients are those of one process with all images."""

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

from mask2former.errors import NonFiniteError
from mask2former.modeling import build_model
from mask2former.modeling import criterion as criterion_module
from mask2former.structures import Instances
from tests.parity import NUM_CLASSES, fill_model, fixture_config, load_fixture, register_metadata

NUM_POINTS = 40
# Unequal numbers of images and targets, and an image without any: means of means would differ from the mean.
COUNTS = ((3, 0), (1,))


def build_tiny_model() -> nn.Module:
    register_metadata()
    cfg = fixture_config(load_fixture("tiny_resnet_panoptic"))
    cfg.merge_from_list(["MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", NUM_POINTS])
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
    torch.save((losses, gradients, refused, after_refusal, flag.item()), folder / f"result_{rank}.pt")
    dist.destroy_process_group()


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


def test_processes_stay_in_step_when_one_meets_a_value_that_is_not_finite(processes: list[Any]) -> None:
    (*_, refused, loss, flags), (*_, second_refused, _, second_flags) = processes
    assert (refused, second_refused) == (False, True)
    assert math.isfinite(loss)
    assert flags == second_flags == 1.0  # what is sent after the losses arrives as what it is
