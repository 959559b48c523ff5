"""The classes of the shapes data set, read from classes.json: the one table behind the generator and the metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

CLASSES_FILE = Path(__file__).with_name("classes.json")


@dataclass(frozen=True)
class ShapeClass:
    """One class. ``category_id`` is the id in the files (with gaps), ``contiguous_id`` counts things first, then stuff.

    ``typical_hue``, in degrees, is the colour that things of the class often have; stuff has none.
    """

    name: str
    category_id: int
    contiguous_id: int
    color: tuple[int, int, int]
    isthing: bool
    typical_hue: float | None = None


@lru_cache(maxsize=1)
def shape_classes() -> tuple[ShapeClass, ...]:
    """Return all classes ordered by contiguous id: things first, then stuff."""
    table = json.loads(CLASSES_FILE.read_text(encoding="utf-8"))
    rows = [(row, True) for row in table["things"]] + [(row, False) for row in table["stuff"]]
    return tuple(
        ShapeClass(row["name"], row["id"], index, tuple(row["color"]), isthing, row.get("typical_hue"))
        for index, (row, isthing) in enumerate(rows)
    )


def thing_classes() -> tuple[ShapeClass, ...]:
    """Return the classes that are things, by contiguous id."""
    return tuple(c for c in shape_classes() if c.isthing)


def stuff_classes() -> tuple[ShapeClass, ...]:
    """Return the classes that are not things (the metadata field of this name lists all classes instead)."""
    return tuple(c for c in shape_classes() if not c.isthing)


def class_named(name: str) -> ShapeClass:
    """Return the class of this name."""
    return next(c for c in shape_classes() if c.name == name)


def coco_categories(*, things_only: bool = False) -> list[dict[str, Any]]:
    """Return the ``categories`` list of a COCO json file."""
    return [
        {
            "id": c.category_id,
            "name": c.name,
            "supercategory": "shape" if c.isthing else "ground",
            "isthing": int(c.isthing),
            "color": list(c.color),
        }
        for c in (thing_classes() if things_only else shape_classes())
    ]
