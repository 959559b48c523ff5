"""Video ground truth in YouTube-VIS format, and saved results, checked before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.coco_ground_truth import check_segmentation, compressed_rle
from mask2former.evaluation.video_average_precision import Rle, join_frames, mean_visible_area
from mask2former.files.json_files import read_json
from mask2former.files.opening import PathLike


@dataclass(frozen=True)
class VideoSize:
    """Frame size in pixels and number of frames."""

    height: int
    width: int
    length: int


class VideoGroundTruth:
    """Videos, categories and, where there are any, annotated tracks of a YouTube-VIS json.

    ``tracks`` is None for a file of videos alone, as the public validation and test sets are. A track has id, video_id,
    category_id, iscrowd, ``mask`` (the code of ``join_frames``) and ``area``, the mean over frames that show it.

    Raises:
        DatasetError: the file is missing or corrupt, or an entry is incomplete or contradicts another.
    """

    def __init__(self, json_file: PathLike) -> None:
        self.json_file = json_file
        content = read_json(json_file)
        if not isinstance(content, dict):
            raise DatasetError(f"{json_file}: expected a YouTube-VIS json, found {type(content).__name__}")
        self.videos = {entry["id"]: self._size_of(entry) for entry in self._entries(content, "videos", ("id",))}
        annotated = content.get("annotations") is not None
        categories = (
            self._entries(content, "categories", ("id", "name")) if annotated or "categories" in content else []
        )
        self.category_names: dict[int, str] = {entry["id"]: entry["name"] for entry in categories}
        self.tracks: list[dict[str, Any]] | None = None
        if annotated:
            fields = ("id", "video_id", "category_id", "segmentations")
            self.tracks = [self._track(entry) for entry in self._entries(content, "annotations", fields)]

    def video_id_of(self, given: Any) -> Any:
        """``given``, known to be a video.

        Raises:
            InputError: there is no such video.
        """
        if given not in self.videos:
            raise InputError(f"video id {given!r} is not among the {len(self.videos)} of {self.json_file}")
        return given

    def _entries(self, content: dict[str, Any], key: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        entries = content.get(key)
        if not isinstance(entries, list):
            raise DatasetError(f"{self.json_file}: expected a YouTube-VIS json with a list {key!r}")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict) or any(field not in entry for field in fields):
                raise DatasetError(f"{self.json_file}: entry {i} of {key!r} needs {list(fields)}: {str(entry)[:200]}")
        return entries

    def _size_of(self, entry: dict[str, Any]) -> VideoSize:
        length = entry.get("length", len(entry.get("file_names", ())))
        height, width = entry.get("height"), entry.get("width")
        if not (_is_count(height) and _is_count(width) and _is_count(length)):
            found = (height, width, length)
            raise DatasetError(
                f"{self.json_file}: video {entry['id']!r} needs height, width and length (or file_names), found {found}"
            )
        return VideoSize(height, width, length)

    def _track(self, entry: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.json_file}: annotation {entry['id']!r}"
        if entry["video_id"] not in self.videos:
            raise DatasetError(f"{where}: video id {entry['video_id']!r} is not among the videos")
        if entry["category_id"] not in self.category_names:
            known = sorted(self.category_names)
            raise DatasetError(f"{where}: category id {entry['category_id']!r} is unknown, there are {known[:20]}")
        return joined(entry, self.videos[entry["video_id"]], where, DatasetError)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def read_video_results(path: PathLike, truth: VideoGroundTruth) -> list[dict[str, Any]]:
    """Entries of a results file: video_id, category_id, score, segmentations (RLE or null for each frame).

    Raises:
        InputError: an entry is incomplete, names an unknown video or category, or does not fit its video.
    """
    entries = read_json(path, error=InputError)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of results, found {type(entries).__name__}")
    return [_checked_result(entry, truth, f"{path}: entry {i}") for i, entry in enumerate(entries)]


def _checked_result(entry: Any, truth: VideoGroundTruth, where: str) -> dict[str, Any]:
    fields = ("video_id", "category_id", "score", "segmentations")
    if not isinstance(entry, dict) or any(field not in entry for field in fields):
        raise InputError(f"{where} needs {list(fields)}, found {str(entry)[:200]}")
    where = f"{where} (video {entry['video_id']!r})"
    if entry["video_id"] not in truth.videos:
        raise InputError(f"{where}: the video is not among the {len(truth.videos)} of {truth.json_file}")
    if entry["category_id"] not in truth.category_names:
        known = sorted(truth.category_names)
        raise InputError(f"{where}: category id {entry['category_id']!r} is unknown, there are {known[:20]}")
    if not isinstance(entry["score"], (int, float)) or not math.isfinite(entry["score"]):
        raise InputError(f"{where}: score must be a finite number, found {entry['score']!r}")
    return joined({**entry, "areas": None}, truth.videos[entry["video_id"]], where, InputError)


def joined(entry: Mapping[str, Any], video: VideoSize, where: str, error: type[InputError]) -> dict[str, Any]:
    """A track with ``mask`` and ``area`` in place of its segmentations; ``error`` where they do not fit the video.

    The area is the mean of ``areas`` where the file gives them, else that of the masks.
    """
    size = (video.height, video.width)
    segmentations = entry["segmentations"]
    if not isinstance(segmentations, list) or len(segmentations) != video.length:
        found = len(segmentations) if isinstance(segmentations, list) else type(segmentations).__name__
        raise error(f"{where}: 'segmentations' must hold one entry for each of {video.length} frames, found {found}")
    rles: list[Rle | None] = []
    for time, segmentation in enumerate(segmentations):
        if not segmentation:  # null: out of sight
            rles.append(None)
            continue
        check_segmentation(segmentation, size, f"{where}, frame {time}", error)
        rles.append(compressed_rle(segmentation, size))
    areas = entry.get("areas") or [None if rle is None else float(coco_mask.area(rle)) for rle in rles]
    kept = {key: value for key, value in entry.items() if key in ("video_id", "category_id", "score", "iscrowd")}
    return {**kept, "mask": join_frames(rles, size), "area": mean_visible_area(areas)}
