"""Converts weights between families: to a file of ours or the published layout, or to a folder of transformers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from mask2former.checkpoint import resolve_address
from mask2former.checkpoint.conversion import read_converted, write_ours, write_transformers
from mask2former.checkpoint.description import describe, read_description
from mask2former.checkpoint.families import DERIVED
from mask2former.checkpoint.transformers_config import read_transformers_folder
from mask2former.commands.arguments import CommandParser
from mask2former.commands.conversion_check import verify_conversion
from mask2former.commands.setup import set_up
from mask2former.config import CfgNode
from mask2former.data.catalog import format_run_metadata
from mask2former.errors import CheckpointError, ConfigError, UsageError
from mask2former.files.atomic import write_text_atomic
from mask2former.inference.model_source import find_config_file, locate_weights
from mask2former.structures import MetadataCatalog

DESCRIPTION = (
    "Convert weights. SOURCE is a checkpoint of this project, a published .pkl or .pth of any age, ImageNet weights of "
    "torchvision, timm, Swin Transformer or detectron2, a folder of transformers, or an address such as "
    "zoo://coco/panoptic/r50. OUTPUT is a .pth, .pkl or .safetensors file with the published names, or a folder (a "
    "name without ending), which transformers reads."
)
_DESCRIBED = (".pth", ".pt", ".safetensors")  # a .pkl is as the published ones
_FILE_ENDINGS = (".pth", ".pt", ".pkl", ".safetensors")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="file, folder or address")
    endings = ", ".join(_FILE_ENDINGS)
    parser.add_argument("target", nargs="?", metavar="OUTPUT", help=f"file in {endings}, or a folder")
    parser.add_output_option("the same as OUTPUT")
    parser.add_config_options(needs="nothing beside SOURCE tells the model and the output or --verify ask for it")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where --verify runs (%(default)s)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run both models on one image and show the largest difference of logits, in float64 (and in float32)",
    )
    parser.add_argument(
        "--swap-channels", action="store_true", help="make weights for RGB images ones for BGR images, or the reverse"
    )


def run(args: argparse.Namespace) -> None:
    """Convert as the command line says.

    Raises:
        CheckpointError: the source cannot be read, does not fit the output, or the outputs differ under --verify.
        ConfigError: a config is needed and missing, or holds what the output's model does not have.
    """
    if (args.target is None) == (args.output is None):
        raise UsageError("expected OUTPUT once, after SOURCE or as --output")
    args.weights = locate_weights(args.source)
    source, output = resolve_address(args.weights), Path(args.target or args.output).expanduser()
    is_file = output.suffix in _FILE_ENDINGS
    if not is_file and output.is_file():
        raise CheckpointError(f"{output}: expected a name in {', '.join(_FILE_ENDINGS)}, or a folder for transformers")
    if output.resolve() == source.resolve():
        raise CheckpointError(f"{output}: OUTPUT is SOURCE itself, expected another name")
    if args.verify and args.swap_channels:
        raise CheckpointError("--verify: with --swap-channels the models are meant to differ")
    cfg = _find_config(args, source) if args.verify or not is_file else None
    description = _describe(args, source) if output.suffix in _DESCRIBED else {}

    converted = read_converted(source, swap_channels=args.swap_channels)
    assert converted.family is not None
    print(f"{args.source}: {converted.family.name}, {len(converted.tensors)} tensors")
    left_out = [name for name in converted.dropped if not re.search(DERIVED, name)]
    for title, names in (("left out", left_out), ("kept under their names", list(converted.unknown))):
        if names:
            print(f"  {len(names)} {title}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    if is_file:
        write_ours(converted.tensors, output, description=description)
        _write_config(args, source, output)
    else:
        write_transformers(converted.tensors, output, cfg=cfg, class_names=_class_names(cfg))
    print(f"{output}: written" + (", with its config inside" if description else ""))
    if args.verify:
        verify_conversion(cfg, source, output)


def _find_config(args: argparse.Namespace, source: Path) -> CfgNode:
    """Return the model's config, of the file given or of the source.

    Raises:
        ConfigError: nothing tells it.
    """
    if not _is_config_known(args, source):
        raise ConfigError("--config-file: needed to know the model, since nothing in or beside SOURCE tells it")
    cfg = set_up(args).cfg.clone()
    cfg.defrost()
    return cfg


def _is_config_known(args: argparse.Namespace, source: Path) -> bool:
    is_named = args.config_file or args.weights.startswith("zoo://") or (source / "config.json").is_file()
    return bool(is_named or find_config_file(source) or read_description(source))


def _describe(args: argparse.Namespace, source: Path) -> dict[str, str]:
    """Return what the output says of itself: the config that is known, for images as its weights want them."""
    if not _is_config_known(args, source):
        return {}
    try:
        found = set_up(args)
    except ConfigError as error:  # nothing that the weights need
        print(f"  without a config inside: {error}")
        return {}
    cfg = found.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", found.reference.MODEL.DEVICE
    if args.swap_channels:
        cfg.INPUT.FORMAT = "BGR" if cfg.INPUT.FORMAT == "RGB" else "RGB"
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_MEAN[::-1], cfg.MODEL.PIXEL_STD[::-1]
    return describe(cfg.dump(), format_run_metadata([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]))


def _write_config(args: argparse.Namespace, source: Path, output: Path) -> None:
    """Beside weights that come with transformers' config: the same as a config file of ours."""
    if args.config_file or not (source / "config.json").is_file():
        return
    tree: dict[str, Any] = {}
    for key, value in read_transformers_folder(source).items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path = output.with_suffix(".yaml")
    write_text_atomic(yaml.safe_dump(tree, default_flow_style=None), path)
    print(f"{path}: written, the config of these weights; the data sets are yours to name")


def _class_names(cfg: Any) -> list[str]:
    """Return the names of the classes, where the first data set of the config has as the model."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        metadata = MetadataCatalog.get(name)
        for key in ("stuff_classes", "thing_classes"):
            classes = metadata.get(key)
            if classes is not None and len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
                return list(classes)
    return []
