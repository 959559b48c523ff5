"""Which ids of a data set train, as which class, under which names, and how much of each there is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset
from mask2former.data.own_data.png_tree import VOID_ID
from mask2former.errors import DatasetError
from mask2former.files.faults import note_headed_faults
from mask2former.files.inputs import read_file
from mask2former.structures.segmentations import shown

NO_IGNORE_LABEL = "none"
_MAX_UNNAMED_CLASSES = 256
_MAX_DIGITS = 18  # of an id
_MAX_EMPTY_SHOWN = 10
_RARE = 1e-4  # share of pixels


@dataclass(frozen=True)
class ClassNames:
    """The names of a file, in its order, each with the id it gives (``ID: NAME``), or None."""

    source: Path
    entries: tuple[tuple[int | None, str], ...]


def read_class_names(path: str | Path) -> ClassNames:
    """Names of classes, one a line; the first is class 0, unless lines are ``ID: NAME``.

    Raises:
        DatasetError: the file cannot be read, is empty, mixes both forms, or a name or id occurs twice.
    """
    source = Path(path)
    try:
        lines = [line.strip() for line in read_file(source).decode("utf-8-sig").splitlines() if line.strip()]
    except (DatasetError, UnicodeDecodeError) as error:
        reason = str(error).removeprefix(f"{path}: ") if isinstance(error, DatasetError) else "not a text file"
        raise DatasetError(f"{path}: class names cannot be read: {reason}") from error
    if not lines:
        raise DatasetError(f"{path}: expected one class name a line, found none")
    numbered = [re.fullmatch(rf"(\d{{1,{_MAX_DIGITS}}})\s*:\s*(.+)", line) for line in lines]
    if any(numbered) and not all(numbered):
        raise DatasetError(f"{path}: either all lines are 'ID: NAME' or none: {shown(lines[numbered.index(None)])}")
    entries = [(int(match[1]), match[2]) if match else (None, line) for match, line in zip(numbered, lines)]
    for column in ([name for _, name in entries], [class_id for class_id, _ in entries if class_id is not None]):
        for value, count in Counter(column).items():
            if count > 1:
                raise DatasetError(f"{path}: {shown(value)} occurs twice")
    return ClassNames(source, tuple(entries))


def parse_ignored(values: Sequence[str] | None, dataset: OwnDataset) -> frozenset[int]:
    """Ids that do not train: numbers, or names of the data set's classes; None: the data set's void ids.

    Raises:
        DatasetError: a value is neither a number nor a class.
    """
    if values is None:
        return dataset.void_ids
    id_of = {entry.name: entry.id for entry in dataset.classes}
    ids = set()
    for value in values:
        if value in id_of:
            ids.add(id_of[value])
        elif re.fullmatch(r"-?\d+", value):
            ids.add(int(value))
        elif value != NO_IGNORE_LABEL:
            raise DatasetError(f"--ignore-label {value}: expected an id, a class name or {NO_IGNORE_LABEL!r}")
    return frozenset(ids)


def training_classes(
    dataset: OwnDataset, names: ClassNames | None = None, *, ignored: frozenset[int] = frozenset()
) -> list[DataClass]:
    """The classes that train, in the order of their train ids.

    That is the order of ``names`` where given, else of the ids; things come before stuff.

    Raises:
        DatasetError: an id or class has no name in ``names``, or nothing remains to be trained.
    """
    if dataset.has_label_maps:
        classes = _png_classes(dataset, names, ignored)
    else:
        known = dataset.classes if names is None else _ordered(dataset.classes, names)
        classes = [entry for entry in known if entry.id not in ignored]
    classes.sort(key=lambda entry: not entry.is_thing)
    if not classes:
        raise DatasetError(f"{dataset.root}: no class remains to be trained (ignored ids: {sorted(ignored)})")
    return classes


def without_empty(
    dataset: OwnDataset, classes: Sequence[DataClass], *, drop: bool
) -> tuple[list[DataClass], str | None]:
    """The classes, with ``drop`` without those that have neither object nor pixel ; and a note of these.

    Raises:
        DatasetError: no class would remain.
    """
    present = {s.class_id for image in dataset.images() for s in image.segments if not s.is_crowd}
    empty = [entry.name for entry in classes if entry.id not in present]
    if not empty:
        return list(classes), None
    shown = ", ".join(empty[:_MAX_EMPTY_SHOWN]) + (" …" if len(empty) > _MAX_EMPTY_SHOWN else "")
    if not drop:
        return list(classes), f"classes without an object: {len(empty)} ({shown}); --drop-empty-classes leaves them out"
    if len(empty) == len(classes):
        raise DatasetError(f"{dataset.root}: --drop-empty-classes leaves no class: none has an object")
    return [entry for entry in classes if entry.id in present], f"left out {len(empty)} classes of no object: {shown}"


def _png_classes(dataset: OwnDataset, names: ClassNames | None, ignored: frozenset[int]) -> list[DataClass]:
    found = [entry.id for entry in dataset.classes]
    trained = [class_id for class_id in found if class_id not in ignored]
    if trained == [0] and VOID_ID in found and VOID_ID in ignored:
        raise DatasetError(
            f"{dataset.root}: the masks hold the values 0 and 255 alone, and 255 marks pixels that do not train. "
            "If 255 is a class (binary masks), pass --ignore-label none, and --classes with the lines "
            "'0: background' and '255: NAME' to name them"
        )
    if names is None:
        return _unnamed(dataset, trained)
    by_id = {number if class_id is None else class_id: name for number, (class_id, name) in enumerate(names.entries)}
    _refuse_ids(dataset, {*by_id, *ignored}, names, by_id)
    return [DataClass(class_id, name, is_thing=False) for class_id, name in by_id.items() if class_id not in ignored]


def _unnamed(dataset: OwnDataset, trained: Sequence[int]) -> list[DataClass]:
    if len(trained) > _MAX_UNNAMED_CLASSES:
        raise DatasetError(
            f"{dataset.root}: the masks hold {len(trained)} different ids ({trained[0]}..{trained[-1]}), "
            f"for instance {_worst_file(dataset)}. Are they class ids? If so, name them with --classes"
        )
    return [entry for entry in dataset.classes if entry.id in trained]


def _worst_file(dataset: OwnDataset) -> str:
    worst = max(dataset.images(), key=lambda image: len(image.segments))
    return f"{worst.mask_file} has {len(worst.segments)}"


def rare_ids_note(dataset: OwnDataset, classes: Sequence[DataClass]) -> str | None:
    """A warning where most ids of masks cover next to nothing, as those do that smoothing leaves at edges."""
    if not dataset.has_label_maps or len(classes) < 8:
        return None
    pixels = dict.fromkeys((entry.id for entry in classes), 0.0)
    for image in dataset.images():
        for segment in image.segments:
            if segment.class_id in pixels:
                pixels[segment.class_id] += segment.area or 0
    total = sum(pixels.values())
    rare = [class_id for class_id, count in pixels.items() if 0 < count < _RARE * total]
    if 2 * len(rare) <= len(classes):
        return None
    return (
        f"{len(rare)} of {len(classes)} ids cover less than {_RARE:.2%} of the pixels each: were the masks scaled with "
        "smoothing, or saved as JPEG once?"
    )


def _refuse_ids(dataset: OwnDataset, allowed: Iterable[int], names: ClassNames, by_id: Mapping[int, str]) -> None:
    allowed, problems, outside, wrong_images = set(allowed), [], set(), set[Path]()
    for image in dataset.images():
        wrong = [segment.class_id for segment in image.segments if segment.class_id not in allowed]
        outside.update(wrong)
        if wrong:
            wrong_images.add(image.file)
            problems.append(f"{image.mask_file} has {', '.join(map(str, wrong[:5]))}{' …' if len(wrong) > 5 else ''}")
    span = f"0..{len(by_id) - 1}" if list(by_id) == list(range(len(by_id))) else ", ".join(map(str, list(by_id)[:20]))
    hint = f"names {span} (a line 'ID: NAME' names another id; --ignore-label ID leaves it out)"
    note_headed_faults(problems, f"ids {sorted(outside)[:10]} are out of range, {names.source} {hint}")
    dataset.leave_out(wrong_images)


def _ordered(classes: Sequence[DataClass], names: ClassNames) -> list[DataClass]:
    """The classes in the order of the names; a name without a class is one that has no object yet."""
    by_name = {entry.name: entry for entry in classes}
    wanted = [name for _, name in names.entries]
    missing = [entry.name for entry in classes if entry.name not in wanted]
    if missing:
        raise DatasetError(f"{names.source} lacks the classes {missing[:10]} of the data, it has {wanted[:20]}")
    free = max((entry.id for entry in classes), default=-1) + 1
    ordered = []
    for name in wanted:
        if name not in by_name:
            by_name[name], free = DataClass(free, name, is_thing=True), free + 1
        ordered.append(by_name[name])
    return ordered


_IGNORED = "-"


def format_own_histogram(dataset: OwnDataset, classes: Sequence[DataClass], *, ignored: frozenset[int]) -> str:
    """A table: raw id, train id, name, pixels (PNG masks) or objects, and images of each part.

    Crowds do not count. Ids that do not train have ``-`` for their train id.
    """
    train_id = {entry.id: index for index, entry in enumerate(classes)}
    name_of = {entry.id: entry.name for entry in [*dataset.classes, *classes]}
    parts = [part for part in (TRAIN, VALID) if part in dataset.parts]
    counts = {part: count_ids(dataset, part) for part in parts}
    unit = "pixels" if dataset.has_label_maps else "objects"
    header = ["raw id", "train id", "name", *(f"{part} {word}" for part in parts for word in (unit, "images"))]
    rows = [header]
    present = {class_id for amounts, _ in counts.values() for class_id in amounts}
    left_out = sorted((present & ignored) | {entry.id for entry in dataset.classes if entry.id in ignored})
    for class_id in [*train_id, *left_out]:
        row = [str(class_id), str(train_id.get(class_id, _IGNORED))]
        row.append(name_of.get(class_id, "") if class_id in train_id else "(does not train)")
        row += [f"{counter[class_id]:,}" for part in parts for counter in counts[part]]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if column == 2 else cell.rjust(w) for column, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    sizes = ", ".join(f"{len(dataset.parts[part])} {part} images" for part in parts)
    return "\n".join([f"{sizes}, {len(classes)} classes", *(line.rstrip() for line in lines)])


def count_ids(dataset: OwnDataset, part: str) -> tuple[Counter[int], Counter[int]]:
    """(pixels or objects, images) by id in a part."""
    amounts: Counter[int] = Counter()
    images: Counter[int] = Counter()
    counts_pixels = dataset.has_label_maps
    for image in dataset.parts[part]:
        segments = [segment for segment in image.segments if not segment.is_crowd]
        for segment in segments:
            amounts[segment.class_id] += int(segment.area or 0) if counts_pixels else 1
        images.update({segment.class_id for segment in segments})
    return amounts, images
