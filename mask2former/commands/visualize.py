"""Draws what a config trains on: the annotations as they are in the data set, or what the mapper makes of them."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mask2former.commands.arguments import CommandParser
from mask2former.commands.setup import set_up
from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, MetadataCatalog, build_train_loader
from mask2former.data.catalog import DatasetDict, is_video, name_of
from mask2former.data.targets import clip_targets, instance_targets, panoptic_targets, semantic_targets
from mask2former.data.transforms import NoOpTransform
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.files.channels import channels_to_rgb, read_channels
from mask2former.files.images import read_image
from mask2former.files.inputs import counted, describe_failures, prepare_folder
from mask2former.files.maps import read_label_map, read_panoptic_ids
from mask2former.files.pictures import write_picture
from mask2former.structures import Instances, Metadata
from mask2former.visualization.overlays import draw_targets, join_frames

DESCRIPTION = (
    "Draw the classes and masks of DATASETS.TRAIN: annotation as they are in the data set, dataloader after the "
    "mapper's augmentation, as training sees them. Frames of a clip stand side by side."
)
SOURCES = ("annotation", "dataloader")
DEFAULT_NUM_IMAGES = 20
_MAX_FRAMES = 4  # of a video, drawn from its annotations
_DEFAULT_IGNORE_LABEL = 255

# The frames of one picture, each an RGB image (H, W, 3) with its targets.
Frames = list[tuple[np.ndarray, Instances]]


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options(needs="--weights does not tell it")
    parser.add_argument("--source", required=True, choices=SOURCES, help="what is drawn")
    parser.add_output_option("directory for the pictures, made if missing", "--output-dir")
    parser.add_argument(
        "-n",
        "--num-images",
        type=int,
        default=DEFAULT_NUM_IMAGES,
        metavar="N",
        help="how many, %(default)s if not given",
    )
    parser.add_argument("--show", action="store_true", help="open each picture in the system's viewer")


def run(args: argparse.Namespace) -> None:
    """Draw as the command line says.

    Raises:
        InputError: config, data set or options are wrong.
    """
    if args.output is None and not args.show:
        raise ConfigError("--output or --show: expected one of them, or nobody would see the pictures")
    if args.num_images < 1:
        raise ConfigError(f"--num-images: expected at least 1, found {args.num_images}")
    cfg = set_up(args).cfg
    output = None if args.output is None else prepare_folder(args.output)
    read = read_annotations if args.source == "annotation" else read_batches
    pictures = itertools.islice(read(cfg), args.num_images)
    num_pictures, unwritten = 0, list[str]()
    for stem, frames, metadata in tqdm(pictures, total=args.num_images, desc="draw", unit="picture", disable=None):
        picture = join_frames(
            [draw_targets(image, found.gt_classes, found.gt_masks, metadata) for image, found in frames]
        )
        num_pictures += 1
        if output is not None:
            try:
                write_picture(picture, output / f"{num_pictures:04d}_{stem}.png")
            except InputError as error:  # the others may fit
                unwritten.append(str(error))
        if args.show:
            Image.fromarray(picture).show(title=stem)
    print(counted(num_pictures - len(unwritten), "picture") + ("" if output is None else f" in {output}"))
    if unwritten:
        raise InputError(describe_failures(unwritten, "could not be written", of=counted(num_pictures, "picture")))


def read_batches(cfg: CfgNode) -> Iterator[tuple[str, Frames, Metadata]]:
    """What the training loader yields, endlessly: a name, the frames with their targets, the metadata."""
    loader = build_train_loader(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    for batch in loader:
        for sample in batch:
            is_clip = not isinstance(sample["image"], torch.Tensor)
            images = sample["image"] if is_clip else [sample["image"]]
            targets = sample["instances"] if is_clip else [sample["instances"]]
            rgb = [_tensor_to_rgb(image, cfg) for image in images]
            yield _stem(sample), list(zip(rgb, targets, strict=True)), metadata


def read_annotations(cfg: CfgNode) -> Iterator[tuple[str, Frames, Metadata]]:
    """Each kind of annotation of each image or video: a name, the frames with their targets, the metadata."""
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN names no data set")
    for name in cfg.DATASETS.TRAIN:
        records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
        for record in records:
            read = partial(_read_rgb, cfg=cfg)
            kinds = _annotated_video(record, read) if is_video(record) else _annotated_image(record, metadata, read)
            found = False
            for kind, frames in kinds:
                found = True
                yield f"{_stem(record)}_{kind}", frames, metadata
            if not found:
                raise DatasetError(f"{name_of(record)}: {name} has no annotations, its entries are {sorted(record)}")


def _read_rgb(name: str, cfg: CfgNode) -> np.ndarray:
    if cfg.INPUT.CHANNELS:
        return channels_to_rgb(read_channels(name, cfg.INPUT.CHANNELS), cfg.INPUT.SHOWN_CHANNELS)
    return read_image(name, "RGB", bits=cfg.INPUT.IMAGE_BITS)


def _annotated_image(
    record: DatasetDict, metadata: Metadata, read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, Frames]]:
    image = read(record["file_name"])
    size = image.shape[:2]
    if "pan_seg_file_name" in record:
        ids = read_panoptic_ids(record["pan_seg_file_name"])
        targets = panoptic_targets(ids, _with_crowds(record["segments_info"]), keep_empty=True)
        yield "panoptic", [(image, targets)]
    if "annotations" in record:
        objects, context = _with_crowds(record["annotations"]), str(record["file_name"])
        targets = instance_targets(objects, NoOpTransform(), size=size, context=context, keep_empty=True)
        yield "instance", [(image, targets)]
    if "sem_seg_file_name" in record:
        labels = read_label_map(record["sem_seg_file_name"])
        ignore_label = metadata.get("ignore_label", _DEFAULT_IGNORE_LABEL)
        yield "semantic", [(image, semantic_targets(labels, ignore_label=ignore_label))]


def _annotated_video(record: DatasetDict, read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, Frames]]:
    if "annotations" not in record:
        return
    times = np.unique(np.linspace(0, len(record["file_names"]) - 1, _MAX_FRAMES).round().astype(int))
    names = [record["file_names"][time] for time in times]
    images = [read(name) for name in names]
    targets = clip_targets(
        [_with_crowds(record["annotations"][time]) for time in times],
        [NoOpTransform()] * len(times),
        size=images[0].shape[:2],
        file_names=names,
    )
    yield "video", list(zip(images, targets, strict=True))


def _with_crowds(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, crowds no longer marked as such: training leaves them out, a picture of the annotations does not."""
    return [{**annotation, "iscrowd": 0} for annotation in annotations]


def _tensor_to_rgb(image: torch.Tensor, cfg: CfgNode) -> np.ndarray:
    """Image (C, H, W) in the form of the config -> (H, W, 3) uint8 RGB."""
    array = image.numpy().transpose(1, 2, 0)
    if cfg.INPUT.CHANNELS:
        return channels_to_rgb(array, cfg.INPUT.SHOWN_CHANNELS)
    if cfg.INPUT.FORMAT == "BGR":
        array = array[..., ::-1]
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _stem(record: DatasetDict) -> str:
    """The name of the file without ending, for frames of a video after that of their folder."""
    path = Path(name_of(record))
    return f"{path.parent.name}_{path.stem}" if is_video(record) else path.stem
