"""The data sets of ``DATASETS.TRAIN``: loaded, checked against the model, and described before training starts."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence

from mask2former.config import CfgNode, query_node
from mask2former.data.catalog import (
    DatasetCatalog,
    DatasetDict,
    MetadataCatalog,
    annotated_objects,
    is_video,
    name_of,
)
from mask2former.data.datasets.cityscapes import with_polygons
from mask2former.data.own_data.checked_files import check_files, listed_images
from mask2former.data.presets import preset_of
from mask2former.data.samplers import rank_and_world_size
from mask2former.data.unified_mapper import target_of
from mask2former.errors import ConfigError, DatasetError

_COLUMNS = 3
_NAME_WIDTH = 22

logger = logging.getLogger(__name__)


def load_train_dicts(cfg: CfgNode) -> list[DatasetDict]:
    """Return the dataset dicts of ``load_train_sets`` one after the other."""
    return list(itertools.chain.from_iterable(load_train_sets(cfg)))


def load_train_sets(cfg: CfgNode) -> list[list[DatasetDict]]:
    """Return the dataset dicts of each of ``DATASETS.TRAIN``, checked against the number of classes, and logged.

    With ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``, images without an object are left out when instances are trained.

    Raises:
        ConfigError: there is no data set, the data sets differ in classes, or the model has too few.
        DatasetError: a data set is missing or wrong, or nothing remains.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ConfigError("DATASETS.TRAIN names no data set")
    data_sets = [load_data_set(name) for name in names]
    target = target_of(data_sets[0][0]) if preset_of(cfg).tasks else preset_of(cfg).target
    if target == "instance" and cfg.DATASETS.CITYSCAPES_POLYGONS:
        data_sets = [with_polygons(dicts) for dicts in data_sets]
    _check_videos(data_sets, cfg)
    class_names = _common_classes(names, "thing_classes" if target == "instance" else "stuff_classes")
    if target == "instance" and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        data_sets = _with_objects(data_sets, names)
    dicts = list(itertools.chain.from_iterable(data_sets))
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if target != "semantic":
        check_class_ids(dicts, num_classes=num_classes, num_classes_key="MODEL.SEM_SEG_HEAD.NUM_CLASSES")
    if rank_and_world_size()[0] == 0:
        if class_names and len(class_names) != num_classes:
            logger.warning(
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES is %d, %s has %d classes", num_classes, names[0], len(class_names)
            )
        logger.info("Training on %s: %s", ", ".join(names), format_class_histogram(dicts, class_names))
        note = many_objects_note(dicts, num_queries=query_node(cfg).NUM_OBJECT_QUERIES)
        if note and target != "semantic":
            logger.warning("%s: %s", ", ".join(names), note)
    return data_sets


def load_data_set(name: str) -> list[DatasetDict]:
    """Return the dataset dicts of a name, at least one, whose files are there and whole.

    Raises:
        DatasetError: the data set is empty or wrong, or a file is missing or damaged.
    """
    dicts = DatasetCatalog.get(name)
    if not dicts:
        raise DatasetError(f"data set {name!r} holds no image")
    metadata = MetadataCatalog.get(name)
    # Without a folder of images their names may mean anything to somebody's own mapper.
    if rank_and_world_size()[0] == 0 and metadata.get("image_root") is not None and not metadata.get("files_checked"):
        source = str(metadata.get("panoptic_json") or metadata.get("json_file") or name)
        try:
            check_files(list(listed_images(dicts)), source=source, description=f"files of {name}")
        except DatasetError as error:
            raise DatasetError(f"data set {name!r}: {error}") from error
    return dicts


def _common_classes(names: Sequence[str], key: str) -> list[str]:
    classes = [list(MetadataCatalog.get(name).get(key) or ()) for name in names]
    for name, other in zip(names, classes, strict=True):
        if other != classes[0]:
            raise ConfigError(f"DATASETS.TRAIN: {names[0]} and {name} differ in {key}; train on sets of equal classes")
    return classes[0]


