"""Recipes for own data fit their task, and the batch fits the memory that is free."""

from __future__ import annotations

import pytest

from mask2former.config import get_cfg, locate_config
from mask2former.data.presets import preset_of
from mask2former.engine import batch_probe
from mask2former.engine.batch_probe import grow_while, largest_batch
from mask2former.engine.own_data import recipe_names

TASKS = ("panoptic", "instance", "semantic")


@pytest.mark.parametrize("task", TASKS)
def test_recipes_are_for_their_task(task: str) -> None:
    names = recipe_names(task)
    assert {"r18", "r50", "r101", "swin-t", "swin-s", "swin-b"} <= set(names)
    for config in names.values():
        cfg = get_cfg()
        cfg.merge_from_file(locate_config(config))
        assert preset_of(cfg).target == task


@pytest.mark.parametrize(("limit", "most", "batch"), [(0, 16, 1), (1, 16, 1), (5, 16, 4), (16, 16, 16), (99, 12, 8)])
def test_batch_grows_while_it_fits(limit: int, most: int, batch: int) -> None:
    assert grow_while(lambda images: images <= limit, most=most) == batch


def test_batch_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(locate_config("shapes/instance-segmentation/maskformer2_R18_quickstart.yaml"))
    batches = []
    for free in (2**20, 2**30, 2**40):
        monkeypatch.setattr(batch_probe, "_free_memory", lambda free=free: free)
        batches.append(largest_batch(cfg, most=8)[0])
    assert batches[0] == 1
    assert batches[-1] == 8
    assert batches == sorted(batches)
