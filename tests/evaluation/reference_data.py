"""The reference data set with its stored predictions and the results that are expected of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.structures import Instances
from mask2former.structures.metadata import MetadataCatalog

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "evaluation"
NUM_THINGS = 5

# The stored class scores are rounded to half precision, which makes 13 pixels ties, while the expected numbers come
# from unrounded scores. Of the 8192 ways to resolve the ties one (up to exchanging two pixels that count alike) yields
# all 41 numbers; no rule such as "the first" does. (image, row, column): the class, among the tied, that it favours.
TIES = {
    (0, 11, 24): 2,
    (1, 39, 15): 2,
    (1, 43, 15): 6,
    (3, 49, 74): 3,
    (4, 5, 51): 0,
    (4, 9, 22): 7,
    (4, 16, 35): 8,
    (4, 17, 7): 6,
    (4, 24, 12): 4,
    (4, 32, 24): 2,
    (7, 17, 77): 8,
    (7, 18, 27): 1,
    (7, 18, 69): 8,
}


@dataclass(frozen=True)
class ReferenceData:
    """Registered under ``name``: inputs and outputs (one dict an image) and the results that are expected."""

    name: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    expected: dict[str, dict[str, float]]
    class_names: list[str]


def load_reference(name: str = "evaluation_reference") -> ReferenceData:
    truth = json.loads((REFERENCE / "panoptic.json").read_text())
    category_ids = [category["id"] for category in truth["categories"]]
    names = [category["name"] for category in truth["categories"]]
    MetadataCatalog.get(name).set(
        panoptic_json=str(REFERENCE / "panoptic.json"),
        panoptic_root=str(REFERENCE / "panoptic"),
        json_file=str(REFERENCE / "instances.json"),
        thing_classes=names[:NUM_THINGS],
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(category_ids[:NUM_THINGS])},
        stuff_dataset_id_to_contiguous_id={c: i for i, c in enumerate(category_ids)},
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
    )
    with np.load(REFERENCE / "predictions.npz") as stored:
        outputs = [_output(stored, i) for i in range(len(truth["images"]))]
    inputs = [
        {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "height": image["height"],
            "width": image["width"],
            "sem_seg_file_name": str(REFERENCE / "panoptic_semseg" / f"{Path(image['file_name']).stem}.png"),
        }
        for image in truth["images"]
    ]
    expected = json.loads((REFERENCE / "expected_results.json").read_text())
    return ReferenceData(name, inputs, outputs, expected, names)


def _output(stored: Any, i: int) -> dict[str, Any]:
    masks = torch.from_numpy(stored[f"{i}/pred_masks"])
    sem_seg = stored[f"{i}/sem_seg"]
    for (image, row, column), favoured in TIES.items():
        if image == i:
            sem_seg[favoured, row, column] = np.nextafter(sem_seg[favoured, row, column], np.float32(np.inf))
    return {
        "panoptic_seg": (
            torch.from_numpy(stored[f"{i}/panoptic_seg"]),
            json.loads(str(stored[f"{i}/segments_info_json"])),
        ),
        "sem_seg": torch.from_numpy(sem_seg),
        "instances": Instances(
            (masks.shape[1], masks.shape[2]),
            scores=torch.from_numpy(stored[f"{i}/scores"]),
            pred_classes=torch.from_numpy(stored[f"{i}/pred_classes"]),
            pred_masks=masks,
        ),
    }
