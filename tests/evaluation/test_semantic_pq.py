"""Panoptic quality of label maps."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import SemSegEvaluator, evaluate_semantic_pq
from tests.evaluation.reference_data import REFERENCE, ReferenceData

ROOT = Path(__file__).parents[2]


def write(folder: Path, name: str, labels: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(folder / name)


def test_semantic_pq_counts_one_segment_a_class(tmp_path: Path) -> None:
    truth = np.zeros((10, 11), dtype=int)
    truth[:, 5:] = 1
    truth[0] = 255
    prediction = np.where(truth == 255, 2, truth)  # class 2 lies on void alone, and counts for nothing
    prediction[1:, 5] = 0  # 9 of the 54 pixels of class 1
    write(tmp_path / "truth", "a.png", truth)
    write(tmp_path / "found", "a.png", prediction)
    metrics = evaluate_semantic_pq(tmp_path / "truth", tmp_path / "found", class_names=["a", "b", "c"])["panoptic_seg"]
    ious = [45 / 54, 45 / 54]
    assert metrics == pytest.approx({"PQ": 100 * np.mean(ious), "SQ": 100 * np.mean(ious), "RQ": 100.0})


def test_semantic_pq_without_a_match_is_zero(tmp_path: Path) -> None:
    write(tmp_path / "truth", "a.png", np.zeros((7, 5)))
    write(tmp_path / "found", "a.png", np.ones((7, 5)))
    metrics = evaluate_semantic_pq(tmp_path / "truth", tmp_path / "found", class_names=["a", "b"])["panoptic_seg"]
    assert metrics == {"PQ": 0.0, "SQ": 0.0, "RQ": 0.0}


def test_semantic_pq_of_the_file_that_evaluation_writes(tmp_path: Path, reference: ReferenceData) -> None:
    evaluator = SemSegEvaluator(reference.name, tmp_path)
    evaluator.process(reference.inputs, reference.outputs)
    evaluator.evaluate()
    truth = REFERENCE / "panoptic.json"
    ids = [category["id"] for category in json.loads(truth.read_text())["categories"]]
    classes = {dataset_id: i for i, dataset_id in enumerate(ids)}
    results = evaluate_semantic_pq(
        REFERENCE / "panoptic_semseg",
        tmp_path / "sem_seg_predictions.json",
        class_names=reference.class_names,
        dataset_id_to_contiguous_id=classes,
    )
    assert 0 < results["panoptic_seg"]["PQ"] < 100


def test_semantic_pq_refuses_wrong_labels(tmp_path: Path) -> None:
    write(tmp_path / "truth", "a.png", np.full((3, 3), 7))
    write(tmp_path / "found", "a.png", np.zeros((3, 3)))
    with pytest.raises(DatasetError, match=r"a\.png: label 7 is neither a class"):
        evaluate_semantic_pq(tmp_path / "truth", tmp_path / "found", class_names=["a"])
    write(tmp_path / "truth", "a.png", np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"size .* is \(3, 3\)"):
        evaluate_semantic_pq(tmp_path / "truth", tmp_path / "found", class_names=["a"])


def test_tool_prints_metrics_and_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((6, 8))
    labels[3:] = 149
    folder = tmp_path / "ADEChallengeData2016" / "annotations_detectron2" / "validation"
    folder.mkdir(parents=True)
    write(folder, "a.png", labels)
    command = [sys.executable, str(ROOT / "tools" / "evaluate_pq_for_semantic_segmentation.py"), "--json-file"]
    environment = {"DETECTRON2_DATASETS": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["panoptic_seg"]["PQ"] == 100.0
    # In this process: starting another one takes seconds.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [*command[1:], "none.json"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(command[1], run_name="__main__")
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: none.json")
