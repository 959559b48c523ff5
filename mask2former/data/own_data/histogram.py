"""What a data set holds, id by id: which class it trains as, and how much of it there is in each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset

_IGNORED = "-"


def format_own_histogram(dataset: OwnDataset, classes: Sequence[DataClass], *, ignored: frozenset[int]) -> str:
    """A table: raw id, train id, name, pixels (PNG masks) or objects, and images of each part.

    Crowds do not count. Ids that do not train have ``-`` for their train id.
    """
    train_id = {entry.id: index for index, entry in enumerate(classes)}
    name_of = {entry.id: entry.name for entry in [*dataset.classes, *classes]}
    parts = [part for part in (TRAIN, VALID) if part in dataset.parts]
    counts = {part: count_ids(dataset, part) for part in parts}
    unit = "pixels" if dataset.has_label_maps else "objects"
    header = ["raw id", "train id", "name", *(f"{part} {word}" for part in parts for word in (unit, "images"))]
    rows = [header]
    present = {class_id for amounts, _ in counts.values() for class_id in amounts}
    left_out = sorted((present & ignored) | {entry.id for entry in dataset.classes if entry.id in ignored})
    for class_id in [*train_id, *left_out]:
        row = [str(class_id), str(train_id.get(class_id, _IGNORED))]
        row.append(name_of.get(class_id, "") if class_id in train_id else "(does not train)")
        row += [f"{counter[class_id]:,}" for part in parts for counter in counts[part]]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if column == 2 else cell.rjust(w) for column, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    sizes = ", ".join(f"{len(dataset.parts[part])} {part} images" for part in parts)
    return "\n".join([f"{sizes}, {len(classes)} classes", *(line.rstrip() for line in lines)])


def count_ids(dataset: OwnDataset, part: str) -> tuple[Counter[int], Counter[int]]:
    """(pixels or objects, images) by id in a part."""
    amounts: Counter[int] = Counter()
    images: Counter[int] = Counter()
    counts_pixels = dataset.has_label_maps
    for image in dataset.parts[part]:
        segments = [segment for segment in image.segments if not segment.is_crowd]
        for segment in segments:
            amounts[segment.class_id] += int(segment.area or 0) if counts_pixels else 1
        images.update({segment.class_id for segment in segments})
    return amounts, images
