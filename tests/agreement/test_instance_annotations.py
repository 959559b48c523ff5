"""Training, own data, evaluation, results and conversion understand the same of every form of COCO instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.data import DatasetCatalog
from mask2former.data.datasets import register_coco_instances
from mask2former.data.own_data import convert_own_data, read_own_data, segment_masks
from mask2former.data.targets import instance_targets
from mask2former.data.transforms import NoOpTransform
from mask2former.evaluation import COCOEvaluator, evaluate_coco
from mask2former.files.coco import read_instances
from mask2former.structures import Instances, MetadataCatalog, decode_segmentation
from tests.agreement.annotation_scene import CHANGES, FORMS, OBJECTS, SIZES, bitmap_of, content_of, write_scene

NAME = "agreement_scene"
PERFECT = pytest.approx(100.0, abs=1e-9)
CASES = [
    *(pytest.param(content_of(form=form), b"", id=form) for form in FORMS),
    *(pytest.param(content_of(change=change), b"", id=change) for change in CHANGES),
    pytest.param(content_of(), b"\xef\xbb\xbf", id="byte-order mark"),
]
TRAINED = [place for place in OBJECTS if not place[2]]


@pytest.fixture
def catalogs() -> Any:
    yield
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def places_of(image: int) -> list[tuple[int, ...]]:
    return [place for place in TRAINED if place[0] == image]


@pytest.mark.parametrize(("content", "prefix"), CASES)
def test_every_form_trains_and_evaluates_alike(
    content: dict[str, Any], prefix: bytes, tmp_path: Path, catalogs: None
) -> None:
    json_file = write_scene(tmp_path / "data", content, prefix=prefix)
    register_coco_instances(NAME, {}, json_file, tmp_path / "data/images")
    records = DatasetCatalog.get(NAME)
    assert MetadataCatalog.get(NAME).thing_classes == ["disc", "box"]  # by their ids, 3 and 7
    evaluator = COCOEvaluator(NAME, tmp_path / "out")
    for image, (record, size) in enumerate(zip(records, SIZES, strict=True)):
        targets = instance_targets(record["annotations"], NoOpTransform(), size=size, context="image", keep_empty=True)
        expected = np.array([bitmap_of(place) for place in places_of(image)], dtype=bool).reshape(-1, *size)
        np.testing.assert_array_equal(targets.gt_masks.numpy(), expected)
        assert targets.gt_classes.tolist() == [int(place[1] == 7) for place in places_of(image)]
        found = Instances(size, scores=torch.full((len(targets),), 0.5), pred_classes=targets.gt_classes)
        found.pred_masks = targets.gt_masks
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": found}])
    results = evaluator.evaluate()
    assert results is not None
    assert [results[task]["AP"] for task in ("segm", "bbox")] == [PERFECT, PERFECT]
    assert results["segm"]["APs"] == PERFECT
    saved = evaluate_coco(json_file, tmp_path / "out/coco_instances_results.json")
    assert saved["segm"]["AP"] == PERFECT


@pytest.mark.parametrize(("content", "prefix"), CASES)
def test_every_form_is_own_data_and_converts(content: dict[str, Any], prefix: bytes, tmp_path: Path) -> None:
    write_scene(tmp_path / "data", content, prefix=prefix)
    images = read_own_data(tmp_path / "data").parts["train"]
    for image, entry in enumerate(images):
        expected = [bitmap_of(place) for place in OBJECTS if place[0] == image]
        np.testing.assert_array_equal(segment_masks(entry), np.array(expected).reshape(-1, *SIZES[image]))
        assert [s.is_crowd for s in entry.segments] == [bool(place[2]) for place in OBJECTS if place[0] == image]
    convert_own_data(tmp_path / "data", tmp_path / "converted", target="coco_instances")
    for entry in read_own_data(tmp_path / "converted").parts["train"]:
        image = int(entry.file.stem)
        masks = sorted(mask.tobytes() for mask in segment_masks(entry))
        assert masks == sorted(bitmap_of(place).astype(bool).tobytes() for place in places_of(image))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_result(form: str, tmp_path: Path) -> None:
    truth = write_scene(tmp_path / "data", content_of())
    found = [{**a, "score": 0.5} for a in content_of(form=form)["annotations"] if not a["iscrowd"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert evaluate_coco(truth, tmp_path / "found.json")["segm"]["AP"] == PERFECT


def test_run_length_codes_may_be_bytes() -> None:
    content = content_of()
    for annotation in content["annotations"]:
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].encode()
    instances = read_instances("made in memory", content=content)
    for number, place in enumerate(OBJECTS, start=1):
        (annotation,) = [a for a in instances.annotations[5 + place[0]] if a["id"] == number]
        mask = decode_segmentation(annotation["segmentation"], SIZES[place[0]])
        np.testing.assert_array_equal(mask, bitmap_of(place).astype(bool))
