"""The files of the shapes data set: pictures, label maps, annotations. Each appears only when complete.

<split>/, panoptic_<split>/, sem_seg_<split>/ hold 000001.jpg or .png, video_<split>/JPEGImages/0001/ the frames
00000.jpg, annotations/ the json files panoptic_<split>, instances_<split> and video_<split>.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.data.shapes.classes import coco_categories
from mask2former.data.shapes.coco import instance_entries, panoptic_entry, track_entries
from mask2former.data.shapes.parameters import FORMAT_VERSION, KINDS, SPLITS, ShapesParameters, item_generator
from mask2former.data.shapes.scene import draw_scene
from mask2former.data.shapes.video import draw_video
from mask2former.files.atomic import write_json
from mask2former.files.pictures import write_picture
from mask2former.structures import id_to_rgb

SCRATCH = ".unfinished"  # holds temporary files and the records of finished chunks
_ITEMS_PER_CHUNK = {"image": 20, "video": 2}
_JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    92,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)

Record = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Items start … stop - 1 of a kind in a split: a piece of work for one process."""

    kind: str
    split: str
    start: int
    stop: int

    @property
    def record_file(self) -> str:
        """Where, below the root, the records of a finished chunk stand."""
        return f"{SCRATCH}/{self.kind}_{self.split}_{self.start:06d}.json"


def chunks_of(parameters: ShapesParameters) -> Iterator[Chunk]:
    """Yield all chunks, in the order of the items."""
    for kind in KINDS:
        for split in SPLITS:
            count, step = parameters.count(kind, split), _ITEMS_PER_CHUNK[kind]
            for start in range(0, count, step):
                yield Chunk(kind, split, start, min(start + step, count))


def draw_chunk(chunk: Chunk, root: Path, parameters: ShapesParameters) -> list[Record]:
    """Draw and write the pictures of a chunk, unless done before; returns what annotation files say of each item."""
    finished = root / chunk.record_file
    if finished.exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    write_item = _write_scene if chunk.kind == "image" else _write_video
    records = []
    for index in range(chunk.start, chunk.stop):
        rng = item_generator(parameters.seed, chunk.kind, chunk.split, index)
        records.append(write_item(rng, root, chunk.split, index + 1, parameters))
    write_json(records, root / chunk.record_file, is_durable=False)
    return records


def _write_scene(
    rng: np.random.Generator, root: Path, split: str, image_id: int, parameters: ShapesParameters
) -> Record:
    scene = draw_scene(rng, parameters.size)
    stem = f"{image_id:06d}"
    write_image(root, f"{split}/{stem}.jpg", scene.image)
    write_image(root, f"panoptic_{split}/{stem}.png", id_to_rgb(scene.ids))
    write_image(root, f"sem_seg_{split}/{stem}.png", scene.semantic())
    height, width = parameters.size
    return {
        "image": {"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width},
        "panoptic": panoptic_entry(scene, image_id, f"{stem}.png"),
        "instances": instance_entries(scene, image_id),
    }


def _write_video(
    rng: np.random.Generator, root: Path, split: str, video_id: int, parameters: ShapesParameters
) -> Record:
    fewest, most = parameters.num_frames
    video = draw_video(rng, parameters.size, num_frames=int(rng.integers(fewest, most + 1)))
    names = [f"{video_id:04d}/{time:05d}.jpg" for time in range(len(video.frames))]
    for name, frame in zip(names, video.frames, strict=True):
        write_image(root, f"video_{split}/JPEGImages/{name}", frame)
    height, width = parameters.size
    entry = {"id": video_id, "height": height, "width": width, "length": len(names), "file_names": names}
    return {"video": entry, "tracks": track_entries(video, video_id)}


def write_annotations(root: Path, split: str, images: list[Record], videos: list[Record]) -> None:
    """Write the json files of a split from the records of its items."""
    things = coco_categories(things_only=True)
    files: dict[str, Record] = {
        "panoptic": {
            "images": [r["image"] for r in images],
            "annotations": [r["panoptic"] for r in images],
            "categories": coco_categories(),
        },
        "instances": {
            "images": [r["image"] for r in images],
            "annotations": _numbered([entry for r in images for entry in r["instances"]]),
            "categories": things,
        },
    }
    if videos:
        files["video"] = {
            "videos": [r["video"] for r in videos],
            "annotations": _numbered([entry for r in videos for entry in r["tracks"]]),
            "categories": things,
        }
    head = {"info": {"description": f"shapes, {split}", "version": str(FORMAT_VERSION)}, "licenses": []}
    for name, content in files.items():
        write_json({**head, **content}, root / f"annotations/{name}_{split}.json")


def _numbered(entries: list[Record]) -> list[Record]:
    return [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]


def write_image(root: Path, name: str, image: np.ndarray) -> None:
    """Write an RGB (H, W, 3) or grey (H, W) uint8 picture in the format that the name's ending asks for."""
    write_picture(image, root / name, options=_JPEG if name.endswith(".jpg") else None)
