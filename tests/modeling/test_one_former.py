"""OneFormer is the published one, of plain layers and accelerated: same weights, same numbers, for each task."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.config import get_cfg
from mask2former.errors import ConfigError, InputError
from mask2former.modeling import build_model, prepare_for_inference
from mask2former.structures import Instances
from mask2former.structures.tasks import TASKS, task_token_ids
from tests.modeling.test_parity import fixture_and_model, image_batch, normalised
from tests.parity import (
    CONFIG_DIR,
    REFERENCE_DIR,
    Fixture,
    assert_close_to_peak,
    build_fixture_model,
    fixture_config,
    load_fixture,
    register_metadata,
)

FIXTURES = tuple(
    f"oneformer/tiny_oneformer_{name}"
    for name in ("swin_seed1", "swin_seed3", "dinat_seed1", "dinat_seed3", "convnext_seed1")
)
TOLERANCE = 2e-5
NUM_DRAWS = 60
NO_SCORE = 1e-35  # below lie numbers that processors may take for 0
STANDARD_ERRORS = 4
RESULTS = {"semantic": "sem_seg", "panoptic": "panoptic_seg", "instance": "instances"}
MODELS = {
    "ade20k_dinat_large_640": "ade20k/dinat/oneformer_dinat_large_bs16_160k.yaml",
    "ade20k_r50": "ade20k/oneformer_R50_bs16_160k.yaml",
    "ade20k_swin_tiny": "ade20k/swin/oneformer_swin_tiny_bs16_160k.yaml",
    "ade20k_swin_large_640": "ade20k/swin/oneformer_swin_large_bs16_160k.yaml",
    "cityscapes_swin_large": "cityscapes/swin/oneformer_swin_large_bs16_90k.yaml",
    "cityscapes_convnext_large": "cityscapes/convnext/oneformer_convnext_large_bs16_90k.yaml",
    "coco_dinat_large": "coco/dinat/oneformer_dinat_large_bs16_100ep.yaml",
    "coco_swin_large": "coco/swin/oneformer_swin_large_bs16_100ep.yaml",
    "mapillary_swin_large": "mapillary_vistas/swin/oneformer_swin_large_bs16_300k.yaml",
}


@pytest.fixture(params=[False, True], ids=["plain", "fast"])
def accelerated(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("name", FIXTURES)
def test_state_dict_names_and_shapes(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == fixture.state_dict_shapes()


@pytest.mark.parametrize("reference", sorted(MODELS))
def test_recipe_builds_published_model(reference: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG_DIR / "oneformer" / MODELS[reference])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    known = json.loads((REFERENCE_DIR / "oneformer" / "state_dict" / f"{reference}.json").read_text())
    entries = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.state_dict().items()
    }
    assert entries == known["state_dict"]


@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_backbone_and_pixel_decoder_match(name: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    images = normalised(model, image_batch(fixture))
    assert_close_to_peak(images, fixture.tensor("padded_input"), tolerance=1e-6)
    for key, features in model.backbone(images).items():
        assert_close_to_peak(features, fixture.tensor(f"backbone/{key}"), tolerance=TOLERANCE)
    maps, mask_features = model.encode_pixels(images)
    assert_close_to_peak(mask_features, fixture.tensor("pixel_decoder/mask_features"), tolerance=TOLERANCE)
    for level, features in enumerate(maps):
        assert_close_to_peak(features, fixture.tensor(f"pixel_decoder/multi_scale_{level}"), tolerance=TOLERANCE)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_head_outputs_match(name: str, task: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    maps, mask_features = model.encode_pixels(normalised(model, image_batch(fixture)))
    ids = model.task_ids([task] * len(mask_features))
    assert torch.equal(ids[0], fixture.tensor(f"{task}/task_tokens"))
    assert_close_to_peak(model.task_mlp(ids)[0], fixture.tensor(f"{task}/task_embedding"), tolerance=TOLERANCE)
    predictions, queries = model.decode_task(maps, mask_features, ids)
    assert_close_to_peak(queries, fixture.tensor(f"{task}/head/query_initial"), tolerance=TOLERANCE)
    prefixes = {f"{task}/head/": predictions[-1]}
    prefixes.update({f"{task}/head/aux_{layer}/": prediction for layer, prediction in enumerate(predictions[:-1])})
    compared = 0
    for prefix, prediction in prefixes.items():
        for key, found in (("pred_logits", prediction.class_logits), ("pred_masks", prediction.mask_logits()[:, :, 0])):
            if prefix + key in fixture:
                assert_close_to_peak(found, fixture.tensor(prefix + key), tolerance=TOLERANCE)
                compared += 1
    assert compared == len([key for key in fixture.keys(f"{task}/head/") if "pred_" in key])


def count_differences(found: Tensor, expected: Tensor) -> int:
    assert found.shape == expected.shape
    return int((found != expected).sum())


def assert_results(result: dict[str, Any], fixture: Fixture, task: str, index: int) -> None:
    prefix = f"{task}/result_{index}/"
    segments = fixture.json(f"{task}/result/segments_info_json")[index]
    if "panoptic_seg" in result:
        ids, found = result["panoptic_seg"]
        assert count_differences(ids, fixture.tensor(prefix + "panoptic_seg")) <= 1  # of 5,673 pixels or more
        assert [{key: segment[key] for key in ("id", "isthing", "category_id")} for segment in found] == segments
    if "sem_seg" in result and prefix + "sem_seg_argmax" in fixture:
        scores, labels = result["sem_seg"].max(0)
        expected = fixture.tensor(prefix + "sem_seg_argmax").where(scores > NO_SCORE, labels)
        assert count_differences(labels, expected) <= 1
    if "sem_seg" in result and prefix + "sem_seg" in fixture:
        assert_close_to_peak(result["sem_seg"], fixture.tensor(prefix + "sem_seg"))
    if "instances" in result:
        assert_instances(result["instances"], fixture, prefix)


def assert_instances(found: Instances, fixture: Fixture, prefix: str) -> None:
    order = found.scores.argsort(descending=True, stable=True)
    # A score is a mean over the pixels of a mask: one at a tie, more or less, moves it by half a pixel's share.
    one_pixel = 0.5 / found.pred_masks[order].flatten(1).sum(1).clamp(min=1)
    differences = (found.scores[order] - fixture.tensor(f"{prefix}instances/scores")).abs()
    assert (differences <= 1e-4 + one_pixel).all()
    assert (differences > 1e-4).sum() <= 1
    assert torch.equal(found.pred_classes[order], fixture.tensor(f"{prefix}instances/pred_classes"))
    if f"{prefix}instances/pred_masks" in fixture:
        masks = fixture.masks(f"{prefix}instances/pred_masks", found.image_size[1])
        assert (found.pred_masks[order].bool() != masks).float().mean() <= 1e-4


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_results_of_a_task_match(name: str, task: str, accelerated: bool) -> None:
    fixture, model = fixture_and_model(name, accelerated)
    batch = [{**sample, "task": f"The task is {task}"} for sample in image_batch(fixture)]
    for index, result in enumerate(model(batch)):
        assert sorted(result) == ["instances", "panoptic_seg", "sem_seg"]
        assert_results(result, fixture, task, index)


@torch.no_grad()
def test_all_tasks_give_each_task_its_own_result_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    passes = []
    encode = model.encode_pixels
    monkeypatch.setattr(model, "encode_pixels", lambda images: passes.append(len(images)) or encode(images))
    batch = image_batch(fixture)
    results = model([{**sample, "task": "all"} for sample in batch])
    assert passes == [len(batch)]
    for task, name in RESULTS.items():
        alone = model([{**sample, "task": task} for sample in batch])
        for index, result in enumerate(results):
            assert sorted(result) == ["instances", "panoptic_seg", "sem_seg"]
            assert_results({name: result[name]}, fixture, task, index)
            if task == "semantic":
                assert torch.equal(result["sem_seg"], alone[index]["sem_seg"])


@torch.no_grad()
def test_images_of_a_batch_may_have_different_tasks() -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    first, second = image_batch(fixture)
    mixed = model([{**first, "task": "instance"}, {**second, "task": "semantic"}])
    assert_results(mixed[0], fixture, "instance", 0)
    assert_results(mixed[1], fixture, "semantic", 1)


@torch.no_grad()
def test_the_model_has_a_task_of_its_own() -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    model.task = "instance"
    try:
        results = model(image_batch(fixture))
    finally:
        model.task = "panoptic"
    assert_results(results[0], fixture, "instance", 0)
    assert not torch.equal(results[0]["sem_seg"], model(image_batch(fixture))[0]["sem_seg"])


def train_batch(fixture: Fixture) -> list[dict[str, Any]]:
    """The training images with their targets, tasks and texts."""
    tasks, tokens = fixture.json("train/tasks_json"), fixture.tensor("train/text_tokens")
    batch = []
    for index, (sample, task) in enumerate(zip(image_batch(fixture), tasks, strict=True)):
        prefix = f"annotation/{task}/"
        shape = fixture.array(f"{prefix}masks_shape_{index}")
        masks = fixture.masks(f"{prefix}masks_{index}", int(shape[-1])).reshape(tuple(shape))
        targets = Instances(tuple(sample["image"].shape[-2:]))
        targets.gt_classes, targets.gt_masks = fixture.tensor(f"{prefix}labels_{index}"), masks
        sentence = f"The task is {task}"
        batch.append({**sample, "instances": targets, "task": sentence, "text": tokens[index]})
    return batch


@pytest.mark.parametrize("name", FIXTURES)
def test_losses_match_in_the_mean(name: str) -> None:
    fixture, model = fixture_and_model(name)
    if "train/tasks_json" not in fixture:
        pytest.skip("a model for inference")
    batch = train_batch(fixture)
    model.train()
    with torch.no_grad():
        texts = model.text_queries([sample["text"] for sample in batch])
        assert_close_to_peak(texts, fixture.tensor("train/text_queries"), tolerance=TOLERANCE)
        draws = [model(batch) for _ in range(NUM_DRAWS)]
    weights = fixture.json("losses_weight_json")
    exact = draws[0]["loss_contrastive"].item() / weights["loss_contrastive"]
    assert exact == pytest.approx(fixture.array("losses/loss_contrastive")[0], abs=1e-5)
    assert sorted(draws[0]) == sorted(weights) == sorted(key.split("/")[1] for key in fixture.keys("losses/loss"))
    for key, weight in weights.items():
        values = torch.stack([draw[key] for draw in draws]).double() / weight
        mean, standard_error = fixture.array(f"losses/{key}").tolist()
        tolerance = STANDARD_ERRORS * (values.var() / NUM_DRAWS + standard_error**2).sqrt().item()
        assert values.mean().item() == pytest.approx(mean, abs=tolerance + 1e-5 * abs(mean)), key


def test_contrastive_decoder_attends_to_positions() -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    decoder = model.sem_seg_head.predictor
    features = fixture.tensor("pixel_decoder/mask_features")
    seen: dict[str, Tensor] = {}
    hook = decoder.class_transformer["decoder"].register_forward_pre_hook(
        lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        decoder.initial_queries(torch.zeros(2, features.shape[1]), features)
    hook.remove()
    assert torch.equal(seen["tokens"][0], seen["tokens"][1])  # positions, the same for all images
    assert not torch.equal(seen["position"][0], seen["position"][1])


def test_gradients_reach_text_and_task() -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    model.train()
    losses = model(train_batch(fixture))
    sum(losses.values()).backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - names
    model.zero_grad(set_to_none=True)
    assert missing == set()


def test_temperature_is_bounded() -> None:
    _, model = fixture_and_model(FIXTURES[0])
    queries, texts = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    scale = model.criterion.logit_scale
    before = scale.detach().clone()
    with torch.no_grad():
        scale.fill_(math.log(100.0))
        bound = model.criterion.contrastive_loss(queries, texts)
        scale.fill_(50.0)
        assert torch.equal(model.criterion.contrastive_loss(queries, texts), bound)
        scale.copy_(before)
    assert model.criterion.contrastive_loss(queries[:1], texts[:1]).item() == 0


@torch.no_grad()
def test_task_tokens_stay_exact_in_bfloat16() -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    ids = model.task_ids(list(TASKS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.task_mlp(ids), model.task_mlp(ids))
        assert model.task_mlp(ids).dtype == torch.float32
    half = build_fixture_model(fixture)
    half.inference_dtype = torch.bfloat16
    prepare_for_inference(half)
    assert torch.equal(half.task_mlp(ids), model.task_mlp(ids))
    expected = model([{**sample, "task": "semantic"} for sample in image_batch(fixture)])
    found = half([{**sample, "task": "semantic"} for sample in image_batch(fixture)])
    assert (found[0]["sem_seg"].argmax(0) == expected[0]["sem_seg"].argmax(0)).float().mean() > 0.8


def test_inference_alone_needs_no_text_branch() -> None:
    fixture = load_fixture(FIXTURES[0])
    trained = fixture_and_model(FIXTURES[0])[1]
    register_metadata()
    cfg = fixture_config(fixture)
    cfg.MODEL.IS_TRAIN = False
    model = build_model(cfg).eval()
    assert not any("text" in name or "prompt" in name for name in model.state_dict())
    outcome = model.load_state_dict(trained.state_dict(), strict=False)
    assert outcome.missing_keys == []
    batch = [{**sample, "task": "panoptic"} for sample in image_batch(fixture)]
    with torch.no_grad():
        assert torch.equal(model(batch)[0]["sem_seg"], trained(batch)[0]["sem_seg"])
    model.train()
    with pytest.raises(InputError, match=r"MODEL\.IS_TRAIN True"):
        model(train_batch(fixture))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "cooking"}, r"expected one of panoptic, instance, semantic"),
        ({"image": [torch.zeros(3, 8, 8)]}, "takes images, found clips"),
    ],
)
def test_wrong_samples_are_refused(change: dict[str, Any], message: str) -> None:
    _, model = fixture_and_model(FIXTURES[0])
    sample = {"image": torch.zeros(3, 64, 64), "task": "panoptic", **change}
    with pytest.raises(InputError, match=message):
        model([sample])


def test_training_needs_task_and_text() -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    batch = train_batch(fixture)
    model.train()
    for key in ("task", "text"):
        with pytest.raises(InputError, match=f"training OneFormer needs '{key}'"):
            model([{name: value for name, value in sample.items() if name != key} for sample in batch])
    with pytest.raises(InputError, match="expected 'text' ids"):
        model([{**sample, "text": sample["text"][1:]} for sample in batch])


def test_one_image_at_a_time_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fixture, model = fixture_and_model(FIXTURES[0])
    model.train()
    with torch.no_grad():
        losses = [model(train_batch(fixture)[:1])["loss_contrastive"].item() for _ in range(2)]
    assert losses == [0, 0]
    assert sum("contrastive loss" in record.message for record in caplog.records) == 1


def test_task_sentence_must_fit() -> None:
    assert len(task_token_ids("panoptic", length=7)) == 7
    with pytest.raises(ConfigError, match=r"INPUT\.TASK_SEQ_LEN: expected at least 7"):
        task_token_ids("panoptic", length=6)
