"""The files of a data set looked at before the first step: each is there, readable, and as its annotations say.

What was found right is remembered in the user's cache folder, by the names, sizes and times of all files and by what is
said of them: a second start takes no longer than asking the file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.data.own_data.png_tree import count_values
from mask2former.data.own_data.scanning import check_image_size, scan
from mask2former.errors import DatasetError
from mask2former.files.coco_panoptic import check_segment_ids
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.maps import read_panoptic_ids

_MAX_REMEMBERED = 500  # data sets


class ListedImage(NamedTuple):
    """An image as annotations list it; with ``png``, the panoptic PNG whose ids are ``segment_ids``."""

    file: str
    size: tuple[int, int] | None = None  # (height, width), where it is stated
    png: str | None = None
    segment_ids: tuple[int, ...] = ()


def listed_images(dataset_dicts: Sequence[Mapping[str, Any]]) -> Iterator[ListedImage]:
    """Yield the images, and the frames of videos, of dataset dicts."""
    for record in dataset_dicts:
        size = (record["height"], record["width"]) if "height" in record and "width" in record else None
        if "file_names" in record:
            yield from (ListedImage(str(name), size) for name in record["file_names"])
            continue
        png = record.get("pan_seg_file_name")
        ids = tuple(segment["id"] for segment in record.get("segments_info", ())) if png is not None else ()
        yield ListedImage(str(record["file_name"]), size, png if png is None else str(png), ids)


class FileCheck(NamedTuple):
    """Whether files were looked at, and the images that are wrong, where faults are gathered."""

    was_needed: bool
    faulty: frozenset[str]


def check_files(
    images: Sequence[ListedImage], *, source: str, description: str, num_workers: int | None = None
) -> FileCheck:
    """Look at all files, unless that was done and nothing changed since.

    ``source`` says in an error what states their sizes.

    Raises:
        DatasetError: files are missing, damaged or of another size, or PNGs hold ids that no segment lists: the first
            few, and how many more.
    """
    marker = _cache_folder() / _fingerprint(images)
    if marker.is_file():
        with contextlib.suppress(OSError):
            os.utime(marker)  # the oldest are forgotten
        return FileCheck(False, frozenset())
    right = scan(partial(_check, source=source), images, description=description, num_workers=num_workers)
    faulty = {image.file for image in images}.difference(right)
    if faulty:
        return FileCheck(True, frozenset(faulty))
    with contextlib.suppress(OSError):  # a folder that cannot be written to remembers nothing
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        remembered = sorted(marker.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in remembered[_MAX_REMEMBERED:]:
            path.unlink(missing_ok=True)
    return FileCheck(True, frozenset())


def _check(image: ListedImage, *, source: str) -> str:
    """Return the file, where nothing is wrong with it."""
    file = Path(image.file)
    if image.size is not None:
        check_image_size(file, image.size, source)
    if image.png is None:
        read_image_size(file)
        return image.file
    ids, size = read_panoptic_ids(image.png), read_image_size(file)
    if ids.shape != size:
        raise DatasetError(
            f"{image.png} has (height, width) = {ids.shape}, its image {file} has {size}{exif_note(file)}"
        )
    unlisted, _ = check_segment_ids(count_values(ids), [{"id": segment_id} for segment_id in image.segment_ids])
    if unlisted:
        raise DatasetError(f"{image.png}: segment ids {unlisted[:5]} have no entry in {source}")
    return image.file


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mask2former" / "checked"


def _fingerprint(images: Sequence[ListedImage]) -> str:
    digest = hashlib.sha256(b"1")
    for image in images:
        stats = [_stat(path) for path in (image.file, image.png) if path is not None]
        digest.update(repr((os.path.abspath(image.file), *image[1:], stats)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _stat(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
