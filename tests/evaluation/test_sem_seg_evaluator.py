"""Semantic metrics on small maps worked by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import SemSegEvaluator, boundary_iou, evaluate_sem_seg
from mask2former.evaluation.sem_seg import read_label_pairs
from mask2former.evaluation.semantic_confusion import SemanticConfusion
from mask2former.structures import MetadataCatalog

NAMES = ["sky", "sea", "sand"]


def one_hot(labels: np.ndarray, num_classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), num_classes).permute(2, 0, 1).float()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def metrics_of(truth: Any, prediction: Any, names: list[str] = NAMES) -> dict[str, float]:
    confusion = SemanticConfusion(len(names))
    confusion.add_image(np.array(truth), np.array(prediction))
    return confusion.metrics(names)


def write_truth(folder: Path, labels: Any, name: str = "a.png", dtype: Any = np.uint8) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.array(labels, dtype=dtype)).save(folder / name)
    return folder / name


def test_confusion_counts_by_hand() -> None:
    # sky: 3 of 4 right; sea: 1 of 1 right, one sky pixel in excess; 3 is ignored.
    metrics = metrics_of([[0, 0, 0, 0, 1, 3, 3]], [[0, 0, 0, 1, 1, 0, 2]])
    assert metrics["IoU-sky"] == pytest.approx(75.0)
    assert metrics["IoU-sea"] == pytest.approx(50.0)
    assert metrics["ACC-sky"] == pytest.approx(75.0)
    assert metrics["ACC-sea"] == pytest.approx(100.0)
    assert metrics["mIoU"] == pytest.approx(62.5)
    assert metrics["fwIoU"] == pytest.approx(0.8 * 75 + 0.2 * 50)
    assert metrics["mACC"] == pytest.approx(87.5)
    assert metrics["pACC"] == pytest.approx(80.0)
    assert np.isnan([metrics["IoU-sand"], metrics["ACC-sand"]]).all()


def test_confusion_class_predicted_and_never_true_is_nan() -> None:
    metrics = metrics_of([[0, 0]], [[0, 2]])
    assert np.isnan(metrics["IoU-sand"])
    assert metrics["mIoU"] == pytest.approx(50.0)


def test_confusion_of_ignored_pixels_alone_is_nan() -> None:
    metrics = metrics_of([[3, 3]], [[0, 1]])
    assert np.isnan([metrics[key] for key in ("mIoU", "fwIoU", "mACC", "pACC", "IoU-sky")]).all()


def test_boundary_iou_compares_differences_of_labels() -> None:
    # 9 x 9 pixels: the boundary is one pixel wide, and outside the image the label counts as 0.
    truth = np.full((9, 9), 2)
    values = np.where(np.pad(np.zeros((7, 7)), 1, constant_values=1) == 1, 2, 0)
    metrics = metrics_of(truth, truth)
    assert metrics["BoundaryIoU-sand"] == metrics["BoundaryIoU-sky"] == 100.0
    shifted = truth.copy()
    shifted[4, 4] = 1  # its 8 neighbours are now 1 above the least, it is 0 itself
    metrics = metrics_of(truth, shifted)
    num_zero = (values == 0).sum()
    assert metrics["BoundaryIoU-sand"] == 100.0
    assert metrics["BoundaryIoU-sea"] == 0.0
    assert metrics["BoundaryIoU-sky"] == pytest.approx(100 * (num_zero - 8) / num_zero)


def halves(column: int, left: int = 0, right: int = 1) -> np.ndarray:
    """100 x 100 pixels, whose boundaries are three wide, of two classes that meet at ``column``."""
    return np.where(np.arange(100) < column, left, right)[None].repeat(100, axis=0)


def test_biou_of_a_shifted_edge_by_hand() -> None:
    # sky: 3 pixels along its four sides, 100 x 50 and 100 x 52; they share all but the right side, 94 pixels high.
    metrics = metrics_of(halves(50), halves(52))
    true, found = 100 * 50 - 94 * 44, 100 * 52 - 94 * 46
    shared = 100 * 50 - 94 * 47 + 94 * 1  # the last of the true side's three columns lies in the found one
    assert metrics["BIoU-sky"] == pytest.approx(100 * shared / (true + found - shared))
    assert metrics["BIoU-sky"] < metrics["IoU-sky"]


def test_biou_of_a_class_not_found_is_zero_and_of_one_not_there_nan() -> None:
    metrics = metrics_of(halves(50, 0, 1), halves(50, 0, 2))
    assert metrics["BIoU-sky"] == 100.0
    assert metrics["BIoU-sea"] == metrics["IoU-sea"] == 0.0
    assert np.isnan(metrics["BIoU-sand"])
    assert metrics["mBIoU"] == 50.0


def test_biou_is_that_of_the_masks_of_each_class(rng: np.random.Generator) -> None:
    truth, prediction = (np.kron(rng.integers(0, 3, (4, 5)), np.ones((9, 13), dtype=int)) for _ in range(2))
    prediction[:, 20:] = truth[:, 20:]
    metrics = metrics_of(truth, prediction)
    for i, name in enumerate(NAMES):
        assert metrics[f"BIoU-{name}"] == pytest.approx(100 * boundary_iou(truth == i, prediction == i))


def test_biou_knows_no_edge_towards_ignored_pixels() -> None:
    truth = halves(50)
    truth[40:60] = 3  # three classes: 3 is to be ignored
    prediction = halves(50)
    prediction[45:55] = 2  # where it is ignored: makes no difference
    metrics = metrics_of(truth, prediction)
    assert metrics["BIoU-sky"] == metrics["BIoU-sea"] == metrics["mBIoU"] == 100.0
    confusion = SemanticConfusion(3)
    confusion.add_image(truth, prediction)
    assert confusion.contours[2].tolist() == [2 * (40 * 50 - 37 * 44)] * 2 + [0]  # no side along the ignored rows


def test_biou_is_there_for_more_classes_than_a_byte() -> None:
    names = [str(i) for i in range(300)]
    assert metrics_of(halves(50, 0, 299), halves(50, 0, 299), names)["mBIoU"] == 100.0


@pytest.mark.parametrize(("shape", "reach"), [((60, 80), 2), ((30, 40), 1), ((5, 7), 1), ((300, 400), 10)])
def test_boundary_width_is_two_percent_of_the_diagonal(shape: tuple[int, int], reach: int) -> None:
    confusion = SemanticConfusion(2)
    confusion.add_image(np.ones(shape, dtype=np.int64), np.ones(shape, dtype=np.int64))
    assert confusion.boundaries is not None
    height, width = shape
    assert confusion.boundaries[0, 0] == max(height - 2 * reach, 0) * max(width - 2 * reach, 0)
    assert confusion.boundaries.sum() == height * width


def test_confusion_of_more_classes_than_a_byte_leaves_boundaries_out() -> None:
    names = [str(i) for i in range(300)]
    metrics = metrics_of([[0, 299]], [[0, 299]], names)
    assert metrics["mIoU"] == 100.0
    assert metrics["IoU-299"] == 100.0
    assert not any(key.startswith(("Boundary", "min")) for key in metrics)


def register(name: str, **more: Any) -> None:
    MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=255, **more)


def test_sem_seg_evaluator_finds_truth_by_the_image_name(tmp_path: Path, dataset_name: str) -> None:
    labels = np.array([[0, 1, 2], [255, 1, 2]])
    write_truth(tmp_path, labels)
    register(dataset_name, sem_seg_root=str(tmp_path))
    evaluator = SemSegEvaluator(dataset_name)
    evaluator.process([{"file_name": "images/a.jpg"}], [{"sem_seg": one_hot(labels % 255)}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["mIoU"] == results["sem_seg"]["pACC"] == 100.0


def test_sem_seg_evaluator_reads_16_bit_truth(tmp_path: Path, dataset_name: str) -> None:
    MetadataCatalog.get(dataset_name).set(stuff_classes=[str(i) for i in range(400)], ignore_label=65535)
    path = write_truth(tmp_path, [[399, 65535]], name="a.tif", dtype=np.uint16)
    evaluator = SemSegEvaluator(dataset_name)
    evaluator.process([{"sem_seg_file_name": str(path)}], [{"sem_seg": one_hot(np.array([[399, 0]]), 400)}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["ACC-399"] == 100.0


def bad_case(tmp_path: Path, case: str) -> tuple[Path, torch.Tensor | None]:
    good = one_hot(np.zeros((2, 3), dtype=np.int64))
    if case == "missing":
        return tmp_path / "none.png", good
    path = write_truth(tmp_path, np.zeros((20, 30)) if case == "truncated" else [[0, 1, 2], [0, 1, 255]])
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:50])
    elif case == "text":
        path.write_text("no image")
    elif case == "rgb":
        write_truth(tmp_path, np.zeros((2, 3, 3)))
    elif case == "label":
        write_truth(tmp_path, [[0, 1, 2], [0, 1, 3]])
    elif case == "size":
        return path, good[:, :, :2]
    elif case == "class":
        return path, one_hot(np.full((2, 3), 3), 4)
    return path, None if case == "output" else good


BAD_CASES = {
    "missing": (DatasetError, "none.png: file not found"),
    "truncated": (DatasetError, "a.png: cannot be read as an image"),
    "text": (DatasetError, "a.png: cannot be read as an image"),
    "rgb": (DatasetError, r"a.png: a label map has one channel of class ids, found 3 channels of uint8"),
    "label": (DatasetError, r"a.png: label 3 is neither a class \(0..2\) nor the ignore label \(255\)"),
    "size": (InputError, r"photo.jpg: size \(height, width\) is \(2, 2\), .*a.png is \(2, 3\)"),
    "class": (InputError, r"photo.jpg: labels must lie in 0..2, found 3..3"),
    "output": (InputError, "photo.jpg: no 'sem_seg'"),
}


@pytest.mark.parametrize("case", BAD_CASES)
def test_sem_seg_evaluator_refuses(case: str, tmp_path: Path, dataset_name: str) -> None:
    register(dataset_name)
    error, message = BAD_CASES[case]
    path, scores = bad_case(tmp_path, case)
    with pytest.raises(error, match=message):
        SemSegEvaluator(dataset_name).process(
            [{"file_name": "photo.jpg", "sem_seg_file_name": str(path)}], [{"sem_seg": scores}]
        )


def test_sem_seg_evaluator_refuses_nothing_and_twice(tmp_path: Path, dataset_name: str) -> None:
    register(dataset_name)
    evaluator = SemSegEvaluator(dataset_name)
    with pytest.raises(InputError, match="no image was evaluated"):
        evaluator.evaluate()
    with pytest.raises(DatasetError, match=r"image 'x\.jpg' has no 'sem_seg_file_name'"):
        evaluator.process([{"file_name": "x.jpg"}], [{"sem_seg": one_hot(np.zeros((1, 1)))}])
    path = write_truth(tmp_path, [[0]])
    for _ in range(2):
        evaluator.process([{"sem_seg_file_name": str(path)}], [{"sem_seg": one_hot(np.zeros((1, 1)))}])
    with pytest.raises(InputError, match=r"a\.png: predicted twice"):
        evaluator.evaluate()


def test_evaluate_sem_seg_reads_subfolders_and_refuses_other_images(tmp_path: Path) -> None:
    truth, predictions = tmp_path / "gt", tmp_path / "pred"
    with pytest.raises(DatasetError, match="gt: no label maps"):
        evaluate_sem_seg(truth, predictions, class_names=NAMES)
    for name in ("a/1.png", "b/1.png"):
        write_truth((truth / name).parent, [[0, 1]], name="1.png")
    write_truth(predictions / "a", [[0, 1]], name="1.png")
    with pytest.raises(InputError, match=r"no prediction for 1 of 2 images .*\['b/1'\]"):
        evaluate_sem_seg(truth, predictions, class_names=NAMES)
    write_truth(predictions / "b", [[0, 1]], name="1.png")
    assert evaluate_sem_seg(truth, predictions, class_names=NAMES)["sem_seg"]["mIoU"] == 100.0
    write_truth(predictions / "c", [[0, 1]], name="1.png")
    with pytest.raises(InputError, match=r"1 images are not in the ground truth .*\['c/1'\]"):
        evaluate_sem_seg(truth, predictions, class_names=NAMES)


ENTRY = {"file_name": "a.jpg", "category_id": 0, "segmentation": {"size": [1, 2], "counts": [0, 2]}}
BAD_JSON = {
    "entry": ([{"file_name": "a.jpg"}], None, "entry 0 needs"),
    "category": ([ENTRY], {5: 0}, r"image a: category id 0 is not among \[5\]"),
    "class": ([{**ENTRY, "category_id": 9}], None, "labels must lie in 0..2, found 9..9"),
    "uncovered": ([{**ENTRY, "segmentation": {"size": [1, 2], "counts": [1, 1]}}], None, "found -1..0"),
    "size": ([{**ENTRY, "segmentation": {"size": [1, 1], "counts": [0, 1]}}], None, r"is \(1, 1\), .* is \(1, 2\)"),
    "rle": ([{**ENTRY, "segmentation": {"size": [1, 2], "counts": [9]}}], None, "image a: RLE counts sum to 9"),
    "missing": ([], None, "no prediction for 1 of 1 images"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_evaluate_sem_seg_refuses_json(case: str, tmp_path: Path) -> None:
    entries, mapping, message = BAD_JSON[case]
    write_truth(tmp_path / "gt", [[0, 1]])
    (tmp_path / "p.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        evaluate_sem_seg(tmp_path / "gt", tmp_path / "p.json", class_names=NAMES, dataset_id_to_contiguous_id=mapping)
    write_truth(tmp_path / "gt" / "sub", [[0, 1]])
    with pytest.raises(InputError, match="file names are not unique across folders"):
        evaluate_sem_seg(tmp_path / "gt", tmp_path / "p.json", class_names=NAMES)


def test_evaluator_takes_labels_as_it_takes_scores(tmp_path: Path, rng: np.random.Generator) -> None:
    MetadataCatalog.get("labels_or_scores").set(stuff_classes=NAMES)
    labels = rng.integers(3, size=(20, 30))
    image = {"sem_seg_file_name": str(write_truth(tmp_path, rng.integers(3, size=(20, 30))))}
    results = []
    for prediction in (one_hot(labels), torch.from_numpy(labels).int(), labels.astype(np.uint8)):
        evaluator = SemSegEvaluator("labels_or_scores", tmp_path / "out")
        evaluator.process([image], [{"sem_seg": prediction}])
        results.append((evaluator.evaluate(), json.loads((tmp_path / "out/sem_seg_predictions.json").read_text())))
    MetadataCatalog.remove("labels_or_scores")
    assert results[1] == results[2]
    np.testing.assert_equal(results[0], results[1])


def test_evaluator_refuses_what_is_neither_labels_nor_scores(tmp_path: Path) -> None:
    MetadataCatalog.get("neither").set(stuff_classes=NAMES)
    image = {"sem_seg_file_name": str(write_truth(tmp_path, [[0, 1]]))}
    evaluator = SemSegEvaluator("neither")
    with pytest.raises(ValueError, match=r"scores \(K, H, W\) or integer labels"):
        evaluator.process([image], [{"sem_seg": torch.zeros(1, 2)}])
    MetadataCatalog.remove("neither")


def test_narrow_label_maps_are_widened_before_they_meet_many_classes(tmp_path: Path) -> None:
    labels = np.array([[0, 254, 255]], np.uint8)  # 255 is a class here, and 300 of them do not fit into a byte
    for folder in ("truth", "found"):
        write_truth(tmp_path / folder, labels)
    (pair,) = read_label_pairs(tmp_path / "truth", tmp_path / "found", num_classes=300, ignore_label=254)
    assert (pair.truth.dtype, pair.prediction.dtype) == (np.int64, np.int64)
    assert pair.truth.tolist() == [[0, 300, 255]]
    assert (pair.prediction + 1).tolist() == [[1, 255, 256]]
