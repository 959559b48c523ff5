from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling import postprocess
from mask2former.modeling.postprocess import (
    InferenceOptions,
    MaskGeometry,
    infer_clip,
    infer_image,
    largest_of_resized,
)
from mask2former.modeling.prediction import QueryPrediction

NUM_QUERIES = 9
NUM_CLASSES = 6
THINGS = {0, 1, 2}
GEOMETRY = MaskGeometry(padded=(64, 96), image=(61, 93), output=(50, 70))
ALL_TASKS = InferenceOptions(
    semantic=True,
    panoptic=True,
    instance=True,
    object_mask_threshold=0.3,
    overlap_threshold=0.4,
    detections_per_image=20,
)


def random_logits(*, sharpness: float = 3.0) -> tuple[Tensor, Tensor]:
    class_logits = sharpness * torch.randn(NUM_QUERIES, NUM_CLASSES + 1)
    return class_logits, F.interpolate(8 * torch.randn(1, NUM_QUERIES, 5, 6), (16, 24), mode="bicubic")[0]


def as_prediction(class_logits: Tensor, mask_logits: Tensor) -> QueryPrediction:
    return QueryPrediction.from_logits(class_logits[None], mask_logits[None])


def enlarged(mask_logits: Tensor, geometry: MaskGeometry = GEOMETRY) -> Tensor:
    padded = F.interpolate(mask_logits[None], geometry.padded, mode="bilinear", align_corners=False)
    cropped = padded[:, :, : geometry.image[0], : geometry.image[1]]
    return F.interpolate(cropped, geometry.output, mode="bilinear", align_corners=False)[0]


