"""Average precision of panoptic models where things come from panoptic PNGs, or from a json beside them; LVIS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former.config import get_cfg
from mask2former.data.datasets.classes import read_table
from mask2former.errors import ConfigError, DatasetError
from mask2former.evaluation import (
    COCOEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PanopticInstanceEvaluator,
    build_evaluator,
    protocol,
)
from mask2former.files.pictures import write_picture
from mask2former.structures import Instances, MetadataCatalog, bitmasks_to_rles
from mask2former.structures.ids import id_to_rgb
from tests.evaluation.reference_data import ReferenceData

SIZE = (33, 50)
THINGS = {1: 0, 9: 8}  # dataset id → contiguous id, as in Mapillary Vistas: places among all classes
NAMES = [f"class {i}" for i in range(10)]

needs_lvis = pytest.mark.skipif(not protocol.is_installed("lvis"), reason="lvis")


def truth_ids() -> np.ndarray:
    ids = np.full(SIZE, 5 * 256)
    ids[3:15, 4:20], ids[20:30, 30:45], ids[:2, 40:] = 256, 9 * 256, 257
    ids[31:] = 0
    return ids


SEGMENTS = [
    {"id": 5 * 256, "category_id": 5, "iscrowd": 0},
    {"id": 256, "category_id": 1, "iscrowd": 0},
    {"id": 257, "category_id": 1, "iscrowd": 1},
    {"id": 9 * 256, "category_id": 9, "iscrowd": 0},
]


def write_truth(folder: Path, **changes: Any) -> None:
    write_picture(id_to_rgb(truth_ids()), folder / "panoptic" / "a_b.png")
    content = {
        "images": [{"id": "a_b", "file_name": "a_b.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": i, "name": f"name {i}", "isthing": int(i in THINGS)} for i in (1, 5, 9)],
        "annotations": [{"image_id": "a_b", "file_name": "a_b.png", "segments_info": SEGMENTS}],
        **changes,
    }
    (folder / "panoptic.json").write_text(json.dumps(content))


def register(name: str, folder: Path, **metadata: Any) -> None:
    write_truth(folder)
    MetadataCatalog.get(name).set(
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder / "panoptic"),
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id={i: i - 1 for i in (1, 5, 9)},
        thing_classes=NAMES,
        stuff_classes=NAMES,
        **metadata,
    )


def predict(*, shift: int = 0, classes: tuple[int, ...] = (0, 8)) -> dict[str, Any]:
    ids = truth_ids()
    masks = torch.from_numpy(np.stack([np.roll(ids == value, shift, axis=1) for value in (256, 9 * 256)]))
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor(classes)
    return {"instances": Instances(SIZE, scores=scores, pred_classes=labels, pred_masks=masks)}


def test_panoptic_instances_of_a_perfect_model(tmp_path: Path, dataset_name: str) -> None:
    register(dataset_name, tmp_path)
    evaluator = PanopticInstanceEvaluator(dataset_name, tmp_path / "out", tasks=("segm", "bbox", "boundary"))
    evaluator.process([{"image_id": "a_b"}], [predict()])
    results = evaluator.evaluate()
    assert results is not None
    assert {task: metrics["AP"] for task, metrics in results.items()} == pytest.approx(
        {"segm": 100.0, "bbox": 100.0, "boundary": 100.0}
    )
    assert results["segm"]["AP-class 8"] == pytest.approx(100.0)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [entry["category_id"] for entry in written] == [1, 9]


def test_panoptic_instances_equal_those_of_a_json(tmp_path: Path, dataset_name: str) -> None:
    annotations = []
    for i, segment in enumerate(SEGMENTS):
        (rle,) = bitmasks_to_rles((truth_ids() == segment["id"])[None])
        if segment["category_id"] in THINGS:
            entry = {**segment, "id": i, "image_id": "a_b", "segmentation": rle, "area": int(coco_mask.area(rle))}
            annotations.append({**entry, "bbox": coco_mask.toBbox(rle).tolist()})
    content = {
        "images": [{"id": "a_b", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": i, "name": f"x{i}"} for i in THINGS],
        "annotations": annotations,
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    register(dataset_name, tmp_path, json_file=str(tmp_path / "instances.json"))
    results = []
    for evaluator in (PanopticInstanceEvaluator(dataset_name), COCOEvaluator(dataset_name)):
        evaluator.process([{"image_id": "a_b"}], [predict(shift=3)])
        results.append(evaluator.evaluate())
    for task, metrics in results[0].items():
        assert metrics == pytest.approx(results[1][task], nan_ok=True)
    assert 0 < results[0]["segm"]["AP"] < 100


def test_panoptic_instances_refuse_a_wrong_size(tmp_path: Path, dataset_name: str) -> None:
    register(dataset_name, tmp_path)
    images = [{"id": "a_b", "height": 7, "width": SIZE[1]}]
    write_truth(tmp_path, images=images)
    evaluator = PanopticInstanceEvaluator(dataset_name)
    prediction = Instances(
        (7, SIZE[1]),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=torch.zeros(0, 7, SIZE[1], dtype=torch.bool),
    )
    with pytest.raises(DatasetError, match=r"a_b\.png .*\(33, 50\), in .*panoptic\.json it is \(7, 50\)"):
        evaluator.process([{"image_id": "a_b"}], [{"instances": prediction}])


@pytest.mark.parametrize(
    ("evaluator_type", "expected"),
    [
        ("mapillary_vistas_panoptic_seg", PanopticInstanceEvaluator),
        ("ade20k_panoptic_seg", COCOEvaluator),
    ],
)
def test_build_evaluator_chooses_instances_of_panoptic_models(
    evaluator_type: str, expected: type, dataset_name: str, tmp_path: Path, reference: ReferenceData
) -> None:
    known = MetadataCatalog.get(reference.name).as_dict()
    known = {key: value for key, value in known.items() if key not in ("name", "evaluator_type")}
    if expected is PanopticInstanceEvaluator:
        known["json_file"] = None
    MetadataCatalog.get(dataset_name).set(**known, evaluator_type=evaluator_type)
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    test = cfg.MODEL.MASK_FORMER.TEST
    test.INSTANCE_ON, test.PANOPTIC_ON, test.SEMANTIC_ON, cfg.TEST.BOUNDARY_AP = True, True, True, True
    built = build_evaluator(cfg, dataset_name)
    assert isinstance(built, DatasetEvaluators)
    assert expected in [type(evaluator) for evaluator in built.evaluators]
    built.process(reference.inputs, reference.outputs)
    results = built.evaluate()
    assert results is not None
    assert set(results) == {"panoptic_seg", "segm", "bbox", "boundary", "sem_seg"}
    assert results["segm"]["AP"] > 0


def lvis_json(folder: Path) -> Path:
    annotations = []
    for i, (category, columns) in enumerate([(1, (4, 20)), (2, (25, 44))], start=1):
        mask = np.zeros((1, *SIZE), dtype=bool)
        mask[:, 5:25, slice(*columns)] = True
        (rle,) = bitmasks_to_rles(mask)
        entry = {"id": i, "image_id": 7, "category_id": category, "segmentation": rle, "area": int(mask.sum())}
        annotations.append({**entry, "bbox": coco_mask.toBbox(rle).tolist()})
    frequencies = {1: "r", 2: "f", 3: "c"}
    image = {"id": 7, "height": SIZE[0], "width": SIZE[1]}
    content = {
        "images": [{**image, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": i, "name": f"name {i}", "frequency": f} for i, f in frequencies.items()],
        "annotations": annotations,
    }
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder / "lvis.json"


def lvis_prediction(*, count: int = 1) -> dict[str, Any]:
    masks = torch.zeros(2 + count, *SIZE, dtype=torch.bool)
    masks[0, 5:25, 4:20], masks[1, 5:25, 25:44] = True, True
    scores = torch.cat([torch.tensor([0.9, 0.8]), torch.full((count,), 0.1)])
    classes = torch.tensor([0, 1] + [2] * count)  # the third class was not looked for in this image
    return {"instances": Instances(SIZE, scores=scores, pred_classes=classes, pred_masks=masks)}


@needs_lvis
@pytest.mark.parametrize("count", [0, 1, 400])
def test_lvis_ap_by_frequency(count: int, tmp_path: Path, dataset_name: str) -> None:
    MetadataCatalog.get(dataset_name).set(json_file=str(lvis_json(tmp_path)), evaluator_type="lvis")
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = build_evaluator(cfg, dataset_name)
    assert isinstance(evaluator, LVISEvaluator)
    evaluator.process([{"image_id": 7}], [lvis_prediction(count=count)])
    results = evaluator.evaluate()
    assert results is not None
    for metrics in results.values():
        assert [metrics[name] for name in ("AP", "APr", "APf")] == pytest.approx([100.0, 100.0, 100.0])
        assert np.isnan(metrics["APc"])
    written = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert len(written) == min(2 + count, 300)


@needs_lvis
def test_lvis_without_detections_is_nan(tmp_path: Path, dataset_name: str) -> None:
    MetadataCatalog.get(dataset_name).set(json_file=str(lvis_json(tmp_path)))
    evaluator = LVISEvaluator(dataset_name)
    nothing = lvis_prediction()["instances"][torch.zeros(0, dtype=torch.int64)]
    evaluator.process([{"image_id": 7}], [{"instances": nothing}])
    results = evaluator.evaluate()
    assert results is not None
    assert all(np.isnan(value) for metrics in results.values() for value in metrics.values())
    with pytest.raises(ValueError, match="LVIS has no boundary AP"):
        LVISEvaluator(dataset_name, tasks=("boundary",))


def test_lvis_without_its_package(monkeypatch: pytest.MonkeyPatch, dataset_name: str) -> None:
    monkeypatch.setitem(sys.modules, "lvis", None)  # importing it fails
    with pytest.raises(ConfigError, match=r"needs lvis .*pip install 'mask2former\[lvis\]'"):
        LVISEvaluator(dataset_name)


def test_coco_panoptic2instance_is_evaluated_by_its_panoptic_annotation(tmp_path: Path, dataset_name: str) -> None:
    published = read_table("datasets")["coco_2017_val_panoptic2instance"]["metadata"]
    register(dataset_name, tmp_path, evaluator_type=published["evaluator_type"])
    evaluator = build_evaluator(get_cfg(), dataset_name)
    assert isinstance(evaluator, PanopticInstanceEvaluator)
    evaluator.process([{"image_id": "a_b"}], [predict()])
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("found", "expected"), [((7, 9), {"bed": 100.0, "lamp": 100.0}), ((7, 3), {"lamp": 0.0})])
def test_labels_of_a_panoptic_model_become_those_of_a_data_set_of_things(
    tmp_path: Path, dataset_name: str, found: tuple[int, int], expected: dict[str, float]
) -> None:
    """As of ADE20K: training numbers things among all classes, the data set of instances numbers them from 0."""
    (tmp_path / "out").mkdir()
    rles = bitmasks_to_rles(predict()["instances"].pred_masks.numpy())
    annotations = [
        {"id": 1 + i, "image_id": "a_b", "category_id": 70 + i, "iscrowd": 0, "segmentation": rle}
        | {"area": int(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist()}
        for i, rle in enumerate(rles)
    ]
    images = [{"id": "a_b", "file_name": "a_b.jpg", "height": SIZE[0], "width": SIZE[1]}]
    categories = [{"id": 70, "name": "bed"}, {"id": 71, "name": "lamp"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    MetadataCatalog.get(dataset_name).set(
        evaluator_type="coco",
        json_file=str(tmp_path / "instances.json"),
        thing_dataset_id_to_contiguous_id={70: 0, 71: 1},
        thing_classes=["bed", "lamp"],
    )
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("trained on",)
    MetadataCatalog.get("trained on").set(thing_dataset_id_to_contiguous_id={8: 7, 10: 9}, stuff_classes=NAMES)
    try:
        evaluator = build_evaluator(cfg, dataset_name, tmp_path / "out")
        evaluator.process([{"image_id": "a_b"}], [predict(classes=found)])  # 3 is stuff
        results = evaluator.evaluate()
    finally:
        MetadataCatalog.remove("trained on")
    assert results is not None
    assert {name: results["segm"][f"AP-{name}"] for name in expected} == pytest.approx(expected)
