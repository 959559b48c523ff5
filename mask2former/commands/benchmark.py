"""Times a config on this machine: its data, a training step, or inference, each stage apart."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from mask2former.commands.analysis import StageTimer, frames_of, peak_memory, random_sample
from mask2former.commands.arguments import CommandParser, print_report
from mask2former.commands.setup import option_of, set_up
from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, build_test_loader, build_train_loader
from mask2former.data.catalog import name_of
from mask2former.data.mapper import image_form, read_checked_image
from mask2former.engine.optimizer import build_gradient_clipping, build_optimizer
from mask2former.engine.precision import Precision
from mask2former.engine.trainer import Hook, Trainer
from mask2former.errors import ConfigError
from mask2former.inference.exported import ExportedModel, load_exported
from mask2former.modeling.execution import CompiledStep

DESCRIPTION = (
    "Time a config on this machine. data: the training loader; data_advanced: its parts; train: steps of one process; "
    "eval: inference, post-processing apart. Medians, after runs that warm up."
)
TASKS = ("data", "data_advanced", "train", "eval")
DEFAULT_NUM_ITERS = 20
DEFAULT_WARMUP = 3
Batch = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """Rows of (stage, median seconds, images in that time), a line on what was timed, and the device."""

    rows: list[tuple[str, float, float]]
    note: str
    device: torch.device


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options()
    parser.add_output_option("file for the table too")
    parser.add_argument("--task", required=True, choices=TASKS, help="what is timed")
    parser.add_argument(
        "--num-iters",
        type=int,
        default=DEFAULT_NUM_ITERS,
        metavar="N",
        help="runs that count, %(default)s if not given",
    )
    parser.add_argument(
        "--warmup", type=int, default=DEFAULT_WARMUP, metavar="N", help="runs before those, %(default)s if not given"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="train, eval: random images of this size, no data set"
    )


def run(args: argparse.Namespace) -> None:
    """Time what the command line says, and print a table.

    Raises:
        InputError: config, data, weights or options are wrong.
    """
    from mask2former.ops import kernel_status

    for name, value, least in (
        ("--num-iters", args.num_iters, 1),
        ("--warmup", args.warmup, 0),
        ("--size", min(args.size or [1]), 1),
    ):
        if value < least:
            raise ConfigError(f"{name}: expected at least {least}, found {value}")
    if args.size and args.task.startswith("data"):
        raise ConfigError(f"--size: {args.task} is about the data set; random images are for train and eval")
    report = _TIME[args.task](set_up(args).cfg, args)
    cells = [
        (title, f"{1e3 * seconds:.1f}", f"{images / seconds:.2f}" if seconds and images else "")
        for title, seconds, images in report.rows
    ]
    headers = ("", "median ms", "images/s")
    memory = peak_memory(report.device)
    lines = [
        f"torch {torch.__version__}, {report.device}, {torch.get_num_threads()} threads; {kernel_status()}",
        report.note,
        tabulate(cells, headers=headers, colalign=("left", "right", "right"), disable_numparse=True),
        *([] if memory is None else [f"{memory[0]}: {memory[1] / 2**30:.2f} GiB"]),
    ]
    print_report("\n".join(lines), args.output)


def time_data(cfg: CfgNode, args: argparse.Namespace) -> Report:
    """Return how long a step would wait for its batch if nothing else were done."""
    loader, timer = build_train_loader(cfg), StageTimer()
    started = time.perf_counter()
    _time_batches(loader, timer, args, stage="batch")
    images = (args.warmup + args.num_iters) * loader.batch_size
    note = (
        f"{', '.join(cfg.DATASETS.TRAIN)}: {loader.num_samples} images, batches of {loader.batch_size}, "
        f"{cfg.DATALOADER.NUM_WORKERS} workers; {images / (time.perf_counter() - started):.2f} images/s from the start"
    )
    return Report([("batch", timer.median("batch"), loader.batch_size)], note, _CPU)


def time_data_parts(cfg: CfgNode, args: argparse.Namespace) -> Report:
    """Return the same piece by piece: list of the data set, files, loader without and with workers."""
    timer = StageTimer()
    with timer.stage("list of the data set"):
        records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    timer.end_run()
    rows = [("list of the data set", timer.median("list of the data set"), float(len(records)))]
    timer.forget()
    alone = build_train_loader(_with_workers(cfg, 0))
    names = itertools.islice(itertools.cycle(map(name_of, records)), args.warmup + args.num_iters)
    for name in tqdm(list(names), desc="image file", unit="image", disable=None):
        with timer.stage("image file"):
            read_checked_image({"file_name": name}, **image_form(cfg))
        timer.end_run()
    rows.append(("image file", timer.median("image file"), 1))
    loaders = {"batch, no workers": alone}
    if cfg.DATALOADER.NUM_WORKERS:
        loaders[f"batch, {cfg.DATALOADER.NUM_WORKERS} workers"] = build_train_loader(cfg)
    for stage, loader in loaders.items():
        _time_batches(loader, timer, args, stage=stage)
        rows.append((stage, timer.median(stage), loader.batch_size))
    note = f"{', '.join(cfg.DATASETS.TRAIN)}: {len(records)} images, batches of {alone.batch_size}"
    return Report(rows, note, _CPU)


def time_training(cfg: CfgNode, args: argparse.Namespace) -> Report:
    """Return steps of one process, on random weights: what a step costs does not depend on them."""
    from mask2former import build_model

    model: Any = build_model(cfg)
    timer = StageTimer(next(model.parameters()).device)
    optimizer = build_optimizer(cfg, model)
    precision = Precision.from_config(cfg, timer.device.type)
    trainer = Trainer(
        model,
        optimizer,
        batches=_timed(_train_batches(cfg, args), timer),
        max_iter=args.warmup + args.num_iters,
        precision=precision,
        clip_gradients=build_gradient_clipping(cfg),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        nonfinite="skip",  # random weights on noise may diverge
    )
    stages = {**_stages(model), "losses": (model, "losses"), "model": (model, "forward")}
    with (
        timer.wrap({**stages, "optimiser": (optimizer, "step"), "whole step": (trainer, "run_step")}),
        tqdm(total=trainer.max_iter, desc="train", unit="step", disable=None) as bar,
    ):
        trainer.hooks.append(_EndOfRun(timer, bar, warmup=args.warmup))
        trainer.train()
    known = sum(timer.median(stage) for stage in ("data", "model", "optimiser"))
    rows = [(stage, timer.median(stage)) for stage in ("data", *_stages(model), "losses")]
    rows.append(("gradients and rest", max(timer.median("whole step") - known, 0.0)))
    rows += [(stage, timer.median(stage)) for stage in ("optimiser", "whole step")]
    num_images = cfg.SOLVER.IMS_PER_BATCH
    what = _describe_input(args, cfg.DATASETS.TRAIN)
    note = f"{what}, batches of {num_images}, {precision.describe()}, random weights"
    return Report([(*row, num_images) for row in rows], note, timer.device)


def time_inference(cfg: CfgNode, args: argparse.Namespace) -> Report:
    """Return one image after the other, as in evaluation, without the evaluators."""
    from mask2former import build_model
    from mask2former.checkpoint import load_weights

    weights = cfg.MODEL.WEIGHTS if args.weights or option_of(args, "MODEL.WEIGHTS") else ""
    model: Any = load_exported(cfg) if weights else None
    if model is None:
        model = build_model(cfg).eval()
        if weights:
            load_weights(model, weights)
    timer = StageTimer(model.pixel_mean.device)
    if args.size:
        batches: Iterable[Batch] = itertools.repeat([random_sample(cfg, tuple(args.size), num_frames=frames_of(cfg))])
    elif cfg.DATASETS.TEST:
        batches = _again_and_again(build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    else:
        raise ConfigError("DATASETS.TEST names no data set; --size H W takes random images")
    end = _EndOfRun(timer, None, warmup=args.warmup)
    iterator = _timed(batches, timer)
    results = (getattr(model, "results_of", model), "results")
    stages = {**_stages(model), "post-processing": results, "model": (model, "forward")}
    with torch.inference_mode(), timer.wrap(stages):
        for _ in tqdm(range(args.warmup + args.num_iters), desc="eval", unit="image", disable=None):
            with timer.stage("data and model"):
                model(next(iterator))
            end.count()
    parts = (*_stages(model), "post-processing")
    preparation = timer.median("model") - sum(timer.median(stage) for stage in parts)
    rows = [("data", timer.median("data")), ("preparation of inputs", max(preparation, 0.0))]
    rows += [(stage, timer.median(stage)) for stage in (*parts, "model", "data and model")]
    described = weights or "random weights: little is detected, and post-processing takes less than it will"
    note = f"{_describe_input(args, cfg.DATASETS.TEST[:1])}; {described}"
    return Report([(*row, 1) for row in rows], note, timer.device)


_CPU = torch.device("cpu")
_TIME: Mapping[str, Callable[[CfgNode, argparse.Namespace], Report]] = MappingProxyType(
    {"data": time_data, "data_advanced": time_data_parts, "train": time_training, "eval": time_inference}
)


class _EndOfRun(Hook):
    """Closes a run of the timer after each step, and forgets those that warmed up."""

    def __init__(self, timer: StageTimer, bar: Any, *, warmup: int) -> None:
        self.timer, self.bar, self.warmup = timer, bar, warmup
        self.num_runs = 0

    def count(self) -> None:
        """One more run is over."""
        self.timer.end_run()
        self.num_runs += 1
        if self.num_runs == self.warmup:
            self.timer.forget()

    def before_step(self, trainer: Trainer) -> None:
        """The run before is over: only here is the time of its whole step known."""
        if trainer.iteration > 0:
            self._advance()

    def after_train(self, trainer: Trainer) -> None:
        """So is the last."""
        self._advance()

    def _advance(self) -> None:
        self.count()
        self.bar.update()


def _stages(model: Any) -> dict[str, tuple[Any, str]]:
    """Return the methods that a model's time is divided by; what is left of it prepares the inputs."""
    if isinstance(model, ExportedModel):
        return {"exported file": (model, "outputs")}
    if isinstance(getattr(model, "predict_pixels", None), CompiledStep):
        return {"backbone and head": (model, "predict")}
    parts = {"backbone": ("backbone", "forward"), "head": ("sem_seg_head", "predict")}
    return {stage: (getattr(model, part, None), method) for stage, (part, method) in parts.items()}


