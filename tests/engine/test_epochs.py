"""SOLVER.MAX_EPOCHS becomes iterations once the number of images is known."""

from __future__ import annotations

import pytest

from mask2former.config import get_cfg
from mask2former.engine.own_data import OwnDataRequest, scale_schedule
from mask2former.engine.scaling import resolve_epochs
from mask2former.errors import ConfigError


def test_epochs_become_iterations_and_steps_keep_their_shares() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 1000, "SOLVER.STEPS", (500, 900), "SOLVER.IMS_PER_BATCH", 4])
    cfg.merge_from_list(["SOLVER.MAX_EPOCHS", 3])
    cfg.freeze()
    resolved = resolve_epochs(cfg, 101)
    assert (resolved.SOLVER.MAX_ITER, resolved.SOLVER.STEPS, resolved.SOLVER.MAX_EPOCHS) == (76, [38, 68], 0)
    assert resolved.is_frozen()
    assert cfg.SOLVER.MAX_ITER == 1000
    assert resolve_epochs(resolved, 5) is resolved


def test_negative_epochs_are_refused() -> None:
    cfg = get_cfg()
    cfg.SOLVER.MAX_EPOCHS = -1
    with pytest.raises(ConfigError, match="must not be negative, found -1"):
        resolve_epochs(cfg, 5)


def test_epochs_with_own_data_take_the_place_of_its_rule() -> None:
    cfg, reference = get_cfg(), get_cfg()
    cfg.merge_from_list(["SOLVER.MAX_EPOCHS", 3, "SOLVER.IMS_PER_BATCH", 2])
    lines = scale_schedule(cfg, OwnDataRequest("data", reference), num_images=9)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS) == (14, 0)
    assert "3 epochs (SOLVER.MAX_EPOCHS) of 9 images / 2 = 14" in lines
