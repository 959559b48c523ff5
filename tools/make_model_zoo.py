#!/usr/bin/env python
"""Writes MODEL_ZOO.md out of the published facts, mask2former/checkpoint/model_zoo.json: make_model_zoo.py [--check].

With --site FILE the page for the documentation site is written, where config files are named and not linked.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.checkpoint import zoo_models
from mask2former.checkpoint.addresses import ZooModel
from mask2former.files.atomic import write_text_atomic
from tools.page_parts import table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "MODEL_ZOO.md"
INTRODUCTION = """\
# Model zoo

<!-- Written by tools/make_model_zoo.py: change its source, mask2former/checkpoint/model_zoo.json, not this page. -->

Published models of this family. Config files are those of this repository below `configs/`; the checkpoints are read as
they are, by a reader that admits arrays and containers only and never runs code. What this project measured itself:
[benchmarks]({benchmarks}).

- The metrics are the published ones, on each data set's validation split, in percent. `TEST.EXPECTED_ZOO` with a zoo
  name makes an evaluation compare its results with them.
- A zoo name (`MODEL.WEIGHTS zoo://coco/panoptic/r50`) downloads the checkpoint to a cache; a file works too. The last
  six characters of the file's name before `.pkl` begin its md5, which is checked.
- OneFormer: PQ with the task panoptic, AP with the task instance, mIoU with the task semantic; AP of COCO is against
  instances derived from the panoptic annotation, and is not that of other models. `-896` and `-1280` are sizes of
  crops, `-coco` and `-mapillary` data sets that the model was trained on before.
- Schedule: epochs on COCO, iterations elsewhere. IN21k: the backbone was pretrained on ImageNet-21k, else on
  ImageNet-1k.

Evaluate one:

    mask2former evaluate --weights zoo://coco/panoptic/r50 TEST.EXPECTED_ZOO coco/panoptic/r50
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    parser.add_argument("--site", type=Path, metavar="FILE", help="write the page for the documentation site instead")
    args = parser.parse_args()
    page = make_page(is_site=args.site is not None)
    if args.site is not None:
        write_text_atomic(page, args.site)
    elif not args.check:
        write_text_atomic(page, PAGE)
    elif not PAGE.is_file() or page != PAGE.read_text(encoding="utf-8"):
        print(f"error: {PAGE.name} is out of date: run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


def make_page(*, is_site: bool = False) -> str:
    """The whole page."""
    parts = [INTRODUCTION.replace("{benchmarks}", "benchmarks.md" if is_site else "docs/benchmarks.md")]
    models = zoo_models().values()
    for dataset, of_dataset in itertools.groupby(models, key=_dataset_title):
        parts.append(f"## {dataset}\n")
        for task, of_task in itertools.groupby(of_dataset, key=_task_title):
            parts.append(f"### {task}\n\n{_model_table(list(of_task), is_site=is_site)}\n")
    return "\n".join(parts)


def _dataset_title(model: ZooModel) -> str:
    return "YouTube-VIS" if model.config.startswith("youtubevis") else model.dataset.removesuffix(" Model Zoo")


def _task_title(model: ZooModel) -> str:
    if model.config.startswith("youtubevis"):
        return f"{model.task.replace('YouTubeVIS', 'YouTube-VIS')} instance segmentation"
    return model.task if model.task.startswith("OneFormer") else model.task.capitalize()


def _model_table(models: Sequence[ZooModel], *, is_site: bool) -> str:
    metrics = list(models[0].metrics)
    schedule = "Iterations" if models[0].schedule.endswith("k") else "Epochs"
    headers = ("Backbone", schedule, *metrics, "Config", "Zoo name", "Checkpoint")
    rows = []
    for model in models:
        file_name = model.checkpoint_url.rsplit("/", 1)[1]
        name = Path(model.config).name
        config = f"`{name}`" if is_site else f"[{name}](configs/{model.config})"
        checkpoint = f"[{file_name}]({model.checkpoint_url})" + (f" ({model.model_id})" if model.model_id else "")
        values = [str(model.metrics[name]) for name in metrics]
        rows.append((model.backbone, model.schedule, *values, config, f"`zoo://{model.name}`", checkpoint))
    return table(headers, rows, numeric=range(1, 2 + len(metrics)))


if __name__ == "__main__":
    sys.exit(main())
