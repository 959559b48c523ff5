"""The files of the shapes data set: pictures, label maps, and json files of COCO and YouTube-VIS.

<split>/, panoptic_<split>/, sem_seg_<split>/ hold 000001.jpg or .png, video_<split>/JPEGImages/0001/ the frames
00000.jpg, annotations/ the json files panoptic_<split>, instances_<split> and video_<split>. Each appears only when
complete.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.data.shapes.classes import coco_categories
from mask2former.data.shapes.light import Size
from mask2former.data.shapes.scene import Scene, check_size, draw_scene
from mask2former.data.shapes.video import Video, draw_video
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_json
from mask2former.files.pictures import write_picture
from mask2former.structures import bitmasks_to_rles, id_to_rgb, mask_to_box_xywh, polygons_to_bitmask

# One instance in this many is written as polygons (where they are exact), so that both forms occur.
_POLYGON_PERIOD = 8


def panoptic_entry(scene: Scene, image_id: int, file_name: str) -> dict[str, Any]:
    """Return an entry of ``annotations`` in a COCO panoptic file; ``file_name`` is that of the PNG."""
    return {
        "image_id": image_id,
        "file_name": file_name,
        "segments_info": [
            {
                "id": segment.id,
                "category_id": segment.category.category_id,
                "area": segment.area,
                "bbox": list(segment.bbox_xywh),
                "iscrowd": int(segment.iscrowd),
            }
            for segment in scene.segments
        ],
    }


def instance_entries(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """Return entries of ``annotations`` in a COCO instances file, one a thing segment, still without ``id``."""
    things = [segment for segment in scene.segments if segment.category.isthing]
    if not things:
        return []
    masks = np.stack([scene.ids == segment.id for segment in things])
    entries = []
    for index, (segment, mask, rle) in enumerate(zip(things, masks, bitmasks_to_rles(masks), strict=True)):
        wants_polygons = (image_id + index) % _POLYGON_PERIOD == 0 and not segment.iscrowd
        polygons = mask_to_polygons(mask) if wants_polygons else None
        entries.append(
            {
                "image_id": image_id,
                "category_id": segment.category.category_id,
                "iscrowd": int(segment.iscrowd),
                "area": segment.area,
                "bbox": list(segment.bbox_xywh),
                "segmentation": rle if polygons is None else polygons,
            }
        )
    return entries


def track_entries(video: Video, video_id: int) -> list[dict[str, Any]]:
    """Return entries of ``annotations`` in a YouTube-VIS file, still without ``id``.

    Null in frames where nothing shows.
    """
    num_frames, height, width = video.ids.shape
    entries = []
    for track in video.tracks:
        masks = video.ids == track.id
        seen = masks.any((1, 2)).tolist()
        entries.append(
            {
                "video_id": video_id,
                "category_id": track.category.category_id,
                "iscrowd": 0,
                "height": height,
                "width": width,
                "length": num_frames,
                "segmentations": [r if s else None for r, s in zip(bitmasks_to_rles(masks), seen, strict=True)],
                "bboxes": [list(mask_to_box_xywh(m)) if s else None for m, s in zip(masks, seen, strict=True)],
                "areas": [int(np.count_nonzero(m)) if s else None for m, s in zip(masks, seen, strict=True)],
            }
        )
    return entries


def mask_to_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Return polygons along the pixel edges of a mask (H, W) bool; None if they would not give the same mask."""
    # In a doubled mask a contour runs through pixel 2x on a left edge and 2x + 1 on a right one: half of that,
    # rounded up, is the edge itself.
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, 0), 2, 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [_without_repeats((contour.reshape(-1, 2) + 1) // 2) for contour in contours]
    flat = [polygon.ravel().astype(float).tolist() for polygon in polygons if len(polygon) >= 3]
    exact = bool(flat) and np.array_equal(polygons_to_bitmask(flat, *mask.shape), mask)
    return flat if exact else None


def _without_repeats(points: np.ndarray) -> np.ndarray:
    """Return closed polygon (N, 2) of whole steps without repeated points and points within straight lines."""
    points = points[np.any(points != np.roll(points, 1, 0), 1)]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return points[np.any(before != after, 1)]


# Change it when the same parameters begin to give other pictures: data sets drawn before are then told apart.
FORMAT_VERSION = 2
SPLITS = ("train", "val")
KINDS = ("image", "video")


@dataclass(frozen=True)
class ShapesParameters:
    """The size of the data set and of its pictures. The items of a split do not depend on how many there are."""

    num_train: int = 2000
    num_val: int = 200
    size: Size = (128, 128)
    num_train_videos: int = 300
    num_val_videos: int = 40
    num_frames: tuple[int, int] = (10, 20)  # fewest and most frames of a video
    seed: int = 0

    def __post_init__(self) -> None:
        check_size(self.size)
        for name, least in (
            ("num_train", 1),
            ("num_val", 1),
            ("num_train_videos", 0),
            ("num_val_videos", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise DatasetError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 1 <= self.num_frames[0] <= self.num_frames[1]:
            raise DatasetError(f"num_frames: expected 1 <= fewest <= most, found {self.num_frames}")

    def count(self, kind: str, split: str) -> int:
        """Return how many items of a kind a split has."""
        return int(getattr(self, f"num_{split}" if kind == "image" else f"num_{split}_videos"))

    def manifest(self) -> dict[str, Any]:
        """Return the parameters as they stand in the manifest file."""
        content = {"dataset": "shapes", "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.loads(json.dumps(content))  # so that it equals what is read back


def item_generator(seed: int, kind: str, split: str, index: int) -> np.random.Generator:
    """Return the random numbers of one item; those of different items, splits and kinds are independent."""
    key = (KINDS.index(kind), SPLITS.index(split), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


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
