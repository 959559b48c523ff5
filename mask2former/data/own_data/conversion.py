"""Convert own data from one format to another, out of folders, zip files and data sets of the library ``datasets``.

What is written is complete or not there: a folder beside it is filled first, and renamed when it is whole.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2former.data.own_data.dataset import DataClass
from mask2former.data.own_data.datasets_library import classes_of, is_datasets_folder, load_splits, read_samples
from mask2former.data.own_data.formats import format_named
from mask2former.data.own_data.opening import ClassChoice, list_left_out, open_own_data
from mask2former.data.own_data.samples import BACKGROUND, Sample, numbered_classes, part_samples
from mask2former.errors import DatasetError
from mask2former.files.faults import gathered_faults
from mask2former.files.inputs import open_file

_NO_DATA = "__MACOSX"  # what macOS adds


def is_zip(path: str | Path) -> bool:
    """Whether a path is called as a zip file and is no folder."""
    location = Path(path).expanduser()
    return location.suffix.lower() == ".zip" and location.is_file()


def unpack_zip(path: str | Path, folder: Path) -> Path:
    """Unpack into the new ``folder``, and return the folder that holds the data: the only one there, or ``folder``.

    Names that lead out of the folder stay within it.

    Raises:
        DatasetError: the file is no zip file, damaged, has a password, or the disk cannot hold its content.
    """
    location = Path(path).expanduser()
    try:
        folder.mkdir(parents=True)
        with open_file(location) as file, zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.filename.startswith(_NO_DATA)]
            needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
            if needed > free:
                raise DatasetError(f"{path}: unpacked it takes {needed >> 20} MiB, {folder} has {free >> 20} MiB free")
            archive.extractall(folder, members=entries)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: cannot be unpacked to {folder}: {error}") from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


@dataclass(frozen=True)
class SampleSource:
    """Classes by their ids in the samples' maps; samples of each part, to be taken once; and how many there are."""

    classes: Sequence[DataClass]
    parts: Mapping[str, Iterable[Sample]]
    lengths: Mapping[str, int]
    notes: tuple[str, ...] = ()


def convert_own_data(
    source: str | Path,
    output: str | Path,
    *,
    target: str,
    preferred: str | None = None,
    choice: ClassChoice | None = None,
    cache_dir: str | Path | None = None,
) -> SampleSource:
    """Write the data of ``source``, whatever their format, to the new folder ``output`` as ``target`` has it.

    ``target`` is the name of a format, ``preferred`` that of the one to read where a folder holds several.
    Returns what was written.

    Raises:
        DatasetError: the output exists, the source cannot be read or is wrong, or its classes do not fit the target.
    """
    data_format, output, choice = format_named(target), Path(output).expanduser(), choice or ClassChoice()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise DatasetError(f"{output}: exists already; give a new folder, or remove it first")
    partial, unpacked = (output.with_name(f".{output.name}.{word}") for word in ("partial", "unpacked"))
    for folder in (partial, unpacked):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        source = unpack_zip(source, unpacked) if is_zip(source) else source
        with ExitStack() as stack:
            left_out = stack.enter_context(gathered_faults(leave_out=True)) if choice.skip_bad else []
            opened = open_samples(source, preferred=preferred, choice=choice, cache_dir=cache_dir)
            parts = {part: _with_progress(opened, part) for part in opened.parts}
            partial.mkdir(parents=True)
            data_format.write(partial, parts, opened.classes)
        note = list_left_out(left_out, partial, seen_as=output)
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    finally:
        for folder in (partial, unpacked):
            shutil.rmtree(folder, ignore_errors=True)
    return replace(opened, notes=(*([note] if note else []), *opened.notes))


def open_samples(
    source: str | Path, *, preferred: str | None, choice: ClassChoice, cache_dir: str | Path | None = None
) -> SampleSource:
    """The samples of data of any format.

    Raises:
        DatasetError: what they cannot be read for.
    """
    if is_datasets_folder(source):
        return _open_datasets_folder(source, choice, cache_dir)
    opened = open_own_data(source, choice, preferred=preferred)
    dataset, classes = opened.dataset, opened.classes
    parts = {part: part_samples(dataset, part, classes) for part in dataset.parts}
    lengths = {part: len(images) for part, images in dataset.parts.items()}
    crowds = sum(segment.is_crowd for image in dataset.images() for segment in image.segments)
    notes = (*opened.notes, *([f"{crowds} crowds became background"] if crowds else []))
    return SampleSource(numbered_classes(classes), parts, lengths, notes)


def _open_datasets_folder(source: str | Path, choice: ClassChoice, cache_dir: str | Path | None) -> SampleSource:
    if choice.names_file is not None:
        raise DatasetError(f"{source}: names its classes itself; a file of class names does not go with it")
    options = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
    splits = load_splits(source, **options)
    ignored = set(choice.ignored or ())
    classes = [entry for entry in classes_of(splits, str(source)) if not {entry.name, str(entry.id)} & ignored]
    kept = {entry.id for entry in classes}
    parts = {part: _keep(read_samples(split), kept) for part, split in splits.items()}
    return SampleSource(classes, parts, {part: len(split) for part, split in splits.items()})


def _keep(samples: Iterable[Sample], class_ids: set[int]) -> Iterator[Sample]:
    """Samples whose other classes are background."""
    for sample in samples:
        is_kept = np.isin(sample.class_ids, list(class_ids))
        yield replace(sample, class_ids=np.where(is_kept, sample.class_ids, BACKGROUND).astype(np.uint8))


def _with_progress(opened: SampleSource, part: str) -> Iterator[Sample]:
    with tqdm(opened.parts[part], total=opened.lengths[part], desc=f"{part} images", unit="image") as bar:
        yield from bar
