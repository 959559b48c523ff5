"""The evaluators say what the published ones say, in the loop, on saved predictions, in any order, on any number of
processes."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mask2former.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    evaluate_coco,
    evaluate_panoptic,
    evaluate_sem_seg,
)
from mask2former.structures import id_to_rgb
from tests.evaluation.reference_data import REFERENCE, TIES, ReferenceData, load_reference

TASKS = ("panoptic_seg", "segm", "sem_seg")


def build_evaluators(name: str, output_dir: Path | None = None) -> DatasetEvaluators:
    return DatasetEvaluators(
        [
            COCOPanopticEvaluator(name, output_dir, save_pngs=output_dir is not None),
            COCOEvaluator(name, output_dir),
            SemSegEvaluator(name, output_dir),
        ]
    )


def run(data: ReferenceData, order: list[int], *, batch_size: int = 1, output_dir: Path | None = None) -> Any:
    evaluators = build_evaluators(data.name, output_dir)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        evaluators.process([data.inputs[i] for i in batch], [data.outputs[i] for i in batch])
    return evaluators.evaluate()


def assert_same(actual: dict[str, float], expected: dict[str, float], tolerance: float = 1e-6) -> None:
    if "mBIoU" not in expected:  # ours alone
        actual = {name: value for name, value in actual.items() if not name.startswith(("mBIoU", "BIoU-"))}
    assert list(actual) == list(expected)
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("task", TASKS)
def test_evaluators_in_loop_equal_reference(reference: ReferenceData, task: str) -> None:
    results = run(reference, list(range(len(reference.inputs))))
    assert_same(results[task], reference.expected[task])


def test_reference_ties_are_exactly_those_of_the_stored_scores() -> None:
    found = set()
    with np.load(REFERENCE / "predictions.npz") as stored:
        for i in range(8):
            scores = stored[f"{i}/sem_seg"]
            is_best = scores == scores.max(axis=0)
            found |= {(i, int(y), int(x)) for y, x in np.argwhere(is_best.sum(axis=0) > 1)}
            assert all(is_best[label, y, x] for (image, y, x), label in TIES.items() if image == i)
    assert found == set(TIES)


def test_sem_seg_with_stored_ties_is_off_by_those_pixels_alone(reference: ReferenceData) -> None:
    evaluator = SemSegEvaluator(reference.name)
    with np.load(REFERENCE / "predictions.npz") as stored:
        for i, image in enumerate(reference.inputs):
            evaluator.process([image], [{"sem_seg": torch.from_numpy(stored[f"{i}/sem_seg"])}])
    results = evaluator.evaluate()
    assert results is not None
    assert_same(results["sem_seg"], reference.expected["sem_seg"], tolerance=0.04)


def test_bbox_ap_is_measured_on_boxes_of_the_masks(reference: ReferenceData) -> None:
    bbox = run(reference, list(range(8)))["bbox"]
    assert list(bbox) == list(reference.expected["segm"])
    assert 20 < bbox["AP"] < bbox["AP50"] < 60


def test_evaluators_do_not_depend_on_order_or_batch_size(reference: ReferenceData) -> None:
    plain = run(reference, list(range(8)))
    order = random.Random(3).sample(range(8), 8)
    shuffled = run(reference, order, batch_size=3)
    assert plain.keys() == shuffled.keys()
    for task in plain:
        assert_same(shuffled[task], plain[task], tolerance=1e-10)


def test_evaluators_start_afresh_after_reset(reference: ReferenceData) -> None:
    evaluators = build_evaluators(reference.name)
    evaluators.process(reference.inputs[:2], reference.outputs[:2])
    evaluators.reset()
    evaluators.process(reference.inputs, reference.outputs)
    results = evaluators.evaluate()
    assert results is not None
    assert_same(results["panoptic_seg"], reference.expected["panoptic_seg"])
    assert_same(results["segm"], reference.expected["segm"])


def test_saved_predictions_equal_in_loop(reference: ReferenceData, tmp_path: Path) -> None:
    in_loop = run(reference, list(range(8)), output_dir=tmp_path)
    panoptic = evaluate_panoptic(
        REFERENCE / "panoptic.json",
        REFERENCE / "panoptic",
        tmp_path / "predictions.json",
        tmp_path / "panoptic_predictions",
    )
    coco = evaluate_coco(REFERENCE / "instances.json", tmp_path / "coco_instances_results.json")
    ids = [category["id"] for category in json.loads((REFERENCE / "panoptic.json").read_text())["categories"]]
    sem_seg = evaluate_sem_seg(
        REFERENCE / "panoptic_semseg",
        tmp_path / "sem_seg_predictions.json",
        class_names=reference.class_names,
        dataset_id_to_contiguous_id={dataset_id: i for i, dataset_id in enumerate(ids)},
    )
    for task, metrics in {**panoptic, **coco, **sem_seg}.items():
        assert_same(metrics, in_loop[task], tolerance=0)
    assert not list(tmp_path.rglob(".*")), "temporary files are left behind"


def test_evaluate_sem_seg_reads_a_folder_of_label_maps(reference: ReferenceData, tmp_path: Path) -> None:
    from PIL import Image

    for image, output in zip(reference.inputs, reference.outputs, strict=True):
        labels = output["sem_seg"].argmax(dim=0).numpy().astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / f"{Path(image['file_name']).stem}.png")
    results = evaluate_sem_seg(REFERENCE / "panoptic_semseg", tmp_path, class_names=reference.class_names)
    assert_same(results["sem_seg"], reference.expected["sem_seg"])


def test_perfect_predictions_score_100(reference: ReferenceData, tmp_path: Path) -> None:
    truth = REFERENCE / "panoptic"
    panoptic = evaluate_panoptic(REFERENCE / "panoptic.json", truth, REFERENCE / "panoptic.json", truth)["panoptic_seg"]
    assert panoptic == pytest.approx(dict.fromkeys(panoptic, 100.0))
    instances = json.loads((REFERENCE / "instances.json").read_text())["annotations"]
    detections = [{**a, "score": 1.0} for a in instances if not a["iscrowd"]]
    (tmp_path / "results.json").write_text(json.dumps(detections))
    for metrics in evaluate_coco(REFERENCE / "instances.json", tmp_path / "results.json").values():
        measured = {name: value for name, value in metrics.items() if not np.isnan(value)}
        assert measured == pytest.approx(dict.fromkeys(measured, 100.0))
        assert len(measured) == 9  # all but APm and APl


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _evaluate_share(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = load_reference()
    # Unequal shares: the second process has one image.
    share = list(range(7)) if rank == 0 else [7]
    results = run(data, share, output_dir=Path(folder))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_processes_equal_one(reference: ReferenceData, tmp_path: Path) -> None:
    mp.spawn(_evaluate_share, args=(_free_port(), str(tmp_path)), nprocs=2)
    assert json.loads((tmp_path / "rank1.json").read_text()) is None
    gathered = json.loads((tmp_path / "rank0.json").read_text())
    single = run(reference, list(range(8)))
    assert gathered.keys() == single.keys()
    for task in single:
        assert_same(gathered[task], single[task], tolerance=1e-10)
    assert len(json.loads((tmp_path / "predictions.json").read_text())["annotations"]) == 8


def test_panoptic_pngs_hold_the_predicted_ids(reference: ReferenceData, tmp_path: Path) -> None:
    from PIL import Image

    run(reference, list(range(8)), output_dir=tmp_path)
    ids = reference.outputs[3]["panoptic_seg"][0].numpy()
    with Image.open(tmp_path / "panoptic_predictions" / "000000000003.png") as saved:
        assert np.array_equal(np.asarray(saved), id_to_rgb(ids))
