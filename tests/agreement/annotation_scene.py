"""One scene of COCO instances, written in every form that a mask may have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIZES = ((24, 31), (13, 17), (9, 40))  # odd ones among them; the last image has no object
# (image, category, crowd, top, left, height, width)
OBJECTS = ((0, 3, 0, 2, 3, 10, 12), (0, 7, 0, 14, 0, 10, 31), (0, 7, 1, 2, 20, 6, 6), (1, 3, 0, 0, 0, 13, 17))
CATEGORIES = [{"id": 7, "name": "box"}, {"id": 3, "name": "disc"}]


def bitmap_of(place: tuple[int, ...]) -> np.ndarray:
    image, _, _, top, left, height, width = place
    mask = np.zeros(SIZES[image], dtype=np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def _polygon(place: tuple[int, ...]) -> Any:
    *_, top, left, height, width = place
    bottom, right = top + height, left + width
    return [[left, top, right, top, right, bottom, left, bottom]]


def _run_lengths(place: tuple[int, ...]) -> list[int]:
    flat = bitmap_of(place).flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


def _counts(place: tuple[int, ...]) -> Any:
    return {"size": list(SIZES[place[0]]), "counts": _run_lengths(place)}


def _counts_with_gaps(place: tuple[int, ...]) -> Any:
    """The same runs, some parted by runs of length 0; numbers as floats and a size as text."""
    counts: list[float] = []
    for length in _run_lengths(place):
        counts += [float(length // 2), 0.0, float(length - length // 2)]
    return {"size": [str(side) for side in SIZES[place[0]]], "counts": counts}


def _text(place: tuple[int, ...]) -> Any:
    rle = coco_mask.encode(np.asfortranarray(bitmap_of(place)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


FORMS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "polygons": _polygon,
    "polygons with a part of two points": lambda place: [*_polygon(place), [1, 1, 5, 5]],
    "polygons over the edge": lambda place: [[v - 40 * (v == 0) for v in _polygon(place)[0]]],
    "run lengths": _counts,
    "run lengths of 0": _counts_with_gaps,
    "run-length code": _text,
    "bitmap": lambda place: bitmap_of(place).tolist(),
    "bitmap of true and false": lambda place: bitmap_of(place).astype(bool).tolist(),
}


def _plain(content: dict[str, Any]) -> None:
    """The file as it is."""


def _ids_as_floats(content: dict[str, Any]) -> None:
    for entry in [*content["images"], *content["annotations"], *content["categories"]]:
        for key in ("id", "image_id", "category_id"):
            if key in entry:
                entry[key] = float(entry[key])


def _numbers_as_text(content: dict[str, Any]) -> None:
    for entry in content["images"]:
        entry["height"], entry["width"] = str(entry["height"]), str(entry["width"])
    for entry in content["annotations"]:
        entry.update(
            image_id=str(entry["image_id"]), category_id=str(entry["category_id"]), iscrowd=str(entry["iscrowd"])
        )


def _nothing_that_is_not_needed(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        del entry["id"], entry["bbox"], entry["area"]
        if not entry["iscrowd"]:
            del entry["iscrowd"]


def _null(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry.update(bbox=None, area=None)
        if not entry["iscrowd"]:
            entry["iscrowd"] = None


def _impossible_areas(content: dict[str, Any]) -> None:
    for entry, area in zip(content["annotations"], (float("nan"), -1, 1e12, "large")):
        entry["area"] = area


def _ids_from_zero(content: dict[str, Any]) -> None:
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number


def _ids_as_names(content: dict[str, Any]) -> None:
    names = {entry["id"]: f"photo {entry['id']}/.." for entry in content["images"]}
    for entry in content["images"]:
        entry["id"] = names[entry["id"]]
    for number, entry in enumerate(content["annotations"]):
        entry.update(image_id=names[entry["image_id"]], id=f"object {number}")


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "plain": _plain,
    "ids as floats": _ids_as_floats,
    "numbers as text": _numbers_as_text,
    "nothing that is not needed": _nothing_that_is_not_needed,
    "null": _null,
    "impossible areas": _impossible_areas,
    "ids from zero": _ids_from_zero,
    "ids as names": _ids_as_names,
}


def content_of(form: str = "run-length code", change: str = "plain") -> dict[str, Any]:
    """The scene as COCO instances."""
    content: dict[str, Any] = {
        "images": [
            {"id": 5 + i, "file_name": f"{i}.png", "height": height, "width": width}
            for i, (height, width) in enumerate(SIZES)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": 5 + place[0],
                "category_id": place[1],
                "iscrowd": place[2],
                "bbox": [place[4], place[3], place[6], place[5]],
                "area": place[5] * place[6],
                "segmentation": FORMS[form](place),
            }
            for number, place in enumerate(OBJECTS, start=1)
        ],
        "categories": [dict(category) for category in CATEGORIES],
    }
    CHANGES[change](content)
    return content


def write_scene(root: Path, content: dict[str, Any], *, prefix: bytes = b"") -> Path:
    """The images below ``root``, and train.json; returns that."""
    (root / "images").mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(np.full((height, width, 3), 40 * i + 20, dtype=np.uint8)).save(root / "images" / f"{i}.png")
    (root / "train.json").write_bytes(prefix + json.dumps(content).encode())
    return root / "train.json"
