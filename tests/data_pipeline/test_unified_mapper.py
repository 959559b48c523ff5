"""OneFormer's mapper: targets, texts and tokens of each task are the published ones, from all kinds of annotation."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.config import CfgNode, get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances, register_coco_panoptic
from mask2former.data.loader import build_mapper
from mask2former.data.presets import preset_of
from mask2former.data.targets import panoptic_targets
from mask2former.data.text import ClipTokenizer, describe_objects
from mask2former.data.unified_mapper import UnifiedMapper, targets_of_task
from mask2former.errors import ConfigError
from mask2former.structures.tasks import TASKS
from tests.parity import NUM_THINGS, REFERENCE_DIR, load_fixture

FIXTURES = ("tiny_oneformer_swin_seed1", "tiny_oneformer_dinat_seed3", "tiny_oneformer_convnext_seed1")
TOKENS: dict[str, Any] = json.loads((REFERENCE_DIR / "oneformer" / "tokens.json").read_text())
has_vocabulary = all(importlib.util.find_spec(name) for name in ("open_clip", "ftfy", "regex"))
needs_vocabulary = pytest.mark.skipif(not has_vocabulary, reason="needs the extra [text]")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FIXTURES)
def test_targets_and_texts_of_a_task_are_the_published_ones(name: str, task: str) -> None:
    fixture = load_fixture(f"oneformer/{name}")
    compared = 0
    while f"annotation/panoptic_ids_{compared}" in fixture:
        index, prefix = compared, f"annotation/{task}/"
        segments = fixture.json(f"annotation/segments_info_json_{index}")
        ids = fixture.array(f"annotation/panoptic_ids_{index}")
        found = targets_of_task(
            panoptic_targets(ids, segments, keep_empty=True), task, thing_ids=set(range(NUM_THINGS))
        )
        assert torch.equal(found.gt_classes, fixture.tensor(f"{prefix}labels_{index}"))
        shape = fixture.array(f"{prefix}masks_shape_{index}")
        masks = fixture.masks(f"{prefix}masks_{index}", int(shape[-1])).reshape(tuple(shape))
        assert torch.equal(found.gt_masks, masks)
        texts = fixture.json(f"{prefix}texts_json_{index}")
        described = describe_objects(
            found.gt_classes.tolist(),
            class_names=fixture.json("class_names_json"),
            task=task,
            num_texts=len(texts),
        )
        assert described == texts
        compared += 1
    assert compared >= 2


@needs_vocabulary
@pytest.mark.parametrize("case", TOKENS["cases"], ids=lambda case: case["text"][:30])
def test_tokens_are_those_of_clip(case: dict[str, Any]) -> None:
    length = case["padded_length"]
    assert ClipTokenizer().encode(case["text"], length=length) == case["ids"] + [0] * (length - len(case["ids"]))


@needs_vocabulary
@pytest.mark.parametrize("name", FIXTURES[:1])
def test_texts_of_a_batch_become_the_published_tokens(name: str) -> None:
    fixture, tokenizer = load_fixture(f"oneformer/{name}"), ClipTokenizer()
    for texts, ids in zip(fixture.json("train/texts_json"), fixture.tensor("train/text_tokens"), strict=True):
        assert torch.equal(tokenizer.encode_all(texts, length=ids.shape[1]), ids.long())


def test_objects_beyond_the_list_are_left_out_and_the_rest_is_filler() -> None:
    assert describe_objects([1, 0, 1], class_names=["cat", "dog"], task="instance", num_texts=2) == [
        "a photo with a cat",
        "a photo with a dog",
    ]
    assert describe_objects([], class_names=["cat"], task="instance", num_texts=1) == ["an instance photo"]


def test_vocabulary_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.TEXT_VOCABULARY: there is no file"):
        ClipTokenizer(str(tmp_path / "none.gz"))
    (tmp_path / "short.gz").write_bytes(gzip.compress(b"heading\na b\n"))
    if has_vocabulary:
        with pytest.raises(ConfigError, match=r"short\.gz: expected CLIP's vocabulary of 48894 pairs"):
            ClipTokenizer(str(tmp_path / "short.gz"))
        (tmp_path / "text.gz").write_bytes(b"no archive")
        with pytest.raises(ConfigError, match=r"text\.gz: cannot be read"):
            ClipTokenizer(str(tmp_path / "text.gz"))


def _config(tiny: Any, target: str) -> CfgNode:
    cfg = get_cfg()
    name = f"tiny_{target}_for_tasks"
    if target == "panoptic":
        register_coco_panoptic(name, {}, tiny.images, tiny.panoptic, tiny.panoptic_json)
    else:
        register_coco_instances(name, {}, tiny.instances_json, tiny.images)
    cfg.MODEL.META_ARCHITECTURE = "OneFormer"
    cfg.DATASETS.TRAIN = [name]
    cfg.INPUT.MIN_SIZE_TRAIN = [32]
    DatasetCatalog.get(name)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(MetadataCatalog.get(name).get("thing_classes")) + 4
    return cfg


def test_published_files_that_name_no_mapper_get_this_one(tiny: Any) -> None:
    cfg = _config(tiny, "panoptic")
    assert cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_semantic"
    assert preset_of(cfg).tasks


@needs_vocabulary
@pytest.mark.parametrize("target", ["panoptic", "instance"])
def test_samples_hold_task_texts_and_targets(tiny: Any, target: str) -> None:
    cfg = _config(tiny, target)
    mapper = build_mapper(cfg)
    assert isinstance(mapper, UnifiedMapper)
    records, seen = DatasetCatalog.get(cfg.DATASETS.TRAIN[0]), set()
    for seed in range(12):
        sample = mapper(records[0], np.random.default_rng(seed))
        assert sample["text"].shape == (120 - 16, 77)
        assert sample["instances"].gt_masks.shape[1:] == sample["image"].shape[1:]
        assert len(sample["instances"].gt_classes) == 0 or sample["instances"].gt_masks.flatten(1).any(1).all()
        seen.add(sample["task"])
    assert seen == {f"The task is {task}" for task in TASKS}


@needs_vocabulary
def test_tasks_are_drawn_by_cumulative_bounds(tiny: Any) -> None:
    cfg = _config(tiny, "panoptic")
    cfg.INPUT.TASK_PROB.SEMANTIC, cfg.INPUT.TASK_PROB.INSTANCE = 0.5, 0.5
    mapper = build_mapper(cfg)
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    drawn = [mapper(record, np.random.default_rng(seed))["task"].split()[-1] for seed in range(20)]
    assert set(drawn) == {"semantic", "panoptic"}
