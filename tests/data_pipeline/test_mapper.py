"""Every preset on data sets written to disk, images without objects among them, and on contradictory files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.config import CfgNode
from mask2former.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    register_coco_instances,
    register_coco_panoptic,
    register_sem_seg,
)
from mask2former.data.presets import MAPPER_PRESETS
from mask2former.data.samplers import sample_generator
from mask2former.data.targets import instance_targets, semantic_from_panoptic
from mask2former.data.transforms import HFlipTransform, NoOpTransform, ResizeTransform, Transform
from mask2former.errors import ConfigError, DatasetError
from mask2former.structures import bitmasks_to_rles, polygons_to_bitmask

TARGET_DATASET = {"semantic": "tiny_sem_seg", "panoptic": "tiny_panoptic", "instance": "tiny_instance"}


@pytest.fixture
def registered(tiny: Any) -> Any:
    classes = {"stuff_classes": ["disc", "box", "grass", "sky"]}
    register_coco_instances("tiny_instance", {}, tiny.instances_json, tiny.images)
    register_coco_panoptic("tiny_panoptic", {}, tiny.images, tiny.panoptic, tiny.panoptic_json)
    register_sem_seg("tiny_sem_seg", classes, tiny.images, tiny.sem_seg)
    return tiny


def _mapper(cfg: CfgNode, name: str, **values: Any) -> tuple[DatasetMapper, list[dict[str, Any]]]:
    cfg.INPUT.DATASET_MAPPER_NAME = name
    dataset = TARGET_DATASET[MAPPER_PRESETS[name].target]
    cfg.DATASETS.TRAIN = [dataset]
    cfg.merge_from_list([item for key, value in values.items() for item in (key.replace("__", "."), value)])
    return DatasetMapper.from_config(cfg), DatasetCatalog.get(dataset)


def _generator(position: int = 0) -> np.random.Generator:
    return sample_generator(0, position)


@pytest.mark.parametrize("name", list(MAPPER_PRESETS))
@pytest.mark.parametrize("index", range(4))
def test_mapper_output_contract(registered: Any, cfg: CfgNode, name: str, index: int) -> None:
    mapper, dicts = _mapper(
        cfg,
        name,
        INPUT__IMAGE_SIZE=40,
        INPUT__MIN_SIZE_TRAIN=[20, 31, 45],
        INPUT__CROP__ENABLED=True,
        INPUT__CROP__TYPE="absolute",
        INPUT__CROP__SIZE=[19, 27],
        INPUT__SIZE_DIVISIBILITY=32,
        INPUT__COLOR_AUG_SSD=True,
        INPUT__RANDOM_FLIP="horizontal",
    )
    before = repr(dicts[index])
    for position in range(5):
        sample = mapper(dicts[index], _generator(position))
        image, instances = sample["image"], sample["instances"]
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert tuple(image.shape) == ((3, 40, 40) if "lsj" in name else (3, 32, 32))
        count = len(instances)
        assert instances.image_size == tuple(image.shape[1:])
        assert instances.gt_masks.shape == (count, *image.shape[1:])
        assert instances.gt_masks.dtype == torch.bool
        assert instances.gt_classes.shape == (count,)
        assert instances.gt_classes.dtype == torch.int64
        assert instances.gt_boxes.tensor.shape == (count, 4)
        assert (sample["height"], sample["width"]) == (24, 32)
        assert sample["file_name"] == dicts[index]["file_name"]
        assert "annotations" not in sample
        assert "segments_info" not in sample
        if index == 2:
            assert count == 0
    assert repr(dicts[index]) == before  # the data set's own dict is left alone


@pytest.mark.parametrize("name", list(MAPPER_PRESETS))
def test_mapper_same_generator_same_sample(registered: Any, cfg: CfgNode, name: str) -> None:
    mapper, dicts = _mapper(cfg, name, INPUT__COLOR_AUG_SSD=True, INPUT__RANDOM_FLIP="horizontal", INPUT__IMAGE_SIZE=24)
    first, second, other = (mapper(dicts[0], _generator(p)) for p in (1, 1, 2))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["instances"].gt_masks, second["instances"].gt_masks)
    assert not torch.equal(first["image"], other["image"])


def test_semantic_mapper_one_mask_per_class(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_semantic")
    instances = mapper(dicts[0])["instances"]
    labels = np.asarray(Image.open(registered.sem_seg / "000.png"))
    assert instances.gt_classes.tolist() == [0, 1, 2, 3]
    assert np.array_equal(instances.gt_masks.numpy(), labels == np.arange(4)[:, None, None])
    quarter = mapper(dicts[1])["instances"]  # three quarters labelled, the rest ignored
    assert quarter.gt_classes.tolist() == [2, 3]
    assert quarter.gt_masks.sum() == 24 * 32 * 3 // 4


def test_semantic_mapper_pads_image_with_grey_and_labels_with_ignore(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_semantic", INPUT__SIZE_DIVISIBILITY=40)
    sample = mapper(dicts[0])
    assert tuple(sample["image"].shape) == (3, 40, 40)
    assert (sample["image"][:, 24:] == 128).all()
    assert (sample["image"][:, :, 32:] == 128).all()
    assert not sample["instances"].gt_masks[:, 24:].any()


def test_semantic_mapper_derives_labels_from_panoptic(registered: Any, cfg: CfgNode) -> None:
    from_png, dicts = _mapper(cfg, "mask_former_semantic")
    panoptic_dicts = DatasetCatalog.get("tiny_panoptic")
    for record, panoptic_record in zip(dicts, panoptic_dicts, strict=True):
        expected, found = from_png(record)["instances"], from_png(panoptic_record)["instances"]
        assert torch.equal(expected.gt_classes, found.gt_classes)
        assert torch.equal(expected.gt_masks, found.gt_masks)


def test_semantic_mapper_wide_ignore_label(registered: Any, cfg: CfgNode) -> None:
    MetadataCatalog.get("tiny_wide").set(ignore_label=65535, stuff_classes=["a"] * 4)
    cfg.DATASETS.TRAIN = ["tiny_wide"]
    mapper = DatasetMapper.from_config(cfg)
    wide = np.full((24, 32), 65535, np.uint16)
    wide[:6] = 3
    path = registered.root / "wide.tif"
    Image.fromarray(wide).save(path)
    record = {"file_name": str(registered.images / "000.jpg"), "sem_seg_file_name": str(path)}
    instances = mapper(record)["instances"]
    assert instances.gt_classes.tolist() == [3]
    assert instances.gt_masks.sum() == 6 * 32


def test_panoptic_mapper_one_mask_per_segment_without_crowd(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_panoptic")
    instances = mapper(dicts[0])["instances"]
    assert instances.gt_classes.tolist() == [3, 2, 1, 0]
    for mask, segment_id in zip(instances.gt_masks, (1, 70_000, 256, 257), strict=True):
        assert np.array_equal(mask.numpy(), registered.ids[0] == segment_id)
    assert instances.gt_boxes.tensor[2].tolist() == [3, 4, 9, 12]


def test_panoptic_jitter_moves_image_and_masks_together(registered: Any, cfg: CfgNode) -> None:
    # The image shows what the masks say, so that the two can be compared after any transform.
    for index, ids in enumerate(registered.ids):
        grey = np.repeat(((ids == 256) * 255).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(grey).save(registered.images / f"{index:03d}.png")
    mapper, dicts = _mapper(
        cfg,
        "coco_panoptic_lsj",
        INPUT__IMAGE_SIZE=64,
        INPUT__MIN_SCALE=0.8,
        INPUT__RANDOM_FLIP="horizontal",
    )
    record = {**dicts[0], "file_name": dicts[0]["file_name"].replace("jpg", "png")}
    for position in range(20):
        sample = mapper(record, _generator(position))
        mask = sample["instances"].gt_masks[sample["instances"].gt_classes == 1]
        bright = (sample["image"][0] > 140).numpy()
        shown = mask[0].numpy() if len(mask) else np.zeros_like(bright)
        assert np.logical_xor(bright, shown).sum() <= 0.2 * max(shown.sum(), 40)


def test_mapper_keeps_empty_targets_as_published(registered: Any, cfg: CfgNode) -> None:
    kept = {}
    for name in ("mask_former_panoptic", "mask_former_instance", "coco_panoptic_lsj", "coco_instance_lsj"):
        for keep in (True, False):
            mapper, dicts = _mapper(
                cfg,
                name,
                INPUT__KEEP_EMPTY_TARGETS=keep,
                INPUT__CROP__ENABLED=True,
                INPUT__CROP__TYPE="absolute",
                INPUT__CROP__SIZE=[4, 4],
                INPUT__IMAGE_SIZE=8,
                INPUT__MIN_SCALE=2.0,
                INPUT__MAX_SCALE=2.0,
            )
            samples = [mapper(dicts[0], _generator(p))["instances"] for p in range(20)]
            kept[name, keep] = any((~s.gt_masks.flatten(1).any(1)).any() for s in samples)
    assert [name for (name, keep), has_empty in kept.items() if has_empty and keep] == [
        "mask_former_panoptic",
        "mask_former_instance",
        "coco_panoptic_lsj",
    ]
    assert not any(has_empty for (_, keep), has_empty in kept.items() if not keep)


def test_instance_mapper_masks_and_boxes(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_instance")
    instances = mapper(dicts[0])["instances"]
    assert instances.gt_classes.tolist() == [1, 0]  # the crowd is left out
    assert np.array_equal(instances.gt_masks[0].numpy(), registered.ids[0] == 256)
    assert instances.gt_boxes.tensor.tolist() == [[3, 4, 9, 12], [14, 6, 22, 20]]


@pytest.mark.parametrize("name", ["mask_former_instance", "coco_instance_lsj"])
def test_instance_mapper_polygon_rle_and_bitmap_agree(registered: Any, cfg: CfgNode, name: str) -> None:
    mapper, dicts = _mapper(cfg, name, INPUT__IMAGE_SIZE=96, INPUT__MIN_SCALE=0.9, INPUT__RANDOM_FLIP="horizontal")
    bitmap = (registered.ids[0] == 257).astype(np.uint8)
    rle = next(a["segmentation"] for a in dicts[0]["annotations"] if a["category_id"] == 0)
    polygon = [[14, 6, 22, 6, 22, 20, 14, 20]]
    for position in range(5):
        masks = []
        for segmentation in (bitmap, rle, polygon):
            annotation = {"category_id": 0, "segmentation": segmentation}
            sample = mapper({**dicts[0], "annotations": [annotation]}, _generator(position))
            masks.append(sample["instances"].gt_masks.sum(dim=0) > 0)
        assert torch.equal(masks[0], masks[1])
        assert (masks[0] ^ masks[2]).sum() <= 0.1 * masks[0].sum() + 4


def test_instance_targets_draw_polygons_at_the_new_size() -> None:
    polygon = [2.25, 3.5, 9.0, 4.0, 6.5, 11.75]
    annotations = [{"category_id": 5, "segmentation": [polygon]}]
    targets = instance_targets(annotations, NoOpTransform(), size=(16, 12), context="a.jpg", keep_empty=False)
    assert np.array_equal(targets.gt_masks[0].numpy(), polygons_to_bitmask([polygon], 16, 12))


@pytest.mark.filterwarnings("error::UserWarning")  # torch warns of arrays that are read-only
@pytest.mark.parametrize("transform", [NoOpTransform(), ResizeTransform(5, 7, 9, 11), HFlipTransform(7)])
def test_instance_targets_own_their_masks(transform: Transform) -> None:
    bitmap = np.zeros((5, 7), dtype=bool)
    bitmap[1:4, 2:5] = True
    bitmap.flags.writeable = False
    annotations = [{"category_id": 1, "segmentation": s} for s in (bitmap, bitmasks_to_rles(bitmap[None])[0])]
    targets = instance_targets(annotations, transform, size=(5, 7), context="a.jpg", keep_empty=False)
    expected = torch.from_numpy(transform.apply_segmentation(bitmap).copy())
    assert all(torch.equal(mask, expected) for mask in targets.gt_masks)


def test_instance_targets_outside_the_crop_are_dropped_or_kept() -> None:
    annotations = [{"category_id": 5, "segmentation": [[20.0, 20, 30, 20, 30, 30]]}]
    for keep_empty, count in ((True, 1), (False, 0)):
        targets = instance_targets(annotations, NoOpTransform(), size=(8, 9), context="", keep_empty=keep_empty)
        assert targets.gt_masks.shape == (count, 8, 9)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 0}, "a.jpg: annotation 0 has no segmentation"),
        ({"category_id": 0, "id": 17, "segmentation": [[1, 1, 2, 2]]}, "a.jpg: annotation 17: .*at least 3 points"),
        ({"category_id": 0, "segmentation": []}, "a.jpg: annotation 0: segmentation holds no polygon"),
        ({"category_id": 0, "segmentation": [[1, 1, 4, 1, 4, float("nan")]]}, "a.jpg: annotation 0: .*finite"),
        ({"category_id": 0, "segmentation": np.zeros((3, 4))}, "a.jpg: annotation 0: .*size"),
        ({"category_id": 0, "segmentation": {"size": [3, 4], "counts": [12]}}, "a.jpg: annotation 0: .*size"),
        ({"category_id": 0, "segmentation": 7}, "a.jpg: annotation 0: segmentation must be .*found 7"),
    ],
)
def test_instance_targets_wrong_segmentation_is_named(annotation: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        instance_targets([annotation], NoOpTransform(), size=(8, 9), context="a.jpg", keep_empty=False)


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic", "coco_panoptic_lsj"])
def test_mapper_says_which_pixels_train_nothing(registered: Any, cfg: CfgNode, name: str) -> None:
    mapper, dicts = _mapper(cfg, name)
    assert not any("ignore_mask" in mapper(record, _generator()) for record in dicts)
    mapper, _ = _mapper(cfg, name, MODEL__MASK_FORMER__IGNORE_REGIONS=True)
    sample = next(sample for record in dicts if "ignore_mask" in (sample := mapper(record, _generator())))
    masks, ignored = sample["instances"].gt_masks, sample["ignore_mask"]
    assert ignored.dtype == torch.bool
    assert ignored.shape == masks.shape[1:]
    assert ignored.any()
    assert not (ignored & masks.any(0)).any()
    if name == "coco_panoptic_lsj":  # what lies outside the image is known to be nothing
        is_padding = (sample["image"] == 128).all(0)
        assert (is_padding & ~ignored & ~masks.any(0)).any()
    else:
        assert torch.equal(ignored, ~masks.any(0))


def test_mapper_ignores_crowds_where_they_are_no_object(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_instance", MODEL__MASK_FORMER__IGNORE_REGIONS=True)
    record = {**dicts[0], "annotations": [{**a} for a in dicts[0]["annotations"]]}
    assert any(a["iscrowd"] for a in record["annotations"])
    sample = mapper(record, _generator())
    assert sample["ignore_mask"].any()
    assert not (sample["ignore_mask"] & sample["instances"].gt_masks.any(0)).any()
    for annotation in record["annotations"]:
        annotation["iscrowd"] = 0
    assert "ignore_mask" not in mapper(record, _generator())


def test_semantic_from_panoptic_counts_unknown_ids_as_ignored() -> None:
    ids = np.array([[0, 5], [7, 70_000]], np.int32)
    segments = [{"id": 70_000, "category_id": 2}, {"id": 5, "category_id": 1}]
    assert semantic_from_panoptic(ids, segments, ignore_label=255).tolist() == [[255, 1], [255, 2]]
    assert semantic_from_panoptic(ids, [], ignore_label=9).tolist() == [[9, 9], [9, 9]]


def test_category_area_constraint_reads_labels_of_panoptic_data(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(
        cfg,
        "mask_former_panoptic",
        INPUT__CROP__ENABLED=True,
        INPUT__CROP__TYPE="absolute",
        INPUT__CROP__SIZE=[10, 10],
        INPUT__CROP__SINGLE_CATEGORY_MAX_AREA=0.75,
        INPUT__KEEP_EMPTY_TARGETS=False,
    )
    assert mapper.augmentations.needs_sem_seg
    shares = []
    for position in range(30):
        instances = mapper(dicts[0], _generator(position))["instances"]
        shares.append(max(instances.gt_masks.flatten(1).float().mean(dim=1)))
    assert np.mean(np.array(shares) < 0.8) > 0.8


def test_test_mapper_resizes_and_keeps_original_size(registered: Any, cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 36, 44
    sample = DatasetMapper.from_config(cfg, is_train=False)(DatasetCatalog.get("tiny_panoptic")[0])
    assert tuple(sample["image"].shape) == (3, 33, 44)
    assert (sample["height"], sample["width"]) == (24, 32)
    assert "instances" not in sample
    assert sample["image_id"] == 100
    cfg.INPUT.MIN_SIZE_TEST = 0
    sample = DatasetMapper.from_config(cfg, is_train=False)({"file_name": sample["file_name"]})
    assert tuple(sample["image"].shape) == (3, 24, 32)
    assert (sample["height"], sample["width"]) == (24, 32)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_mapper_image_formats(registered: Any, cfg: CfgNode, image_format: str) -> None:
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.MIN_SIZE_TEST = 0
    path = registered.images / "000.jpg"
    image = DatasetMapper.from_config(cfg, is_train=False)({"file_name": str(path)})["image"].numpy()
    expected = np.asarray(Image.open(path).convert("L" if image_format == "L" else "RGB"))
    expected = expected[..., None] if image_format == "L" else expected
    assert np.array_equal(image.transpose(1, 2, 0), expected[..., ::-1] if image_format == "BGR" else expected)
    mapper, dicts = _mapper(cfg, "coco_panoptic_lsj", INPUT__IMAGE_SIZE=30, INPUT__COLOR_AUG_SSD=True)
    assert mapper(dicts[0])["image"].shape == (expected.shape[2], 30, 30)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"INPUT.DATASET_MAPPER_NAME": "coco_lsj"}, "DATASET_MAPPER_NAME.*coco_panoptic_lsj.*found 'coco_lsj'"),
        ({"INPUT.FORMAT": "YUV"}, "INPUT.FORMAT.*found 'YUV'"),
        ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "rarely"}, "INPUT: sample_style.*rarely"),
        ({"INPUT.RANDOM_FLIP": "diagonal"}, "INPUT: RANDOM_FLIP.*diagonal"),
        ({"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "round"}, "INPUT: crop type.*round"),
        ({"INPUT.DATASET_MAPPER_NAME": "coco_instance_lsj", "INPUT.MIN_SCALE": 0.0}, "INPUT: scales"),
    ],
)
def test_mapper_wrong_config_is_named(cfg: CfgNode, values: dict[str, Any], message: str) -> None:
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    with pytest.raises(ConfigError, match=message):
        DatasetMapper.from_config(cfg)


def test_test_mapper_wrong_size_is_named(cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TEST = -1
    with pytest.raises(ConfigError, match=r"INPUT\.MIN_SIZE_TEST"):
        DatasetMapper.from_config(cfg, is_train=False)


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic"])
def test_mapper_label_file_of_another_size_is_named(registered: Any, cfg: CfgNode, name: str) -> None:
    mapper, dicts = _mapper(cfg, name)
    for folder in (registered.sem_seg, registered.panoptic):
        path = folder / "000.png"
        Image.open(path).resize((32, 23)).save(path)
    with pytest.raises(DatasetError, match=r"000\.png has .*\(23, 32\), its image .*000\.jpg has \(24, 32\)"):
        mapper(dicts[0])


def test_mapper_image_of_another_size_is_named(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_instance")
    with pytest.raises(DatasetError, match=r"000\.jpg: image has .*\(24, 32\), its annotations say \(24, 99\)"):
        mapper({**dicts[0], "width": 99})


def test_mapper_label_beyond_the_classes_is_named(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "mask_former_semantic", MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)
    with pytest.raises(DatasetError, match=r"sem_seg/000\.png: labels must lie in 0\.\.1 or be 255.*found \[2, 3\]"):
        mapper(dicts[0])


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("mask_former_semantic", "sem_seg_file_name"),
        ("coco_panoptic_lsj", "pan_seg_file_name"),
        ("coco_instance_lsj", "annotations"),
    ],
)
def test_mapper_for_other_data_says_what_is_lacking(registered: Any, cfg: CfgNode, name: str, needed: str) -> None:
    mapper, dicts = _mapper(cfg, name)
    with pytest.raises(DatasetError, match=f"needs {needed}.*INPUT.DATASET_MAPPER_NAME"):
        mapper({"file_name": dicts[0]["file_name"]})


def test_mapper_damaged_files_are_named(registered: Any, cfg: CfgNode) -> None:
    mapper, dicts = _mapper(cfg, "coco_panoptic_lsj", INPUT__IMAGE_SIZE=24)
    path = Path(dicts[0]["pan_seg_file_name"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match=str(path)):
        mapper(dicts[0])
    Path(dicts[1]["file_name"]).write_bytes(b"")
    with pytest.raises(DatasetError, match=dicts[1]["file_name"]):
        mapper(dicts[1])
