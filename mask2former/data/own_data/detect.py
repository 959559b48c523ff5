"""Which format a path holds, and reading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mask2former.data.own_data.coco_files import CocoFile, is_partner, json_files_below, part_of
from mask2former.data.own_data.coco_instances import read_coco_instances
from mask2former.data.own_data.coco_panoptic import read_coco_panoptic
from mask2former.data.own_data.dataset import (
    COCO_INSTANCES,
    COCO_PANOPTIC,
    FORMAT_TITLES,
    TRAIN,
    VALID,
    OwnDataset,
)
from mask2former.data.own_data.datasets_library import is_datasets_folder
from mask2former.data.own_data.labelme import is_labelme_json, read_labelme
from mask2former.data.own_data.png_tree import is_png_tree, read_png_tree
from mask2former.errors import DatasetError

EXPECTED = (
    "expected a folder with train/images and train/masks, a COCO instances or panoptic json or a folder with one, "
    "or a folder of labelme files"
)
_NUM_LOOKED_AT = 10
_COCO_READERS = {COCO_INSTANCES: read_coco_instances, COCO_PANOPTIC: read_coco_panoptic}


def read_own_data(path: str | Path, *, preferred: str | None = None, num_workers: int | None = None) -> OwnDataset:
    """The data set that ``path`` holds, its format found by what lies there.

    ``preferred`` is the format to take where a folder holds COCO files of several kinds.

    Raises:
        DatasetError: nothing is there, it is of none of the formats, or what is there is wrong.
    """
    location = Path(path).expanduser()
    if location.is_file():
        return _read_json(location, num_workers)
    if not location.is_dir():
        raise DatasetError(f"{path}: no such file or folder; {EXPECTED}")
    if is_png_tree(location):
        return read_png_tree(location, num_workers=num_workers)
    coco_files = _coco_files_below(location, preferred)
    if coco_files:
        kind = coco_files[TRAIN].kind
        return _COCO_READERS[kind](coco_files, location, num_workers=num_workers)
    if any(_is_labelme(json_file) for json_file in sorted(location.rglob("*.json"))[:_NUM_LOOKED_AT]):
        return read_labelme(location, num_workers=num_workers)
    if is_datasets_folder(location):
        raise DatasetError(f"{path}: a data set of the library datasets; tools/convert_dataset.py makes files of it")
    raise DatasetError(f"{path}: no data set found in this folder; {EXPECTED}")


def _coco_files_below(root: Path, preferred: str | None) -> dict[str, CocoFile]:
    """The file of each part; empty where there is none."""
    paths = json_files_below(root)
    found = [coco_file for path in paths if (coco_file := _read_coco_file(path)) is not None]
    present = [kind for kind in (COCO_INSTANCES, COCO_PANOPTIC) if any(f.kind == kind for f in found)]
    if not present:
        return {}
    kind = preferred if preferred in present else present[0]
    return _choose(root, [coco_file for coco_file in found if coco_file.kind == kind], paths)


def _read_coco_file(json_file: Path) -> CocoFile | None:
    content = _content_of(json_file)
    kind = _coco_kind(content)
    return None if kind is None else CocoFile(json_file, kind, content)


def _coco_kind(content: Any) -> str | None:
    """``COCO_INSTANCES`` or ``COCO_PANOPTIC``; None for captions, key points, images alone, and what is no COCO."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not isinstance(content.get("images"), list):
        return None
    first = next((entry for entry in annotations if isinstance(entry, dict)), {})
    if "segments_info" in first:
        return COCO_PANOPTIC
    if "keypoints" in first or "caption" in first or "categories" not in content:
        return None
    return COCO_INSTANCES


def _content_of(json_file: Path) -> Any:
    try:
        return json.loads(json_file.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{json_file} is not valid JSON: {error}") from error


def _is_labelme(json_file: Path) -> bool:
    return is_labelme_json(_content_of(json_file))


def _read_json(json_file: Path, num_workers: int | None) -> OwnDataset:
    """One JSON file; with the validation file beside it, where it is called as the training one but for that word."""
    train = _read_coco_file(json_file)
    if train is None:
        if _is_labelme(json_file):
            raise DatasetError(f"{json_file} is one labelme file; give the folder that holds all of them")
        raise DatasetError(f"{json_file}: neither COCO instances nor COCO panoptic; {EXPECTED}")
    folder = json_file.parent
    if part_of(json_file, folder) != TRAIN:
        return _COCO_READERS[train.kind]({TRAIN: train}, folder, num_workers=num_workers)
    beside = [path for path in sorted(folder.glob("*.json")) if is_partner(path, json_file, folder)][:1]
    parts = [train, *filter(None, map(_read_coco_file, beside))]
    return _COCO_READERS[train.kind](_choose(folder, parts, beside), folder, num_workers=num_workers)


def _choose(root: Path, found: list[CocoFile], paths: list[Path]) -> dict[str, CocoFile]:
    """The file of each part, of those of one kind among ``paths``; a single one may name no part and is for training.

    A file that is the other part by its name alone is refused: without a word the data set would be half of what it is.
    """
    if len(found) == 1 and part_of(found[0].path, root) is None:
        return {TRAIN: found[0]}
    chosen = {}
    for part in (TRAIN, VALID):
        files = [coco_file for coco_file in found if part_of(coco_file.path, root) == part]
        if len(files) > 1:
            names, title = _names(root, files), FORMAT_TITLES[files[0].kind]
            raise DatasetError(f"{root}: several {part} files of {title}: {names}; give the path of one")
        if files:
            chosen[part] = files[0]
    if TRAIN not in chosen:
        title, others = FORMAT_TITLES[found[0].kind], [path for path in paths if part_of(path, root) == TRAIN]
        note = f"; {', '.join(map(str, others))}: no {title}" if others else ""
        raise DatasetError(
            f"{root}: which file is for training? {title} are in {_names(root, found)} alone; its name must say train, "
            f"or give its path{note}"
        )
    partner = next((path for path in paths if is_partner(path, chosen[TRAIN].path, root)), None)
    if partner is not None and VALID not in chosen:
        title = FORMAT_TITLES[chosen[TRAIN].kind]
        raise DatasetError(f"{partner}: called as the validation part of {chosen[TRAIN].path}, but no {title}")
    return chosen


def _names(root: Path, files: list[CocoFile]) -> str:
    return ", ".join(str(coco_file.path.relative_to(root)) for coco_file in files)
