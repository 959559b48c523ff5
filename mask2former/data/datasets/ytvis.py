"""Videos in YouTube-VIS format: frames in folders, and a JSON file with a mask per object and frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former.data.catalog import DatasetDict, MetadataCatalog
from mask2former.data.datasets.coco import XYWH_ABS, log_notes
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import located
from mask2former.files.coco import names_apart, unknown_category
from mask2former.files.faults import Faults
from mask2former.files.json_files import require_folder
from mask2former.files.ytvis import VideoAnnotations, read_videos

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def load_ytvis_json(
    json_file: PathLike, image_root: PathLike, dataset_name: str, *, annotated: bool = True
) -> list[DatasetDict]:
    """Return dataset dicts of all videos: file_names (T), height, width, length T, video_id.

    ``annotations`` lists for each of the T frames the visible objects: id (the same in all frames), contiguous
    category_id, iscrowd, segmentation, bbox. ``annotated`` false reads a file of videos only, such as a test set.
    Metadata without classes is completed from the file.

    Raises:
        DatasetError: a file or folder is missing, or entries are wrong; the message names them.
    """
    annotations = read_videos(json_file, annotated=annotated)
    folder = require_folder(image_root, "video")
    tracks_of: dict[Any, list[dict[str, Any]]] = {video_id: [] for video_id in annotations.videos}
    if annotations.tracks is not None:
        contiguous_of = _resolve_categories(annotations, dataset_name)
        log_notes(json_file, filter(None, [*annotations.notes, annotations.crowds_note()]))
        faults = Faults(json_file)
        for track in annotations.tracks:
            if track["category_id"] not in contiguous_of:
                unknown = unknown_category(track["category_id"], contiguous_of)
                faults.add(f"annotation {track['id']}: {unknown}")
                continue
            tracks_of[track["video_id"]].append({**track, "category_id": contiguous_of[track["category_id"]]})
        faults.refuse()
    dicts = []
    for video_id, video in annotations.videos.items():
        record: DatasetDict = {
            "file_names": [str(located(folder, name)) for name in video.file_names],
            "height": video.height,
            "width": video.width,
            "length": video.length,
            "video_id": video_id,
        }
        if annotations.tracks is not None:
            record["annotations"] = _by_frame(tracks_of[video_id], video.length)
        dicts.append(record)
    logger.info("Loaded %d videos from %s", len(dicts), json_file)
    return dicts


def _resolve_categories(annotations: VideoAnnotations, name: str) -> Mapping[int, int]:
    """Return contiguous classes by category id."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        if not annotations.categories:
            raise DatasetError(f"{annotations.source} has no 'categories', and no class names are known for {name!r}")
        names = names_apart(annotations.categories, {track["category_id"] for track in annotations.tracks or ()})
        ids = sorted(names)
        metadata.set(
            thing_classes=[names[i] for i in ids], thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(ids)}
        )
    return metadata.thing_dataset_id_to_contiguous_id


def _by_frame(tracks: Sequence[Mapping[str, Any]], num_frames: int) -> list[list[dict[str, Any]]]:
    frames: list[list[dict[str, Any]]] = [[] for _ in range(num_frames)]
    texts = [track["id"] for track in tracks if isinstance(track["id"], str)]
    # Targets hold numbers: ids that are text get such as no other track of the video has.
    number_of = {text: -2 - number for number, text in enumerate(texts)}  # -1 stands for no object
    for track in tracks:
        boxes = track.get("bboxes") or [None] * num_frames
        for frame, segmentation, box in zip(frames, track["segmentations"], boxes, strict=True):
            if segmentation is None:  # out of sight in this frame
                continue
            seen = {
                "id": number_of.get(track["id"], track["id"]),
                "category_id": track["category_id"],
                "iscrowd": track["iscrowd"],
                "segmentation": segmentation,
            }
            frame.append(seen if box is None else {**seen, "bbox": box, "bbox_mode": XYWH_ABS})
    return frames
