"""Test-time augmentation: the copies, the published mean of semantic maps, and that equal evidence changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mask2former import Predictor, SemanticSegmentorWithTTA, get_cfg
from mask2former.config import CfgNode
from mask2former.errors import ConfigError, InputError
from mask2former.inference.test_time_augmentation import CopyMaker, MaskFormerWithTTA, with_test_time_augmentation
from mask2former.modeling import MaskFormer, QueryPrediction
from mask2former.modeling.postprocess import InferenceOptions
from tests.parity import NUM_CLASSES, build_fixture_model, load_fixture

ALL_TASKS = InferenceOptions(semantic=True, panoptic=True, instance=True, detections_per_image=10)


def augmented_config(min_sizes: list[int], *, flip: bool, max_size: int = 4000) -> CfgNode:
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP, cfg.TEST.AUG.MAX_SIZE = min_sizes, flip, max_size
    return cfg


def random_image(height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


class Backbone(nn.Module):
    size_divisibility = 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": images}


class ChannelHead(nn.Module):
    """A query for each of three colours, ordered by place from left to right: mirrored, they stand in another order."""

    num_classes = 4

    def predict(self, features: dict[str, Tensor]) -> list[QueryPrediction]:
        maps = F.avg_pool2d(features["images"], 4)[0]  # (3, h, w)
        masks = (maps - 100) / 4
        mass = masks.sigmoid()
        centers = (mass.sum(1) * torch.arange(mass.shape[-1])).sum(-1) / mass.sum((1, 2)).clamp(min=1e-6)
        order = centers.argsort()
        classes = torch.tensor([[6.0, 0, 0, 0, 0], [0, 6.0, 0, 0, 0], [0, 0, 2.0, 0, 1.0]])
        return [QueryPrediction.from_logits(classes[order][None], masks[order][None])]


@pytest.fixture
def channel_model() -> MaskFormer:
    return MaskFormer(
        Backbone(),
        sem_seg_head=ChannelHead(),
        criterion=nn.Module(),  # type: ignore[arg-type]
        inference=ALL_TASKS,
        size_divisibility=32,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    ).eval()


def colored_image(height: int, width: int) -> Tensor:
    """Red left, green in the middle, blue in a corner of the rest."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0, :, : width // 4] = 200
    image[1, height // 4 :, width // 4 : width // 2] = 200
    image[2, : height // 2, 3 * width // 4 :] = 200
    return image


def assert_same_results(actual: dict[str, Any], expected: dict[str, Any], *, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(actual["sem_seg"], expected["sem_seg"], rtol=0, atol=tolerance)
    assert torch.equal(actual["panoptic_seg"][0], expected["panoptic_seg"][0])
    for found, wanted in zip(actual["panoptic_seg"][1], expected["panoptic_seg"][1], strict=True):
        assert found == pytest.approx(wanted, abs=tolerance)
    assert torch.equal(actual["instances"].pred_classes, expected["instances"].pred_classes)
    assert torch.equal(actual["instances"].pred_masks, expected["instances"].pred_masks)
    torch.testing.assert_close(actual["instances"].scores, expected["instances"].scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
@pytest.mark.parametrize("output", [None, (33, 47)])
def test_identical_copies_give_the_identical_result(size: tuple[int, int], output: tuple[int, int] | None) -> None:
    model = build_fixture_model(load_fixture("tiny_resnet_panoptic"))
    sample: dict[str, Any] = {"image": random_image(*size)}
    if output is not None:
        sample |= {"height": output[0], "width": output[1]}
    with torch.no_grad():
        (expected,) = model([sample])
    augmented = with_test_time_augmentation(augmented_config([min(size)] * 3, flip=False), model)
    assert isinstance(augmented, MaskFormerWithTTA)
    (actual,) = augmented([sample])
    assert len(expected["instances"]) > 0
    assert_same_results(actual, expected, tolerance=0.0)


def test_mirrored_copies_of_an_equivariant_model_give_the_same_result(channel_model: MaskFormer) -> None:
    sample = {"image": colored_image(64, 96)}
    (expected,) = channel_model([sample])
    assert len(expected["panoptic_seg"][1]) == 3
    (actual,) = with_test_time_augmentation(augmented_config([64], flip=True), channel_model)([sample])
    assert_same_results(actual, expected, tolerance=1e-4)


def test_copies_of_other_sizes_and_odd_images_find_the_same_segments(channel_model: MaskFormer) -> None:
    batch: list[dict[str, Any]] = [{"image": colored_image(61, 93)}, {"image": colored_image(120, 85), "height": 50}]
    expected = [channel_model([sample])[0] for sample in batch]
    actual = with_test_time_augmentation(augmented_config([50, 61, 97], flip=True), channel_model)(batch)
    for found, wanted in zip(actual, expected, strict=True):
        by_class = [
            {info["category_id"]: result["panoptic_seg"][0] == info["id"] for info in result["panoptic_seg"][1]}
            for result in (found, wanted)
        ]
        assert by_class[0].keys() == by_class[1].keys() == {0, 1, 2}
        for label, mask in by_class[1].items():
            overlap = (mask & by_class[0][label]).sum() / (mask | by_class[0][label]).sum()
            assert overlap > 0.9
        assert found["sem_seg"].shape == wanted["sem_seg"].shape
        assert found["instances"].image_size == wanted["instances"].image_size


def test_augmentation_without_anything_found_is_empty(channel_model: MaskFormer) -> None:
    channel_model.inference = InferenceOptions(
        semantic=False, panoptic=True, instance=True, object_mask_threshold=1.0, score_threshold=0.999
    )
    augmented = with_test_time_augmentation(augmented_config([32, 64], flip=True), channel_model)
    for image in (torch.zeros(3, 64, 64, dtype=torch.uint8), random_image(1, 1)):
        (result,) = augmented([{"image": image}])
        assert result.keys() == {"panoptic_seg", "instances"}
        assert result["panoptic_seg"][1] == []
        assert not result["panoptic_seg"][0].any()
        assert len(result["instances"]) == 0
    assert augmented([]) == []


@torch.no_grad()
def test_semantic_augmentation_is_the_published_mean() -> None:
    model = build_fixture_model(load_fixture("tiny_resnet_panoptic"))
    model.inference = InferenceOptions(semantic=True)
    image = random_image(61, 93)
    maps = []
    for size in ((40, 61), (70, 107)):
        array = np.asarray(
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        )
        for is_mirrored in (False, True):
            copy = torch.from_numpy(np.ascontiguousarray((array[:, ::-1] if is_mirrored else array).transpose(2, 0, 1)))
            result = model([{"image": copy, "height": 45, "width": 70}])[0]["sem_seg"]
            maps.append(result.flip(2) if is_mirrored else result)
    augmented = with_test_time_augmentation(augmented_config([40, 70], flip=True), model)
    assert type(augmented) is SemanticSegmentorWithTTA
    (actual,) = augmented([{"image": image, "height": 45, "width": 70}])
    assert actual.keys() == {"sem_seg"}
    torch.testing.assert_close(actual["sem_seg"], torch.stack(maps).mean(0), rtol=1e-5, atol=1e-6)
    model.inference = ALL_TASKS
    (together,) = with_test_time_augmentation(augmented_config([40, 70], flip=True), model)(
        [{"image": image, "height": 45, "width": 70}]
    )
    assert together["sem_seg"].shape == (NUM_CLASSES, 45, 70)


@torch.no_grad()  # with gradients attention takes another path, whose last digits differ
@pytest.mark.parametrize("fixture", ["tiny_resnet_panoptic", "tiny_per_pixel"])
@pytest.mark.parametrize("flip", [False, True])
def test_semantic_labels_are_where_the_mean_is_largest(fixture: str, flip: bool) -> None:
    model: Any = build_fixture_model(load_fixture(fixture))
    cfg = augmented_config([64, 96], flip=flip)
    sample = {"image": random_image(70, 90), "height": 61, "width": 83}
    (scores,) = with_test_time_augmentation(cfg, model)([sample])
    model.inference = replace(model.inference, semantic_labels=True)
    cfg.TEST.SEMANTIC_LABELS = True
    (labels,) = with_test_time_augmentation(cfg, model)([sample])
    assert model.inference.semantic_labels
    assert torch.equal(labels["sem_seg"], scores["sem_seg"].argmax(0).int())
    assert model([sample])[0]["sem_seg"].shape == (61, 83)


def test_per_pixel_model_is_augmented() -> None:
    model = build_fixture_model(load_fixture("tiny_per_pixel"))
    sample = {"image": random_image(64, 96)}
    (actual,) = with_test_time_augmentation(augmented_config([64, 64, 64], flip=False), model)([sample])
    with torch.no_grad():  # as augmentation infers: with gradients a CPU takes other kernels
        (expected,) = model([sample])
    assert torch.equal(actual["sem_seg"], expected["sem_seg"])


def test_augmentation_infers_under_bfloat16(channel_model: MaskFormer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = with_test_time_augmentation(augmented_config([64, 96], flip=True), channel_model)(
            [{"image": colored_image(64, 96)}]
        )
    assert result["sem_seg"].dtype == torch.float32
    assert len(result["panoptic_seg"][1]) == 3


def test_copies_begin_with_the_size_next_to_the_image_and_are_made_one_at_a_time() -> None:
    maker = CopyMaker.from_config(augmented_config([20, 100, 60], flip=True, max_size=110))
    assert len(maker) == 6
    assert "20, 100, 60, each mirrored too" in maker.describe()
    image = random_image(61, 93)
    copies = maker.copies({"image": image, "file_name": "kept.jpg"})
    first = next(copies)
    assert first.sample["image"].shape == (3, 60, 91)
    assert (first.sample["height"], first.sample["width"], first.sample["file_name"]) == (61, 93, "kept.jpg")
    sizes = [(tuple(copy.sample["image"].shape[1:]), copy.is_mirrored) for copy in copies]
    assert sizes == [((60, 91), True), ((72, 110), False), ((72, 110), True), ((20, 30), False), ((20, 30), True)]
    same = list(CopyMaker.from_config(augmented_config([61], flip=True)).copies({"image": image}))
    assert torch.equal(same[0].sample["image"], image)
    assert torch.equal(same[1].sample["image"], image.flip(2))


def test_copies_read_the_file_where_there_is_no_image(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "image.png")
    cfg = augmented_config([20], flip=False)
    cfg.INPUT.FORMAT = "RGB"
    (copy,) = CopyMaker.from_config(cfg).copies({"file_name": str(tmp_path / "image.png")})
    assert torch.equal(copy.sample["image"], torch.from_numpy(array).permute(2, 0, 1))
    with pytest.raises(InputError, match=r"absent\.png"):
        list(CopyMaker.from_config(cfg).copies({"file_name": str(tmp_path / "absent.png")}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MIN_SIZES", [], r"TEST\.AUG\.MIN_SIZES: expected at least one size, .*found \[\]"),
        ("MIN_SIZES", [640, 0], r"TEST\.AUG\.MIN_SIZES.*found \[640, 0\]"),
        ("MAX_SIZE", 0, r"TEST\.AUG\.MAX_SIZE: expected at least 1 pixel, found 0"),
    ],
)
def test_wrong_values_of_the_config_are_named(key: str, value: Any, message: str) -> None:
    cfg = get_cfg()
    cfg.TEST.AUG[key] = value
    with pytest.raises(ConfigError, match=message):
        SemanticSegmentorWithTTA(cfg, nn.Identity().eval())


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": [torch.zeros(3, 8, 8)]}, r"takes images \(C, H, W\): found list"),
        ({"image": torch.zeros(2, 3, 8, 8)}, r"found shape \(2, 3, 8, 8\)"),
        ({"height": 3}, r"'image' or 'file_name', found keys \['height'\]"),
    ],
)
def test_samples_that_are_no_image_are_refused(channel_model: MaskFormer, sample: dict[str, Any], message: str) -> None:
    augmented = with_test_time_augmentation(augmented_config([64], flip=True), channel_model)
    with pytest.raises(InputError, match=message):
        augmented([sample])


def test_augmentation_leaves_the_mode_of_every_part(channel_model: MaskFormer) -> None:
    channel_model.train()
    channel_model.backbone.eval()  # frozen
    augmented = with_test_time_augmentation(augmented_config([64], flip=True), channel_model)
    assert augmented.training
    assert channel_model.training
    assert not channel_model.backbone.training


def test_model_without_semantic_results_is_refused(channel_model: MaskFormer) -> None:
    channel_model.inference = InferenceOptions(semantic=False, panoptic=True)
    augmented = SemanticSegmentorWithTTA(augmented_config([64], flip=True), channel_model)
    with pytest.raises(ConfigError, match=r"returns \['panoptic_seg'\] but no 'sem_seg'.*SEMANTIC_ON True"):
        augmented([{"image": colored_image(64, 64)}])


@pytest.mark.parametrize(("argument", "enabled"), [(True, False), (None, True), (None, False), (False, True)])
def test_predictor_augments_as_asked(
    channel_model: MaskFormer, monkeypatch: pytest.MonkeyPatch, argument: bool | None, enabled: bool
) -> None:
    monkeypatch.setattr("mask2former.inference.predictor.build_model", lambda cfg: channel_model)
    cfg = augmented_config([50, 64], flip=True)
    cfg.MODEL.DEVICE, cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.AUG.ENABLED = "cpu", "RGB", 64, enabled
    seen = []
    monkeypatch.setattr(channel_model, "pad", lambda batch: seen.append(batch) or MaskFormer.pad(channel_model, batch))
    results = Predictor(cfg, augment=argument)(colored_image(64, 96).permute(1, 2, 0).numpy())
    assert len(results["panoptic_seg"][1]) == 3
    assert len(seen) == (4 if argument or (argument is None and enabled) else 1)


def test_augmented_results_are_made_by_the_postprocessing_of_the_model(channel_model: MaskFormer) -> None:
    def postprocess(class_logits: Tensor, mask_logits: Tensor, **others: Any) -> dict[str, Any]:
        return {"seen": (len(class_logits), others["geometry"].output)}

    channel_model.postprocess = postprocess
    channel_model.inference = replace(ALL_TASKS, semantic=False)
    augmented = with_test_time_augmentation(augmented_config([32, 64], flip=True), channel_model)
    sample = {"image": random_image(32, 32), "height": 20, "width": 24}
    assert augmented([sample]) == [{"seen": (3, (20, 24))}]
