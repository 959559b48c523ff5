"""Videos in YouTube-VIS format: frames in folders, and a JSON file with a mask per object and frame."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from typing import Any

from mask2former.data.catalog import DatasetDict, MetadataCatalog
from mask2former.data.datasets.coco import XYWH_ABS
from mask2former.errors import DatasetError
from mask2former.files.json_files import read_json_object, require_folder, require_keys

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_PER_FRAME = ("segmentations", "bboxes")


def load_ytvis_json(
    json_file: PathLike, image_root: PathLike, dataset_name: str, *, annotated: bool = True
) -> list[DatasetDict]:
    """Dataset dicts of all videos: file_names (T), height, width, length T, video_id.

    ``annotations`` lists for each of the T frames the objects seen in it: id (the same in all frames), contiguous
    category_id, iscrowd, segmentation, bbox. ``annotated`` false reads videos alone, as of a test set. Metadata
    without classes is completed from the file.

    Raises:
        DatasetError: a file or folder is missing, or an entry is wrong; the message names it.
    """
    content = read_json_object(json_file, ("videos", "annotations") if annotated else ("videos",))
    folder = require_folder(image_root, "video")
    tracks = _tracks_by_video(content, json_file, dataset_name) if annotated else {}
    dicts = []
    for entry in content["videos"]:
        context = f"{json_file}: video {entry.get('id', 'without id') if isinstance(entry, dict) else ''}"
        video = require_keys(entry, ("id", "file_names", "height", "width"), context)
        names = video["file_names"]
        if not isinstance(names, list) or not names or video.get("length", len(names)) != len(names):
            raise DatasetError(f"{context}: 'file_names' must list 'length' frames, found {str(names)[:100]}")
        record: DatasetDict = {
            "file_names": [os.path.join(folder, name) for name in names],
            "height": video["height"],
            "width": video["width"],
            "length": len(names),
            "video_id": video["id"],
        }
        if annotated:
            record["annotations"] = _by_frame(tracks.pop(video["id"], []), len(names), context)
        dicts.append(record)
    if tracks:
        raise DatasetError(f"{json_file}: annotations of videos that are not listed: {sorted(tracks)[:5]}")
    logger.info("Loaded %d videos from %s", len(dicts), json_file)
    return dicts


def _tracks_by_video(content: dict[str, Any], json_file: PathLike, name: str) -> dict[int, list[dict[str, Any]]]:
    """Annotations with contiguous classes by video id."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        entries = [require_keys(c, ("id", "name"), f"{json_file}: category") for c in content.get("categories", ())]
        names = {c["id"]: c["name"] for c in sorted(entries, key=lambda c: c["id"])}
        metadata.set(
            thing_classes=list(names.values()), thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(names)}
        )
    contiguous_of = metadata.thing_dataset_id_to_contiguous_id
    tracks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        context = f"{json_file}: annotation {entry.get('id', 'without id') if isinstance(entry, dict) else ''}"
        track = require_keys(entry, ("id", "video_id", "category_id", "segmentations"), context)
        category = track["category_id"]
        if category not in contiguous_of:
            raise DatasetError(
                f"{context}: category id {category!r} has no class; classes have ids {sorted(contiguous_of)}"
            )
        tracks[track["video_id"]].append({**track, "category_id": contiguous_of[category]})
    return tracks


def _by_frame(tracks: list[dict[str, Any]], num_frames: int, context: str) -> list[list[dict[str, Any]]]:
    frames: list[list[dict[str, Any]]] = [[] for _ in range(num_frames)]
    for track in tracks:
        for key in _PER_FRAME:
            if key in track and len(track[key]) != num_frames:
                raise DatasetError(
                    f"{context} has {num_frames} frames, {key!r} of annotation {track['id']} {len(track[key])}"
                )
        boxes = track.get("bboxes") or [None] * num_frames
        for frame, segmentation, box in zip(frames, track["segmentations"], boxes, strict=True):
            if not segmentation:  # null: out of sight in this frame; some files write an empty list
                continue
            seen = {
                "id": track["id"],
                "category_id": track["category_id"],
                "iscrowd": track.get("iscrowd", 0),
                "segmentation": segmentation,
            }
            frame.append(seen if box is None else {**seen, "bbox": box, "bbox_mode": XYWH_ABS})
    return frames
