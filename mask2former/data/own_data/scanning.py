"""Looking at all files of a data set, in several processes, and saying everything that is wrong with them at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from mask2former.data.preparation.work import RunOptions, run_all
from mask2former.errors import DatasetError
from mask2former.files.faults import Report, collected_reports, note_faults, note_headed_faults
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.inputs import ARRAY_SUFFIXES

Item = TypeVar("Item")
Result = TypeVar("Result")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", *ARRAY_SUFFIXES, ".png", ".tif", ".tiff", ".webp")
_FILES_WORTH_A_PROCESS = 500  # starting processes takes about as reading so many files
_MAX_PROCESSES = 16


def scan(
    function: Callable[[Item], Result], items: Sequence[Item], *, description: str, num_workers: int | None = None
) -> list[Result]:
    """``function`` of each item, in order, with a progress bar; ``num_workers`` None chooses by their number.

    Within ``gathered_faults`` items that ``function`` refused with a DatasetError are missing in the result.

    Raises:
        DatasetError: else these items: the first few, and how many more.
    """
    if num_workers is None:
        num_workers = max(1, min(_num_cores(), _MAX_PROCESSES, len(items) // _FILES_WORTH_A_PROCESS))
    results = run_all(partial(_attempt, function), items, RunOptions(num_workers), description=description)
    note_faults([report for reports, _ in results for report in reports])
    return [result for _, found in results for result in found]


def _attempt(function: Callable[[Item], Result], item: Item) -> tuple[list[Report], tuple[Result, ...]]:
    """What is wrong with an item, and its result, if it has one; also in another process."""
    with collected_reports() as reports:
        try:
            return reports, (function(item),)
        except DatasetError as error:
            return [*reports, Report(str(error), (str(error),))], ()


def check_image_size(file: Path, size: tuple[int, int], source: str) -> None:
    """Raise DatasetError unless the image has this (height, width), which ``source`` says."""
    found = read_image_size(file)
    if found != size:
        raise DatasetError(f"{file}: image has (height, width) = {found}, {source} says {size}{exif_note(file)}")


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return files below a folder by their path in it without suffix, in order of that; hidden ones do not count.

    Raises:
        DatasetError: files differ in nothing but the suffix.
    """
    found: dict[str, Path] = {}
    shared: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in relative.parts):
            continue
        stem = relative.with_suffix("").as_posix()
        if stem in found:
            shared.setdefault(stem, [found[stem]]).append(path)
        found[stem] = path
    lines = [f"{' and '.join(map(str, paths))} differ in nothing but the suffix" for paths in shared.values()]
    note_faults([Report(line, (line,)) for line in lines])
    return {stem: path for stem, path in found.items() if stem not in shared}


def check_pairs(images: Mapping[str, Path], masks: Mapping[str, Path], mask_folder: Path) -> list[str]:
    """Return the names of the images that have masks.

    Raises:
        DatasetError: an image has no mask, or a mask no image.
    """
    without_mask = [str(images[stem]) for stem in images if stem not in masks]
    note_headed_faults(without_mask, f"images without a mask of their name below {mask_folder}")
    without_image = [str(masks[stem]) for stem in masks if stem not in images]
    note_headed_faults(without_image, "masks without an image of their name")
    return [stem for stem in images if stem in masks]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
