"""Who comes from detectron2 and the published project finds its names, arguments and mappers."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

import mask2former
import mask2former.data.transforms as T
from mask2former.config import get_cfg
from mask2former.data import MAPPER_REGISTRY, DatasetMapper
from mask2former.data.datasets.coco import load_sem_seg
from mask2former.data.loader import build_mapper
from mask2former.data.presets import preset_of
from mask2former.evaluation import COCOEvaluator
from mask2former.modeling import MaskFormer

MAPPERS = {
    "mask_former_semantic_dataset_mapper": ("MaskFormerSemanticDatasetMapper", "mask_former_semantic"),
    "mask_former_instance_dataset_mapper": ("MaskFormerInstanceDatasetMapper", "mask_former_instance"),
    "mask_former_panoptic_dataset_mapper": ("MaskFormerPanopticDatasetMapper", "mask_former_panoptic"),
    "coco_instance_new_baseline_dataset_mapper": ("COCOInstanceNewBaselineDatasetMapper", "coco_instance_lsj"),
    "coco_panoptic_new_baseline_dataset_mapper": ("COCOPanopticNewBaselineDatasetMapper", "coco_panoptic_lsj"),
}


@pytest.mark.parametrize("module", MAPPERS)
def test_published_mapper_does_what_its_preset_does(module: str) -> None:
    name, preset = MAPPERS[module]
    mapper_class = getattr(importlib.import_module(f"mask2former.data.dataset_mappers.{module}"), name)
    assert getattr(mask2former, name) is mapper_class
    cfg = get_cfg()
    cfg.freeze()
    mapper = mapper_class(cfg, True)
    named = get_cfg()
    named.INPUT.DATASET_MAPPER_NAME = preset
    plain = DatasetMapper.from_config(named)
    assert type(mapper.augmentations) is list
    assert str(mapper.augmentations) == str(plain.augmentations.augmentations)
    assert (mapper.preset, mapper.image_format) == (plain.preset, plain.image_format)
    assert mapper_class(cfg, is_train=False).preset is None
    assert isinstance(mapper_class.from_config(cfg), mapper_class)


def test_mapper_applies_what_its_list_holds_when_it_maps(tmp_path: Path) -> None:
    import cv2

    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.full((40, 60, 3), 99, np.uint8))
    labels = np.zeros((40, 60), np.uint8)
    labels[:20] = 3
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), labels)
    (record,) = load_sem_seg(tmp_path / "masks", tmp_path / "images", gt_ext="png", image_ext="jpg")
    mapper = mask2former.MaskFormerSemanticDatasetMapper(get_cfg(), True)
    mapper.augmentations = [T.Resize((32, 24))]
    mapper.augmentations.append(T.RandomFlip(prob=1.0, horizontal=False, vertical=True))
    sample = mapper(record)
    assert tuple(sample["image"].shape) == (3, 32, 24)
    masks = dict(zip(sample["instances"].gt_classes.tolist(), sample["instances"].gt_masks))
    assert masks[3][16:].all()
    assert masks[0][:16].all()


@pytest.mark.parametrize(
    "augmentation",
    [
        T.Resize((30, 20)),
        T.Resize(25),
        T.RandomBrightness(0.5, 1.5),
        T.RandomContrast(intensity_min=0.5, intensity_max=1.5),
        T.RandomSaturation(0.5, 1.5),
        T.RandomFlip(prob=0.3, horizontal=True, vertical=False),
        T.RandomRotation(angle=[-180, 180], sample_style="range", expand=False),
        T.RandomRotation(angle=[0, 90], expand=True, center=[(0.5, 0.5)], sample_style="choice"),
        T.RandomRotation(30),
        T.ResizeShortestEdge(short_edge_length=[20, 30], max_size=50, sample_style="choice"),
        T.ResizeShortestEdge([20, 30], 50),
        T.ResizeScale(min_scale=0.5, max_scale=2.0, target_height=20, target_width=30),
        T.RandomRotation(angle=[-30, 30], expand=True, center=None, sample_style="range", interp=0),
        T.FixedSizeCrop(crop_size=(20, 20)),
        T.FixedSizeCrop(crop_size=(40, 20), pad=False),
        T.FixedSizeCrop(crop_size=(40, 40), pad=True, pad_value=128.0),
        T.RandomApply(T.RandomFlip(prob=1.0), prob=1.0),
        T.RandomApply(T.Resize((30, 20)), prob=0.0),
        T.RandomCrop(crop_type="absolute", crop_size=(16, 16)),
        T.RandomCrop_CategoryAreaConstraint("absolute", (16, 16), 0.75, 255),
    ],
)
def test_published_arguments_make_augmentations(augmentation: T.Augmentation) -> None:
    image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    labels = (image[..., 0] > 99).astype(np.uint8)
    transform = T.AugmentationList([augmentation]).sample(np.random.default_rng(0), (24, 32), labels, image=image)
    changed = transform.apply_image(image)
    assert changed.shape[:2] == transform.apply_segmentation(labels).shape == transform.output_size((24, 32))


def test_resize_brings_to_its_shape_and_refuses_none() -> None:
    resize = T.Resize((30, 20)).sample(np.random.default_rng(0), (7, 9))
    assert resize.output_size((7, 9)) == (30, 20)
    with pytest.raises(ValueError, match="shape must be positive"):
        T.Resize(0)
    with pytest.raises(ValueError, match=r"prob must lie in 0\.\.1, found 'vertical'"):
        T.RandomFlip("vertical")  # type: ignore[arg-type]


def test_rotation_interpolates_as_it_is_told() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 200
    rotated = [
        T.RandomRotation([20, 20], interp=interp).sample(np.random.default_rng(0), (32, 32)).apply_image(image)
        for interp in (0, None)
    ]
    assert np.unique(rotated[0]).tolist() == [0, 200]
    assert len(np.unique(rotated[1])) > 2


def test_window_of_a_smaller_image_is_padded_with_its_value_or_not_at_all() -> None:
    image = np.zeros((10, 12, 3), np.uint8)
    padded, plain = (
        T.FixedSizeCrop((16, 8), pad=pad, pad_value=7).sample(np.random.default_rng(0), (10, 12)).apply_image(image)
        for pad in (True, False)
    )
    assert padded.shape == (16, 8, 3)
    assert (padded[10:] == 7).all()
    assert plain.shape == (10, 8, 3)


def test_random_apply_changes_its_share_of_images_and_looks_at_pixels_where_needed() -> None:
    rng, image = np.random.default_rng(0), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    flip = T.AugmentationList([T.RandomApply(T.RandomFlip(prob=1.0), prob=0.3)])
    changed = [not np.array_equal(flip.sample(rng, (4, 4)).apply_image(image), image) for _ in range(500)]
    assert 0.24 < np.mean(changed) < 0.36
    contrast = T.AugmentationList([T.RandomApply(T.RandomContrast(0.1, 0.2), prob=1.0)])
    assert not np.array_equal(contrast.sample(rng, (4, 4), image=image).apply_image(image), image)
    with pytest.raises(ValueError, match=r"prob must lie in 0\.\.1, found 2"):
        T.RandomApply(T.RandomFlip(), prob=2)


def test_blends_stay_within_their_intensities() -> None:
    rng = np.random.default_rng(0)
    weights = [T.RandomBrightness(0.5, 0.7).sample(rng, (4, 4)).weight for _ in range(50)]
    assert 0.5 <= min(weights) < 0.55 < 0.65 < max(weights) <= 0.7


def test_registered_mapper_of_own_is_built_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(mask2former.MaskFormerSemanticDatasetMapper):
        pass

    monkeypatch.setattr(MAPPER_REGISTRY, "_obj_map", dict(MAPPER_REGISTRY))
    MAPPER_REGISTRY.register(Mine)
    cfg = get_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME = "Mine"
    assert type(build_mapper(cfg)) is Mine
    assert preset_of(cfg).target == "semantic"


def test_published_names_are_exported() -> None:
    assert mask2former.MaskFormer is MaskFormer
    assert mask2former.InstanceSegEvaluator is COCOEvaluator
