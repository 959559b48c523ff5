"""What formats of outlines and bitmaps share: objects checked one by one, and the data set made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, ImageEntry, OwnDataset, Segment
from mask2former.data.own_data.png_tree import PART_FOLDERS
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES
from mask2former.errors import DatasetError
from mask2former.files.faults import Faults
from mask2former.files.images import exif_note, read_image_size
from mask2former.structures import bitmasks_to_rles, check_segmentation, polygons_to_bitmask
from mask2former.structures.segmentations import MAX_PIXELS, has_pixels, shown

NO_PIXEL = ("left out", "no pixel in the image")
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


class LabelledImage(NamedTuple):
    """An image, the file that annotates it, and its objects: label and COCO segmentation of each."""

    source: Path
    file: Path
    size: tuple[int, int]
    objects: list[tuple[str, Any]]
    changed: Counter[tuple[str, str]]  # what was left out or clipped


class Objects:
    """The objects of an image of ``size``, gathered; what is wrong with an entry is added to ``faults``."""

    def __init__(self, faults: Faults, size: tuple[int, int]) -> None:
        self.faults, self.size = faults, size
        self.found: list[tuple[str, Any]] = []
        self.changed: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def entry(self, where: str) -> Iterator[None]:
        """Within it, whatever is wrong is a fault of the entry ``where``."""
        with entry_of(self.faults, where):
            yield

    def add(self, label: str, segmentation: Any) -> None:
        """Add an object, unless it has no pixel in the image.

        Raises:
            DatasetError: the segmentation is none.
        """
        checked = check_segmentation(segmentation, self.size)
        if not has_pixels(checked, self.size):
            self.changed[NO_PIXEL] += 1
            return
        self.found.append((label, bitmasks_to_rles(checked[None])[0] if isinstance(checked, np.ndarray) else checked))

    def leave_out(self, why: str) -> None:
        """Count an entry that is no object with a mask."""
        self.changed["left out", why] += 1

    def image(self, source: Path, file: Path) -> LabelledImage:
        """The image with what was gathered."""
        return LabelledImage(source, file, self.size, self.found, +self.changed)


@contextmanager
def entry_of(faults: Faults, where: str) -> Iterator[None]:
    """Within it, whatever is wrong is a fault of the entry ``where``."""
    try:
        yield
    except DatasetError as error:
        faults.add(f"{where}: {error}")
    except _MALFORMED as error:
        what = "missing" if isinstance(error, KeyError) else "malformed,"
        faults.add(f"{where}: {what} {shown(error.args[0] if error.args else error)}")


class ImageFinder:
    """Images below a folder by their names, for files that name them by paths of another machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._by_name.setdefault(path.name, []).append(path)

    def find(self, name: Any, *, other_names: Sequence[str] = ()) -> Path:
        """The image of this name; of several, that whose path ends as the name does.

        Raises:
            DatasetError: there is none, or several are as likely.
        """
        if not isinstance(name, str) or not name:
            raise DatasetError(f"the name of an image must be text, found {shown(name)}")
        slashed = name.replace("\\", "/")
        for candidate in (slashed, *other_names):
            found = self._by_name.get(candidate.rpartition("/")[2], [])
            if len(found) > 1:
                found = [path for path in found if f"/{path.as_posix()}".endswith(f"/{candidate.lstrip('./')}")]
            if len(found) > 1:
                raise DatasetError(f"image {name}: it may be {found[0]} or {found[1]}")
            if found:
                return found[0]
        raise DatasetError(f"image {name} not found below {self.root}")


