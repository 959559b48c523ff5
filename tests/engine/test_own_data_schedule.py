"""Learning rate and iterations for own data follow from the reference batch and the number of images."""

from __future__ import annotations

from typing import Any

import pytest

from mask2former.config import CfgNode, get_cfg
from mask2former.engine.own_data import OwnDataRequest, scale_schedule


def schedule(num_images: int, **overrides: Any) -> tuple[CfgNode, str]:
    """The solver for a config of 100 000 iterations of 16 images with rate 1e-4."""
    reference = get_cfg()
    solver = {"IMS_PER_BATCH": 16, "BASE_LR": 1e-4, "MAX_ITER": 100_000, "STEPS": [90_000, 95_000], "WARMUP_ITERS": 10}
    for key, value in solver.items():
        reference.SOLVER[key] = value
    reference.TEST.EVAL_PERIOD = 5000
    cfg = reference.clone()
    for key, value in overrides.items():
        cfg.SOLVER[key] = value
    request = OwnDataRequest("data", reference, frozenset(f"SOLVER.{key}" for key in overrides))
    return cfg, scale_schedule(cfg, request, num_images=num_images)


def test_rate_follows_the_batch_and_iterations_the_epochs() -> None:
    cfg, text = schedule(1000, IMS_PER_BATCH=4)
    assert cfg.SOLVER.BASE_LR == pytest.approx(2.5e-5)
    assert cfg.SOLVER.MAX_ITER == 12_500
    assert cfg.SOLVER.STEPS == [11_250, 11_875]
    assert cfg.SOLVER.WARMUP_ITERS == 10
    assert cfg.TEST.EVAL_PERIOD == 2500
    assert "0.0001 x 4 / 16 = 2.5e-05" in text
    assert "reference (config) 16 images a step, learning rate 0.0001, 100000 iterations" in text
    assert "50 epochs (DATASETS.OWN.EPOCHS) of 1000 images / 4 = 12500 iterations: every image about 50 times" in text


@pytest.mark.parametrize(
    ("num_images", "iterations", "reason"),
    [(2, 1000, "DATASETS.OWN.MIN_ITER"), (10_000_000, 100_000, "as many images as in the reference")],
)
def test_iterations_have_a_least_and_a_most(num_images: int, iterations: int, reason: str) -> None:
    cfg, text = schedule(num_images)
    assert iterations == cfg.SOLVER.MAX_ITER
    assert reason in text


def test_values_of_the_command_line_stay() -> None:
    cfg, text = schedule(1000, BASE_LR=3e-4, MAX_ITER=50, STEPS=[7], CHECKPOINT_PERIOD=20)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (3e-4, 50, [7])
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.WARMUP_ITERS) == (20, 10, 5)
    assert "learning rate 0.0003, as given" in text
    assert "50 iterations of 16 images, as given" in text
