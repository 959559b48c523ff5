"""Cityscapes' evaluation on two tiny images: known values, several processes, what is refused."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from mask2former.config import get_cfg
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    build_evaluator,
    protocol,
)
from mask2former.evaluation import build as build_module
from mask2former.structures import Instances, MetadataCatalog

SIZE = (40, 60)
CLASSES = [
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
]
ROAD, SKY, PERSON, CAR = 0, 10, 11, 13
CITIES = ("aachen", "ulm")

needs_scripts = pytest.mark.skipif(not protocol.is_installed("cityscapesscripts"), reason="cityscapesscripts")


def instance_ids() -> np.ndarray:
    ids = np.full(SIZE, 7)  # road
    ids[:10] = 23  # sky
    ids[12:24, 5:25] = 26_000
    ids[12:24, 35:55] = 26_001
    ids[30:34, :9] = 24  # a group of persons
    ids[36:] = 1  # ego vehicle
    return ids


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_tree(root: Path) -> list[dict[str, Any]]:
    """The ground truth, and the inputs that belong to it."""
    ids = instance_ids()
    inputs = []
    for city in CITIES:
        stem = f"{city}_000000_000019"
        write(root / "gt" / city / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16))
        labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
        write(root / "gt" / city / f"{stem}_gtFine_labelIds.png", labels)
        inputs.append({"file_name": f"images/{city}/{stem}_leftImg8bit.png", "image_id": stem})
    return inputs


def register(name: str, root: Path, **metadata: Any) -> None:
    MetadataCatalog.get(name).set(
        gt_dir=f"{root}/gt/", thing_classes=CLASSES, stuff_classes=CLASSES, ignore_label=255, **metadata
    )


@pytest.fixture
def inputs(tmp_path: Path, dataset_name: str) -> list[dict[str, Any]]:
    register(dataset_name, tmp_path)
    return make_tree(tmp_path)


def semantic(*, wrong_columns: int = 0) -> dict[str, Any]:
    ids = instance_ids()
    labels = np.full(SIZE, ROAD)
    labels[:10] = SKY
    labels[(ids == 24)] = PERSON
    labels[ids >= 26_000] = CAR
    labels[12:24, 5 : 5 + wrong_columns] = ROAD
    return {"sem_seg": torch.nn.functional.one_hot(torch.from_numpy(labels), 19).permute(2, 0, 1).float()}


def instances(*masks: tuple[int, int, int, float]) -> dict[str, Any]:
    """Rows 12 to 24 of the columns (first, last), of a class, with a score."""
    bitmaps = torch.zeros(len(masks), *SIZE, dtype=torch.bool)
    for bitmap, (first, last, _, _) in zip(bitmaps, masks):
        bitmap[12:24, first:last] = True
    return {
        "instances": Instances(
            SIZE,
            scores=torch.tensor([float(mask[3]) for mask in masks]),
            pred_classes=torch.tensor([mask[2] for mask in masks], dtype=torch.int64),
            pred_masks=bitmaps,
        )
    }


@needs_scripts
def test_cityscapes_semantic_iou(inputs: list[dict[str, Any]], dataset_name: str) -> None:
    evaluator = CityscapesSemSegEvaluator(dataset_name)
    evaluator.process(inputs, [semantic(), semantic()])
    assert evaluator.evaluate() == {
        "sem_seg": pytest.approx(dict.fromkeys(("IoU", "iIoU", "IoU_sup", "iIoU_sup"), 100))
    }
    evaluator.reset()
    evaluator.process(inputs, [semantic(wrong_columns=10), semantic()])
    metrics = evaluator.evaluate()["sem_seg"]
    num_road, num_car = (int((instance_ids() == 7).sum()), 480)
    road, car = 2 * num_road / (2 * num_road + 120), (2 * num_car - 120) / (2 * num_car)
    assert metrics["IoU"] == pytest.approx(100 * np.mean([road, car, 1, 1]))
    assert metrics["iIoU"] == pytest.approx(100 * np.mean([3.5 / 4]))


@needs_scripts
def test_cityscapes_instance_ap(inputs: list[dict[str, Any]], dataset_name: str) -> None:
    evaluator = CityscapesInstanceEvaluator(dataset_name)
    both = instances((5, 25, CAR, 0.9), (35, 55, CAR, 0.8))
    evaluator.process(inputs, [both, both])
    assert evaluator.evaluate() == {"segm": pytest.approx({"AP": 100.0, "AP50": 100.0})}
    evaluator.reset()
    evaluator.process(inputs, [instances((5, 25, CAR, 0.9), (35, 47, CAR, 0.8)), both])  # one of IoU 0.6
    metrics = evaluator.evaluate()["segm"]
    assert metrics["AP50"] == pytest.approx(100.0)
    assert 50 < metrics["AP"] < 100


@needs_scripts
def test_cityscapes_instance_ap_of_nothing(inputs: list[dict[str, Any]], dataset_name: str) -> None:
    evaluator = CityscapesInstanceEvaluator(dataset_name)
    evaluator.process(inputs, [instances(), instances()])
    assert evaluator.evaluate() == {"segm": {"AP": 0.0, "AP50": 0.0}}
    for pixels in (0.0, 1.0):
        empty = instances((5, 5, CAR, pixels))
        evaluator.reset()
        evaluator.process(inputs, [empty, empty])
        assert evaluator.evaluate()["segm"]["AP"] == 0.0


@needs_scripts
def test_cityscapes_evaluators_write_nothing_unless_asked(
    inputs: list[dict[str, Any]], dataset_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for folder in (None, tmp_path / "kept"):
        evaluator = CityscapesInstanceEvaluator(dataset_name, predictions_dir=folder)
        evaluator.process(inputs[:1], [instances((5, 25, CAR, 0.5))])
        assert evaluator.evaluate() is not None
        CityscapesSemSegEvaluator(dataset_name, predictions_dir=folder).process(inputs[:1], [semantic()])
        if folder is None:
            assert sorted(tmp_path.rglob("*")) == sorted([*before, work])
    names = [path.name.removeprefix("aachen_000000_000019_") for path in sorted((tmp_path / "kept").iterdir())]
    assert names == ["0_car.png", "pred.png", "pred.txt"]
    assert (tmp_path / "kept" / "aachen_000000_000019_pred.txt").read_text().endswith("_0_car.png 26 0.5\n")


@needs_scripts
def test_cityscapes_evaluators_refuse_what_is_wrong(
    inputs: list[dict[str, Any]], dataset_name: str, tmp_path: Path
) -> None:
    pixels, objects = CityscapesSemSegEvaluator(dataset_name), CityscapesInstanceEvaluator(dataset_name)
    with pytest.raises(InputError, match="no image was evaluated"):
        pixels.evaluate()
    with pytest.raises(InputError, match=r"no 'sem_seg'"):
        pixels.process(inputs[:1], [{}])
    with pytest.raises(InputError, match=r"no 'instances'"):
        objects.process(inputs[:1], [{}])
    with pytest.raises(InputError, match="class 19 is none of the 19"):
        objects.process(inputs[:1], [instances((5, 25, 19, 0.5))])
    with pytest.raises(DatasetError, match=r"Image widths of .* are not equal"):
        pixels.process(inputs[:1], [{"sem_seg": torch.zeros(19, 40, 50)}])
    pixels.process(inputs[:1], [semantic()])
    pixels.process(inputs[:1], [semantic()])
    with pytest.raises(InputError, match=r"aachen_000000_000019_leftImg8bit\.png: predicted twice"):
        pixels.evaluate()
    (tmp_path / "gt" / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png").unlink()
    with pytest.raises(DatasetError, match=r"ulm_000000_000019_gtFine_instanceIds\.png: instanceIds of .* not found"):
        objects.process(inputs[1:], [instances()])


def evaluate_part(rank: int, port: int, root: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    register("cityscapes_parts", Path(root))
    inputs = [make_input(CITIES[rank])]
    pixels, objects = CityscapesSemSegEvaluator("cityscapes_parts"), CityscapesInstanceEvaluator("cityscapes_parts")
    pixels.process(inputs, [semantic(wrong_columns=10 * rank)])
    objects.process(inputs, [instances((5, 25, CAR, 0.9), (35, 55 - 8 * rank, CAR, 0.8))])
    found = DatasetEvaluators([pixels, objects]).evaluate()
    (Path(root) / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def make_input(city: str) -> dict[str, Any]:
    return {"file_name": f"images/{city}/{city}_000000_000019_leftImg8bit.png"}


@needs_scripts
def test_cityscapes_evaluators_agree_with_two_processes(
    inputs: list[dict[str, Any]], dataset_name: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(evaluate_part, args=(port, str(tmp_path)), nprocs=2)
    pixels, objects = CityscapesSemSegEvaluator(dataset_name), CityscapesInstanceEvaluator(dataset_name)
    pixels.process(inputs, [semantic(), semantic(wrong_columns=10)])
    whole = [instances((5, 25, CAR, 0.9), (35, last, CAR, 0.8)) for last in (55, 47)]
    objects.process(inputs, whole)
    assert json.loads((tmp_path / "rank0.json").read_text()) == DatasetEvaluators([pixels, objects]).evaluate()
    assert (tmp_path / "rank1.json").read_text() == "null"


def config(tmp_path: Path) -> Any:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    return cfg


@needs_scripts
@pytest.mark.parametrize(
    ("evaluator_type", "expected"),
    [
        ("cityscapes_instance", [CityscapesInstanceEvaluator]),
        ("cityscapes_sem_seg", [CityscapesSemSegEvaluator]),
        ("cityscapes_panoptic_seg", [CityscapesInstanceEvaluator, CityscapesSemSegEvaluator]),
    ],
)
def test_build_evaluator_chooses_cityscapes(
    evaluator_type: str, expected: list[type], dataset_name: str, tmp_path: Path
) -> None:
    register(dataset_name, tmp_path, evaluator_type=evaluator_type)
    built = build_evaluator(config(tmp_path), dataset_name)
    evaluators = built.evaluators if isinstance(built, DatasetEvaluators) else [built]
    assert [type(evaluator) for evaluator in evaluators] == expected


@pytest.fixture
def without_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "is_installed", lambda package: False)
    monkeypatch.setitem(sys.modules, CityscapesInstanceEvaluator.module_name, None)  # importing it fails


def test_cityscapes_without_its_package(without_scripts: None, dataset_name: str, tmp_path: Path) -> None:
    register(dataset_name, tmp_path, evaluator_type="cityscapes_panoptic_seg")
    assert isinstance(build_evaluator(config(tmp_path), dataset_name), SemSegEvaluator)
    with pytest.raises(ConfigError, match=r"needs cityscapesscripts .*pip install 'mask2former\[cityscapes\]'"):
        CityscapesInstanceEvaluator(dataset_name)
