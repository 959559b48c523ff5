"""Evaluates weights on a data set, or saved predictions: ``mask2former evaluate coco …`` and its siblings.

Metrics of saved predictions are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mask2former.commands.arguments import CommandParser, Subcommand
from mask2former.commands.train import RARE_OPTIONS, add_data_options, add_process_options, run_in_processes

_COCO_TASKS = ("segm", "bbox", "boundary")
_IGNORE_LABEL = 255


def _coco_arguments(parser: CommandParser) -> None:
    _truth_and_results(parser)
    parser.add_argument("--tasks", nargs="+", choices=_COCO_TASKS, default=list(_COCO_TASKS[:2]), help="kinds of AP")
    parser.add_argument(
        "--as-pycocotools",
        action="store_true",
        help="never count the annotation of id 0 as found, and believe every stated area, as pycocotools does",
    )


def _truth_and_results(parser: CommandParser) -> None:
    parser.add_argument("--gt-json", required=True, metavar="FILE", help="the truth")
    parser.add_argument("--results-json", required=True, metavar="FILE", help="the predictions")


def _panoptic_arguments(parser: CommandParser) -> None:
    for name, what in (("gt", "the truth"), ("pred", "the predictions")):
        parser.add_argument(f"--{name}-json", required=True, metavar="FILE", help=what)
        parser.add_argument(f"--{name}-folder", required=True, metavar="DIR", help=f"PNG files of {what}")


def _semantic_arguments(parser: CommandParser) -> None:
    parser.add_argument("--gt-dir", required=True, metavar="DIR", help="label maps of the truth")
    parser.add_argument("--predictions", required=True, metavar="PATH", help="folder of label maps, or json")
    parser.add_argument("--class-names", nargs="+", required=True, metavar="NAME", help="in the order of the labels")
    parser.add_argument("--ignore-label", type=int, default=_IGNORE_LABEL, metavar="ID", help="no class (%(default)s)")


def _coco(args: argparse.Namespace) -> Any:
    from mask2former.evaluation.coco import evaluate_coco

    return evaluate_coco(args.gt_json, args.results_json, tasks=args.tasks, as_pycocotools=args.as_pycocotools)


def _panoptic(args: argparse.Namespace) -> Any:
    from mask2former.evaluation.panoptic import evaluate_panoptic

    return evaluate_panoptic(args.gt_json, args.gt_folder, args.pred_json, args.pred_folder)


def _video(args: argparse.Namespace) -> Any:
    from mask2former.evaluation.video import evaluate_video

    return evaluate_video(args.gt_json, args.results_json)


def _semantic(args: argparse.Namespace) -> Any:
    from mask2former.evaluation.sem_seg import evaluate_sem_seg

    return evaluate_sem_seg(args.gt_dir, args.predictions, class_names=args.class_names, ignore_label=args.ignore_label)


def _semantic_pq(args: argparse.Namespace) -> Any:
    from mask2former.evaluation.panoptic_quality import evaluate_semantic_pq

    return evaluate_semantic_pq(
        args.gt_dir, args.predictions, class_names=args.class_names, ignore_label=args.ignore_label
    )


def _subcommand(
    summary: str, add_arguments: Callable[[CommandParser], None], evaluate: Callable[[argparse.Namespace], Any]
) -> Subcommand:
    def run(args: argparse.Namespace) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        print(json.dumps(evaluate(args), indent=1))

    return Subcommand(summary, f"{summary}, as JSON on stdout.", add_arguments, run)


SUBCOMMANDS: Mapping[str, Subcommand] = MappingProxyType(
    {
        "panoptic": _subcommand("PQ, SQ, RQ of a COCO panoptic json and its PNG files", _panoptic_arguments, _panoptic),
        "coco": _subcommand("AP of a COCO results json", _coco_arguments, _coco),
        "video": _subcommand("AP over space and time of a YouTube-VIS results json", _truth_and_results, _video),
        "sem-seg": _subcommand(
            "IoU and accuracies of label maps or of a sem_seg_predictions.json", _semantic_arguments, _semantic
        ),
        "semantic-pq": _subcommand("PQ of the same, every class counting as stuff", _semantic_arguments, _semantic_pq),
    }
)


DESCRIPTION = "Evaluate weights on DATASETS.TEST of their config: metrics, and what they rest on below OUTPUT."


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_model_options()
    parser.add_output_option("folder for predictions and log, by default OUTPUT_DIR of the config")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="data sets in the place of DATASETS.TEST")
    add_data_options(parser)
    add_process_options(parser)
    parser.keep_for_help_all(*RARE_OPTIONS)


def run(args: argparse.Namespace) -> None:
    """Evaluate as the command line says.

    Raises:
        InputError: something given is wrong, or results are not the expected ones.
    """
    if args.dataset:
        args.opts = [*args.opts, "DATASETS.TEST", str(tuple(args.dataset))]
    run_in_processes(args, eval_only=True, resume=False)
