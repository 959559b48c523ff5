"""Evaluates weights on a data set, or saved predictions."""

from __future__ import annotations

import argparse

from mask2former.commands.arguments import CommandParser
from mask2former.commands.evaluate_saved import SUBCOMMANDS
from mask2former.commands.train import add_data_options, add_process_options, run_in_processes

__all__ = ["DESCRIPTION", "SUBCOMMANDS", "add_arguments", "run"]

DESCRIPTION = (
    "Evaluate weights on DATASETS.TEST of their config: prints the metrics, and writes what they rest on below OUTPUT."
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options()
    parser.add_output_option("folder for predictions and log, by default OUTPUT_DIR of the config")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="data sets in the place of DATASETS.TEST")
    add_data_options(parser)
    add_process_options(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate as the command line says.

    Raises:
        InputError: something given is wrong, or results are not the expected ones.
    """
    if args.dataset:
        args.opts = [*args.opts, "DATASETS.TEST", str(tuple(args.dataset))]
    run_in_processes(args, eval_only=True, resume=False)
