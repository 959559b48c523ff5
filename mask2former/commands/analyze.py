"""Analyzes the model of a config: operations, activations and parameters by module, and its structure."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from mask2former.commands.analysis import Counts, count_activations, count_flops, frames_of, random_sample, usual_size
from mask2former.commands.arguments import CommandParser, print_report
from mask2former.commands.setup import set_up
from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, DatasetMapper
from mask2former.errors import ConfigError, DatasetError

DESCRIPTION = (
    "Analyze the model of a config. flop and activation are counted in one pass without post-processing, "
    "for images of the first test set or, where that is missing, for one random image; a multiplication with its "
    "addition is one operation."
)
TASKS = ("flop", "activation", "parameter", "structure")
DEFAULT_NUM_INPUTS = 20
DEFAULT_DEPTH = 3
_UNITS = {"flop": ("GFLOP", 1e9), "activation": ("million values", 1e6)}
_COUNT: dict[str, Callable[..., Counts]] = {"flop": count_flops, "activation": count_activations}


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options()
    parser.add_output_option("file for the tables too")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        metavar="TASK",
        help=f"one or several of {', '.join(TASKS)}, all if not given",
    )
    parser.add_argument(
        "-n",
        "--num-inputs",
        type=int,
        default=DEFAULT_NUM_INPUTS,
        metavar="N",
        help="images to average over (%(default)s)",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="one random image of this size in place of the data set"
    )
    parser.add_argument(
        "--max-depth",
        type=int,
        default=DEFAULT_DEPTH,
        metavar="D",
        help="depth of modules in the tables, %(default)s if not given",
    )


def run(args: argparse.Namespace) -> None:
    """Analyze as the command line says.

    Raises:
        InputError: config or options are wrong.
    """
    from mask2former import build_model

    wrong = [task for task in args.tasks if task not in TASKS]
    if wrong:
        raise ConfigError(f"--tasks: expected some of {', '.join(TASKS)}, found {wrong[0]!r}")
    _check_options(args)
    cfg = set_up(args).cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = args.device or "cpu"
    cfg.MODEL.COMPILE, cfg.MODEL.PRECISION = "", "float32"
    model = build_model(cfg).eval()
    parts = [f"\n{task}\n\n{_analyze(task, cfg, model, args)}" for task in args.tasks]
    print_report("\n".join(parts), args.output)


def _analyze(task: str, cfg: CfgNode, model: Any, args: argparse.Namespace) -> str:
    if task == "structure":
        return str(model)
    if task == "parameter":
        return describe_parameters(model, max_depth=args.max_depth)
    return _analyze_inputs(task, cfg, model, args)


def describe_parameters(model: nn.Module, *, max_depth: int) -> str:
    """Return a table of the numbers of parameters by module, down to ``max_depth`` names, and how many are trained."""
    rows = []
    for name, module in model.named_modules():
        total = sum(parameter.numel() for parameter in module.parameters())
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        if total and _depth(name) <= max_depth:
            rows.append((name or "in all", f"{total / 1e6:.3f}", f"{trained / 1e6:.3f}"))
    return _table(rows, headers=("module", "million parameters", "of them trained"))


def describe_counts(counts: Sequence[Counts], *, unit: str, scale: float, max_depth: int) -> str:
    """Return a table of mean and standard deviation by module, another by operator, and what was not counted."""
    modules = [name for name in counts[0].by_module if _depth(name) <= max_depth]
    by_module = _count_table([count.by_module for count in counts], modules, title="module", unit=unit, scale=scale)
    operators = sorted(counts[0].by_operator, key=lambda name: -counts[0].by_operator[name])
    by_operator = _count_table(
        [count.by_operator for count in counts], operators, title="operator", unit=unit, scale=scale
    )
    uncounted = ", ".join(f"{name.removeprefix('aten::')} ({n})" for name, n in sorted(counts[0].uncounted.items()))
    return f"{by_module}\n\n{by_operator}\n\nnot counted (calls in one image): {uncounted or 'nothing'}"


def _count_table(
    counts: Sequence[Mapping[str, float]], names: Sequence[str], *, title: str, unit: str, scale: float
) -> str:
    """Return one row for each name with a count; percents are of "", the whole, or else of the sum."""
    means = {name: statistics.fmean(count.get(name, 0) for count in counts) / scale for name in names}
    total = means.get("", sum(means.values()))
    headers = (title, unit, "%") if len(counts) == 1 else (title, unit, "±", "%")
    rows = []
    for name, mean in means.items():
        deviation = f"{statistics.pstdev(count.get(name, 0) for count in counts) / scale:.3f}"
        cells = (f"{mean:.3f}", deviation, f"{100 * mean / total if total else 0:.1f}")
        if mean:
            rows.append((name or "in all", *(cells if len(counts) > 1 else cells[::2])))
    return _table(rows, headers=headers)


def _analyze_inputs(task: str, cfg: CfgNode, model: Any, args: argparse.Namespace) -> str:
    unit, scale = _UNITS[task]
    samples, what = _find_samples(cfg, args)
    counts, known = [], {}
    for sample in tqdm(samples, desc=task, unit="image", disable=None):
        images, _ = model.pad([sample])
        num_frames = None if isinstance(sample["image"], torch.Tensor) else len(sample["image"])
        size = tuple(images.shape)
        if size not in known:  # only the size matters
            known[size] = _COUNT[task](model, images, num_frames=num_frames)
        counts.append(known[size])
    table = describe_counts(counts, unit=unit, scale=scale, max_depth=args.max_depth)
    sizes = ", ".join(f"{size[-2]} x {size[-1]}" for size in list(known)[:5])
    return f"{what}; padded to {sizes}{', …' if len(known) > 5 else ''}\n\n{table}"


def _find_samples(cfg: CfgNode, args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Return samples, and a line that says what they are."""
    if args.size is None and cfg.DATASETS.TEST:
        name = cfg.DATASETS.TEST[0]
        try:
            return _read_samples(cfg, name, args.num_inputs)
        except DatasetError as error:
            print(f"no images of {name}, a random one is taken: {error}\n")
    size = usual_size(cfg) if args.size is None else (args.size[0], args.size[1])
    num_frames = frames_of(cfg)
    what = "random image" if num_frames is None else f"random clip of {num_frames} frames"
    return [random_sample(cfg, size, num_frames=num_frames)], f"one {what} of {size[0]} x {size[1]}"


def _read_samples(cfg: CfgNode, name: str, num_inputs: int) -> tuple[list[dict[str, Any]], str]:
    records = DatasetCatalog.get(name)
    if not records or "file_name" not in records[0]:
        raise DatasetError("it holds no images")
    mapper = DatasetMapper.from_config(cfg, is_train=False)
    # Spread over the set, whose neighbours often resemble each other.
    chosen = np.linspace(0, len(records) - 1, min(num_inputs, len(records))).round().astype(int)
    samples = [mapper(records[index]) for index in chosen]
    return samples, f"mean and standard deviation over {len(samples)} images of {name}"


def _check_options(args: argparse.Namespace) -> None:
    for name, value, least in (
        ("--num-inputs", args.num_inputs, 1),
        ("--max-depth", args.max_depth, 0),
        ("--size", min(args.size or [1]), 1),
    ):
        if value < least:
            raise ConfigError(f"{name}: expected at least {least}, found {value}")


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _table(rows: Iterable[Sequence[str]], *, headers: Sequence[str]) -> str:
    align = ("left", *("right" for _ in headers[1:]))
    return tabulate(list(rows), headers=headers, colalign=align, disable_numparse=True)
