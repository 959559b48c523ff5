"""The model is the published one, of plain layers and accelerated: same weights, same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.meta_arch.inputs import pad_images
from mask2former.structures import Instances
from tests.parity import (
    Fixture,
    assert_close_to_peak,
    build_fixture_model,
    load_fixture,
)

IMAGE_FIXTURES = ("tiny_resnet_panoptic", "tiny_swin_panoptic", "tiny_semantic_only")
STAGED_FIXTURES = ("tiny_resnet_panoptic", "tiny_swin_panoptic")
NUM_DRAWS = 200
STANDARD_ERRORS = 5  # thirty losses are compared: the largest of so many deviations is rarely below two

_built: dict[tuple[str, bool], tuple[Fixture, nn.Module]] = {}


def fixture_and_model(name: str, accelerated: bool = True) -> tuple[Fixture, nn.Module]:
    key = name, accelerated
    if key not in _built:
        fixture = load_fixture(name)
        _built[key] = fixture, build_fixture_model(fixture, accelerated=accelerated)
    fixture, model = _built[key]
    return fixture, model.eval()


@pytest.fixture(params=[False, True], ids=["plain", "fast"])
def accelerated(request: pytest.FixtureRequest) -> bool:
    return request.param


def image_batch(fixture: Fixture) -> list[dict[str, Any]]:
    batch = []
    while f"input/image_{len(batch)}" in fixture:
        height, width = fixture.array(f"input/output_size_{len(batch)}").tolist()
        batch.append({"image": fixture.tensor(f"input/image_{len(batch)}"), "height": height, "width": width})
    return batch


def clip_frames(fixture: Fixture) -> list[Tensor]:
    return [fixture.tensor(f"input/frame_{index}") for index in range(len(fixture.keys("input/frame_")))]


def normalised(model: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    images, _ = pad_images(batch, mean=model.pixel_mean, std=model.pixel_std, size_divisibility=32)
    return images.tensor


def assert_head_outputs(outputs: dict[str, Any], fixture: Fixture) -> None:
    layers = {"head/": outputs, **{f"head/aux_{i}/": layer for i, layer in enumerate(outputs["aux_outputs"])}}
    compared = 0
    for prefix, layer in layers.items():
        for key in ("pred_logits", "pred_masks"):
            if prefix + key in fixture:
                assert_close_to_peak(layer[key], fixture.tensor(prefix + key))
                compared += 1
    assert compared == len(fixture.keys("head/"))


def assert_panoptic(result: tuple[Tensor, list[dict[str, Any]]], ids: Tensor, segments: list[dict[str, Any]]) -> None:
    assert result[0].dtype == torch.int32
    assert result[0].shape == ids.shape
    assert (result[0] != ids).float().mean() <= 1e-4, "more than isolated pixels differ"
    assert [{key: segment[key] for key in ("id", "isthing", "category_id")} for segment in result[1]] == segments
    assert all(0 < segment["score"] <= 1 for segment in result[1])


def assert_instances(result: Instances, fixture: Fixture, prefix: str) -> None:
    scores = fixture.tensor(f"{prefix}/scores")
    assert len(result) == len(scores)
    torch.testing.assert_close(result.scores, scores, rtol=0, atol=1e-4)
    assert torch.equal(result.pred_classes, fixture.tensor(f"{prefix}/pred_classes"))
    masks = fixture.masks(f"{prefix}/pred_masks", result.image_size[1])
    assert result.pred_masks.shape == masks.shape
    assert (result.pred_masks != masks).float().mean() <= 1e-4
    for mask, box in zip(masks, result.pred_boxes.tensor.tolist()):
        rows, columns = mask.nonzero(as_tuple=True)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert box == [float(side) for side in expected]


@pytest.mark.parametrize("name", [*IMAGE_FIXTURES, "tiny_video"])
def test_model_state_dict_names_and_shapes(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == fixture.state_dict_shapes()


@pytest.mark.parametrize("name", STAGED_FIXTURES)
@torch.no_grad()
def test_padded_input_and_backbone_match(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    images = normalised(model, image_batch(fixture))
    assert_close_to_peak(images, fixture.tensor("padded_input"), tolerance=1e-6)
    for key, features in model.backbone(images).items():
        assert_close_to_peak(features, fixture.tensor(f"backbone/{key}"))


@pytest.mark.parametrize("name", STAGED_FIXTURES)
@torch.no_grad()
def test_pixel_decoder_matches(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    features = {key.split("/")[1]: fixture.tensor(key) for key in fixture.keys("backbone/")}
    mask_features, lowest, maps = model.sem_seg_head.pixel_decoder.forward_features(features)
    assert_close_to_peak(mask_features, fixture.tensor("pixel_decoder/mask_features"))
    assert_close_to_peak(lowest, fixture.tensor("pixel_decoder/transformer_encoder_features"))
    assert len(maps) == 3
    for level, features_at_level in enumerate(maps):
        assert_close_to_peak(features_at_level, fixture.tensor(f"pixel_decoder/multi_scale_{level}"))


@pytest.mark.parametrize("name", IMAGE_FIXTURES)
@torch.no_grad()
def test_head_outputs_match(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    images = normalised(model, image_batch(fixture))
    assert_head_outputs(model.sem_seg_head(model.features(images)), fixture)


@torch.no_grad()
def test_head_outputs_match_for_clip(accelerated: bool) -> None:
    fixture, model = fixture_and_model("tiny_video", accelerated)
    frames = clip_frames(fixture)
    features = model.features(normalised(model, [{"image": frames}]), num_frames=len(frames))
    assert_head_outputs(model.sem_seg_head(features), fixture)


@pytest.mark.parametrize("name", IMAGE_FIXTURES)
@torch.no_grad()
def test_results_match(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    batch = image_batch(fixture)
    results = model(batch)
    assert len(results) == len(batch)
    for index, result in enumerate(results):
        prefix = f"result_{index}/"
        assert_close_to_peak(result["sem_seg"], fixture.tensor(prefix + "sem_seg"))
        assert ("panoptic_seg" in result) == (prefix + "panoptic_seg" in fixture)
        if "panoptic_seg" in result:
            segments = fixture.json("result/segments_info_json")[index]
            assert_panoptic(result["panoptic_seg"], fixture.tensor(prefix + "panoptic_seg"), segments)
            assert_instances(result["instances"], fixture, prefix + "instances")


@torch.no_grad()
def test_results_match_for_clip(accelerated: bool) -> None:
    fixture, model = fixture_and_model("tiny_video", accelerated)
    height, width = fixture.array("input/output_size").tolist()
    (result,) = model([{"image": clip_frames(fixture), "height": height, "width": width}])
    assert result["image_size"] == (height, width)
    assert result["pred_scores"] == pytest.approx(fixture.array("result/pred_scores").tolist(), abs=1e-4)
    assert result["pred_labels"] == fixture.array("result/pred_labels").tolist()
    masks = torch.stack(result["pred_masks"])
    assert masks.dtype == torch.bool
    assert (masks != fixture.masks("result/pred_masks", width)).float().mean() <= 1e-4


@pytest.mark.parametrize("name", [*STAGED_FIXTURES, "tiny_video"])
@torch.no_grad()
def test_losses_match_in_the_mean(name: str) -> None:
    fixture, model = fixture_and_model(name)
    if name == "tiny_video":
        frames = clip_frames(fixture)
        batch, num_frames = [{"image": frames[:2]}, {"image": frames[2:]}], 2
    else:
        batch, num_frames = image_batch(fixture), None
    predictions = model.sem_seg_head.predict(model.features(normalised(model, batch), num_frames=num_frames))
    if "train/pred_masks" in fixture:
        assert_close_to_peak(predictions[-1].mask_logits(), fixture.tensor("train/pred_masks"))
    targets = [fixture.targets(index) for index in range(len(batch))]
    draws = [model.criterion(predictions, targets) for _ in range(NUM_DRAWS)]
    assert sorted(draws[0]) == sorted(key.split("/")[1] for key in fixture.keys("losses/"))
    for key in draws[0]:
        values = torch.stack([draw[key] for draw in draws]).double()
        mean, standard_error = fixture.array(f"losses/{key}").tolist()
        tolerance = STANDARD_ERRORS * (values.var() / NUM_DRAWS + standard_error**2).sqrt().item()
        assert values.mean().item() == pytest.approx(mean, abs=tolerance + 1e-5 * abs(mean)), key


def test_loss_weights_match() -> None:
    fixture, model = fixture_and_model("tiny_resnet_panoptic")
    weights = fixture.json("losses_weight_json")
    weighted = model.criterion.weight({name: torch.ones(()) for name in weights})
    assert {name: value.item() for name, value in weighted.items()} == weights
