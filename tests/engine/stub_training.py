"""A tiny run through the whole engine: a model of four parameters' groups, data that are a function of their position.

Also a script, so that tests can kill it: python -m tests.engine.stub_training [--resume] [--num-gpus N] KEY VALUE ...
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mask2former import distributed
from mask2former.commands.cli import run_cli
from mask2former.config import CfgNode, get_cfg
from mask2former.engine import fit, launch

WIDTH = 8


class StubModel(nn.Module):
    """Losses that depend on the images, the weights and, if noisy, every random generator."""

    def __init__(self, *, noisy: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 2)
        self.query = nn.Embedding(1, WIDTH)
        self.dropout = nn.Dropout(0.2 if noisy else 0.0)
        self.noisy = noisy

    def forward(self, batch: Sequence[dict[str, Any]]) -> Any:
        images = torch.stack([sample["image"] for sample in batch])
        outputs = self.head(self.dropout(self.backbone(images) + self.query.weight))  # (B, 2)
        if not self.training:
            return [{"output": output} for output in outputs]
        noise = random.random() + float(np.random.rand()) if self.noisy else 1.0
        targets = torch.stack([sample["target"] for sample in batch])
        squares = (outputs - targets).square().mean(0)
        return {"loss_ce_0": squares[0] * 0.1, "loss_ce": squares[0] * noise, "loss_mask": squares[1]}


class StubData:
    """Endless batches of one process; sample i is a function of i. ``bad_images``: positions with an infinite pixel."""

    def __init__(self, cfg: CfgNode, start_iter: int, *, bad_images: Sequence[int] = ()) -> None:
        self._world_size, self._rank = distributed.get_world_size(), distributed.get_rank()
        self._images_per_step = cfg.SOLVER.IMS_PER_BATCH
        self._start_iter = start_iter
        self._bad_images = set(bad_images)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        torch.rand(1)  # as starting a loader does
        step = self._start_iter
        while True:
            first = step * self._images_per_step
            indices = range(first + self._rank, first + self._images_per_step, self._world_size)
            yield [self._sample(index) for index in indices]
            step += 1

    def _sample(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(WIDTH, generator=generator)
        if index in self._bad_images:
            image[0] = float("inf")
        return {"file_name": f"image_{index}.jpg", "image": image, "target": torch.randn(2, generator=generator)}


def stub_config(output_dir: Path | str, *options: Any) -> CfgNode:
    """The frozen config of a run."""
    cfg = get_cfg()
    defaults = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 12, "SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP_ITERS", 3]
    defaults += ["SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.LOG_PERIOD", 3, "SOLVER.STEPS", "(8,)", "SEED", 7]
    defaults += ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output_dir)]
    cfg.merge_from_list([*defaults, *options])
    cfg.freeze()
    return cfg


def run_stub(
    cfg: CfgNode,
    *,
    resume: bool = False,
    noisy: bool = True,
    bad_images: Sequence[int] = (),
    step_seconds: float = 0.0,
    evaluate: Any = None,
    **doors: Any,
) -> Any:
    """A whole run in this process."""

    class SlowData(StubData):
        def _sample(self, index: int) -> dict[str, Any]:
            time.sleep(step_seconds / cfg.SOLVER.IMS_PER_BATCH)
            return super()._sample(index)

    return fit(
        cfg,
        build_model=lambda cfg: StubModel(noisy=noisy),
        build_batches=lambda cfg, start: SlowData(cfg, start, bad_images=bad_images),
        evaluate=evaluate,
        resume=resume,
        **doors,
    )


def run_in_worker(options: list[str], resume: bool) -> None:
    """The run that the environment of a test describes."""
    bad_images = [int(index) for index in os.environ.get("STUB_BAD_IMAGES", "").split()]
    step_seconds = float(os.environ.get("STUB_STEP_SECONDS", "0"))
    if os.environ.get("STUB_CRASH"):
        raise TypeError("a bug")
    cfg = stub_config("unset", *options)
    noisy = "STUB_QUIET" not in os.environ
    run_stub(cfg, resume=resume, noisy=noisy, bad_images=bad_images, step_seconds=step_seconds)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.num_gpus == 1:
        return run_cli(lambda: run_in_worker(args.opts, args.resume))
    return run_cli(lambda: launch(run_in_worker, args.opts, args.resume, num_processes=args.num_gpus))


if __name__ == "__main__":
    sys.exit(main())
