"""Write panoptic annotations: a PNG of segment ids per image, and one json file, which is written last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.classes import Category
from mask2former.data.datasets.instance_maps import segments_of
from mask2former.data.preparation.work import Item, RunOptions, run_all
from mask2former.files.atomic import remove_temporaries, write_json
from mask2former.files.json_files import read_json_if_whole
from mask2former.files.pictures import is_intact, write_picture
from mask2former.structures import id_to_rgb

Record = dict[str, Any]


@dataclass(frozen=True)
class PanopticImage:
    """One annotated image: segment ``ids`` (H, W), 0 is void, and the class and crowd flag of each id."""

    image_id: str
    image_name: str
    png_name: str
    ids: np.ndarray
    segments: dict[int, tuple[int, bool]]


def write_panoptic(
    read: Callable[[Item], PanopticImage],
    items: Sequence[Item],
    folder: Path,
    classes: Sequence[Category],
    options: RunOptions,
) -> None:
    """Write the PNG files into ``folder`` and the annotations beside it as <folder>.json."""
    json_file = folder.with_name(f"{folder.name}.json")
    if not options.force and _is_complete(json_file, folder, len(items)):
        print(f"{folder.name}: {len(items)} files were there")
        return
    remove_temporaries(folder)
    write_one = partial(_write_one, read=read, folder=folder, force=options.force)
    records = run_all(write_one, items, options, description=folder.name)
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color or (0, 0, 0))} for c in classes
    ]
    write_json(
        {"images": [r[0] for r in records], "annotations": [r[1] for r in records], "categories": categories},
        json_file,
    )
    print(f"{folder.name}: {len(records)} files, {json_file.name}")


def _is_complete(json_file: Path, folder: Path, count: int) -> bool:
    content = read_json_if_whole(json_file)
    if content is None or len(content["images"]) != count:
        return False
    return all(
        is_intact(folder / annotation["file_name"], (image["height"], image["width"]))
        for image, annotation in zip(content["images"], content["annotations"], strict=True)
    )


def _write_one(item: Item, read: Callable[[Item], PanopticImage], folder: Path, force: bool) -> tuple[Record, Record]:
    """Return the entries of one image in ``images`` and ``annotations``."""
    image = read(item)
    height, width = image.ids.shape
    segments = []
    for segment in segments_of(image.ids):
        if segment.id == 0:
            continue
        category, is_crowd = image.segments[segment.id]
        segments.append(
            {
                "id": segment.id,
                "category_id": category,
                "area": segment.area,
                "bbox": list(segment.box),
                "iscrowd": int(is_crowd),
            }
        )
    path = folder / image.png_name
    if force or not is_intact(path, (height, width)):
        write_picture(id_to_rgb(image.ids), path)
    return (
        {"id": image.image_id, "file_name": image.image_name, "height": height, "width": width},
        {"image_id": image.image_id, "file_name": image.png_name, "segments_info": segments},
    )
