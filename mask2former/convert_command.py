"""Converts weights between families: to a file of ours or the published layout, or to a folder of transformers."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mask2former.checkpoint import load_state_dict, resolve_address, write_text_atomic
from mask2former.checkpoint.conversion import read_converted, write_ours, write_transformers
from mask2former.checkpoint.families import DERIVED
from mask2former.checkpoint.transformers_config import read_transformers_folder
from mask2former.config import CfgNode, get_cfg
from mask2former.errors import CheckpointError, ConfigError
from mask2former.modeling import build_model
from mask2former.structures import MetadataCatalog

CONVERT_DESCRIPTION = (
    "Convert weights. SOURCE is a checkpoint of this project, a published .pkl or .pth of any age, ImageNet weights of "
    "torchvision, timm, Swin Transformer or detectron2, a folder of transformers, or an address such as "
    "zoo://coco/panoptic/r50. OUTPUT is a .pth, .pkl or .safetensors file with the published names, or a folder (a "
    "name without ending), which transformers reads."
)
TOLERANCE = 1e-4  # of the largest logit
_VERIFY_SIZE = (96, 128)
_FILE_ENDINGS = (".pth", ".pt", ".pkl", ".safetensors")

Logits = dict[str, Tensor]


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="file, folder or address")
    parser.add_argument("output", metavar="OUTPUT", help=f"file in {', '.join(_FILE_ENDINGS)}, or a folder")
    parser.add_argument(
        "--config-file", metavar="FILE", help="config of the model; not needed where SOURCE is a folder of transformers"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run both models on one image, in float64, and show the largest difference of logits",
    )
    parser.add_argument(
        "--swap-channels", action="store_true", help="make weights for RGB images ones for BGR images, or the reverse"
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and more of the log")


def run_convert(args: argparse.Namespace) -> None:
    """Convert as the command line says.

    Raises:
        CheckpointError: the source cannot be read, does not fit the output, or the outputs differ under --verify.
        ConfigError: a config is needed and missing, or holds what the output's model does not have.
    """
    source, output = resolve_address(args.source), Path(args.output)
    is_file = output.suffix in _FILE_ENDINGS
    if not is_file and output.is_file():
        raise CheckpointError(f"{output}: expected a name in {', '.join(_FILE_ENDINGS)}, or a folder for transformers")
    if output.resolve() == source.resolve():
        raise CheckpointError(f"{output}: OUTPUT is SOURCE itself, expected another name")
    if args.verify and args.swap_channels:
        raise CheckpointError("--verify: with --swap-channels the models are meant to differ")
    cfg = _find_config(args, source)
    if cfg is None and (args.verify or not is_file):
        raise ConfigError("--config-file: needed to know the model, unless SOURCE is a folder of transformers")

    converted = read_converted(source, swap_channels=args.swap_channels)
    assert converted.family is not None
    print(f"{args.source}: {converted.family.name}, {len(converted.tensors)} tensors")
    left_out = [name for name in converted.dropped if not re.search(DERIVED, name)]
    for title, names in (("left out", left_out), ("kept under their names", list(converted.unknown))):
        if names:
            print(f"  {len(names)} {title}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    if is_file:
        write_ours(converted.tensors, output)
        _write_config(args, source, output)
    else:
        write_transformers(converted.tensors, output, cfg=cfg, class_names=_class_names(cfg))
    print(f"{output}: written")
    if args.verify:
        _verify(cfg, source, output)


def _find_config(args: argparse.Namespace, source: Path) -> CfgNode | None:
    """The model's config: the file given, or what a folder of transformers says; None where nothing tells."""
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    elif (source / "config.json").is_file():
        for key, value in read_transformers_folder(source).items():
            cfg.merge_from_list([key, value])
    else:
        return None
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


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
    """The names of the classes, where the first data set of the config has as many as the model."""
    from mask2former.data.datasets.builtin import register_builtin_datasets

    register_builtin_datasets()
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        metadata = MetadataCatalog.get(name)
        for key in ("stuff_classes", "thing_classes"):
            classes = metadata.get(key)
            if classes is not None and len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
                return list(classes)
    return []


def _verify(cfg: Any, source: Path, output: Path) -> None:
    # In float32 a mask logit next to zero may fall on either side of the attention threshold, by the order of summation
    # alone, and then moves what follows by 1e-3: weights are compared where rounding is too small for that.
    image = torch.randn(1, 3, *_VERIFY_SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, actual = (_logits(cfg, place, image) for place in (source, output))
    worst = 0.0
    for name, logits in expected.items():
        largest = float(logits.abs().max())
        difference = float((actual[name] - logits).abs().max()) / max(largest, 1e-12)
        worst = max(worst, difference)
        print(f"  {name}: largest difference {difference:.1e} of the largest magnitude {largest:.3g}")
    if not worst <= TOLERANCE:
        raise CheckpointError(f"{output}: differs from {source} by {worst:.1e}, expected at most {TOLERANCE:.0e}")


@torch.no_grad()
def _logits(cfg: Any, place: Path, image: Tensor) -> Logits:
    """Class and mask logits by the model that the weights belong to; for a backbone alone its features."""
    if (place / "config.json").is_file():
        return _transformers_logits(place, image)
    torch.manual_seed(0)  # what the weights lack is the same in both models
    model: Any = build_model(cfg).eval()
    converted = read_converted(place)
    report = load_state_dict(model, converted.tensors, source=str(place))
    features = model.to(image.dtype).backbone(image)
    if _is_backbone_only(converted.tensors):
        return dict(features)
    if not report.is_complete:
        raise CheckpointError(report.format())
    return _as_logits(model, features)


def _is_backbone_only(tensors: Mapping[str, Tensor]) -> bool:
    return all(name.startswith("backbone.") for name in tensors)


def _as_logits(model: Any, features: Mapping[str, Tensor]) -> Logits:
    outputs = model.sem_seg_head(features)
    return {"class logits": outputs["pred_logits"], "mask logits": outputs["pred_masks"]}


def _transformers_logits(folder: Path, image: Tensor) -> Logits:
    try:
        from transformers import Mask2FormerForUniversalSegmentation, MaskFormerForInstanceSegmentation
    except ImportError as error:
        raise CheckpointError(f"--verify of {folder}: needs the package transformers: {error}") from error
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    their_class: Any = (
        MaskFormerForInstanceSegmentation if kind == "maskformer" else Mask2FormerForUniversalSegmentation
    )
    model: nn.Module = their_class.from_pretrained(folder, local_files_only=True).eval()
    outputs = model.to(image.dtype)(pixel_values=image)
    return {"class logits": outputs.class_queries_logits, "mask logits": outputs.masks_queries_logits}
