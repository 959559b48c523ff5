"""Panoptic quality on cases worked by hand, against a plain restatement of its definition, and against panopticapi."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import evaluate_panoptic
from mask2former.evaluation.panoptic_quality import PanopticScorer, PanopticTally
from mask2former.structures import id_to_rgb

CATEGORIES = [1, 2, 7]


def segment(segment_id: int, category_id: int, **more: Any) -> dict[str, Any]:
    return {"id": segment_id, "category_id": category_id, **more}


def tally_of(truth: Any, truth_segments: Any, prediction: Any, predicted_segments: Any) -> PanopticTally:
    scorer = PanopticScorer(CATEGORIES)
    scorer.add_image(
        (np.array(truth), truth_segments),
        (np.array(prediction), predicted_segments),
        truth_name="truth.png",
        prediction_name="prediction.png",
    )
    return scorer.tally


def counts(tally: PanopticTally) -> list[tuple[float, int, int, int]]:
    columns = (tally.iou_sum.tolist(), tally.tp.tolist(), tally.fp.tolist(), tally.fn.tolist())
    return list(zip(*columns))


NOTHING = (0.0, 0, 0, 0)


def test_scorer_perfect_prediction_with_other_ids() -> None:
    tally = tally_of(
        [[5, 5, 9, 9]],
        [segment(5, 1), segment(9, 2)],
        [[2, 2, 1, 1]],
        [segment(1, 2), segment(2, 1)],
    )
    assert counts(tally) == [(1.0, 1, 0, 0), (1.0, 1, 0, 0), NOTHING]
    assert tally.mean_quality(np.ones(3, dtype=bool)) == (100.0, 100.0, 100.0, 2)


def test_scorer_merged_segments() -> None:
    # Two things of 3 and 2 pixels predicted as one of 5: IoU 3/5 matches the larger, the smaller is missed.
    tally = tally_of([[3, 3, 3, 4, 4]], [segment(3, 1), segment(4, 1)], [[1] * 5], [segment(1, 1)])
    assert counts(tally) == [(0.6, 1, 0, 1), NOTHING, NOTHING]
    quality = tally.mean_quality(np.ones(3, dtype=bool))
    assert quality == pytest.approx((100 * 0.6 / 1.5, 60.0, 100 / 1.5, 1))


def test_scorer_iou_of_one_half_is_no_match() -> None:
    tally = tally_of([[3, 3, 4, 4]], [segment(3, 1), segment(4, 2)], [[1] * 4], [segment(1, 1)])
    assert counts(tally) == [(0.0, 0, 1, 1), (0.0, 0, 0, 1), NOTHING]


def test_scorer_other_category_is_no_match() -> None:
    tally = tally_of([[3, 3]], [segment(3, 1)], [[1, 1]], [segment(1, 2)])
    assert counts(tally) == [(0.0, 0, 0, 1), (0.0, 0, 1, 0), NOTHING]


def test_scorer_leaves_void_out_of_the_union() -> None:
    # 2 pixels agree and 3 of the prediction lie on void: IoU is 2 / 2.
    tally = tally_of([[3, 3, 0, 0, 0]], [segment(3, 1)], [[1] * 5], [segment(1, 1)])
    assert counts(tally)[0] == (1.0, 1, 0, 0)


@pytest.mark.parametrize(("num_void", "false_positives"), [(3, 0), (2, 1)])
def test_scorer_ignores_predictions_mostly_on_void(num_void: int, false_positives: int) -> None:
    # Exactly one half on void still counts as wrong.
    truth = [[0] * num_void + [3] * (4 - num_void) + [3] * 6]
    prediction = [[1] * 4 + [2] * 6]
    tally = tally_of(truth, [segment(3, 2)], prediction, [segment(1, 1), segment(2, 2)])
    assert tally.fp.tolist() == [false_positives, 0, 0]


def test_scorer_unlisted_truth_is_not_void() -> None:
    # Pixels of an id that the json does not list belong to nothing, and are not excused either.
    tally = tally_of([[8, 8, 8]], [], [[1, 1, 1]], [segment(1, 1)])
    assert counts(tally)[0] == (0.0, 0, 1, 0)


def test_scorer_ignores_predictions_mostly_on_crowd_of_their_category() -> None:
    crowd = [segment(3, 1, iscrowd=1)]
    assert counts(tally_of([[3, 3, 3]], crowd, [[1, 1, 1]], [segment(1, 1)])) == [NOTHING] * 3
    other = tally_of([[3, 3, 3]], crowd, [[1, 1, 1]], [segment(1, 2)])
    assert other.fp.tolist() == [0, 1, 0]
    assert other.fn.tolist() == [0, 0, 0]


def test_scorer_adds_void_and_crowd() -> None:
    # 1 of 3 pixels on void and 1 on the crowd: together more than half.
    truth_segments = [segment(3, 1, iscrowd=1), segment(4, 2)]
    tally = tally_of([[3, 0, 4]], truth_segments, [[1, 1, 1]], [segment(1, 1)])
    assert counts(tally) == [NOTHING, (0.0, 0, 0, 1), NOTHING]


def test_scorer_counts_last_crowd_of_category() -> None:
    truth_segments = [segment(3, 1, iscrowd=1), segment(4, 1, iscrowd=1)]
    on_first = tally_of([[3, 3, 3, 4]], truth_segments, [[1, 1, 1, 0]], [segment(1, 1)])
    on_last = tally_of([[4, 4, 4, 3]], truth_segments, [[1, 1, 1, 0]], [segment(1, 1)])
    assert (on_first.fp.sum(), on_last.fp.sum()) == (1, 0)


def test_scorer_without_prediction_counts_every_segment_as_missed() -> None:
    tally = tally_of([[3, 4]], [segment(3, 1), segment(4, 2)], [[0, 0]], [])
    assert counts(tally) == [(0.0, 0, 0, 1), (0.0, 0, 0, 1), NOTHING]
    assert tally.mean_quality(np.ones(3, dtype=bool)) == (0.0, 0.0, 0.0, 2)


def test_scorer_without_ground_truth_counts_nothing_on_void() -> None:
    tally = tally_of([[0, 0]], [], [[1, 1]], [segment(1, 1)])
    assert counts(tally) == [NOTHING] * 3
    mean = tally.mean_quality(np.ones(3, dtype=bool))
    assert np.isnan(mean[:3]).all()
    assert mean.num_categories == 0


def test_scorer_forgets_ids_between_images() -> None:
    scorer = PanopticScorer(CATEGORIES)
    names = {"truth_name": "t", "prediction_name": "p"}
    scorer.add_image((np.array([[7]]), [segment(7, 1)]), (np.array([[7]]), [segment(7, 1)]), **names)
    with pytest.raises(InputError, match=r"p: segment ids \[7\] are in the map and not in segments_info"):
        scorer.add_image((np.array([[7]]), [segment(7, 1)]), (np.array([[7]]), []), **names)


BAD_IMAGES = {
    "size": ([[1, 1]], [], [[1]], [], InputError, r"prediction.png: size .* is \(1, 1\).*truth.png is \(1, 2\)"),
    "unknown category": ([[0]], [], [[1]], [segment(1, 99)], InputError, "segment 1 has category id 99"),
    "unknown true category": ([[1]], [segment(1, 99)], [[0]], [], DatasetError, "truth.png.*category id 99"),
    "no such pixels": ([[0]], [], [[0]], [segment(4, 1)], InputError, r"\[4\] are in segments_info and nowhere"),
    "unlisted": ([[0]], [], [[4]], [], InputError, r"\[4\] are in the map and not in segments_info"),
    "listed twice": ([[0]], [], [[4]], [segment(4, 1), segment(4, 2)], InputError, "id 4 is listed twice"),
    "id of void": ([[0]], [], [[0]], [segment(0, 1)], InputError, "segment id 0 must lie in 1"),
    "negative": ([[0]], [], [[-1]], [], InputError, r"must lie in 0..16777215, found -1..-1"),
    "too large": ([[0]], [], [[1 << 24]], [], InputError, "must lie in"),
    "fractions": ([[0]], [], [[0.5]], [], InputError, "must be integers"),
    "incomplete": ([[0]], [], [[1]], [{"id": 1}], InputError, r"needs 'id' and 'category_id', found \['id'\]"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_scorer_refuses(case: str) -> None:
    *arguments, error, message = BAD_IMAGES[case]
    with pytest.raises(error, match=message):
        tally_of(*arguments)


def quality_by_definition(truth: Any, truth_segments: Any, prediction: Any, predicted_segments: Any) -> PanopticTally:
    """The rules one segment pair at a time, with masks."""
    tally = PanopticTally.zeros(len(CATEGORIES))
    void, matched_truth, matched_prediction = truth == 0, set(), set()
    for t in truth_segments:
        for p in predicted_segments:
            if t["iscrowd"] or t["category_id"] != p["category_id"]:
                continue
            true_mask, mask = truth == t["id"], prediction == p["id"]
            iou = (true_mask & mask).sum() / (true_mask | (mask & ~void)).sum() if (true_mask & mask).any() else 0
            if iou > 0.5:
                k = CATEGORIES.index(t["category_id"])
                tally.iou_sum[k] += iou
                tally.tp[k] += 1
                matched_truth.add(t["id"])
                matched_prediction.add(p["id"])
    for t in truth_segments:
        if t["id"] not in matched_truth and not t["iscrowd"]:
            tally.fn[CATEGORIES.index(t["category_id"])] += 1
    for p in predicted_segments:
        crowds = [t["id"] for t in truth_segments if t["iscrowd"] and t["category_id"] == p["category_id"]]
        mask = prediction == p["id"]
        excused = mask & (void | np.isin(truth, crowds[-1:]))
        if p["id"] not in matched_prediction and excused.sum() / mask.sum() <= 0.5:
            tally.fp[CATEGORIES.index(p["category_id"])] += 1
    return tally


def random_panoptic(rng: np.random.Generator, shape: tuple[int, int], *, max_id: int) -> tuple[np.ndarray, list[Any]]:
    num_segments = int(rng.integers(0, 6))
    ids = rng.choice(np.arange(1, max_id), size=num_segments, replace=False)
    image = np.zeros(shape, dtype=np.int64)
    for segment_id in ids:
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        image[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = segment_id
    present = [int(i) for i in ids if (image == i).any()]
    segments = [
        segment(i, int(rng.choice(CATEGORIES)), iscrowd=int(rng.random() < 0.25), area=int((image == i).sum()))
        for i in present
    ]
    return image, segments


def random_pair(seed: int) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    truth, truth_segments = random_panoptic(rng, shape, max_id=1 << 24)
    if rng.random() < 0.5:  # a prediction that is close to the truth
        prediction, segments = truth.copy(), [dict(s) for s in truth_segments]
        prediction[rng.random(shape) < 0.2] = 0
        segments = [s for s in segments if (prediction == s["id"]).any()]
    else:
        prediction, segments = random_panoptic(rng, shape, max_id=9)
    return truth, truth_segments, prediction, segments


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_scorer_equals_definition(seed: int) -> None:
    pair = random_pair(seed)
    tally, expected = tally_of(*pair), quality_by_definition(*pair)
    np.testing.assert_allclose(tally.iou_sum, expected.iou_sum, rtol=1e-14)
    assert (tally.tp.tolist(), tally.fp.tolist(), tally.fn.tolist()) == (
        expected.tp.tolist(),
        expected.fp.tolist(),
        expected.fn.tolist(),
    )


def test_scorer_equals_panopticapi(tmp_path: Path) -> None:
    panopticapi = pytest.importorskip("panopticapi.evaluation")
    categories = {c: {"id": c, "isthing": 1} for c in CATEGORIES}
    for seed in range(200):
        truth, truth_segments, prediction, segments = random_pair(seed)
        Image.fromarray(id_to_rgb(truth)).save(tmp_path / "t.png")
        Image.fromarray(id_to_rgb(prediction)).save(tmp_path / "p.png")
        annotations = [
            (
                {"image_id": 1, "file_name": "t.png", "segments_info": truth_segments},
                {"image_id": 1, "file_name": "p.png", "segments_info": segments},
            )
        ]
        stat = panopticapi.pq_compute_single_core(0, annotations, str(tmp_path), str(tmp_path), categories)
        expected = [(stat[c].iou, stat[c].tp, stat[c].fp, stat[c].fn) for c in CATEGORIES]
        assert counts(tally_of(truth, truth_segments, prediction, segments)) == expected


def write_dataset(folder: Path, *, area: int | None = None) -> tuple[Path, Path]:
    ids = np.array([[3, 3, 3, 0]])
    Image.fromarray(id_to_rgb(ids)).save(folder / "a.png")
    entry = segment(3, 1, iscrowd=0) if area is None else segment(3, 1, iscrowd=0, area=area)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [entry]}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}],
    }
    name = f"truth_{area}.json"
    (folder / name).write_text(json.dumps(content))
    return folder / name, folder


def test_evaluate_panoptic_uses_stated_area(tmp_path: Path) -> None:
    prediction = write_dataset(tmp_path)
    stated = evaluate_panoptic(*write_dataset(tmp_path, area=4), *prediction)["panoptic_seg"]
    assert stated["PQ"] == pytest.approx(75.0)


def test_evaluate_panoptic_without_stuff_is_nan_for_stuff(tmp_path: Path) -> None:
    truth = write_dataset(tmp_path)
    results = evaluate_panoptic(*truth, *truth)["panoptic_seg"]
    assert results["PQ"] == results["PQ_th"] == 100.0
    assert np.isnan([results["PQ_st"], results["SQ_st"], results["RQ_st"]]).all()


def test_evaluate_panoptic_refuses_areas_that_give_more_than_100_percent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"panoptic_seg/PQ is 150.* 0..100"):
        evaluate_panoptic(*write_dataset(tmp_path, area=2), *write_dataset(tmp_path))
