"""The panoptic evaluator on bad input, in the loop and on saved predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import COCOPanopticEvaluator, evaluate_panoptic
from mask2former.structures import MetadataCatalog
from tests.evaluation.reference_data import REFERENCE, ReferenceData


@pytest.fixture
def copied(tmp_path: Path, dataset_name: str, reference: ReferenceData) -> tuple[str, Path]:
    """A copy of the reference's ground truth that a test may damage, registered under a name of its own."""
    shutil.copytree(REFERENCE / "panoptic", tmp_path / "panoptic")
    shutil.copy(REFERENCE / "panoptic.json", tmp_path / "panoptic.json")
    known = MetadataCatalog.get(reference.name)
    MetadataCatalog.get(dataset_name).set(
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path / "panoptic"),
        thing_dataset_id_to_contiguous_id=known.thing_dataset_id_to_contiguous_id,
        stuff_dataset_id_to_contiguous_id=known.stuff_dataset_id_to_contiguous_id,
    )
    return dataset_name, tmp_path


def one_segment(**changes: Any) -> dict[str, Any]:
    entry = {"id": 1, "category_id": 0, "isthing": True, **changes}
    return {"panoptic_seg": (torch.ones((60, 80), dtype=torch.int32), [entry])}


BAD_OUTPUTS = {
    "no task": ({}, "image 100: no 'panoptic_seg'"),
    "no segments": ({"panoptic_seg": (torch.zeros((60, 80), dtype=torch.int32), None)}, "image 100: no 'panoptic_seg'"),
    "thing": (one_segment(category_id=7), r"image 100: segment 1 has thing category 7, there are \[0, 1, 2, 3, 4\]"),
    "stuff": (one_segment(category_id=9, isthing=False), "image 100: segment 1 has stuff category 9"),
    "dataset id": (
        {"panoptic_seg": (torch.ones((60, 80)).int(), [{"id": 1, "category_id": 1}])},
        "category id 1, there",
    ),
    "incomplete": ({"panoptic_seg": (torch.ones((60, 80)).int(), [{"id": 1}])}, "needs 'id' and 'category_id'"),
    "size": ({"panoptic_seg": (torch.zeros((30, 80)).int(), [])}, r"image 100: size .* is \(30, 80\), .* \(60, 80\)"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_panoptic_evaluator_refuses_outputs(case: str, reference: ReferenceData) -> None:
    output, message = BAD_OUTPUTS[case]
    with pytest.raises(InputError, match=message):
        COCOPanopticEvaluator(reference.name).process([{"image_id": 100}], [output])


def test_panoptic_evaluator_refuses_images(reference: ReferenceData) -> None:
    evaluator = COCOPanopticEvaluator(reference.name)
    with pytest.raises(InputError, match=r"image id 999 is not among the 8 of .*panoptic.json"):
        evaluator.process([{"image_id": 999}], [one_segment()])
    evaluator.process([{"image_id": "100"}], [one_segment()])
    with pytest.raises(InputError, match=r"no prediction for 7 of the 8 images .* \[101, 102, 103, 104, 105\] …"):
        evaluator.evaluate()
    evaluator.process([{"image_id": 100}], [one_segment()])
    with pytest.raises(InputError, match=r"image id 100 of .* was predicted twice"):
        evaluator.evaluate()


def test_panoptic_evaluator_counts_empty_predictions_as_missed(reference: ReferenceData) -> None:
    evaluator = COCOPanopticEvaluator(reference.name)
    nothing = {"panoptic_seg": (torch.zeros((60, 80), dtype=torch.int32), [])}
    evaluator.process(reference.inputs, [nothing] * 8)
    results = evaluator.evaluate()
    assert results == {"panoptic_seg": dict.fromkeys(reference.expected["panoptic_seg"], 0.0)}


def test_panoptic_evaluator_refuses_damaged_png(copied: tuple[str, Path]) -> None:
    name, folder = copied
    path = folder / "panoptic" / "000000000000.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"000000000000\.png: cannot be read as an image"):
        COCOPanopticEvaluator(name).process([{"image_id": 100}], [one_segment()])
    shutil.copy(REFERENCE / "panoptic_semseg" / "000000000000.png", path)
    with pytest.raises(DatasetError, match=r"segment ids are coded in RGB, found 1 channel of uint8"):
        COCOPanopticEvaluator(name).process([{"image_id": 100}], [one_segment()])
    path.unlink()
    with pytest.raises(DatasetError, match=r"000000000000\.png: file not found"):
        COCOPanopticEvaluator(name).process([{"image_id": 100}], [one_segment()])


def test_panoptic_evaluator_refuses_category_without_class(copied: tuple[str, Path]) -> None:
    name, folder = copied
    content = json.loads((folder / "panoptic.json").read_text())
    content["annotations"][0]["segments_info"][2]["category_id"] = 77
    (folder / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(
        DatasetError, match=r"panoptic.json: annotation of image 100: segment 70000: category id 77 has no class"
    ):
        COCOPanopticEvaluator(name).process([{"image_id": 100}], [one_segment()])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "not a valid JSON file"),
        ("[]", "must hold a JSON object"),
        ('{"categories": [{"id": 1}], "annotations": []}', "category 1: missing 'name'"),
        (
            '{"categories": [], "annotations": [{"image_id": 1}]}',
            "annotation of image 1: missing 'file_name', 'segments_info'",
        ),
    ],
)
def test_panoptic_evaluator_refuses_json(content: str, message: str, copied: tuple[str, Path]) -> None:
    name, folder = copied
    (folder / "panoptic.json").write_text(content)
    with pytest.raises(DatasetError, match=f"panoptic.json.*{message}"):
        COCOPanopticEvaluator(name)


