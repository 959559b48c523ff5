"""What a format of own data is, and reading data of any format.

Adding one takes a subclass of ``DataFormat`` in a module of its own:

    @register_format
    class BoxList(DataFormat):
        name, title, tasks = "box_list", "a list of boxes", ("instance",)

        def detect(self, path: Path) -> bool: ...

        def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset: ...

In this package ``own_data/__init__.py`` imports that module, elsewhere ``--import`` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from mask2former.config import Registry
from mask2former.data.own_data.dataset import COCO_INSTANCES, COCO_PANOPTIC, PNG_TREE, DataClass, OwnDataset
from mask2former.data.own_data.samples import Parts
from mask2former.errors import DatasetError
from mask2former.files.faults import gathered_faults

FORMAT_REGISTRY = Registry("data format", key="DATASETS.OWN.FORMAT")


class DataFormat(ABC):
    """A form in which people have their data."""

    name: ClassVar[str]
    title: ClassVar[str]  # for messages: the data are …
    tasks: ClassVar[tuple[str, ...]]  # what can be learned from it: panoptic, instance, semantic
    expected: ClassVar[str] = ""  # what must lie at a path; by default the title
    option: ClassVar[str] = ""  # its name on command lines; by default the name with dashes
    rank: ClassVar[int] = 0  # formats of lower rank are asked first, those from outside before ours

    def __init_subclass__(cls) -> None:
        """Fills in what follows from the rest."""
        super().__init_subclass__()
        if "name" in vars(cls) and not cls.option:
            cls.option = cls.name.replace("_", "-")

    @property
    def index_form(self) -> str:
        """The form in which a run keeps the data: label maps, COCO instances or COCO panoptic."""
        if "panoptic" in self.tasks:
            return COCO_PANOPTIC
        return COCO_INSTANCES if "instance" in self.tasks else PNG_TREE

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether the file or folder holds data of this format."""

    @abstractmethod
    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        """All images with their segments, where ``detect`` found them.

        Segments are masks of COCO's (polygons, run lengths, bitmaps), or of a ``FileMask``: of a panoptic PNG, or of a
        label map, which is then the ``mask_file`` of its image.

        Raises:
            DatasetError: a file is missing, damaged, or contradicts another; the message names it.
        """

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        """Fills an empty folder with the samples of each part; ``classes`` have the ids of the samples' maps.

        Raises:
            DatasetError: the format cannot hold the samples; here, it cannot be written at all.
        """
        raise DatasetError(f"{self.title}: can be read, not written")


Format = TypeVar("Format", bound=type[DataFormat])


def register_format(data_format: Format) -> Format:
    """Makes a format known by its name; a decorator of its class.

    Raises:
        ConfigError: another format has the name.
    """
    return FORMAT_REGISTRY.register(data_format, name=data_format.name)


def format_named(name: str) -> DataFormat:
    """The format of this name.

    Raises:
        ConfigError: there is none.
    """
    return FORMAT_REGISTRY.lookup(name)()


def all_formats() -> list[DataFormat]:
    """The formats in the order in which they are asked."""
    return sorted((data_format() for _, data_format in FORMAT_REGISTRY), key=lambda f: f.rank)


def read_own_data(
    path: str | Path, *, preferred: str | None = None, task: str | None = None, num_workers: int | None = None
) -> OwnDataset:
    """The data set that ``path`` holds, its format found by what lies there.

    ``preferred`` is the format to take where a folder holds several of one rank, as COCO's; after it come those that
    ``task`` is learned from.

    Raises:
        DatasetError: nothing is there, it is of none of the formats, or all that is wrong with what is there.
    """
    location = Path(path).expanduser()
    with gathered_faults():
        dataset = detect_format(location, preferred=preferred, task=task).read(location, num_workers=num_workers)
        dataset.leave_out(())
    return dataset


def detect_format(path: str | Path, *, preferred: str | None = None, task: str | None = None) -> DataFormat:
    """The format of the data at ``path``; ``preferred`` and ``task`` as for ``read_own_data``.

    Raises:
        DatasetError: nothing is there, or it is of none of the formats.
    """
    location = Path(path).expanduser()
    formats = sorted(all_formats(), key=lambda f: (f.rank, f.name != preferred, task not in f.tasks))
    expected = ", ".join(data_format.expected or data_format.title for data_format in formats)
    if not location.exists():
        raise DatasetError(f"{path}: no such file or folder; expected {expected}")
    for data_format in formats:
        if data_format.detect(location):
            return data_format
    if location.is_file():
        titles = " nor ".join(sorted(data_format.title for data_format in formats))
        raise DatasetError(f"{path}: neither {titles}; expected {expected}")
    raise DatasetError(f"{path}: no data set found in this folder; expected {expected}")
