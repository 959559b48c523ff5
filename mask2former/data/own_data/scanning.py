"""Looking at all files of a data set, in several processes, and saying everything that is wrong with them at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from mask2former.data.preparation.work import RunOptions, run_all
from mask2former.errors import DatasetError
from mask2former.files.images import exif_note, read_image_size

Item = TypeVar("Item")
Result = TypeVar("Result")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NUM_SHOWN = 20
_FILES_WORTH_A_PROCESS = 500  # starting processes takes about as reading so many files
_MAX_PROCESSES = 16


def scan(
    function: Callable[[Item], Result], items: Sequence[Item], *, description: str, num_workers: int | None = None
) -> list[Result]:
    """``function`` of each item, in order, with a progress bar; ``num_workers`` None chooses by their number.

    Raises:
        DatasetError: the items that ``function`` refused with a DatasetError: the first few, and how many more.
    """
    if num_workers is None:
        num_workers = max(1, min(_num_cores(), _MAX_PROCESSES, len(items) // _FILES_WORTH_A_PROCESS))
    results = run_all(partial(_attempt, function), items, RunOptions(num_workers), description=description)
    refuse([message for message, _ in results if message is not None])
    return [result for message, result in results if message is None]  # type: ignore[misc]


def _attempt(function: Callable[[Item], Result], item: Item) -> tuple[str | None, Result | None]:
    try:
        return None, function(item)
    except DatasetError as error:
        return str(error), None


def refuse(problems: Sequence[str], headline: str = "") -> None:
    """Raise DatasetError where there are problems: the first few lines of them, and how many more there are."""
    if not problems:
        return
    shown = list(problems[:_NUM_SHOWN])
    if len(problems) > _NUM_SHOWN:
        shown.append(f"and {len(problems) - _NUM_SHOWN} more")
    if headline:
        raise DatasetError(f"{headline}: " + "; ".join(shown))
    raise DatasetError("\n  ".join(shown) if len(shown) > 1 else shown[0])


def check_image_size(file: Path, size: tuple[int, int], source: str) -> None:
    """Raise DatasetError unless the image has this (height, width), which ``source`` says."""
    found = read_image_size(file)
    if found != size:
        raise DatasetError(f"{file}: image has (height, width) = {found}, {source} says {size}{exif_note(file)}")


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return files below a folder by their path in it without suffix, in order of that; hidden ones do not count.

    Raises:
        DatasetError: two files differ in nothing but the suffix.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in relative.parts):
            continue
        stem = relative.with_suffix("").as_posix()
        if stem in found:
            raise DatasetError(f"{found[stem]} and {path} differ in nothing but the suffix")
        found[stem] = path
    return found


def check_pairs(images: Mapping[str, Path], masks: Mapping[str, Path], mask_folder: Path) -> None:
    """Raise DatasetError unless every image has a mask and every mask an image."""
    refuse(
        [str(images[stem]) for stem in images if stem not in masks],
        f"images without a mask of their name below {mask_folder}",
    )
    refuse([str(masks[stem]) for stem in masks if stem not in images], "masks without an image of their name")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
