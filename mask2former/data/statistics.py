"""Statistics of a data set, shown before training starts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from mask2former.data.catalog import DatasetDict, annotated_objects, is_video, name_of
from mask2former.errors import ConfigError

_COLUMNS = 3
_NAME_WIDTH = 22


def count_classes(dataset_dicts: Sequence[DatasetDict]) -> Counter[int]:
    """Return the number of objects or segments by contiguous class id, without crowds."""
    entries = itertools.chain.from_iterable(map(annotated_objects, dataset_dicts))
    return Counter(entry["category_id"] for entry in entries if not entry.get("iscrowd", 0))


def format_class_histogram(dataset_dicts: Sequence[DatasetDict], class_names: Sequence[str]) -> str:
    """Return a table of class names with the number of their objects or segments, and the total.

    Semantic PNG files are not opened: without annotations the table has only class names.
    """
    counts = count_classes(dataset_dicts)
    is_counted = any("annotations" in record or "segments_info" in record for record in dataset_dicts)
    cells = []
    for class_id, name in enumerate(class_names):
        label = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
        count = f"{counts[class_id]:>8}" if is_counted else f"{'':>8}"
        cells.append(f"{class_id:>4} {label:<{_NAME_WIDTH}}{count}")
    num_rows = -(-len(cells) // _COLUMNS)
    rows = ["  ".join(cells[row::num_rows]).rstrip() for row in range(num_rows)]
    total = f", {sum(counts.values())} objects or segments" if is_counted else ""
    num_videos = sum(map(is_video, dataset_dicts))
    num_images = len(dataset_dicts) - num_videos
    counted = f"{num_images} images, {num_videos} videos" if num_videos else f"{num_images} images"
    return "\n".join([f"{counted}, {len(class_names)} classes{total}", *rows])


def many_objects_note(dataset_dicts: Sequence[DatasetDict], *, num_queries: int) -> str | None:
    """How many images or videos have more objects or segments than the model has queries; None: none."""
    counts = [sum(not entry.get("iscrowd", 0) for entry in annotated_objects(record)) for record in dataset_dicts]
    above = [count for count in counts if count > num_queries]
    if not above:
        return None
    return (
        f"{len(above)} of {len(counts)} have more objects than the model has queries, {num_queries} "
        f"(MODEL.MASK_FORMER.NUM_OBJECT_QUERIES), and up to {max(above)}: those in excess train nothing"
    )


def check_class_ids(dataset_dicts: Sequence[DatasetDict], *, num_classes: int, num_classes_key: str) -> None:
    """Check that the model has every annotated class.

    Raises:
        ConfigError: the message names the first such image and class id, and the key that sets the number.
    """
    for record in dataset_dicts:
        for entry in annotated_objects(record):
            if not 0 <= entry["category_id"] < num_classes:
                raise ConfigError(
                    f"{num_classes_key} is {num_classes}, but {name_of(record)} has an object of class "
                    f"{entry['category_id']} (classes count from 0)"
                )
