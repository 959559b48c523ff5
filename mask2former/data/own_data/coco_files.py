"""Finding what belongs together in COCO's layouts: the JSON files of the parts, and the folders of their images.

annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/     as COCO itself
train/_annotations.coco.json, valid/_annotations.coco.json, images beside them                     as exported
train.json, valid.json, images in a folder of that name, in images/ or beside them
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask2former.data.own_data.dataset import TRAIN, VALID
from mask2former.errors import DatasetError

_PART_WORD = re.compile(r"(?<![a-z])(train|valid|val|test)(?:ing|idation)?(\d*)(?![a-z])", re.IGNORECASE)
_JSON_FOLDERS = (
    ".",
    "annotations",
    "train",
    "valid",
    "val",
    "train/annotations",
    "valid/annotations",
    "val/annotations",
)


@dataclass(frozen=True)
class CocoFile:
    """A JSON file with its content, which is read once: it may be large."""

    path: Path
    kind: str
    content: Mapping[str, Any] = field(repr=False)


def part_of(json_file: Path, root: Path) -> str | None:
    """``TRAIN`` or ``VALID`` by the words in the path below ``root``, the file name first; ``"test"``; None."""
    for name in reversed(json_file.relative_to(root).with_suffix("").parts):
        word = _PART_WORD.search(name)
        if word:
            return {"train": TRAIN, "test": "test"}.get(word[1].lower(), VALID)
    return None


def json_files_below(root: Path) -> list[Path]:
    """JSON files where COCO data keep their annotations."""
    return [path for folder in _JSON_FOLDERS for path in sorted((root / folder).glob("*.json"))]


def is_partner(json_file: Path, train_file: Path, root: Path) -> bool:
    """Return whether a file is by its name the validation part of a training file: the same but for the part."""
    same_name = _PART_WORD.sub("*", json_file.name) == _PART_WORD.sub("*", train_file.name)
    return same_name and part_of(json_file, root) == VALID


def locate_files(
    json_file: Path,
    root: Path,
    file_names: Sequence[str],
    *,
    role: str,
    kinds: Sequence[str] = (),
    taken: Collection[Path] = (),
) -> list[Path]:
    """Return where the files lie that a JSON file names, all found as the first of them is.

    ``kinds`` are further names that folders may bear. What is ``taken`` already is another kind of file. Names may have
    the backslashes of Windows, or lead to where the files lay when the JSON file was written.

    Raises:
        DatasetError: the first lies in none of the folders where it could; they are named.
    """
    tried = list(dict.fromkeys(_candidates(json_file, root, kinds)))
    for rename in (str, _with_slashes, _bare):
        for folder in tried:
            first = folder / rename(file_names[0])
            if first.is_file() and first not in taken:
                return _all_below(folder, [rename(name) for name in file_names], file_names, json_file)
    shown = ", ".join(str(folder) for folder in tried if folder.is_dir())
    raise DatasetError(f"{json_file}: {role} {file_names[0]} not found; looked in {shown}")


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _bare(name: str) -> str:
    return _with_slashes(name).rpartition("/")[2]


def _all_below(folder: Path, renamed: Sequence[str], names: Sequence[str], json_file: Path) -> list[Path]:
    first_of: dict[str, str] = {}
    for short, name in zip(renamed, names, strict=True):
        if first_of.setdefault(short, name) != name:
            raise DatasetError(f"{json_file}: {first_of[short]} and {name} would both be {folder / short}")
    return [folder / short for short in renamed]


def _candidates(json_file: Path, root: Path, kinds: Sequence[str]) -> Iterator[Path]:
    word = _PART_WORD.search(json_file.stem)
    part = word[0] if word else ""
    bases = [json_file.parent, root, root.parent] if json_file.parent == root else [json_file.parent, root]
    after_kind = json_file.stem.partition("_")[2]  # instances_NAME.json, panoptic_NAME.json
    names = [json_file.stem, *kinds, part, after_kind, f"images/{part}", f"{part}/images", f"images/{after_kind}"]
    names += ["images", "data", "."]  # data: FiftyOne
    names[1:1] = [f"{part}/{kind}" for kind in kinds if part] + [f"{kind}/{part}" for kind in kinds if part]
    for base in bases:
        for name in names:
            yield base / name
