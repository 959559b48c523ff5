"""Writes a model as one file for ONNX Runtime, OpenVINO or torch, and proves that it agrees."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from mask2former.commands.arguments import CommandParser
from mask2former.commands.setup import set_up
from mask2former.config import CfgNode
from mask2former.data import build_test_loader
from mask2former.engine.evaluating import evaluate_only
from mask2former.errors import ConfigError, InputError
from mask2former.export.exporting import ExportOptions, export_model
from mask2former.export.formats import FORMATS
from mask2former.export.lowering import SAMPLINGS
from mask2former.export.verification import LIMITS, Limits
from mask2former.runtime.exported_info import FINISHED, RAW

DESCRIPTION = (
    "Write a model as one file: pixels in, logits or finished results out, for any batch, height and width. The file "
    "holds classes, thresholds and config, is verified on images of the data set, and is then a model for predict, "
    "evaluate and mask2former.runtime."
)
DEFAULT_NUM_IMAGES = 8


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options()
    parser.add_output_option("the file: .onnx, .xml (openvino, with a .bin beside it) or .pt2", required=True)
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default %(default)s")
    parser.add_argument(
        "--outputs",
        choices=(RAW, FINISHED),
        default=RAW,
        help="raw: class and mask logits, of which predict, evaluate and mask2former.runtime make results; finished: "
        "segments, instances and labels as arrays, made in the graph (default %(default)s)",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="fix the size of images; by default any is taken"
    )
    parser.add_argument("--input", choices=("uint8", "float32"), default="uint8", help="pixels, 0..255 in both")
    parser.add_argument(
        "--sampling", choices=tuple(SAMPLINGS), help="what deformable attention becomes; gather is for TensorRT"
    )
    group = parser.add_argument_group("proof")
    group.add_argument("--images", nargs="+", metavar="PATH", help="verify on these, not on those of DATASETS.TEST")
    group.add_argument("--num-images", type=int, default=DEFAULT_NUM_IMAGES, metavar="N", help="default %(default)s")
    group.add_argument("--max-error", type=float, metavar="E", help="of logits, relative to the largest")
    group.add_argument("--no-verify", action="store_true", help="write the file without comparing it")
    group.add_argument("--evaluate", action="store_true", help="evaluate model and file on DATASETS.TEST and compare")


def run(args: argparse.Namespace) -> None:
    """Export, verify and, if wanted, evaluate.

    Raises:
        InputError: an option, config or weights are wrong, or the file does not agree with its model.
    """
    options = ExportOptions(
        args.format, args.outputs, tuple(args.size) if args.size else None, args.sampling, args.input
    )
    if args.num_images < 1:
        raise ConfigError(f"--num-images: expected at least 1, found {args.num_images}")
    cfg = _settle_config(args)
    model = _build(cfg)
    samples = None if args.no_verify else list(itertools.islice(_samples(cfg, args), args.num_images))
    standard = LIMITS[cfg.MODEL.PRECISION]
    limits = standard if args.max_error is None else Limits(args.max_error, standard.detections)
    found = export_model(cfg, model, args.output, options=options, samples=samples, limits=limits)
    print(f"{args.output}: {args.format}, {cfg.MODEL.PRECISION}, {args.outputs} outputs")
    for line in found.lines() if found else ["not verified"]:
        print(f"  {line}")
    if args.evaluate:
        print_metrics(evaluate_both(cfg, args.output))


def _settle_config(args: argparse.Namespace) -> CfgNode:
    cfg = set_up(args).cfg.clone()
    cfg.defrost()
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--weights: needed, since MODEL.WEIGHTS is empty")
    if args.device is None:
        cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.COMPILE = ""
    cfg.TEST.SEMANTIC_LABELS = True
    return cfg


def _build(cfg: CfgNode) -> torch.nn.Module:
    from mask2former.checkpoint import load_weights
    from mask2former.modeling import build_model

    model = build_model(cfg, accelerated=False).eval()
    load_weights(model, cfg.MODEL.WEIGHTS)
    return model


def _samples(cfg: CfgNode, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if args.images:
        from mask2former.commands.predict import find_images
        from mask2former.inference.predictor import ImagePreparation

        prepare = ImagePreparation(cfg)
        yield from (prepare(file.source) for file in find_images(args.images))
    elif cfg.DATASETS.TEST:
        for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
            yield from batch
    else:
        raise InputError("DATASETS.TEST is empty: --images gives images to verify with, --no-verify does without")


def evaluate_both(cfg: CfgNode, path: str) -> list[tuple[str, float, float]]:
    """Return the metrics of the data set: name, of the weights, of the file."""
    found = []
    for weights in (cfg.MODEL.WEIGHTS, path):
        with tempfile.TemporaryDirectory() as folder:
            each = cfg.clone()
            each.MODEL.WEIGHTS, each.OUTPUT_DIR = weights, folder
            each.TEST.EXPECTED_RESULTS = []
            found.append(evaluate_only(each))
    model, file = found
    return [
        (f"{task} {metric}", float(value), float(file[task][metric]))
        for task, metrics in model.items()
        for metric, value in metrics.items()
        if isinstance(value, (int, float)) and metric in HEADLINES
    ]


HEADLINES = ("PQ", "SQ", "RQ", "AP", "AP50", "mIoU", "fwIoU")


def print_metrics(rows: list[tuple[str, float, float]]) -> None:
    """Print both metrics and their difference."""
    for name, model, file in rows:
        print(f"  {name:24} model {model:8.3f}   file {file:8.3f}   difference {file - model:+.3f}")
