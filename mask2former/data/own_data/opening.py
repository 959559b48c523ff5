"""Own data opened for training, evaluation and conversion alike: read, their classes chosen, what is bad left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask2former.data.own_data.classes import parse_ignored, read_class_names, training_classes, without_empty
from mask2former.data.own_data.dataset import DataClass, ImageEntry, OwnDataset
from mask2former.data.own_data.formats import read_own_data
from mask2former.data.own_data.scanning import scan
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_text_atomic
from mask2former.files.channels import count_channels, read_channels
from mask2former.files.faults import first_of, gathered_faults
from mask2former.files.images import exif_note, read_image

LEFT_OUT_FILE = "left_out.txt"


@dataclass(frozen=True)
class ClassChoice:
    """What the command line says of own data.

    A file of class names; ids or names that do not train, None for what the format says; whether classes without an
    object, and whatever is wrong, are left out.
    """

    names_file: str | None = None
    ignored: tuple[str, ...] | None = None
    drop_empty: bool = False
    skip_bad: bool = False


@dataclass(frozen=True)
class OpenedData:
    """A data set, the classes that train, ids that do not, what to say of it, and a line for all that was left out."""

    dataset: OwnDataset
    classes: list[DataClass]
    ignored: frozenset[int]
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def open_own_data(
    path: str | Path, choice: ClassChoice, *, preferred: str | None = None, task: str | None = None
) -> OpenedData:
    """The data set at ``path``; ``preferred`` and ``task`` as for ``read_own_data``.

    With ``choice.skip_bad`` images are decoded too, which otherwise happens in training.

    Raises:
        DatasetError: everything that is wrong, in one message; with ``skip_bad`` what leaving out cannot mend.
    """
    with gathered_faults(leave_out=choice.skip_bad) as left_out:
        dataset = read_own_data(path, preferred=preferred, task=task)
        if choice.skip_bad:
            _leave_out_damaged(dataset)
        names = None if choice.names_file is None else read_class_names(choice.names_file)
        ignored = parse_ignored(choice.ignored, dataset)
        classes = training_classes(dataset, names, ignored=ignored)
    classes, empty_note = without_empty(dataset, classes, drop=choice.drop_empty)
    notes = (*dataset.notes, *([empty_note] if empty_note else []))
    return OpenedData(dataset, classes, ignored, notes, tuple(left_out))


def list_left_out(left_out: Sequence[str], folder: Path, *, seen_as: Path | None = None) -> str | None:
    """Write a line for each thing left out into ``folder``; returns what to say: the number, the file, the first.

    ``seen_as`` is what the folder will be called.
    """
    if not left_out:
        return None
    file = folder / LEFT_OUT_FILE
    write_text_atomic("".join(f"{' '.join(line.split())}\n" for line in left_out), file)
    count = "one faulty entry" if len(left_out) == 1 else f"{len(left_out)} faulty entries"
    return "\n  ".join(
        [f"--skip-bad left out {count}, listed in {(seen_as or folder) / LEFT_OUT_FILE}", *first_of(left_out)]
    )


def _leave_out_damaged(dataset: OwnDataset) -> None:
    images = list(dataset.images())
    sound = set(scan(_decode, images, description="images"))
    dataset.leave_out({image.file for image in images} - sound)


def _decode(image: ImageEntry) -> Path:
    num_channels = count_channels(image.file)
    size = (read_channels(image.file, num_channels) if num_channels else read_image(image.file)).shape[:2]
    if size != (image.height, image.width):
        stated = (image.height, image.width)
        raise DatasetError(
            f"{image.file}: has (height, width) = {size}, annotations say {stated}{exif_note(image.file)}"
        )
    return image.file
