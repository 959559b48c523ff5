"""Video ground truth in YouTube-VIS format, and saved results, checked before anything is computed from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.coco_ground_truth import checked_score
from mask2former.evaluation.video_average_precision import Rle, join_frames, mean_visible_area
from mask2former.files.annotation_values import listed_id
from mask2former.files.coco import names_apart, unknown_category
from mask2former.files.inputs import PathLike
from mask2former.files.json_files import Faults, read_json, require_keys
from mask2former.files.ytvis import Video, check_frames, read_videos
from mask2former.structures.segmentations import encode_segmentation, is_plain_area, shown

logger = logging.getLogger(__name__)


class VideoGroundTruth:
    """Videos, categories and, where there are any, annotated tracks of a YouTube-VIS json.

    ``tracks`` is None for a file of videos alone, as the public validation and test sets are. A track has id, video_id,
    category_id, iscrowd, ``mask`` (the code of ``join_frames``) and ``area``, the mean over frames that show it.

    Raises:
        DatasetError: the file is missing or corrupt, or entries are incomplete or contradict others.
    """

    def __init__(self, json_file: PathLike) -> None:
        self.json_file = json_file
        annotations = read_videos(json_file, needs_files=False)
        self.videos = annotations.videos
        used = {track["category_id"] for track in annotations.tracks or ()}
        self.category_names: dict[int, str] = names_apart(annotations.categories, used)
        self.tracks: list[dict[str, Any]] | None = None
        if annotations.tracks is not None:
            self.tracks = [joined(track, self.videos[track["video_id"]]) for track in annotations.tracks]
            changed = sum(
                not is_plain_area(mean_visible_area(given["areas"]), joint["measured"])
                for given, joint in zip(annotations.tracks, self.tracks)
                if given.get("areas")
            )
            if changed:
                logger.warning(
                    "%s: areas of %d tracks are none that their masks can have: measured", json_file, changed
                )

    def video_id_of(self, given: Any) -> Any:
        """Return the video id as the json has it; it may be given as number or text.

        Raises:
            InputError: there is no such video.
        """
        video_id = listed_id(given, self.videos)
        if video_id not in self.videos:
            raise InputError(f"video id {given!r} is not among the {len(self.videos)} of {self.json_file}")
        return video_id


def read_video_results(path: PathLike, truth: VideoGroundTruth) -> list[dict[str, Any]]:
    """Return entries of a results file: video_id, category_id, score, segmentations (RLE or null for each frame).

    Raises:
        InputError: entries are incomplete, name an unknown video or category, or do not fit their video.
    """
    entries = read_json(path, error=InputError)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of results, found {type(entries).__name__}")
    faults, results = Faults(path, error=InputError), []
    for i, entry in enumerate(entries):
        try:
            results.append(_checked_result(entry, truth))
        except InputError as error:
            video = f" (video {shown(entry['video_id'])})" if isinstance(entry, dict) and "video_id" in entry else ""
            faults.add(f"entry {i}{video}: {error}")
    faults.refuse()
    return results


def _checked_result(entry: Any, truth: VideoGroundTruth) -> dict[str, Any]:
    entry = require_keys(entry, ("video_id", "category_id", "score", "segmentations"), "result")
    video_id = listed_id(entry["video_id"], truth.videos)
    if video_id not in truth.videos:
        raise DatasetError(f"the video is not among the {len(truth.videos)} of {truth.json_file}")
    category_id = listed_id(entry["category_id"], truth.category_names)
    if category_id not in truth.category_names:
        raise DatasetError(unknown_category(entry["category_id"], truth.category_names))
    video = truth.videos[video_id]  # type: ignore[index]
    result = {"video_id": video_id, "category_id": category_id, "score": checked_score(entry["score"])}
    return joined({**result, "segmentations": check_frames(entry["segmentations"], video)}, video)


def joined(entry: Mapping[str, Any], video: Video) -> dict[str, Any]:
    """Return a track with ``mask`` and ``area`` in place of its segmentations, which ``check_frames`` returned.

    The area is the mean of ``areas`` where the file gives them and the masks can have them, else ``measured``.
    """
    size = (video.height, video.width)
    rles: list[Rle | None] = [s if s is None else encode_segmentation(s, size) for s in entry["segmentations"]]
    areas = [None if rle is None else float(coco_mask.area(rle)) for rle in rles]
    stated, measured = entry.get("areas") or areas, mean_visible_area(areas)
    kept = {key: value for key, value in entry.items() if key in ("video_id", "category_id", "score", "iscrowd")}
    area = mean_visible_area(stated)
    area = area if is_plain_area(area, measured) else measured
    return {**kept, "mask": join_frames(rles, size), "area": area, "measured": measured}
