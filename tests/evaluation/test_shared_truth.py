"""Ground truth is read once, however many tasks are evaluated on it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former import get_cfg
from mask2former.evaluation import build_evaluator, panoptic_ground_truth
from mask2former.files import coco_panoptic, json_files
from mask2former.structures import Instances, MetadataCatalog
from tests.evaluation.reference_data import REFERENCE, ReferenceData


def perfect_outputs(reference: ReferenceData) -> list[dict[str, Any]]:
    """For each image its own truth, in the forms of all three tasks."""
    metadata = MetadataCatalog.get(reference.name)
    truth = panoptic_ground_truth.panoptic_truth(metadata, "test")
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    outputs = []
    for image in reference.inputs:
        ids, segments, _ = truth.read(truth.annotation_of(image["image_id"]))
        found = [s for s in segments if s["category_id"] in things and not s["iscrowd"]]
        masks = torch.from_numpy(np.array([ids == s["id"] for s in found]).reshape(-1, *ids.shape))
        classes = torch.tensor([things[s["category_id"]] for s in found], dtype=torch.int64)
        labels = np.zeros(ids.shape, dtype=np.int64)
        for segment in segments:
            labels[ids == segment["id"]] = stuff[segment["category_id"]]
        infos = [
            {"id": s["id"], "category_id": stuff[s["category_id"]]}
            | {"isthing": s["category_id"] in things, "category_id": (things | stuff)[s["category_id"]]}
            for s in segments
        ]
        outputs.append(
            {
                "panoptic_seg": (torch.from_numpy(ids.copy()), infos),
                "sem_seg": torch.from_numpy(labels),
                "instances": Instances(
                    ids.shape, scores=torch.ones(len(found)), pred_classes=classes, pred_masks=masks
                ),
            }
        )
    return outputs


@pytest.mark.parametrize("batch", [1, 3])
def test_three_evaluators_read_each_file_once(
    batch: int, reference: ReferenceData, dataset_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = perfect_outputs(reference)
    known = MetadataCatalog.get(reference.name).as_dict()
    fields = {k: v for k, v in known.items() if k not in ("name", "json_file", "sem_seg_root")}
    MetadataCatalog.get(dataset_name).set(
        **{**fields, "evaluator_type": "panoptic_seg", "panoptic_json": str(REFERENCE / "panoptic.json")}
    )
    reads: Counter[str] = Counter()

    def counted(function: Any) -> Any:
        def read(path: Any, **options: Any) -> Any:
            reads[Path(path).name] += 1
            return function(path, **options)

        return read

    monkeypatch.setattr(coco_panoptic, "read_json", counted(json_files.read_json))
    png_reader = panoptic_ground_truth.read_panoptic_ids
    monkeypatch.setattr(panoptic_ground_truth, "read_panoptic_ids", counted(png_reader))
    cfg = get_cfg()
    for task in ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"):
        cfg.MODEL.MASK_FORMER.TEST[task] = True
    evaluator = build_evaluator(cfg, dataset_name, tmp_path)
    inputs = [{k: v for k, v in image.items() if k != "sem_seg_file_name"} for image in reference.inputs]
    for start in range(0, len(inputs), batch):
        evaluator.process(inputs[start : start + batch], outputs[start : start + batch])
    results = evaluator.evaluate()
    assert results is not None
    assert set(results) == {"panoptic_seg", "segm", "bbox", "sem_seg"}
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert len(reads) == 1 + len(inputs)
    assert set(reads.values()) == {1}
