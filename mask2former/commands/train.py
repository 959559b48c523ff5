"""Trains or evaluates a model, on one process or many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mask2former.commands.arguments import CommandParser
from mask2former.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from mask2former.commands.setup import Setup

DESCRIPTION = (
    "Train a model, or with --eval-only evaluate one, as a config says. Works under torchrun too, which then replaces "
    "--num-gpus and the options after it."
)


RARE_OPTIONS = ("--import", "--opts", "--drop-empty-classes", "--num-machines", "--machine-rank", "--dist-url")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options(needs="--weights, --data or a resumed run do not tell it")
    parser.add_output_option("folder of the run, by default OUTPUT_DIR of the config")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    add_recipe_options(add_data_options(parser))
    add_process_options(parser)
    parser.keep_for_help_all("--eval-only", *RARE_OPTIONS)


def add_data_options(parser: CommandParser) -> Any:
    """The options for own files; returns their group."""
    parser.set_defaults(model=None, batch=None)
    data = parser.add_argument_group(
        "own data", "task, classes, iterations and learning rate then follow from the data"
    )
    data.add_argument(
        "--data",
        metavar="PATH",
        help="file, folder or zip of images with labels (COCO, labelme, YOLO, Pascal VOC, CVAT, Label Studio, "
        "Supervisely, VIA) or masks",
    )
    data.add_argument("--classes", metavar="FILE", help="class names, one a line: the first is class 0; or ID: NAME")
    data.add_argument(
        "--ignore-label",
        action="append",
        metavar="ID",
        help="id or class that does not train (PNG masks: 255; none: every id trains); may be repeated",
    )
    parser.add_left_out_options(data)
    return data


def add_recipe_options(group: Any) -> None:
    """The options that choose how own files are trained on where no config does."""
    group.add_argument(
        "--model",
        metavar="NAME",
        help="recipe in the place of a config: r50 (default), r18 (small, no weights needed), r101, swin-t, swin-l, …",
    )
    group.add_argument(
        "--batch",
        metavar="N",
        type=_batch,
        help="images a step; auto, the default without a config: as many as fit into memory",
    )


def _batch(text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected auto or a number from 1 on, found {text}")
    return text if text == "auto" else int(text)


def add_process_options(parser: CommandParser) -> None:
    """The options that start several processes."""
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on this machine; on the CPU if it has no GPU"
    )
    group.add_argument("--num-machines", type=int, default=1, metavar="M", help="machines; start this on each")
    group.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    group.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT on machine 0; auto on one machine"
    )


def run(args: argparse.Namespace) -> None:
    """Train or evaluate as the command line says.

    Raises:
        InputError: something given is wrong.
    """
    run_in_processes(args, eval_only=args.eval_only, resume=args.resume)


def run_in_processes(args: argparse.Namespace, *, eval_only: bool, resume: bool) -> None:
    """Set up, then train or evaluate in as many processes as asked for."""
    from mask2former.commands.setup import option_of, set_up
    from mask2former.distributed import was_launched

    if args.output is not None:
        args.opts = [*args.opts, "OUTPUT_DIR", args.output]
    folder = option_of(args, "OUTPUT_DIR") if resume else None
    notes = _choose_recipe(args, folder, eval_only=eval_only)
    setup = set_up(args, run_folder=folder)
    own_data = _own_data_request(args, setup, notes)
    if was_launched() or (args.num_gpus == 1 and args.num_machines == 1):
        train_or_evaluate(setup.cfg, eval_only, resume, own_data)
        return
    from mask2former.engine.launch import check_num_gpus, launch

    check_num_gpus(args.num_gpus, setup.cfg.MODEL.DEVICE)
    launch(
        train_or_evaluate,
        setup.cfg,
        eval_only,
        resume,
        own_data,
        num_processes=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        verbose=args.verbose,
    )


def train_or_evaluate(cfg: Any, eval_only: bool = False, resume: bool = False, own_data: Any = None) -> None:
    """What ``train`` does, in each of its processes; the modules of ``cfg.IMPORTS`` are imported first."""
    from mask2former import distributed
    from mask2former.engine import evaluate_only, train
    from mask2former.engine.own_data import prepare_own_data
    from mask2former.inference.model_source import import_modules

    import_modules(cfg.IMPORTS)
    with distributed.process_group(cfg.MODEL.DEVICE):
        if own_data is not None:
            cfg = prepare_own_data(cfg, own_data, eval_only=eval_only)
        if eval_only:
            evaluate_only(cfg, resume=resume)
        else:
            train(cfg, resume=resume)


def _choose_recipe(args: argparse.Namespace, folder: str | None, *, eval_only: bool) -> list[str]:
    """Fill in --config-file and --weights where the data tell the recipe; returns what to say of it."""
    from mask2former.commands.setup import option_of

    weights_given = bool(args.weights) or "MODEL.WEIGHTS" in args.opts[::2]
    resumed = folder is not None and (Path(folder) / "config.yaml").is_file()
    known = args.config_file or args.weights or option_of(args, "MODEL.WEIGHTS") or resumed
    if args.model is not None and args.config_file is not None:
        raise UsageError("--model and --config-file both say the recipe; give one of them")
    if args.data is None or (known and args.model is None):
        return []
    if eval_only and not weights_given:
        raise UsageError("--eval-only needs --weights: there is nothing else to evaluate")
    from mask2former.engine.own_data import choose_recipe
    from mask2former.inference.model_source import import_modules

    import_modules(args.modules)  # which may register the format
    recipe = choose_recipe(args.data, args.model)
    args.config_file = recipe.config
    if args.batch is None and "SOLVER.IMS_PER_BATCH" not in args.opts[::2]:
        args.batch = "auto"
    if weights_given:
        return [recipe.reason]
    if not recipe.weights:
        return [recipe.reason, "no weights are published for it: it starts from random ones"]
    recipe.check_weights()
    args.weights = recipe.weights
    return [recipe.reason, f"it starts from {recipe.weights}"]


def _own_data_request(args: argparse.Namespace, setup: Setup, notes: list[str]) -> Any:
    """What ``--data`` asks for, None without it."""
    if args.batch is not None and "SOLVER.IMS_PER_BATCH" in setup.given:
        raise UsageError("--batch and SOLVER.IMS_PER_BATCH both say the images a step; give one of them")
    if args.data is None:
        for option in ("model", "batch", "classes", "ignore_label", "drop_empty_classes", "skip_bad"):
            if getattr(args, option):
                raise ConfigError(f"--{option.replace('_', '-')} goes with --data")
        return None
    from mask2former.data.own_data import ClassChoice
    from mask2former.engine.own_data import OwnDataRequest

    ignored = None if args.ignore_label is None else tuple(args.ignore_label)
    return OwnDataRequest(
        args.data,
        setup.reference,
        setup.given,
        ClassChoice(args.classes, ignored, args.drop_empty_classes, args.skip_bad),
        batch=args.batch,
        notes=tuple(notes),
    )