def stated_size(file: Path, stated: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of an image; ``stated`` is None where annotations do not say it.

    Raises:
        DatasetError: it cannot be read, or annotations state another size.
    """
    size = read_image_size(file)
    if stated is not None and size != stated:
        raise DatasetError(f"{file} has (height, width) = {size}, annotations say {stated}{exif_note(file)}")
    return size


def part_folders(root: Path) -> dict[str, Path]:
    """The folders ``train`` and ``valid`` (or ``val``); where no ``train`` is, the whole folder is for training."""
    folders = {p: root / name for p, names in PART_FOLDERS.items() for name in names if (root / name).is_dir()}
    return {part: folders[part] for part in (TRAIN, VALID) if part in folders} if TRAIN in folders else {TRAIN: root}


def part_files(path: Path, suffix: str, is_ours: Callable[[Path], bool]) -> dict[str, Path]:
    """The file of each part: ``path`` itself, or of its folders ``train`` and ``valid``, else the one in the folder.

    Raises:
        DatasetError: a folder holds several.
    """
    if path.is_file():
        return {TRAIN: path} if path.suffix.lower() == suffix and is_ours(path) else {}
    for folders in (part_folders(path), {TRAIN: path}):
        found = {}
        for part, folder in folders.items():
            files = [file for file in sorted(folder.glob(f"*{suffix}")) if is_ours(file)]
            if len(files) > 1:
                names = f"{files[0].name} or {files[1].name}"
                raise DatasetError(f"{folder}: which file is for {part}, {names}? Keep one, or give its path")
            if files:
                found[part] = files[0]
        if TRAIN in found:
            return found
    return {}


def outline_without_holes(
    exteriors: Sequence[Sequence[float]], holes: Sequence[Sequence[float]], size: tuple[int, int]
) -> Any:
    """COCO segmentation of polygons without what other polygons enclose.

    Raises:
        DatasetError: a polygon is none.
    """
    filled = check_segmentation(list(exteriors), size)
    if not holes:
        return filled
    return polygons_to_bitmask(filled, *size) & ~polygons_to_bitmask(check_segmentation(list(holes), size), *size)


def paste_mask(crop: np.ndarray, origin_xy: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Mask (H, W) bool with ``crop`` at ``origin_xy``, and whether all of it lies in the image.

    Raises:
        DatasetError: the crop is absurdly large.
    """
    if crop.size > MAX_PIXELS:
        raise DatasetError(f"a mask of {crop.shape[1]} x {crop.shape[0]} pixels is too large")
    mask = np.zeros(size, dtype=bool)
    left, top = origin_xy
    visible = crop[max(-top, 0) :, max(-left, 0) :]
    part = mask[max(top, 0) : max(top, 0) + visible.shape[0], max(left, 0) : max(left, 0) + visible.shape[1]]
    part[...] = visible[: part.shape[0], : part.shape[1]]
    return mask, part.shape == crop.shape


def labelled_dataset(
    name: str,
    root: Path,
    read: Mapping[str, Sequence[LabelledImage]],
    *,
    labels: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
) -> OwnDataset:
    """The data set of images whose objects bear labels, one segment for each object.

    Class ids are those of ``labels``; without it they count the labels in their alphabetical order.

    Raises:
        DatasetError: there is no training image, or most objects have no pixel.
    """
    if not read.get(TRAIN):
        raise DatasetError(f"{root}: no image for training found")
    found = sorted({label for images in read.values() for image in images for label, _ in image.objects})
    labels = dict(enumerate(found)) if labels is None else labels
    id_of = {label: class_id for class_id, label in labels.items()}
    parts: dict[str, list[ImageEntry]] = {}
    number = 0
    for part, images in read.items():
        parts[part] = [_entry(image, number + i, id_of) for i, image in enumerate(images, start=1)]
        number += len(images)
    changed = sum((image.changed for images in read.values() for image in images), Counter())
    num_objects = sum(len(image.objects) for images in read.values() for image in images)
    if changed[NO_PIXEL] > num_objects:
        raise DatasetError(
            f"{root}: {changed[NO_PIXEL]} of {num_objects + changed[NO_PIXEL]} objects have no pixel in their image"
        )
    counted = [f"{verb} {count} shapes: {why}" for (verb, why), count in sorted(changed.items())]
    classes = [DataClass(class_id, label, is_thing=True) for class_id, label in labels.items()]
    return OwnDataset(name, root, classes, parts, [*notes, *counted])


def _entry(image: LabelledImage, image_id: int, id_of: Mapping[str, int]) -> ImageEntry:
    segments = tuple(
        Segment(id_of[label], segmentation, instance_id=number)
        for number, (label, segmentation) in enumerate(image.objects, start=1)
    )
    return ImageEntry(image.file, *image.size, image_id, segments)
