"""``python -m mask2former.evaluation TASK …``: metrics of saved predictions, as JSON on stdout.

Tasks: panoptic, coco, video, sem-seg, semantic-pq.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from mask2former.errors import InputError
from mask2former.evaluation.coco import evaluate_coco
from mask2former.evaluation.panoptic import evaluate_panoptic
from mask2former.evaluation.protocol import Results
from mask2former.evaluation.sem_seg import DEFAULT_IGNORE_LABEL, evaluate_sem_seg
from mask2former.evaluation.semantic_panoptic_quality import evaluate_semantic_pq
from mask2former.evaluation.video import evaluate_video


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the metrics; 0, or 1 after one line on stderr when an input is wrong."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        results = _evaluate(options)
    except InputError as error:
        if options.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=1))
    return 0


def _evaluate(options: argparse.Namespace) -> Results:
    if options.task == "panoptic":
        return evaluate_panoptic(options.gt_json, options.gt_folder, options.pred_json, options.pred_folder)
    if options.task == "coco":
        return evaluate_coco(options.gt_json, options.results_json, tasks=options.tasks)
    if options.task == "video":
        return evaluate_video(options.gt_json, options.results_json)
    evaluate = evaluate_semantic_pq if options.task == "semantic-pq" else evaluate_sem_seg
    return evaluate(
        options.gt_dir, options.predictions, class_names=options.class_names, ignore_label=options.ignore_label
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mask2former.evaluation", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    tasks = parser.add_subparsers(dest="task", required=True)
    panoptic = tasks.add_parser("panoptic", help="PQ, SQ, RQ of a COCO panoptic json and its PNG files")
    for name in ("gt_json", "gt_folder", "pred_json", "pred_folder"):
        panoptic.add_argument(f"--{name.replace('_', '-')}", required=True)
    coco = tasks.add_parser("coco", help="AP of a COCO results json")
    coco.add_argument("--gt-json", required=True)
    coco.add_argument("--results-json", required=True)
    coco.add_argument("--tasks", nargs="+", choices=("segm", "bbox", "boundary"), default=["segm", "bbox"])
    video = tasks.add_parser("video", help="AP over space and time of a YouTube-VIS results json")
    video.add_argument("--gt-json", required=True)
    video.add_argument("--results-json", required=True)
    semantic_tasks = {
        "sem-seg": "IoU and accuracies of label maps or of a sem_seg_predictions.json",
        "semantic-pq": "PQ of the same, every class counting as stuff",
    }
    for task, summary in semantic_tasks.items():
        semantic = tasks.add_parser(task, help=summary)
        semantic.add_argument("--gt-dir", required=True)
        semantic.add_argument("--predictions", required=True, help="folder of label maps, or json")
        semantic.add_argument("--class-names", nargs="+", required=True, help="in the order of the labels")
        semantic.add_argument("--ignore-label", type=int, default=DEFAULT_IGNORE_LABEL)
    return parser


if __name__ == "__main__":
    sys.exit(main())
