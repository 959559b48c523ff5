"""Trains or evaluates a model, on one process or many."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mask2former.commands.arguments import CommandParser
from mask2former.errors import ConfigError

if TYPE_CHECKING:
    from mask2former.commands.setup import Setup

DESCRIPTION = (
    "Train a model, or with --eval-only evaluate one, as a config says. Works under torchrun too, which then replaces "
    "--num-gpus and the options after it."
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options(needs="neither --weights nor the folder of a run that is resumed tells it")
    parser.add_output_option("folder of the run, by default OUTPUT_DIR of the config")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    add_data_options(parser)
    add_process_options(parser)


def add_data_options(parser: CommandParser) -> None:
    """The options for own files."""
    data = parser.add_argument_group("own data", "classes, iterations and learning rate then follow from the data")
    data.add_argument(
        "--data",
        metavar="PATH",
        help="folder with train/images, train/masks (and valid/), COCO instances or panoptic json or its folder, or "
        "folder of labelme files",
    )
    data.add_argument("--classes", metavar="FILE", help="class names, one a line: the first is class 0; or ID: NAME")
    data.add_argument(
        "--ignore-label",
        action="append",
        metavar="ID",
        help="id or class that does not train (255 for PNG masks; none: every id trains); may be given several times",
    )


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
    setup = set_up(args, run_folder=folder)
    own_data = _own_data_request(args, setup)
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


def _own_data_request(args: argparse.Namespace, setup: Setup) -> Any:
    """What ``--data`` asks for, None without it."""
    if args.data is None:
        for option in ("classes", "ignore_label"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option.replace('_', '-')} goes with --data")
        return None
    from mask2former.engine.own_data import OwnDataRequest

    ignored = None if args.ignore_label is None else tuple(args.ignore_label)
    return OwnDataRequest(args.data, setup.reference, setup.given, args.classes, ignored)