def _train_batches(cfg: CfgNode, args: argparse.Namespace) -> Iterable[Batch]:
    if not args.size:
        return build_train_loader(cfg)
    sample = random_sample(cfg, tuple(args.size), num_frames=frames_of(cfg))
    return itertools.repeat([sample] * cfg.SOLVER.IMS_PER_BATCH)


def _time_batches(loader: Iterable[Any], timer: StageTimer, args: argparse.Namespace, *, stage: str) -> None:
    timer.forget()
    iterator, end = iter(loader), _EndOfRun(timer, None, warmup=args.warmup)
    for _ in tqdm(range(args.warmup + args.num_iters), desc=stage, unit="batch", disable=None):
        with timer.stage(stage):
            next(iterator)
        end.count()


def _timed(batches: Iterable[Batch], timer: StageTimer) -> Iterator[Batch]:
    iterator = iter(batches)
    while True:
        with timer.stage("data"):
            batch = next(iterator)
        yield batch


def _again_and_again(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def _with_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
    changed = cfg.clone()
    changed.defrost()
    changed.DATALOADER.NUM_WORKERS = num_workers
    changed.freeze()
    return changed


def _describe_input(args: argparse.Namespace, names: Sequence[str]) -> str:
    return f"random images of {args.size[0]} x {args.size[1]}" if args.size else ", ".join(names)