def naive_panoptic(
    class_logits: Tensor, masks: Tensor, options: InferenceOptions
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Segment by segment, over full maps of all queries."""
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = [q for q in range(NUM_QUERIES) if labels[q] != NUM_CLASSES and scores[q] > options.object_mask_threshold]
    ids, segments, stuff = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    if not kept:
        return ids, segments
    probs = masks[kept].sigmoid()
    winner = (probs * scores[kept][:, None, None]).argmax(0)
    for position, query in enumerate(kept):
        label, own = int(labels[query]), probs[position] >= 0.5
        won = winner == position
        if not (won & own).any() or won.sum().item() / own.sum().item() < options.overlap_threshold:
            continue
        if label not in stuff:
            segments.append({"id": len(segments) + 1, "isthing": label in THINGS, "category_id": label})
        segment_id = stuff.get(label, len(segments))
        if label not in THINGS:
            stuff[label] = segment_id
        ids[won & own] = segment_id
    return ids, segments


@pytest.fixture(params=[1 << 25, 7 * 9 * 96, 1], ids=["one strip", "strips of several rows", "strips of a row"])
def _strip_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mask2former.ops.masks._CPU_STRIP_PIXELS", request.param)


@pytest.mark.usefixtures("_strip_pixels")
@pytest.mark.parametrize("seed", range(4))
def test_panoptic_equals_the_definition(seed: int) -> None:
    torch.manual_seed(seed)
    class_logits, mask_logits = random_logits()
    ids, segments = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=ALL_TASKS, thing_ids=THINGS)[
        "panoptic_seg"
    ]
    expected_ids, expected_segments = naive_panoptic(class_logits, enlarged(mask_logits), ALL_TASKS)
    assert ids.dtype == torch.int32
    assert torch.equal(ids, expected_ids)
    assert [{k: v for k, v in segment.items() if k != "score"} for segment in segments] == expected_segments
    assert len(segments) > 0


@pytest.mark.usefixtures("_strip_pixels")
def test_semantic_equals_the_definition() -> None:
    class_logits, mask_logits = random_logits()
    found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=ALL_TASKS)["sem_seg"]
    expected = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], enlarged(mask_logits).sigmoid())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_strip_pixels")
def test_semantic_alone_resizes_after_the_sum() -> None:
    class_logits, mask_logits = random_logits()
    found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=InferenceOptions())
    padded = F.interpolate(mask_logits[None], GEOMETRY.padded, mode="bilinear", align_corners=False)[0]
    maps = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], padded.sigmoid())[None, :, :61, :93]
    expected = F.interpolate(maps, GEOMETRY.output, mode="bilinear", align_corners=False)[0]
    assert list(found) == ["sem_seg"]
    torch.testing.assert_close(found["sem_seg"], expected, rtol=1e-4, atol=1e-5)
    before = InferenceOptions(resize_before_inference=True)
    found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=before)
    expected = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], enlarged(mask_logits).sigmoid())
    torch.testing.assert_close(found["sem_seg"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_strip_pixels")
@pytest.mark.parametrize(
    "options",
    [ALL_TASKS, InferenceOptions(), InferenceOptions(resize_before_inference=True)],
    ids=["all tasks", "resized after the sum", "resized before"],
)
@pytest.mark.parametrize("output", [GEOMETRY.output, GEOMETRY.image])
def test_semantic_labels_are_those_of_the_largest_scores(options: InferenceOptions, output: tuple[int, int]) -> None:
    class_logits, mask_logits = random_logits()
    geometry = replace(GEOMETRY, output=output)
    scores = infer_image(class_logits, mask_logits, geometry=geometry, options=options)["sem_seg"]
    labels_only = replace(options, semantic_labels=True)
    labels = infer_image(class_logits, mask_logits, geometry=geometry, options=labels_only)["sem_seg"]
    assert labels.dtype == torch.int32
    assert torch.equal(labels, scores.argmax(0).int())
    assert len(labels.unique()) > 1


def test_first_of_equal_scores_is_the_label() -> None:
    maps = torch.zeros(NUM_CLASSES, *GEOMETRY.image)
    maps[2:, :, 40:] = 1.0
    labels = largest_of_resized(maps, GEOMETRY)
    assert torch.equal(labels, GEOMETRY.image_to_output(maps).argmax(0).int())
    assert labels.unique().tolist() == [0, 2]


@pytest.mark.parametrize("members", [[], [0], [1, 2, 0], [2, 2, 2, 2], [1, 0, 3, 3, 4], [3, 4, 4, 0, 1, 1, 5], [3, 1]])
def test_masks_are_rearranged_in_their_place(members: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_SMALL_MASKS", 0)
    masks = torch.rand(7, 3, 2) > 0.5
    expected = masks[torch.tensor(members, dtype=torch.long)]
    found = postprocess._rearranged(masks, torch.tensor(members, dtype=torch.long))
    assert torch.equal(found, expected)
    assert not len(found) or found.data_ptr() == masks.data_ptr()


@pytest.mark.parametrize("seed", range(20))
def test_any_masks_are_rearranged_in_their_place(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_SMALL_MASKS", 0)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.arange(30)[:, None, None].expand(30, 2, 3).clone()
    members = torch.randint(30, (seed + 10,), generator=generator)
    if seed % 2:
        members = torch.randperm(30, generator=generator)
    expected = masks[members]
    assert torch.equal(postprocess._rearranged(masks, members), expected)


@pytest.mark.usefixtures("_strip_pixels")
@pytest.mark.parametrize("with_panoptic", [True, False])
def test_instances_equal_the_definition(with_panoptic: bool) -> None:
    class_logits, mask_logits = random_logits(sharpness=1.0)
    options = InferenceOptions(semantic=False, panoptic=with_panoptic, instance=True, detections_per_image=25)
    found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=options, thing_ids=THINGS)["instances"]
    probs, logits = class_logits.softmax(-1)[:, :-1], enlarged(mask_logits)
    best = probs.flatten().topk(25).indices.tolist()
    expected = []
    for query, label in (divmod(pair, NUM_CLASSES) for pair in best):
        mask = logits[query] > 0
        score = probs[query, label] * (logits[query].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        if label in THINGS or not with_panoptic:
            expected.append((score.item(), label, mask))
    expected.sort(key=lambda triple: -triple[0])
    assert len(found) == len(expected) > 0
    assert found.image_size == GEOMETRY.output
    for index, (score, label, mask) in enumerate(expected):
        assert found.scores[index].item() == pytest.approx(score, abs=1e-5)
        assert found.pred_classes[index].item() == label
        assert torch.equal(found.pred_masks[index], mask)
    assert (found.pred_boxes.area() > 0).any()


def test_instances_below_the_score_threshold_are_dropped() -> None:
    class_logits, mask_logits = random_logits()
    options = InferenceOptions(semantic=False, instance=True, detections_per_image=50)
    strict = InferenceOptions(semantic=False, instance=True, detections_per_image=50, score_threshold=0.25)
    all_found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=options)["instances"]
    found = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=strict)["instances"]
    assert 0 < len(found) < len(all_found)
    torch.testing.assert_close(found.scores, all_found.scores[all_found.scores >= 0.25])


def test_nothing_detected_gives_empty_results() -> None:
    class_logits, mask_logits = random_logits()
    class_logits[:, -1] = 100.0
    options = InferenceOptions(panoptic=True, instance=True, object_mask_threshold=0.8, score_threshold=0.1)
    results = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=options, thing_ids=THINGS)
    ids, segments = results["panoptic_seg"]
    assert ids.shape == GEOMETRY.output
    assert ids.dtype == torch.int32
    assert ids.eq(0).all()
    assert segments == []
    assert len(results["instances"]) == 0
    assert results["instances"].pred_masks.shape == (0, *GEOMETRY.output)
    assert results["instances"].pred_boxes.tensor.shape == (0, 4)
    assert results["sem_seg"].abs().max() < 1e-6


def test_masks_that_are_empty_give_no_segment_and_zero_scores() -> None:
    class_logits, mask_logits = random_logits()
    results = infer_image(
        class_logits, torch.full_like(mask_logits, -200.0), geometry=GEOMETRY, options=ALL_TASKS, thing_ids=THINGS
    )
    assert results["panoptic_seg"][0].eq(0).all()
    assert results["panoptic_seg"][1] == []
    assert results["instances"].scores.eq(0).all()
    assert results["instances"].pred_boxes.tensor.eq(0).all()


def test_stuff_of_one_class_is_one_segment_with_the_larger_score() -> None:
    class_logits = torch.zeros(3, NUM_CLASSES + 1)
    class_logits[0, 4], class_logits[1, 4], class_logits[2, 1] = 5.0, 7.0, 6.0
    mask_logits = torch.full((3, 4, 6), -9.0)
    mask_logits[0, :, :2] = mask_logits[1, :, 4:] = mask_logits[2, :, 2:4] = 9.0
    geometry = MaskGeometry((4, 6), (4, 6), (4, 6))
    options = InferenceOptions(semantic=False, panoptic=True)
    ids, segments = infer_image(class_logits, mask_logits, geometry=geometry, options=options, thing_ids={1})[
        "panoptic_seg"
    ]
    assert ids[0].tolist() == [1, 1, 2, 2, 1, 1]
    assert [(s["id"], s["category_id"], s["isthing"]) for s in segments] == [(1, 4, False), (2, 1, True)]
    assert segments[0]["score"] == pytest.approx(class_logits[1].softmax(0)[4].item())


def test_every_class_is_a_thing_where_things_are_unknown() -> None:
    class_logits, mask_logits = random_logits()
    _, segments = infer_image(class_logits, mask_logits, geometry=GEOMETRY, options=ALL_TASKS)["panoptic_seg"]
    assert all(segment["isthing"] for segment in segments)


@pytest.mark.usefixtures("_strip_pixels")
def test_clip_keeps_the_ten_best_pairs() -> None:
    class_logits, masks = random_logits()
    mask_logits = torch.stack([masks, masks.flip(-1), masks.flip(-2)], dim=1)  # (Q, T, h, w)
    result = infer_clip(as_prediction(class_logits, mask_logits), geometry=GEOMETRY)
    probs = class_logits.softmax(-1)[:, :-1].flatten()
    scores, pairs = probs.topk(10)
    assert result["image_size"] == GEOMETRY.output
    assert result["pred_scores"] == pytest.approx(scores.tolist())
    assert result["pred_labels"] == (pairs % NUM_CLASSES).tolist()
    for pair, mask in zip(pairs.tolist(), result["pred_masks"], strict=True):
        assert torch.equal(mask, enlarged(mask_logits[pair // NUM_CLASSES]) > 0)


def test_fewer_pairs_than_wanted_are_all_kept() -> None:
    class_logits, masks = torch.randn(2, 3), torch.randn(2, 1, 4, 6)
    geometry = MaskGeometry((4, 6), (4, 6), (4, 6))
    assert len(infer_clip(as_prediction(class_logits, masks), geometry=geometry)["pred_masks"]) == 4
    options = InferenceOptions(semantic=False, instance=True)
    assert len(infer_image(class_logits, masks[:, 0], geometry=geometry, options=options)["instances"]) == 4


def test_results_of_queries_that_are_all_void_are_empty() -> None:
    class_logits = torch.zeros(NUM_QUERIES, NUM_CLASSES + 1)
    class_logits[:, -1] = 20
    options = InferenceOptions(
        semantic=False, panoptic=True, instance=True, object_mask_threshold=0.5, score_threshold=0.5
    )
    found = infer_image(class_logits, random_logits()[1], geometry=GEOMETRY, options=options, thing_ids=THINGS)
    ids, segments = found["panoptic_seg"]
    assert ids.shape == GEOMETRY.output
    assert not ids.any()
    assert segments == []
    assert found["instances"].pred_masks.shape == (0, *GEOMETRY.output)
