"""Data sets of the library ``datasets`` with the columns that examples of transformers for instance segmentation use.

image: a picture. annotation: an RGB picture; R is the class id, G the instance, and B the instance's second byte where
an image has more than 255. semantic_class_to_id: names and ids, the same in each row. Ours have ``thing_classes`` too,
the names of countable classes, where others are among them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass
from mask2former.data.own_data.samples import BACKGROUND, Sample
from mask2former.errors import DatasetError
from mask2former.files.faults import Faults
from mask2former.files.pictures import encode_picture

COLUMNS = ("image", "annotation", "semantic_class_to_id")
THING_CLASSES = "thing_classes"
SPLITS = {TRAIN: "train", VALID: "validation"}
_BACKGROUND_NAMES = ("background", "unlabeled", "unlabelled", "void", "__background__")
_SPLIT_NAMES = {VALID: ("validation", "valid", "val", "dev"), TRAIN: ("train", "training")}
_ORIENTATION, _LAST_UPRIGHT = 0x0112, 4  # EXIF: from 5 on height and width change places
_ROWS_A_GROUP = 100  # of a parquet file, which is read group by group
_BYTES_A_FILE = 500_000_000


def is_datasets_folder(path: str | Path) -> bool:
    """Return whether a folder holds what ``datasets`` saved: parquet files, or arrow files beside their description."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return True
    return any(next(place.glob("*.parquet"), None) is not None for place in (folder, folder / "data"))


def load_splits(name: str | Path, **options: Any) -> dict[str, Any]:
    """Return the training and validation split of a folder or of a data set of the hub, by our names of parts.

    ``options`` are those of ``datasets.load_dataset``, such as cache_dir and token.

    Raises:
        DatasetError: the library is missing, nothing is there, or columns or classes are wrong.
    """
    library = _library()
    try:
        is_saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        loaded = library.load_from_disk(str(name)) if is_saved else library.load_dataset(str(name), **options)
    except Exception as error:  # whatever file systems, the network and pyarrow raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(f"{name}: not to be read as a data set of the library datasets: {reason}") from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    parts = {part: splits[n] for part, names in _SPLIT_NAMES.items() for n in reversed(names) if n in splits}
    if not parts:
        raise DatasetError(f"{name}: expected the splits train and validation, found {', '.join(splits) or 'none'}")
    for split in parts.values():
        _check_columns(split, str(name))
    return parts


def class_ids_of(parts: Mapping[str, Any], source: str) -> dict[str, int]:
    """Return names and ids, which all parts must share; a name without an id is left out.

    Raises:
        DatasetError: they are missing, no different small numbers, or the parts differ.
    """
    tables = {}
    for part, split in parts.items():
        table = split.select_columns(["semantic_class_to_id"])[0]["semantic_class_to_id"]
        table = {key: value for key, value in (table or {}).items() if value is not None}
        ids = list(table.values())
        if not ids or not all(isinstance(i, int) and 0 <= i <= 255 for i in ids) or len(set(ids)) < len(ids):
            raise DatasetError(
                f"{source}: semantic_class_to_id: expected names with different ids, 0..255, found {table}"
            )
        tables[part] = table
    first = next(iter(tables.values()))
    for part, table in tables.items():
        if table != first:
            raise DatasetError(f"{source}: semantic_class_to_id differs: {first} in one part, {table} in {part}")
    return first


def classes_of(parts: Mapping[str, Any], source: str) -> list[DataClass]:
    """Return the classes in order of their ids; id 0 is none where it is called background.

    Raises:
        DatasetError: see ``class_ids_of``; or id 0 is a class, which nothing would tell from background.
    """
    table = class_ids_of(parts, source)
    names = {class_id: name for name, class_id in table.items()}
    if names.get(BACKGROUND, "background").lower() not in _BACKGROUND_NAMES:
        raise DatasetError(
            f"{source}: class id 0 is {names[BACKGROUND]!r}; expected it to be the background ({_BACKGROUND_NAMES[0]})"
        )
    names.pop(BACKGROUND, None)
    split = next(iter(parts.values()))
    things = split.select_columns([THING_CLASSES])[0][THING_CLASSES] if THING_CLASSES in split.column_names else None
    return [DataClass(i, name, things is None or name in things) for i, name in sorted(names.items())]


def read_samples(split: Any) -> Iterator[Sample]:
    """Yield the rows of a split.

    Raises:
        DatasetError: a picture is missing or damaged, or has another size than its annotation.
    """
    library = _library()
    encoded = split.select_columns(["image", "annotation"]).cast_column("image", library.Image(decode=False))
    encoded = encoded.cast_column("annotation", library.Image(decode=False))
    taken: set[str] = set()
    faults = Faults("rows of the library datasets")
    for number, row in enumerate(encoded):
        try:
            image, ending, (class_ids, instance_ids) = _read_row(row, number)
        except DatasetError as error:
            faults.add(error)
            continue
        name = Path(row["image"].get("path") or "").name or f"{number:08d}.{ending}"
        name = name if name not in taken else f"{number:08d}_{name}"
        taken.add(name)
        yield Sample(name, image, class_ids, instance_ids)
    faults.refuse()