def _check_videos(data_sets: Sequence[list[DatasetDict]], cfg: CfgNode) -> None:
    for name, dicts in zip(cfg.DATASETS.TRAIN, data_sets, strict=True):
        if is_video(dicts[0]) and not preset_of(cfg).clips:
            raise ConfigError(
                f"DATASETS.TRAIN: {name} holds videos: expected a MODEL.META_ARCHITECTURE that takes clips, such as "
                f"VideoMaskFormer, found {cfg.MODEL.META_ARCHITECTURE}"
            )


def _with_objects(data_sets: Sequence[list[DatasetDict]], names: Sequence[str]) -> list[list[DatasetDict]]:
    kept = [[record for record in dicts if _has_object(record)] for dicts in data_sets]
    num_kept, num_all = (sum(map(len, parts)) for parts in (kept, data_sets))
    if not num_kept:
        raise DatasetError(
            f"no image of {', '.join(names)} has an object (DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves out the others)"
        )
    if num_kept < num_all:
        logger.info("Left out %d of %d images without an object", num_all - num_kept, num_all)
    return kept


def _has_object(record: DatasetDict) -> bool:
    return "annotations" not in record or any(not a.get("iscrowd", 0) for a in annotated_objects(record))


def count_classes(dataset_dicts: Sequence[DatasetDict]) -> Counter[int]:
    """Return the number of objects or segments by contiguous class id, without crowds."""
    entries = itertools.chain.from_iterable(map(annotated_objects, dataset_dicts))
    return Counter(entry["category_id"] for entry in entries if not entry.get("iscrowd", 0))


def format_class_histogram(dataset_dicts: Sequence[DatasetDict], class_names: Sequence[str]) -> str:
    """Return a table of class names with the number of their objects or segments, and the total.

    Semantic PNG files are not opened: without annotations the table has only class names.
    """
    counts = count_classes(dataset_dicts)
    is_counted = any("annotations" in record or "segments_info" in record for record in dataset_dicts)
    cells = []
    for class_id, name in enumerate(class_names):
        label = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
        count = f"{counts[class_id]:>8}" if is_counted else f"{'':>8}"
        cells.append(f"{class_id:>4} {label:<{_NAME_WIDTH}}{count}")
    num_rows = -(-len(cells) // _COLUMNS)
    rows = ["  ".join(cells[row::num_rows]).rstrip() for row in range(num_rows)]
    total = f", {sum(counts.values())} objects or segments" if is_counted else ""
    num_videos = sum(map(is_video, dataset_dicts))
    num_images = len(dataset_dicts) - num_videos
    counted = f"{num_images} images, {num_videos} videos" if num_videos else f"{num_images} images"
    return "\n".join([f"{counted}, {len(class_names)} classes{total}", *rows])


def many_objects_note(dataset_dicts: Sequence[DatasetDict], *, num_queries: int) -> str | None:
    """How many images or videos have more objects or segments than the model has queries; None: none."""
    counts = [sum(not entry.get("iscrowd", 0) for entry in annotated_objects(record)) for record in dataset_dicts]
    above = [count for count in counts if count > num_queries]
    if not above:
        return None
    return (
        f"{len(above)} of {len(counts)} have more objects than the model has queries, {num_queries} "
        f"(MODEL.MASK_FORMER.NUM_OBJECT_QUERIES), and up to {max(above)}: those in excess train nothing"
    )


def check_class_ids(dataset_dicts: Sequence[DatasetDict], *, num_classes: int, num_classes_key: str) -> None:
    """Check that the model has every annotated class.

    Raises:
        ConfigError: the message names the first such image and class id, and the key that sets the number.
    """
    for record in dataset_dicts:
        for entry in annotated_objects(record):
            if not 0 <= entry["category_id"] < num_classes:
                raise ConfigError(
                    f"{num_classes_key} is {num_classes}, but {name_of(record)} has an object of class "
                    f"{entry['category_id']} (classes count from 0)"
                )
