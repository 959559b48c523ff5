"""Loaders: the same samples with any number of workers and after resuming, and errors that name what is wrong."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.config import CfgNode
from mask2former.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_test_loader,
    build_train_loader,
    format_class_histogram,
    register_coco_instances,
    register_coco_panoptic,
    register_sem_seg,
)
from mask2former.data import loader as loader_module
from mask2former.data.loader import DatasetFromList, MappedDataset
from mask2former.data.training_sets import load_train_dicts, many_objects_note
from mask2former.data.transport import pack, unpack
from mask2former.errors import ConfigError, DatasetError
from mask2former.structures import Boxes, Instances


@pytest.fixture
def panoptic_cfg(tiny: Any, cfg: CfgNode) -> CfgNode:
    register_coco_panoptic("tiny_panoptic", {}, tiny.images, tiny.panoptic, tiny.panoptic_json)
    cfg.DATASETS.TRAIN = ["tiny_panoptic"]
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    cfg.INPUT.IMAGE_SIZE = 32
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.COLOR_AUG_SSD = True
    return cfg


@pytest.fixture
def instance_cfg(tiny: Any, cfg: CfgNode) -> CfgNode:
    register_coco_instances("tiny_instance", {}, tiny.instances_json, tiny.images)
    cfg.DATASETS.TRAIN = ["tiny_instance"]
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    cfg.INPUT.IMAGE_SIZE = 32
    return cfg


def _take(iterable: Any, count: int) -> list[Any]:
    return list(itertools.islice(iterable, count))


def _assert_equal_batches(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for one, other in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert one["file_name"] == other["file_name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_masks, other["instances"].gt_masks)
        assert torch.equal(one["instances"].gt_classes, other["instances"].gt_classes)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_train_loader_samples_do_not_depend_on_workers(panoptic_cfg: CfgNode, num_workers: int) -> None:
    expected = _take(build_train_loader(panoptic_cfg), 7)
    assert all(len(batch) == 2 for batch in expected)
    panoptic_cfg.DATALOADER.NUM_WORKERS = num_workers
    _assert_equal_batches(_take(build_train_loader(panoptic_cfg), 7), expected)


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_resumes_bit_equal(panoptic_cfg: CfgNode, grouping: bool, num_workers: int) -> None:
    panoptic_cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    expected = _take(build_train_loader(panoptic_cfg), 9)
    panoptic_cfg.DATALOADER.NUM_WORKERS = num_workers
    _assert_equal_batches(_take(build_train_loader(panoptic_cfg, start_iter=5), 4), expected[5:])


def test_train_loader_skips_without_reading(panoptic_cfg: CfgNode) -> None:
    read = []

    def mapper(record: dict[str, Any], rng: np.random.Generator) -> str:
        read.append(record["image_id"])
        return record["file_name"]

    next(iter(build_train_loader(panoptic_cfg, mapper=mapper, start_iter=100)))
    assert len(read) == 2


@pytest.mark.parametrize("world_size", [2, 4])
def test_train_loader_processes_share_the_samples_of_one(
    panoptic_cfg: CfgNode, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    panoptic_cfg.SOLVER.IMS_PER_BATCH = 4
    (alone,) = _take(build_train_loader(panoptic_cfg), 1)
    images = []
    for rank in range(world_size):
        monkeypatch.setattr(loader_module, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        images += [sample["image"] for sample in next(iter(build_train_loader(panoptic_cfg)))]
    assert len(images) == 4
    for sample in alone:
        assert sum(torch.equal(sample["image"], image) for image in images) == 1


def test_train_loader_seed(panoptic_cfg: CfgNode) -> None:
    loader = build_train_loader(panoptic_cfg)
    assert (loader.seed, loader.batch_size, loader.num_samples) == (3, 2, 4)
    panoptic_cfg.SEED = -1
    drawn = build_train_loader(panoptic_cfg)
    assert drawn.seed >= 0
    again = build_train_loader(panoptic_cfg, seed=drawn.seed)
    _assert_equal_batches(_take(again, 3), _take(drawn, 3))


def test_train_loader_groups_by_orientation(tmp_path: Path, cfg: CfgNode) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(10):
        size = (30, 20) if index % 3 else (20, 30)
        Image.new("RGB", size).save(tmp_path / "images" / f"{index}.jpg")
        Image.new("L", size).save(tmp_path / "labels" / f"{index}.png")
    register_sem_seg("mixed", {"stuff_classes": ["a"]}, tmp_path / "images", tmp_path / "labels")
    cfg.DATASETS.TRAIN = ["mixed"]
    cfg.INPUT.MIN_SIZE_TRAIN = [20]
    seen = set()
    for batch in _take(build_train_loader(cfg), 12):
        assert len({sample["image"].shape for sample in batch}) == 1
        seen.add(batch[0]["image"].shape)
    assert len(seen) == 2
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    shapes = [{s["image"].shape for s in batch} for batch in _take(build_train_loader(cfg), 12)]
    assert max(map(len, shapes)) == 2


def test_train_loader_leaves_out_images_without_objects(instance_cfg: CfgNode) -> None:
    assert build_train_loader(instance_cfg).num_samples == 2
    instance_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    loader = build_train_loader(instance_cfg)
    assert loader.num_samples == 4
    counts = {s["image_id"]: len(s["instances"]) for batch in _take(loader, 4) for s in batch}
    assert counts[101] == counts[102] == 0


def test_train_loader_without_any_object_is_an_error(instance_cfg: CfgNode, tiny: Any) -> None:
    tiny.edit(tiny.instances_json, lambda content: content.update(annotations=[]))
    with pytest.raises(DatasetError, match=r"no image of tiny_instance has an object.*FILTER_EMPTY_ANNOTATIONS"):
        build_train_loader(instance_cfg)


def test_train_loader_repeat_factor_sampler(panoptic_cfg: CfgNode) -> None:
    panoptic_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    panoptic_cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    panoptic_cfg.DATALOADER.REPEAT_SQRT = False
    counts = {100 + i: 0 for i in range(4)}
    for batch in _take(build_train_loader(panoptic_cfg), 60):
        for sample in batch:
            counts[sample["image_id"]] += 1
    assert counts[100] > 2 * counts[102]  # its discs are in one image of four


def test_loader_of_several_data_sets_joins_them(panoptic_cfg: CfgNode, tiny: Any) -> None:
    register_coco_panoptic("tiny_more", {}, tiny.images, tiny.panoptic, tiny.panoptic_json)
    panoptic_cfg.DATASETS.TRAIN = ["tiny_panoptic", "tiny_more"]
    assert build_train_loader(panoptic_cfg).num_samples == 8
    DatasetCatalog.register("other", lambda: [{"file_name": "x.jpg"}])
    MetadataCatalog.get("other").set(stuff_classes=["else"])
    panoptic_cfg.DATASETS.TRAIN = ["tiny_panoptic", "other"]
    with pytest.raises(ConfigError, match="tiny_panoptic and other differ in stuff_classes"):
        build_train_loader(panoptic_cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.IMS_PER_BATCH", 0, r"SOLVER\.IMS_PER_BATCH must be a positive multiple.*found 0"),
        ("DATALOADER.NUM_WORKERS", -1, r"DATALOADER\.NUM_WORKERS must be 0 or more, found -1"),
        ("DATALOADER.SAMPLER_TRAIN", "Best", r"DATALOADER\.SAMPLER_TRAIN must be .*found 'Best'"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, r"NUM_CLASSES is 3, but .*000\.jpg has an object of class 3"),
        ("INPUT.DATASET_MAPPER_NAME", "none", r"INPUT\.DATASET_MAPPER_NAME: expected one of .*mask_former_semantic"),
        ("DATASETS.TRAIN", [], r"DATASETS\.TRAIN names no data set"),
        ("DATASETS.TRAIN", ["tiny_panoptik"], "no data set is called 'tiny_panoptik'; did you mean tiny_panoptic"),
    ],
)
def test_train_loader_wrong_config_is_named(panoptic_cfg: CfgNode, key: str, value: Any, message: str) -> None:
    panoptic_cfg.merge_from_list([key, value])
    with pytest.raises((ConfigError, DatasetError), match=message):
        build_train_loader(panoptic_cfg)


def test_batch_that_processes_cannot_share_is_an_error(panoptic_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(ConfigError, match="multiple of the number of processes, 3, found 2"):
        build_train_loader(panoptic_cfg)


def test_empty_data_set_is_an_error(cfg: CfgNode) -> None:
    DatasetCatalog.register("nothing", list)
    with pytest.raises(DatasetError, match="'nothing' holds no image"):
        build_test_loader(cfg, "nothing")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_file_is_named_from_any_worker(panoptic_cfg: CfgNode, tiny: Any, num_workers: int) -> None:
    path = tiny.images / "001.jpg"
    path.write_bytes(path.read_bytes()[:100])
    panoptic_cfg.DATALOADER.NUM_WORKERS = num_workers
    with pytest.raises(DatasetError) as caught:
        _take(build_train_loader(panoptic_cfg), 3)
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_failing_mapper_names_the_file(panoptic_cfg: CfgNode, num_workers: int) -> None:
    panoptic_cfg.DATALOADER.NUM_WORKERS = num_workers
    with pytest.raises(RuntimeError, match=r"mapping .*00.\.jpg failed: division"):
        next(iter(build_train_loader(panoptic_cfg, mapper=lambda record: 1 / 0)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_test_loader_gives_each_image_once(panoptic_cfg: CfgNode, num_workers: int, batch_size: int) -> None:
    panoptic_cfg.DATALOADER.NUM_WORKERS = num_workers
    panoptic_cfg.INPUT.MIN_SIZE_TEST = 48
    loader = build_test_loader(panoptic_cfg, "tiny_panoptic", batch_size=batch_size)
    batches = list(loader)
    assert len(loader) == len(batches) == -(-4 // batch_size)
    assert loader.num_samples == 4
    samples = list(itertools.chain(*batches))
    assert [s["image_id"] for s in samples] == [100, 101, 102, 103]
    assert all(tuple(s["image"].shape) == (3, 48, 64) and s["height"] == 24 for s in samples)
    assert len(list(loader)) == len(batches)  # and again


@pytest.mark.parametrize(
    ("device", "has_gpu", "num_workers", "is_pinned"),
    [("cuda", True, 1, True), ("cuda", False, 1, False), ("cpu", True, 1, False), ("cuda", True, 0, False)],
)
def test_loaders_pin_batches_of_workers_for_a_gpu(
    panoptic_cfg: CfgNode,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    has_gpu: bool,
    num_workers: int,
    is_pinned: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    panoptic_cfg.MODEL.DEVICE = device
    panoptic_cfg.DATALOADER.NUM_WORKERS = num_workers
    for loader in (build_train_loader(panoptic_cfg), build_test_loader(panoptic_cfg, "tiny_panoptic")):
        assert loader._loader.pin_memory == is_pinned


def test_test_loader_shards_by_process(panoptic_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for rank in range(3):
        monkeypatch.setattr(loader_module, "rank_and_world_size", lambda rank=rank: (rank, 3))
        ids += [s["image_id"] for batch in build_test_loader(panoptic_cfg, "tiny_panoptic") for s in batch]
    assert ids == [100, 101, 102, 103]


def test_load_train_dicts_logs_the_classes(panoptic_cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    panoptic_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 6
    with caplog.at_level(logging.INFO):
        load_train_dicts(panoptic_cfg)
    assert "4 images, 4 classes, 7 objects or segments" in caplog.text
    assert "NUM_CLASSES is 6, tiny_panoptic has 4 classes" in caplog.text


def test_class_histogram_counts_objects() -> None:
    dicts = [
        {"annotations": [{"category_id": 0}, {"category_id": 1, "iscrowd": 1}, {"category_id": 0}]},
        {"annotations": []},
    ]
    table = format_class_histogram(dicts, ["cat", "a name that is much longer than a column"])
    head, *rows = table.splitlines()
    assert head == "2 images, 2 classes, 2 objects or segments"
    assert rows[0].split()[:3] == ["0", "cat", "2"]
    assert "…" in table
    semantic = format_class_histogram([{"sem_seg_file_name": "a.png"}], ["cat"])
    assert semantic.splitlines()[0] == "1 images, 1 classes"
    assert format_class_histogram([], []) == "0 images, 0 classes"


def test_mapped_dataset_gives_one_generator_per_position() -> None:
    dataset = MappedDataset(DatasetFromList([{"file_name": "a"}]), lambda record, rng: rng.random(), seed=5)
    assert dataset[0] == dataset[0]
    assert len(dataset) == 1


@pytest.mark.parametrize("shape", [(), (0, 3, 4), (2, 0, 5), (3, 5, 7), (1, 1), (2, 64, 64)])
def test_pack_sends_masks_as_bits(shape: tuple[int, ...]) -> None:
    masks = torch.rand(shape) > 0.5
    packed = pack([masks, masks.flip(0) if shape else masks])
    received = unpack(packed)
    assert received[0].dtype == torch.bool
    assert received[0].shape == shape
    assert torch.equal(received[0], masks)
    assert torch.equal(received[1], masks.flip(0) if shape else masks)
    assert packed.block.nbytes <= 2 * (masks.numel() // 8 + 65)
    received[0].logical_not_()  # writable
    assert torch.equal(received[0], ~masks)


def test_pack_round_trip() -> None:
    masks = torch.rand(3, 5, 7) > 0.5
    instances = Instances((5, 7), gt_masks=masks, gt_boxes=Boxes(torch.rand(3, 4)), gt_classes=torch.arange(3))
    empty = Instances((5, 7), gt_masks=torch.zeros(0, 5, 7, dtype=torch.bool))
    batch = [
        {"image": torch.arange(105, dtype=torch.uint8).reshape(3, 5, 7), "instances": instances, "name": "a"},
        {
            "image": torch.rand(2, 3).t(),
            "instances": empty,
            "array": np.arange(6).reshape(2, 3),
            "b": torch.ones(2).bfloat16(),
        },
    ]
    packed = pack(batch)
    assert packed.block.is_shared()  # so that sending it does not copy it
    received = unpack(packed)
    for tensor in (received[0]["image"], received[0]["instances"].gt_classes):
        assert tensor.untyped_storage().data_ptr() == packed.block.data_ptr()  # what is pinned stays known as such
    assert torch.equal(received[0]["image"], batch[0]["image"])
    assert torch.equal(received[0]["instances"].gt_masks, masks)
    assert torch.equal(received[0]["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert received[0]["name"] == "a"
    assert torch.equal(received[1]["image"], batch[1]["image"])
    assert received[1]["instances"].gt_masks.shape == (0, 5, 7)
    assert np.array_equal(received[1]["array"], batch[1]["array"])
    assert received[1]["b"].dtype == torch.bfloat16
    received[0]["image"] += 1  # writable, and its own memory
    assert batch[0]["image"][0, 0, 0] == 0


def test_images_with_more_objects_than_queries_are_counted() -> None:
    def record(objects: int, crowds: int = 0) -> dict[str, Any]:
        entries = [{"category_id": 0, "iscrowd": int(index < crowds)} for index in range(objects)]
        return {"file_name": "a.jpg", "annotations": entries}

    records = [record(3), record(5), record(4, crowds=2), record(7)]
    note = many_objects_note(records, num_queries=3)
    assert note is not None
    assert note.startswith("2 of 4 have more objects than the model has queries, 3 (MODEL.MASK_FORMER.NUM_OBJECT")
    assert "up to 7" in note
    assert many_objects_note(records, num_queries=7) is None