def _read_row(row: Mapping[str, Any], number: int) -> tuple[bytes, str, tuple[np.ndarray, np.ndarray]]:
    """The image of a row, the ending of its format, and the maps of its annotation."""
    image, where = _content(row["image"], f"image of row {number}"), f"row {number}"
    maps = decode_annotation(_content(row["annotation"], f"annotation of {where}"), where)
    size, ending = _describe_image(image, where)
    if size != maps[0].shape:
        raise DatasetError(f"{where}: image has (height, width) = {size}, its annotation {maps[0].shape}")
    return image, ending, maps


def decode_annotation(picture: bytes | Image.Image, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Maps (H, W) of class ids, uint8, and instance ids, uint16, of an annotation.

    Raises:
        DatasetError: it is no picture, or one without colours.
    """
    try:
        opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        if opened.mode not in ("RGB", "RGBA"):
            raise DatasetError(
                f"{where}: annotation: expected an RGB picture (R class, G instance), found {opened.mode}"
            )
        pixels = np.asarray(opened)
    except OSError as error:
        raise DatasetError(f"{where}: annotation: damaged picture: {error}") from error
    return pixels[..., 0], pixels[..., 1] + pixels[..., 2].astype(np.uint16) * 256


def encode_annotation(sample: Sample) -> bytes:
    """Return the annotation of a sample as a PNG."""
    instance_ids = sample.instance_ids
    channels = (sample.class_ids, (instance_ids & 255).astype(np.uint8), (instance_ids >> 8).astype(np.uint8))
    return encode_picture(np.stack(channels, axis=-1))


def write_splits(folder: Path, parts: Mapping[str, Iterable[Sample]], classes: Sequence[DataClass]) -> None:
    """Parquet files in ``folder/data`` that ``datasets.load_dataset(folder)`` reads; images keep their encoding.

    Raises:
        DatasetError: the library is missing.
    """
    library = _library()
    import pyarrow as pa
    from pyarrow import parquet

    table = {_background_name(classes): BACKGROUND} | {entry.name: entry.id for entry in classes}
    things = [entry.name for entry in classes if entry.is_thing]
    constant: dict[str, Any] = {"semantic_class_to_id": table}
    features = {
        "image": library.Image(),
        "annotation": library.Image(),
        "semantic_class_to_id": {name: library.Value("int64") for name in table},
    }
    if len(things) < len(classes):
        constant[THING_CLASSES] = things
        features[THING_CLASSES] = library.List(library.Value("string"))
    schema = library.Features(features).arrow_schema
    (folder / "data").mkdir(parents=True)
    for part, samples in parts.items():
        files: list[Path] = []
        for group in _file_groups(samples):
            files.append(folder / "data" / f"{SPLITS[part]}-{len(files):05d}")
            with parquet.ParquetWriter(files[-1], schema) as writer:
                for rows in group:
                    writer.write_table(pa.Table.from_pylist([row | constant for row in rows], schema=schema))
        for file in files:
            file.rename(file.with_name(f"{file.name}-of-{len(files):05d}.parquet"))


def _file_groups(samples: Iterable[Sample]) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """Yield rows in groups, these in files of bounded size. Each file must be taken whole before the next."""
    stream = iter(samples)
    head = next(stream, None)
    while head is not None:
        file = _row_groups(head, stream)
        yield file
        head = next(stream, None)


def _row_groups(head: Sample, stream: Iterator[Sample]) -> Iterator[list[dict[str, Any]]]:
    rows, num_bytes = [_row(head)], len(head.image)
    while num_bytes < _BYTES_A_FILE:
        if len(rows) == _ROWS_A_GROUP:
            yield rows
            rows = []
        sample = next(stream, None)
        if sample is None:
            break
        rows.append(_row(sample))
        num_bytes += len(sample.image)
    if rows:
        yield rows


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "image": {"bytes": sample.image, "path": sample.name},
        "annotation": {"bytes": encode_annotation(sample), "path": f"{Path(sample.name).stem}.png"},
    }


def _background_name(classes: Sequence[DataClass]) -> str:
    taken = {entry.name for entry in classes}
    return next(name for name in _BACKGROUND_NAMES if name not in taken)


def _check_columns(split: Any, source: str) -> None:
    missing = [name for name in COLUMNS if name not in split.column_names]
    if missing:
        found = ", ".join(split.column_names)
        raise DatasetError(f"{source}: expected the columns {', '.join(COLUMNS)}, found {found}")
    if not len(split):
        raise DatasetError(f"{source}: a split without rows")


def _content(picture: Any, where: str) -> bytes:
    if picture is not None and picture.get("bytes"):
        return bytes(picture["bytes"])
    try:
        return Path((picture or {})["path"]).read_bytes()
    except (KeyError, TypeError, OSError) as error:
        raise DatasetError(f"{where}: missing") from error


def _describe_image(content: bytes, where: str) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            is_turned = image.getexif().get(_ORIENTATION, 1) > _LAST_UPRIGHT
            size = image.size if is_turned else image.size[::-1]
            return size, {"JPEG": "jpg"}.get(image.format or "", (image.format or "png").lower())
    except OSError as error:
        raise DatasetError(f"{where}: image: damaged picture: {error}") from error


def _library() -> Any:
    try:
        import datasets.config  # which a mere folder of that name, such as the one beside this package, has not
    except ImportError as error:
        raise DatasetError("the library datasets is not installed: pip install 'mask2former[transformers]'") from error
    return datasets