def test_panoptic_evaluator_refuses_an_unknown_data_set(dataset_name: str) -> None:
    with pytest.raises(DatasetError, match=f"{dataset_name!r} has no metadata 'panoptic_json'"):
        COCOPanopticEvaluator(dataset_name)
    with pytest.raises(ValueError, match="save_pngs needs an output_dir"):
        COCOPanopticEvaluator(dataset_name, save_pngs=True)


def evaluate_damaged(folder: Path, annotations: list[dict[str, Any]]) -> Any:
    (folder / "predictions.json").write_text(json.dumps({"annotations": annotations}))
    truth = REFERENCE / "panoptic.json", REFERENCE / "panoptic"
    return evaluate_panoptic(*truth, folder / "predictions.json", folder / "panoptic")


def test_evaluate_panoptic_refuses_predictions(copied: tuple[str, Path]) -> None:
    _, folder = copied
    good = json.loads((REFERENCE / "panoptic.json").read_text())["annotations"]
    assert evaluate_damaged(folder, good)["panoptic_seg"]["PQ"] == pytest.approx(100)
    with pytest.raises(InputError, match=r"no prediction for 1 of the 8 images .*\[100\]"):
        evaluate_damaged(folder, good[1:])
    with pytest.raises(InputError, match="image id 5 is not among"):
        evaluate_damaged(folder, [*good, {**good[0], "image_id": 5}])
    with pytest.raises(InputError, match="image 100: the image is annotated twice"):
        evaluate_damaged(folder, [*good, good[0]])
    with pytest.raises(InputError, match=r"predictions.json: annotation of image 100: missing 'segments_info'"):
        evaluate_damaged(folder, [{"image_id": 100, "file_name": "000000000000.png"}, *good[1:]])
    with pytest.raises(InputError, match=r"000000000000.png \(image 100\): segment ids .* are in the map and not"):
        evaluate_damaged(folder, [{**good[0], "segments_info": good[0]["segments_info"][1:]}, *good[1:]])
    (folder / "panoptic" / "000000000001.png").unlink()
    with pytest.raises(InputError, match=r"000000000001\.png: file not found"):
        evaluate_damaged(folder, good)
