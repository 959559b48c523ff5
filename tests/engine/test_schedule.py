"""Learning rates by iteration, exact against the published recipes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.config import CfgNode, get_cfg
from mask2former.engine.schedule import build_lr_scheduler
from mask2former.errors import ConfigError
from tests.engine.test_optimizer import RECIPES, recipe_config
from tests.parity import REFERENCE_DIR

REFERENCE = json.loads((REFERENCE_DIR / "optimizer_and_schedule.json").read_text())


def factors(cfg: CfgNode) -> Any:
    """Learning rate at an iteration for a base rate of ``BASE_LR``."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    return lambda iteration: scheduler.base_lrs[0] * scheduler.lr_lambdas[0](iteration)


def config(name: str, **solver: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.BASE_LR = 1.0
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


@pytest.mark.parametrize("recipe", RECIPES)
def test_lr_schedule_equals_reference_recipe(recipe: str) -> None:
    reference, cfg = REFERENCE[recipe], recipe_config(recipe)
    assert cfg.SOLVER.LR_SCHEDULER_NAME == reference["scheduler"]
    first_lr = reference["params_lr_wd"][reference["first_group_name"]][0]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=first_lr)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration, expected in reference["first_group_lr_at_iter"].items():
        actual = scheduler.base_lrs[0] * scheduler.lr_lambdas[0](int(iteration))
        assert actual == pytest.approx(expected, rel=1e-12), iteration


def test_scheduler_steps_set_what_the_closed_form_says() -> None:
    cfg = config("WarmupPolyLR", MAX_ITER=20, WARMUP_ITERS=4)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=cfg.SOLVER.BASE_LR)
    scheduler, expected = build_lr_scheduler(cfg, optimizer), factors(cfg)
    for iteration in range(20):
        assert optimizer.param_groups[0]["lr"] == expected(iteration)
        optimizer.step()
        scheduler.step()


def test_multi_step_warms_up_linearly_and_drops_at_steps() -> None:
    lr = factors(config("WarmupMultiStepLR", MAX_ITER=100, STEPS=[50, 80], WARMUP_ITERS=10, WARMUP_FACTOR=0.1))
    assert [lr(i) for i in (0, 5, 10, 49, 50, 79, 80)] == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.1, 0.01])


def test_constant_warm_up_stays_until_its_end() -> None:
    options = {"MAX_ITER": 100, "STEPS": [50], "WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.1, "WARMUP_METHOD": "constant"}
    lr = factors(config("WarmupMultiStepLR", **options))
    assert [lr(i) for i in (0, 9, 10)] == pytest.approx([0.1, 0.1, 1])


def test_poly_multiplies_warm_up_and_ends_constant() -> None:
    options = {"MAX_ITER": 100, "WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.1, "POLY_LR_POWER": 0.9}
    lr = factors(config("WarmupPolyLR", **options, POLY_LR_CONSTANT_ENDING=0.2))
    assert lr(5) == pytest.approx(0.55 * 0.95**0.9)
    assert lr(50) == pytest.approx(0.5**0.9)
    assert lr(99) == lr(100) == 0.2


def test_cosine_falls_to_end_and_warm_up_meets_it() -> None:
    lr = factors(config("WarmupCosineLR", MAX_ITER=100, WARMUP_ITERS=10, WARMUP_FACTOR=0.1, BASE_LR_END=0.2))
    at_ten = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.1))
    assert lr(0) == pytest.approx(0.1)
    assert lr(5) == pytest.approx((0.1 + at_ten) / 2)
    assert lr(10) == pytest.approx(at_ten)
    assert lr(100) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupPolyLR", "WarmupCosineLR"])
def test_schedule_without_warm_up_starts_at_base(name: str) -> None:
    assert factors(config(name, WARMUP_ITERS=0, WARMUP_FACTOR=0.001))(0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"LR_SCHEDULER_NAME": "Step"}, "LR_SCHEDULER_NAME.*Step"),
        ({"WARMUP_METHOD": "exponential"}, "WARMUP_METHOD.*exponential"),
        ({"STEPS": [80, 50]}, "STEPS must increase"),
    ],
)
def test_schedule_refuses_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        factors(config(**{"name": "WarmupMultiStepLR", **options}))
