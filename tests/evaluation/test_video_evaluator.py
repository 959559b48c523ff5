"""Video AP on cases worked by hand, the results file, and wrong input."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former import get_cfg
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.evaluation import YTVISEvaluator, build_evaluator, evaluate_video
from mask2former.evaluation.__main__ import main
from mask2former.evaluation.video_average_precision import (
    compute_video_average_precision,
    join_frames,
    mean_visible_area,
)
from mask2former.structures import MaskTrack, bitmasks_to_rles
from mask2former.structures.metadata import MetadataCatalog
from mask2former.structures.segmentations import run_lengths

HEIGHT, WIDTH, LENGTH = 10, 12, 4
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]

Track = list[tuple[int, int] | None]  # for each frame the columns [first, last) that the object fills over all rows


def _masks(columns: Track) -> np.ndarray:
    masks = np.zeros((len(columns), HEIGHT, WIDTH), dtype=bool)
    for mask, span in zip(masks, columns, strict=True):
        if span is not None:
            mask[:, span[0] : span[1]] = True
    return masks


def _segmentations(columns: Track) -> list[Any]:
    rles = bitmasks_to_rles(_masks(columns))
    return [None if span is None else rle for span, rle in zip(columns, rles, strict=True)]


def _truth(tracks: list[dict[str, Any]], *, num_videos: int = 1) -> dict[str, Any]:
    videos = [{"id": i, "height": HEIGHT, "width": WIDTH, "length": LENGTH} for i in range(1, num_videos + 1)]
    annotations = [
        {"video_id": 1, "category_id": 7, "iscrowd": 0, **track, "id": i, "segmentations": _segmentations(track["at"])}
        for i, track in enumerate(tracks, start=1)
    ]
    return {"videos": videos, "annotations": annotations, "categories": CATEGORIES}


def _results(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    results = []
    for detection in detections:
        entry = {"video_id": 1, "category_id": 7, **detection, "segmentations": _segmentations(detection["at"])}
        results.append({key: value for key, value in entry.items() if key != "at"})
    return results


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., dict[str, float]]:
    def evaluate(tracks: list[dict[str, Any]], detections: list[dict[str, Any]], **options: Any) -> dict[str, float]:
        truth, results = tmp_path / "truth.json", tmp_path / "results.json"
        truth.write_text(json.dumps(_truth(tracks, **options)))
        results.write_text(json.dumps(_results(detections)))
        return evaluate_video(truth, results)["segm"]

    return evaluate


STILL: Track = [(2, 6)] * LENGTH
FULL = pytest.approx(100.0, abs=1e-10)  # pycocotools adds an epsilon to what it divides by


def test_video_ap_of_perfect_results(evaluated: Callable[..., dict[str, float]]) -> None:
    metrics = evaluated([{"at": STILL}], [{"at": STILL, "score": 0.3}])
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AP-cat")] == [FULL] * 7
    assert np.isnan(metrics["AP-dog"])  # it is nowhere in the truth
    assert np.isnan(metrics["APm"])
    assert np.isnan(metrics["APl"])


def test_video_overlap_is_over_all_frames(evaluated: Callable[..., dict[str, float]]) -> None:
    # Found in two of four frames: 80 of 160 pixels, an IoU of exactly 0.5, which counts at the first threshold alone.
    metrics = evaluated([{"at": STILL}], [{"at": [(2, 6), None, (2, 6), None], "score": 0.9}])
    assert metrics["AP"] == pytest.approx(10.0)
    assert metrics["AP50"] == FULL
    assert metrics["AP75"] == 0.0
    assert metrics["AR10"] == pytest.approx(10.0)
    # The mean of frame IoUs would be 0.75 here: sums are 40 + 20 of 40 + 40, in frames that one of them shows.
    metrics = evaluated([{"at": [(0, 4), (0, 4), None, None]}], [{"at": [(0, 4), (0, 2), None, None], "score": 0.9}])
    assert metrics["AP"] == pytest.approx(60.0)  # 0.75: thresholds 0.5, 0.55, …, 0.75


def test_video_overlap_counts_frames_that_only_one_shows(evaluated: Callable[..., dict[str, float]]) -> None:
    # 40 pixels in common, 40 more in a frame that the object is not in: 40 / 80.
    metrics = evaluated([{"at": [(0, 4), None, None, None]}], [{"at": [(0, 4), (0, 4), None, None], "score": 1.0}])
    assert metrics["AP"] == pytest.approx(10.0)


def test_video_ap_needs_the_same_identity_over_time(evaluated: Callable[..., dict[str, float]]) -> None:
    # Two objects whose identities are exchanged half-way: each overlaps each by 1 / 3, which hits nothing.
    tracks: list[dict[str, Any]] = [{"at": [(0, 4)] * 4}, {"at": [(8, 12)] * 4}]
    exchanged = [
        {"at": [(0, 4), (0, 4), (8, 12), (8, 12)], "score": 0.9},
        {"at": [(8, 12), (8, 12), (0, 4), (0, 4)], "score": 0.8},
    ]
    assert evaluated(tracks, exchanged)["AP"] == 0.0
    assert evaluated(tracks, [{**track, "score": 0.5} for track in tracks])["AP"] == FULL


def test_video_ap_ranks_results_by_score(evaluated: Callable[..., dict[str, float]]) -> None:
    tracks = [{"at": STILL}]
    wrong, right = {"at": [(8, 12)] * LENGTH}, {"at": STILL}
    assert evaluated(tracks, [{**wrong, "score": 0.2}, {**right, "score": 0.9}])["AP"] == FULL
    # A miss before the hit: precision 1 / 2 at every recall. One result a video finds nothing, ten find it.
    metrics = evaluated(tracks, [{**wrong, "score": 0.9}, {**right, "score": 0.2}])
    assert metrics["AP"] == pytest.approx(50.0)
    assert (metrics["AR1"], metrics["AR10"]) == (0.0, FULL)


def test_video_ap_of_half_the_objects(evaluated: Callable[..., dict[str, float]]) -> None:
    # Recall 0.5 at precision 1: 51 of the 101 recall levels from 0 to 0.5.
    metrics = evaluated([{"at": STILL}, {"at": [(8, 12)] * LENGTH}], [{"at": STILL, "score": 0.9}])
    assert metrics["AP"] == pytest.approx(100 * 51 / 101)
    assert metrics["AR10"] == 50.0


def test_video_ap_is_the_mean_over_categories(evaluated: Callable[..., dict[str, float]]) -> None:
    tracks = [{"at": STILL}, {"at": [(8, 12)] * LENGTH, "category_id": 9}]
    metrics = evaluated(tracks, [{"at": STILL, "score": 0.9}, {"at": [(8, 12)] * LENGTH, "score": 0.8}])
    assert (metrics["AP-cat"], metrics["AP-dog"], metrics["AP"]) == (FULL, 0.0, pytest.approx(50.0))


def test_video_results_of_other_videos_do_not_hit(evaluated: Callable[..., dict[str, float]]) -> None:
    metrics = evaluated([{"at": STILL}], [{"at": STILL, "score": 0.9, "video_id": 2}], num_videos=2)
    assert metrics["AP"] == 0.0


def test_video_crowd_is_neither_hit_nor_miss(evaluated: Callable[..., dict[str, float]]) -> None:
    tracks = [{"at": STILL}, {"at": [(8, 12)] * LENGTH, "iscrowd": 1}]
    detections = [{"at": [(8, 12)] * LENGTH, "score": 0.9}, {"at": STILL, "score": 0.5}]
    assert evaluated(tracks, detections)["AP"] == FULL
    # Half of a crowd overlaps it by a half, as with any object: at the thresholds above it is a miss.
    detections[0]["at"] = [(8, 10)] * LENGTH
    assert evaluated(tracks, detections)["AP"] == pytest.approx((100 + 9 * 50) / 10)


def test_video_sizes_go_by_the_mean_area_of_visible_frames() -> None:
    mask = join_frames([*bitmasks_to_rles(_masks(STILL))], (HEIGHT, WIDTH))
    found = {"video_id": 1, "category_id": 7, "mask": mask, "area": 40.0, "score": 0.9}
    for areas, size in (
        ([128**2 - 1] * 4, "APs"),
        ([None, 200**2, 0, None], "APm"),
        ([300**2, None, None, 1e5], "APl"),
    ):
        track = {"video_id": 1, "category_id": 7, "iscrowd": 0, "mask": mask, "area": mean_visible_area(areas)}
        summary = compute_video_average_precision([track], [found], video_ids=[1], category_ids=[7]).summary
        assert {name for name in ("APs", "APm", "APl") if not np.isnan(summary[name])} == {size}
    assert mean_visible_area([None, 4.0, 0.0, 8.0]) == 6.0
    assert mean_visible_area([None]) == 0.0


@pytest.mark.parametrize("areas", [None, [1e9] * 4, [None] * 4, [float("nan")] * 4, ["x"] * 4])
def test_video_areas_that_no_mask_can_have_are_measured(areas: Any, evaluated: Callable[..., dict[str, float]]) -> None:
    metrics = evaluated([{"at": STILL, "areas": areas}], [{"at": STILL, "score": 0.9}])
    assert metrics["APs"] == FULL


def test_video_ap_without_results_is_zero(evaluated: Callable[..., dict[str, float]]) -> None:
    metrics = evaluated([{"at": STILL}], [])
    assert metrics["AP"] == metrics["AR10"] == 0.0


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_joined_frames_are_the_frames_side_by_side(density: float) -> None:
    rng = np.random.default_rng(int(10 * density))
    for _ in range(40):
        length, height, width = rng.integers(1, 8, 3)
        first, second = rng.random((2, length, height, width)) < density
        joined = []
        for masks in (first, second):
            rles = [rle if mask.any() else None for mask, rle in zip(masks, bitmasks_to_rles(masks), strict=True)]
            joined.append(join_frames(rles, (height, width)))
            assert np.array_equal(coco_mask.decode(joined[-1]).astype(bool), np.concatenate(list(masks), axis=1))
        if (first | second).any():
            expected = (first & second).sum() / (first | second).sum()
            assert coco_mask.iou([joined[0]], [joined[1]], [0])[0, 0] == expected


def test_run_lengths_of_long_runs_are_decoded() -> None:
    mask = np.zeros((1500, 3000), dtype=bool)
    mask[700:, 2000] = True
    mask[3, 2999] = True
    lengths = run_lengths(bitmasks_to_rles(mask[None])[0]["counts"])
    assert lengths.tolist() == [2000 * 1500 + 700, 800, 998 * 1500 + 3, 1, 1496]


def test_video_too_large_to_count_is_refused() -> None:
    with pytest.raises(InputError, match="2000 frames of 2000 x 2000 is too large"):
        join_frames([None] * 2000, (2000, 2000))


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """A function that registers a truth as data set "videos" and returns the path of its file."""

    def register(content: dict[str, Any]) -> Path:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(content))
        MetadataCatalog.get("videos_for_test").set(
            json_file=str(path),
            evaluator_type="ytvis",
            thing_classes=["cat", "dog"],
            thing_dataset_id_to_contiguous_id={7: 0, 9: 1},
        )
        return path

    yield register
    MetadataCatalog.remove("videos_for_test")


def _output(tracks: list[Track], labels: list[int], scores: list[float]) -> dict[str, Any]:
    return {
        "image_size": (HEIGHT, WIDTH),
        "pred_scores": scores,
        "pred_labels": labels,
        "pred_masks": [torch.from_numpy(_masks(track)) for track in tracks],
    }


def test_video_evaluator_writes_what_the_server_takes(dataset: Any, tmp_path: Path) -> None:
    dataset(_truth([{"at": STILL, "category_id": 9}], num_videos=2))
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = build_evaluator(cfg, "videos_for_test")
    assert isinstance(evaluator, YTVISEvaluator)
    seen: Track = [(2, 6), (2, 6), None, (2, 6)]
    evaluator.process([{"video_id": 1}], [_output([seen, STILL], [1, 0], [0.9, 0.25])])
    evaluator.process([{"video_id": 2}], [_output([], [], [])])
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(60.0)  # 3 / 4
    entries = json.loads((tmp_path / "inference/results.json").read_text())
    assert [(e["video_id"], e["category_id"], e["score"]) for e in entries] == [(1, 9, 0.9), (1, 7, 0.25)]
    assert [s is None for s in entries[0]["segmentations"]] == [False, False, True, False]
    assert entries[0]["segmentations"][0]["size"] == [HEIGHT, WIDTH]
    assert np.array_equal(coco_mask.decode(entries[0]["segmentations"][0]).astype(bool), _masks(STILL)[0])
    saved = evaluate_video(tmp_path / "truth.json", tmp_path / "inference/results.json")
    assert saved["segm"] == pytest.approx(results["segm"], abs=0, nan_ok=True)
    evaluator.reset()
    evaluator.process([{"video_id": 1}, {"video_id": 2}], [_output([], [], [])] * 2)
    assert evaluator.evaluate()["segm"]["AP"] == 0.0  # type: ignore[index]


def test_video_evaluator_takes_the_tracks_of_long_videos(dataset: Any, tmp_path: Path) -> None:
    dataset(_truth([{"at": STILL, "category_id": 9}]))
    output = _output([[(2, 6), (2, 6), None, (2, 6)], STILL], [1, 0], [0.9, 0.25])
    tracks = [
        MaskTrack(dict(enumerate(bitmasks_to_rles(masks))), num_frames=LENGTH, image_size=(HEIGHT, WIDTH))
        for masks in output["pred_masks"]
    ]
    written = []
    for masks in (output["pred_masks"], tracks):
        evaluator = YTVISEvaluator("videos_for_test", tmp_path / "results")
        evaluator.process([{"video_id": 1}], [{**output, "pred_masks": masks}])
        evaluator.evaluate()
        written.append((tmp_path / "results" / "results.json").read_text())
    assert written[0] == written[1]


def test_video_evaluator_without_annotations_writes_the_file_and_says_so(
    dataset: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _truth([])
    del content["annotations"], content["categories"]
    truth = dataset(content)
    evaluator = YTVISEvaluator("videos_for_test", tmp_path / "out")
    evaluator.process([{"video_id": 1}], [_output([STILL], [0], [0.5])])
    with caplog.at_level(logging.INFO):
        assert evaluator.evaluate() == {}
    (message,) = [r.getMessage() for r in caplog.records if "no annotations" in r.getMessage()]
    assert message == f"{truth} has no annotations: no AP; results written to {tmp_path / 'out' / 'results.json'}"
    assert json.loads((tmp_path / "out/results.json").read_text())[0]["category_id"] == 7
    with pytest.raises(InputError, match="has no 'annotations'"):
        evaluate_video(truth, tmp_path / "out/results.json")


@pytest.mark.parametrize(
    ("video_id", "change", "message"),
    [
        (3, {}, "video id 3 is not among the 1"),
        (None, {}, "video id None is not among"),
        (
            1,
            {"pred_masks": [torch.zeros(3, HEIGHT, WIDTH)]},
            r"video 1: masks have shape \(3, 10, 12\), .*\(4, 10, 12\)",
        ),
        (1, {"pred_labels": [2]}, r"video 1: class 2 is unknown, there are \[0, 1\]"),
        (1, {"pred_scores": [float("nan")]}, "video 1: a score is not finite: nan"),
    ],
)
def test_video_evaluator_refuses_wrong_outputs(
    dataset: Any, video_id: int | None, change: dict[str, Any], message: str
) -> None:
    dataset(_truth([{"at": STILL}]))
    evaluator = YTVISEvaluator("videos_for_test")
    with pytest.raises(InputError, match=message):
        evaluator.process([{"video_id": video_id}], [{**_output([STILL], [0], [0.5]), **change}])
    with pytest.raises(InputError, match=r"video 1: no 'pred_masks' in the result, found \['instances'\]"):
        evaluator.process([{"video_id": 1}], [{"instances": None}])


def test_video_evaluator_needs_every_video_once(dataset: Any) -> None:
    dataset(_truth([{"at": STILL}], num_videos=3))
    evaluator = YTVISEvaluator("videos_for_test")
    evaluator.process([{"video_id": 2}], [_output([], [], [])])
    with pytest.raises(InputError, match=r"no prediction for 2 of the 3 videos .*video ids \[1, 3\]"):
        evaluator.evaluate()
    evaluator.process([{"video_id": i} for i in (1, 3, 3)], [_output([], [], [])] * 3)
    with pytest.raises(InputError, match=r"video id 3 .* was predicted twice"):
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("videos"), "expected a list under 'videos'"),
        (lambda c: c.pop("categories"), "expected a list under 'categories'"),
        (lambda c: c["videos"][0].update(length=0), "video 1: 'file_names' must list 'length' frames, found length 0"),
        (lambda c: c["annotations"][0].pop("segmentations"), "annotation 1: missing 'segmentations'"),
        (lambda c: c["annotations"][0].update(video_id=8), "annotation 1: video 8 is not listed"),
        (lambda c: c["annotations"][0].update(category_id=8), "annotation 1: category id 8 has no class"),
        (
            lambda c: c["annotations"][0]["segmentations"].pop(),
            "annotation 1: 'segmentations' must hold .* 4 .*found 3",
        ),
        (
            lambda c: c["annotations"][0]["segmentations"].__setitem__(2, {"size": [1, 2], "counts": [2]}),
            r"annotation 1: frame 2: RLE has size \[1, 2\]",
        ),
    ],
)
def test_video_ground_truth_that_is_wrong_is_named(dataset: Any, change: Callable[[Any], None], message: str) -> None:
    content = _truth([{"at": STILL}])
    change(content)
    dataset(content)
    with pytest.raises(DatasetError, match=message):
        YTVISEvaluator("videos_for_test")


def test_video_ground_truth_may_hold_polygons_and_plain_counts(tmp_path: Path) -> None:
    content = _truth([{"at": STILL}])
    counts = [2 * HEIGHT, 4 * HEIGHT, 6 * HEIGHT]
    polygon = [[2, 0, 6, 0, 6, HEIGHT, 2, HEIGHT]]
    rle = content["annotations"][0]["segmentations"][0]
    content["annotations"][0]["segmentations"] = [polygon, {"size": [HEIGHT, WIDTH], "counts": counts}, rle, []]
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(content))
    results.write_text(json.dumps(_results([{"at": [(2, 6), (2, 6), (2, 6), None], "score": 0.5}])))
    assert evaluate_video(truth, results)["segm"]["AP"] == FULL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 4}, "entry 0 .video 4.: the video is not among the 1"),
        ({"category_id": 4}, "entry 0 .video 1.: category id 4 has no class"),
        ({"score": "high"}, "score must be a finite number, found 'high'"),
        ({"segmentations": [None]}, "'segmentations' must hold one entry for each of 4 frames .*found 1"),
        ({"segmentations": None}, "found None"),
    ],
)
def test_video_results_that_are_wrong_are_named(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(_truth([{"at": STILL}])))
    (entry,) = _results([{"at": STILL, "score": 0.5}])
    results.write_text(json.dumps([{**entry, **change}]))
    with pytest.raises(InputError, match=message):
        evaluate_video(truth, results)
    assert main(["video", "--gt-json", str(truth), "--results-json", str(results)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {results}: entry 0")
    results.write_text(json.dumps([entry]))
    assert main(["video", "--gt-json", str(truth), "--results-json", str(results)]) == 0
    assert json.loads(capsys.readouterr().out)["segm"]["AP"] == FULL


def test_unknown_evaluator_type_still_names_the_known_ones() -> None:
    MetadataCatalog.get("odd_videos").set(evaluator_type="odd")
    with pytest.raises(ConfigError, match="ytvis"):
        build_evaluator(get_cfg(), "odd_videos")
    MetadataCatalog.remove("odd_videos")
