"""The command ``mask2former``, and what its subcommands share with the scripts in ``tools`` and ``demo``.

Exit codes: 0 done; 1 something given is wrong, or training diverged; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mask2former.errors import ConfigError, InputError, NonFiniteError

EXIT_WRONG_INPUT = 1
EXIT_INTERRUPTED = 130  # as shells report the signal of Ctrl-C
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES, _PIECE_BYTES = 1 << 30, 1 << 28
_OLD_PIECE_BYTES = 1 << 25  # the most that glibc takes before 2.35


def main(argv: Sequence[str] | None = None) -> int:
    """The console command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _run(lambda: _build_parser(arguments), arguments)


def train_main(argv: Sequence[str] | None = None) -> int:
    """``tools/train_net.py``; returns the exit code."""
    return _run(lambda: _build_door(TRAIN_DESCRIPTION, _add_train), argv)


def predict_main(argv: Sequence[str] | None = None) -> int:
    """``demo/demo.py``; returns the exit code."""
    return _run(lambda: _build_door(PREDICT_DESCRIPTION, _add_predict), argv)


def _run(build_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    tune_process()  # first: parsers import the commands, and those import torch
    args = build_parser().parse_args(argv)
    return run_cli(lambda: args.run(args), verbose=args.verbose)


def tune_process() -> None:
    """What a command does to its whole process; must run before torch is imported, and yields to the user's choice."""
    _limit_spinning()
    _keep_freed_memory()


def _limit_spinning() -> None:
    """Lets idle threads of GNU OpenMP sleep early.

    By default they spin for milliseconds. With as many threads as cores, one other busy process (a data worker is
    enough) then holds up every parallel region: measured on two cores, 5.6 s a step instead of 0.4 s. What waking
    costs on an idle machine was within the noise there; OMP_WAIT_POLICY or GOMP_SPINCOUNT overrule this.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of freed memory for the next use.

    By itself it hands pieces of more than 32 MiB to the system at once, which clears each page before it gives it out
    again: measured on two cores, 12 % of the time of an image and 3 to 15 % of a training step. Pieces of more than
    256 MiB (32 MiB in an old glibc) still go. MALLOC_* or GLIBC_TUNABLES in the environment, and preloaded libraries,
    overrule this.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ) or "LD_PRELOAD" in os.environ:
        return
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # no glibc
        return
    _set_thresholds(set_option)


def _set_thresholds(set_option: Callable[[int, int], int]) -> None:
    """By glibc's mallopt, which returns 0 for a value that it refuses."""
    # Once one of the two is set, glibc no longer raises the other by itself: with that of trimming alone, each piece of
    # more than 128 KiB would come from the system anew.
    if any(set_option(_M_MMAP_THRESHOLD, size) for size in (_PIECE_BYTES, _OLD_PIECE_BYTES)):
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def run_cli(function: Callable[[], Any], *, verbose: bool = False) -> int:
    """Runs a command; what is the user's to mend becomes one line and exit code 1, without traceback unless verbose.

    An integer that the function returns is the exit code. Unexpected errors pass through with their traceback.
    """
    try:
        code = function()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (InputError, NonFiniteError) as error:
        if verbose:
            _print_traceback()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    return code if isinstance(code, int) else 0


PREDICT_DESCRIPTION = "Predict images, videos or a webcam and write panoptic, instance and semantic overlays."
TRAIN_DESCRIPTION = (
    "Train a model, or with --eval-only evaluate one, as a config file says. Works under torchrun too, which then "
    "replaces --num-gpus and the options after it."
)


def _build_door(description: str, add: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add(parser)
    return parser


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mask2former", description="Train, evaluate and predict segmentation models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train or evaluate a model", description=TRAIN_DESCRIPTION))
    # The other commands bring imports of their own: only the one that is asked for is loaded.
    for name, (summary, add) in _LAZY_COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in arguments[:1]:
            add(command)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of model, data and training")
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
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which registers data sets or parts of models; may be given several times",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on this machine; on the CPU if it has no GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="M", help="machines; start this on each")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT on machine 0; auto on one machine"
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and more of the log")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config overrides, after all options: MODEL.WEIGHTS model.pth SOLVER.MAX_ITER 100",
    )
    parser.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> None:
    from mask2former.distributed import was_launched

    cfg = setup_config(args)
    own_data = _own_data_request(args)
    if was_launched() or (args.num_gpus == 1 and args.num_machines == 1):
        train_or_evaluate(cfg, args.eval_only, args.resume, own_data, args.modules)
        return
    from mask2former.engine.launch import check_num_gpus, launch

    check_num_gpus(args.num_gpus, cfg.MODEL.DEVICE)
    launch(
        train_or_evaluate,
        cfg,
        args.eval_only,
        args.resume,
        own_data,
        args.modules,
        num_processes=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        verbose=args.verbose,
    )


def setup_config(args: argparse.Namespace) -> Any:
    """The frozen configuration of a command line: defaults, the file, then the overrides; own data are registered.

    Raises:
        ConfigError: file, key or value are wrong.
    """
    from mask2former.config import get_cfg
    from mask2former.data.own_data import register_own_data

    options = [option for option in args.opts if option.startswith("--") and "." not in option]
    if options:
        raise ConfigError(f"{options[0]}: options come before the KEY VALUE pairs")
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if args.verbose:
        cfg.VERBOSE = True
    cfg.freeze()
    register_own_data(cfg)  # that a config of a run with --data describes: any command may ask for them
    return cfg


def _own_data_request(args: argparse.Namespace) -> Any:
    """What ``--data`` asks for, None without it."""
    if args.data is None:
        for option in ("classes", "ignore_label"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option.replace('_', '-')} goes with --data")
        return None
    from mask2former.config import get_cfg
    from mask2former.engine.own_data import OwnDataRequest

    reference = get_cfg()
    reference.merge_from_file(args.config_file)
    ignored = None if args.ignore_label is None else tuple(args.ignore_label)
    return OwnDataRequest(args.data, reference, frozenset(args.opts[::2]), args.classes, ignored)


def _import_modules(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"--import {name}: {error}; modules are looked for on PYTHONPATH") from error


def train_or_evaluate(
    cfg: Any, eval_only: bool = False, resume: bool = False, own_data: Any = None, modules: Sequence[str] = ()
) -> None:
    """What ``train`` does, in each of its processes; ``modules`` are imported first.

    Raises:
        ConfigError: a module is not found.
    """
    from mask2former import distributed
    from mask2former.engine import evaluate_only, train
    from mask2former.engine.own_data import prepare_own_data

    _import_modules(modules)
    with distributed.process_group(cfg.MODEL.DEVICE):
        if own_data is not None:
            cfg = prepare_own_data(cfg, own_data, eval_only=eval_only)
        if eval_only:
            evaluate_only(cfg, resume=resume)
        else:
            train(cfg, resume=resume)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.predict import add_predict_arguments, run_predict

    add_predict_arguments(parser)
    parser.set_defaults(run=run_predict)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.convert import CONVERT_DESCRIPTION, add_convert_arguments, run_convert

    parser.description = CONVERT_DESCRIPTION
    add_convert_arguments(parser)
    parser.set_defaults(run=run_convert)


def _add_convert_dataset(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.convert_dataset import (
        CONVERT_DATASET_DESCRIPTION,
        add_convert_dataset_arguments,
        run_convert_dataset,
    )

    parser.description = CONVERT_DATASET_DESCRIPTION
    add_convert_dataset_arguments(parser)
    parser.set_defaults(run=run_convert_dataset)


def _add_prepare_shapes(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.prepare_shapes import add_arguments, run

    add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="show where in the code an error arose")
    parser.set_defaults(run=run)


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.analyze import ANALYZE_DESCRIPTION, add_analyze_arguments, run_analyze

    parser.description = ANALYZE_DESCRIPTION
    add_analyze_arguments(parser)
    parser.set_defaults(run=run_analyze)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.benchmark import BENCHMARK_DESCRIPTION, add_benchmark_arguments, run_benchmark

    parser.description = BENCHMARK_DESCRIPTION
    add_benchmark_arguments(parser)
    parser.set_defaults(run=run_benchmark)


def _add_visualize_data(parser: argparse.ArgumentParser) -> None:
    from mask2former.commands.visualize import VISUALIZE_DESCRIPTION, add_visualize_arguments, run_visualize

    parser.description = VISUALIZE_DESCRIPTION
    add_visualize_arguments(parser)
    parser.set_defaults(run=run_visualize)


_LAZY_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "predict": ("predict images and draw the results", _add_predict),
    "convert": ("convert weights between families", _add_convert),
    "convert-dataset": ("convert a data set to or from the format of the library datasets", _add_convert_dataset),
    "prepare-shapes": ("draw the embedded data set", _add_prepare_shapes),
    "analyze": ("count operations, activations and parameters of a model", _add_analyze),
    "benchmark": ("time data, training or inference of a config on this machine", _add_benchmark),
    "visualize-data": ("draw annotations, or what training sees of them", _add_visualize_data),
}


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
