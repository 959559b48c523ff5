"""YouTube-VIS: a JSON file of videos and tracks, read and checked once, for training, evaluation and results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mask2former.errors import DatasetError
from mask2former.files.annotation_values import (
    Id,
    listed_id,
    numbered_id,
    plain_box,
    plain_flag,
    plain_id,
    plain_name,
    plain_number,
    plain_size,
)
from mask2former.files.coco import (
    Category,
    PathLike,
    id_shown,
    read_categories,
    refuse_shared_names,
    unknown_category,
    without_entry,
)
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json, require_keys, require_lists
from mask2former.structures.segmentations import check_segmentation, shown, whole_number


@dataclass(frozen=True)
class Video:
    """A video of a file; ``file_names`` is empty if the file names no frames."""

    id: Id
    height: int
    width: int
    length: int
    file_names: tuple[str, ...] = ()


@dataclass
class VideoAnnotations:
    """The content of a YouTube-VIS file, every value checked and in one form.

    ``tracks`` is None for a file of videos only, such as public validation sets. A track has id, video_id, category_id,
    iscrowd, and lists with an entry for each frame: segmentations (in the form of ``check_segmentation``, or None), and
    if given bboxes and areas (None where the track is not visible).
    """

    source: PathLike
    videos: dict[Id, Video]
    categories: dict[int, Category]
    tracks: list[dict[str, Any]] | None
    notes: list[str] = field(default_factory=list)

    def crowds_note(self) -> str | None:
        """Return a note of how many tracks are crowds and not trained on."""
        crowds = sum(track["iscrowd"] for track in self.tracks or ())
        return f"left out {crowds} of {len(self.tracks or ())} tracks: iscrowd 1" if crowds else None


def read_videos(path: PathLike, *, annotated: bool | None = None, needs_files: bool = True) -> VideoAnnotations:
    """Read and check a YouTube-VIS file.

    ``annotated``: True requires tracks, False ignores them, None reads them if there are any.

    Raises:
        DatasetError: the file cannot be read, or the faults of all its entries.
    """
    lists = ("videos", *(("annotations",) if annotated else ()))
    content = require_lists(read_json(path), lists, path, optional=("categories",))
    if annotated is None:
        annotated = content.get("annotations") is not None
        content = require_lists(content, ("annotations", "categories") if annotated else (), path)
    faults = Faults(path)
    videos = _read_all_videos(content["videos"], faults, needs_files=needs_files)
    categories = read_categories(content.get("categories") or (), faults)
    if not annotated:
        faults.refuse()
        return VideoAnnotations(path, videos, categories, None)
    tracks = []
    seen: set[Id] = set()
    for entry in content["annotations"]:
        try:
            tracks.append(_read_track(entry, videos, categories, seen))
        except DatasetError as error:
            faults.add(f"annotation {id_shown(entry)}: {without_entry(error)}")
    refuse_shared_names(categories.values(), Counter(track["category_id"] for track in tracks), faults)
    faults.refuse()
    return VideoAnnotations(path, videos, categories, tracks)


def check_frames(segmentations: Any, video: Video) -> list[Any]:
    """Return a segmentation for each frame of the video, None where the object is not visible.

    Raises:
        DatasetError: there are more or fewer, or one is wrong.
    """
    if not isinstance(segmentations, (list, tuple)) or len(segmentations) != video.length:
        raise DatasetError(_other_length("segmentations", segmentations, video))
    size = (video.height, video.width)
    # Null and an empty list stand for a frame that does not show the object.
    return [check_segmentation(s, size, f"frame {t}") if _is_seen(s) else None for t, s in enumerate(segmentations)]


def _read_all_videos(entries: Sequence[Any], faults: Faults, *, needs_files: bool) -> dict[Id, Video]:
    videos: dict[Id, Video] = {}
    for entry in entries:
        try:
            video = _read_video(entry, needs_files=needs_files)
            if video.id in videos:
                raise DatasetError("the id occurs twice")
            videos[video.id] = video
        except DatasetError as error:
            faults.add(f"video {id_shown(entry)}: {without_entry(error)}")
    return videos


def _read_video(entry: Any, *, needs_files: bool) -> Video:
    entry = require_keys(entry, ("id", *(("file_names",) if needs_files else ()), "height", "width"), "entry")
    names = entry.get("file_names")
    names = () if names is None and not needs_files else names
    if not isinstance(names, (list, tuple)) or (needs_files and not names):
        raise DatasetError(f"'file_names' must list 'length' frames, found {shown(names)}")
    length = len(names) if entry.get("length") is None else whole_number(entry["length"])
    if not length or length < 1 or (names and length != len(names)):
        found = f"length {shown(entry.get('length'))} and {len(names)} names"
        raise DatasetError(f"'file_names' must list 'length' frames, found {found}")
    file_names = tuple(plain_name(name, "file_names") for name in names)
    if len(set(file_names)) < len(file_names):
        twice = next(name for name, count in Counter(file_names).items() if count > 1)
        raise DatasetError(f"frame {twice} is listed twice")
    return Video(plain_id(entry["id"]), *plain_size(entry), length, file_names)


def _read_track(
    entry: Any, videos: Mapping[Id, Video], categories: Mapping[int, Category], seen: set[Id]
) -> dict[str, Any]:
    entry = require_keys(entry, ("id", "video_id", "category_id", "segmentations"), "entry")
    track: dict[str, Any] = {"id": plain_id(entry["id"])}
    if track["id"] in seen:
        raise DatasetError("the id occurs twice")
    seen.add(track["id"])
    video = videos.get(listed_id(entry["video_id"], videos))  # type: ignore[arg-type]
    if video is None:
        raise DatasetError(f"video {shown(entry['video_id'])} is not listed")
    track |= {"video_id": video.id, "category_id": numbered_id(entry["category_id"], "category_id")}
    if categories and track["category_id"] not in categories:
        raise DatasetError(unknown_category(entry["category_id"], categories))
    track["iscrowd"] = plain_flag(entry.get("iscrowd"), "iscrowd")
    track["segmentations"] = check_frames(entry["segmentations"], video)
    for key in ("bboxes", "areas"):
        if entry.get(key) is None:
            continue
        if not isinstance(entry[key], (list, tuple)) or len(entry[key]) != video.length:
            raise DatasetError(_other_length(key, entry[key], video))
        read = plain_box if key == "bboxes" else plain_number
        is_seen = [mask is not None for mask in track["segmentations"]]
        track[key] = [read(v) if seen and v is not None else None for v, seen in zip(entry[key], is_seen)]  # type: ignore[operator]
    return track


def _is_seen(segmentation: Any) -> bool:
    return segmentation is not None and not (isinstance(segmentation, (list, tuple, dict)) and not segmentation)


def _other_length(key: str, found: Any, video: Video) -> str:
    length = f"{len(found)} entries" if isinstance(found, (list, tuple)) else shown(found)
    return f"{key!r} must hold one entry for each of {video.length} frames of video {video.id}, found {length}"
