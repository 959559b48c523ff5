"""Class tables of the built-in data sets, and the metadata built from them."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

_TABLES = "mask2former.data.datasets.tables"
_THINGS_AS_ONE = (0, "things", (82, 18, 128))  # id, name, colour of the class that stands for all things


@dataclass(frozen=True)
class Category:
    """One class: ``id`` as in annotation files, ``color`` RGB; its index in the table is its contiguous id."""

    id: int
    name: str
    isthing: bool = True
    color: tuple[int, int, int] | None = None
    instance_name: str | None = None


@functools.cache
def read_table(name: str) -> Any:
    """Return the content of ``tables/<name>.json``."""
    return json.loads(resources.files(_TABLES).joinpath(f"{name}.json").read_text(encoding="utf-8"))


@functools.cache
def class_table(name: str) -> tuple[Category, ...]:
    """Return the classes of ``tables/<name>.json``, in order of their contiguous ids."""
    return tuple(
        Category(
            id=row["id"],
            name=row["name"],
            isthing=bool(row.get("isthing", True)),
            color=tuple(row["color"]) if "color" in row else None,
            instance_name=row.get("instance_name"),
        )
        for row in read_table(name)
    )


def taxonomy_metadata(name: str) -> dict[str, Any]:
    """Return names, colours and id maps of a taxonomy, under the names of metadata attributes.

    Contiguous ids are indices into ``stuff_classes`` for a class that is listed there, else into ``thing_classes``.
    """
    rule = read_table("taxonomies")[name]
    table = class_table(rule["table"])
    things = _select(table, rule.get("thing_classes"))
    stuff = _select(table, rule.get("stuff_classes"))
    metadata: dict[str, Any] = {}
    for role, classes in (("thing", things), ("stuff", stuff)):
        if not classes:
            continue
        metadata[f"{role}_classes"] = [getattr(c, rule.get("names", "name")) for c in classes]
        if rule.get("colors", True) and classes[0].color is not None:
            metadata[f"{role}_colors"] = [list(c.color or ()) for c in classes]
    place = {c.id: i for i, c in enumerate(things)} | {c.id: i for i, c in enumerate(stuff)}
    if rule.get("thing_ids"):
        metadata["thing_dataset_id_to_contiguous_id"] = {c.id: place[c.id] for c in table if c.isthing}
    if "stuff_ids" in rule:
        metadata["stuff_dataset_id_to_contiguous_id"] = {c.id: place[c.id] for c in _select(table, rule["stuff_ids"])}
    return metadata


def _select(table: tuple[Category, ...], selection: str | None) -> tuple[Category, ...]:
    things = tuple(c for c in table if c.isthing)
    stuff = tuple(c for c in table if not c.isthing)
    if selection is None:
        return ()
    if selection == "stuff_after_things":
        # Parity: the published short names (test_registration_matches_the_published_metadata).
        short = (replace(c, name=c.name.replace("-other", "").replace("-merged", "")) for c in stuff)
        dataset_id, name, color = _THINGS_AS_ONE
        return (Category(dataset_id, name, isthing=False, color=color), *short)
    return {"all": table, "things": things, "stuff": stuff}[selection]
