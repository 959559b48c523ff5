"""The data of both projects: catalogs linked with those of detectron2, mappers for its loaders, its augmentations."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog as DetectronDatasetCatalog
from detectron2.data import MetadataCatalog as DetectronMetadataCatalog
from detectron2.data import transforms as T

from mask2former.config.registry import LinkedNames
from mask2former.data import DatasetCatalog, MetadataCatalog, register_builtin_datasets
from mask2former.data.clip_mapper import ClipMapper
from mask2former.data.mapper import DatasetMapper as OurDatasetMapper
from mask2former.data.presets import preset_of
from mask2former.data.transforms import Augmentation, AugmentationList, ImageAugmentation, Transform
from mask2former.data.transforms.transform import IGNORE_FILL
from mask2former.errors import ConfigError
from mask2former.integrations.detectron2.structures import instances_to_detectron2
from mask2former.modeling.meta_arch.inputs import label_map_of

_NUM_CODES = 250  # labels that travel in one map of bytes, as 1 … 250
_INSIDE = 253  # marks what comes from inside the image: a value that no augmentation fills with


class DetectronTransform(Transform):
    """A transform of detectron2 (or fvcore) for images of one size."""

    def __init__(self, transform: Any, image: np.ndarray, moved: np.ndarray) -> None:
        """``moved`` is what ``transform`` makes of ``image`` (H, W, C)."""
        self.transform = transform
        self._size, self._moved_size = image.shape[:2], moved.shape[:2]
        self._image, self._moved = image, moved

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        # The image that it was drawn for has been moved then.
        return self._moved if image is self._image else self.transform.apply_image(image)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return move_labels(self.transform, segmentation, fill=fill)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return self.transform.apply_coords(np.array(coords_xy, dtype=np.float64))  # a copy: theirs write into it

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        assert size == self._size, f"{self.transform} was drawn for {self._size}, given {size}"
        return self._moved_size

    def __repr__(self) -> str:
        return f"DetectronTransform({self.transform})"


class DetectronAugmentation(ImageAugmentation):
    """An augmentation, a transform, or a list of them, of detectron2.

    What it draws from the global generators of NumPy and Python follows from our generator instead.
    """

    def __init__(self, augmentation: Any) -> None:
        """``augmentation``: one, or several to be applied one after the other.

        Raises:
            ConfigError: it is none of detectron2.
        """
        listed = augmentation if isinstance(augmentation, (list, tuple)) else [augmentation]
        for part in listed:
            if not isinstance(part, (T.Augmentation, T.Transform)):
                raise ConfigError(f"expected an Augmentation or Transform of detectron2, found {part!r}")
        self.augmentation = T.AugmentationList(listed)
        self.needs_sem_seg = any(_reads_labels(part) for part in self.augmentation.augs)

    def sample_for(self, rng: np.random.Generator, image: np.ndarray, sem_seg: np.ndarray | None = None) -> Transform:
        """As ours.

        Raises:
            ConfigError: it looks at labels, and there are none.
        """
        if self.needs_sem_seg and sem_seg is None:
            raise ConfigError(f"{self.augmentation} looks at semantic labels, which this kind of training data lacks")
        augmented = _AugmentationInput(image, sem_seg=sem_seg)
        with _global_generators_from(rng):
            transform = self.augmentation(augmented)
        return DetectronTransform(transform, image, augmented.image)

    def __repr__(self) -> str:
        return f"DetectronAugmentation({self.augmentation})"


class _AugmentationInput(T.AugInput):
    """What an augmentation of detectron2 reads; labels may be any integers."""

    image: np.ndarray
    sem_seg: np.ndarray | None

    def transform(self, tfm: Any) -> None:
        self.image = tfm.apply_image(self.image)
        if self.sem_seg is not None:
            self.sem_seg = move_labels(tfm, self.sem_seg, fill=IGNORE_FILL)


def move_labels(transform: Any, labels: np.ndarray, *, fill: int) -> np.ndarray:
    """Return labels (H, W) of any integers, or bools, after a transform of detectron2.

    ``fill`` where there was no image.

    Those transforms move bytes reliably, and each fills with a value of its own. So bytes that stand for the labels are
    moved, and beside them a map of where the image is.
    """
    values, codes = np.unique(labels, return_inverse=True)
    codes = codes.reshape(labels.shape)
    inside = transform.apply_segmentation(np.full(labels.shape, _INSIDE, dtype=np.uint8)) == _INSIDE
    index = np.zeros(inside.shape, dtype=np.int64)
    scale = 1
    while scale <= max(len(values) - 1, 1):  # digit by digit
        digits = (codes // scale % _NUM_CODES + 1).astype(np.uint8)
        index += scale * (transform.apply_segmentation(digits).astype(np.int64) - 1)
        scale *= _NUM_CODES
    moved = values[np.where(inside, index, 0)]
    return np.where(inside, moved, np.asarray(fill, dtype=values.dtype))


def _reads_labels(augmentation: Any) -> bool:
    nested: Sequence[Any] = getattr(augmentation, "augs", None) or [getattr(augmentation, "aug", None)]
    if any(part is not None and _reads_labels(part) for part in nested):
        return True
    get_transform = getattr(augmentation, "get_transform", None)
    names = getattr(augmentation, "input_args", None) or (
        inspect.signature(get_transform).parameters if get_transform is not None else ()
    )
    return "sem_seg" in names


@contextmanager
def _global_generators_from(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators from ``rng`` inside the block, and restore them afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    seed = int(rng.integers(2**32))
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class DatasetMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names, with detectron2's Instances and BitMasks as targets.

    Semantic targets are given as ``sem_seg`` (H, W) too. Randomness follows NumPy's global generator, which the loaders
    of detectron2 seed in each worker.
    """

    def __init__(self, cfg: Any, is_train: bool = True, *, augmentations: Sequence[Any] | None = None) -> None:
        """``augmentations``, of detectron2 or ours, replace those of INPUT.

        Raises:
            ConfigError: a value of INPUT is wrong, or a video model is to be trained with other augmentations.
        """
        self.is_semantic = is_train and preset_of(cfg).target == "semantic"
        self.mapper: Any
        if is_train and preset_of(cfg).clips:
            if augmentations is not None:
                raise ConfigError("augmentations: those of clips are the ones of INPUT")
            self.mapper = ClipMapper.from_config(cfg)
            return
        self.mapper = OurDatasetMapper.from_config(cfg, is_train)
        if augmentations is not None:
            self.mapper.augmentations = AugmentationList([_as_ours(augmentation) for augmentation in augmentations])

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict; errors as of our mapper."""
        rng = np.random.default_rng(np.random.randint(2**31, size=4))
        sample = self.mapper(dataset_dict, rng)
        if "instances" not in sample:
            return sample
        found = sample["instances"]
        if self.is_semantic:
            sample["sem_seg"] = label_map_of(found, fill=self.mapper.ignore_label)
        is_clip = isinstance(found, list)
        sample["instances"] = [instances_to_detectron2(f) for f in found] if is_clip else instances_to_detectron2(found)
        return sample


def _as_ours(augmentation: Any) -> Augmentation:
    return augmentation if isinstance(augmentation, Augmentation) else DetectronAugmentation(augmentation)


def link_catalogs() -> None:
    """Let each project find the data sets of the other by name, also those registered later.

    A name that both have means in each what it meant before.
    """
    register_builtin_datasets()
    _forget_empty(DetectronMetadataCatalog)
    for theirs, ours in (
        (DetectronDatasetCatalog, DatasetCatalog),
        (DetectronMetadataCatalog, MetadataCatalog),
    ):
        own = theirs.data
        theirs.data = LinkedNames(own, ours.link(own))


def _forget_empty(theirs: Any) -> None:
    """Metadata that somebody asked for before it was known gives way to ours."""
    for name in [name for name, metadata in theirs.items() if set(metadata.as_dict()) <= {"name"}]:
        if name in MetadataCatalog:
            theirs.pop(name)
