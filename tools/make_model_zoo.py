#!/usr/bin/env python
"""Writes MODEL_ZOO.md out of the published facts and of our own measurements: make_model_zoo.py [--check].

The facts are in mask2former/checkpoint/model_zoo.json, the measurements in benchmarks/results/*.jsonl, of each of which
the last line counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.checkpoint import zoo_models
from mask2former.checkpoint.addresses import ZooModel
from mask2former.files.atomic import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "MODEL_ZOO.md"
RESULTS = ROOT / "benchmarks" / "results"
INTRODUCTION = """\
# Model zoo

<!-- Written by tools/make_model_zoo.py: change its sources, mask2former/checkpoint/model_zoo.json and
     benchmarks/results/*.jsonl, not this page. -->

Published models of this family, and below them [what this project measured itself](#measured-by-this-project). Config
files are those of this repository below [`configs/`](configs); the checkpoints are read as they are, by a reader that
admits arrays and containers only and never runs code.

- The metrics are the published ones, on each data set's validation split, in percent. `TEST.EXPECTED_ZOO` with a zoo
  name has an evaluation compare what it finds with them.
- A zoo name (`MODEL.WEIGHTS zoo://coco/panoptic/r50`) downloads the checkpoint to a cache; a file works too. The last
  six characters of the file's name before `.pkl` begin its md5, which is checked.
- Schedule: epochs on COCO, iterations elsewhere. IN21k: the backbone was pretrained on ImageNet-21k, else on
  ImageNet-1k.

Evaluate one:

    python tools/train_net.py --eval-only \\
        --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml \\
        MODEL.WEIGHTS zoo://coco/panoptic/r50 TEST.EXPECTED_ZOO coco/panoptic/r50
"""
MEASURED = """\
## Measured by this project

Not published figures but our own, each with its date, machine and the script that measured it. Times on shared machines
move by a fifth; ratios are of runs side by side in one process.
"""
WITHOUT_GPU = """\
**No GPU was at hand: nothing below was measured on one.** The CUDA kernels compile without warnings for sm_80, sm_90
and sm_100, and their arithmetic is compared with float64 by the same source compiled for the host
(`tests/ops/test_cuda_source_on_host.py`); how fast they are is not known. On a machine with a GPU these fill the gap:

    python benchmarks/ms_deform_attn.py --device cuda --dtype bfloat16
    python benchmarks/training.py --device cuda --dtype bfloat16 --size 1024
    python benchmarks/inference.py --device cuda --dtype bfloat16
    python tools/make_model_zoo.py
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    args = parser.parse_args()
    try:
        page = make_page()
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not args.check:
        write_text_atomic(page, PAGE)
    elif not PAGE.is_file() or page != PAGE.read_text(encoding="utf-8"):
        print(f"error: {PAGE.name} is out of date: run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


def make_page(results: Path = RESULTS) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    models = zoo_models().values()
    for dataset, of_dataset in itertools.groupby(models, key=_dataset_title):
        parts.append(f"## {dataset}\n")
        for task, of_task in itertools.groupby(of_dataset, key=_task_title):
            parts.append(f"### {task}\n\n{_model_table(list(of_task))}\n")
    lines = list(_last_lines(results))
    measurements = [_describe_measurement(line, place) for place, line in lines]
    is_any_on_gpu = any(str(line["results"].get("device", "cpu")).startswith("cuda") for _, line in lines)
    return "\n".join([*parts, MEASURED, *([] if is_any_on_gpu else [WITHOUT_GPU]), *measurements])


def _dataset_title(model: ZooModel) -> str:
    return "YouTube-VIS" if model.config.startswith("youtubevis") else model.dataset.removesuffix(" Model Zoo")


def _task_title(model: ZooModel) -> str:
    if model.config.startswith("youtubevis"):
        return f"{model.task.replace('YouTubeVIS', 'YouTube-VIS')} instance segmentation"
    return model.task.capitalize()


def _model_table(models: Sequence[ZooModel]) -> str:
    metrics = list(models[0].metrics)
    schedule = "Iterations" if models[0].schedule.endswith("k") else "Epochs"
    headers = ("Backbone", schedule, *metrics, "Config", "Zoo name", "Checkpoint")
    rows = []
    for model in models:
        file_name = model.checkpoint_url.rsplit("/", 1)[1]
        config = f"[{Path(model.config).name}](configs/{model.config})"
        checkpoint = f"[{file_name}]({model.checkpoint_url}) ({model.model_id})"
        values = [str(model.metrics[name]) for name in metrics]
        rows.append((model.backbone, model.schedule, *values, config, f"`zoo://{model.name}`", checkpoint))
    return _table(headers, rows, numeric=range(1, 2 + len(metrics)))


def _last_lines(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("*.jsonl")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines:
            try:
                yield path, json.loads(lines[-1])
            except ValueError as error:
                raise ValueError(f"{path}: the last line is no JSON: {error}") from error


def _describe_measurement(line: Mapping[str, Any], path: Path) -> str:
    """Heading, circumstances and a table of one line of results: values may be nested."""
    missing = {"date", "benchmark", "machine", "results"} - set(line)
    if missing:
        raise ValueError(f"{path}: the last line lacks {', '.join(sorted(missing))}")
    script = line.get("script") or f"benchmarks/{line['benchmark']}.py"
    circumstances = [
        f"{line['date'][:10]}, by `{script}`",
        f"on {_joined(line['machine'])}",
        _joined(line.get("versions", {}), with_names=True),
        f"commit {line['commit']}" if line.get("commit") else "",
        f"config [{Path(line['config']).name}](configs/{line['config']})" if line.get("config") else "",
    ]
    table = _table(("", "Ours"), list(_flattened(line["results"])), numeric=[1])
    title = str(line["benchmark"]).replace("_", " ").capitalize()
    return f"### {title} (ours)\n\n{'; '.join(part for part in circumstances if part)}.\n\n{table}\n"


def _joined(values: Any, *, with_names: bool = False) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    if with_names:
        return ", ".join(f"{name} {value}" for name, value in values.items())
    threads = {"threads": f"{values.get('threads')} thread{'' if values.get('threads') == 1 else 's'}"}
    return ", ".join(threads.get(name, str(value)) for name, value in values.items())


def _flattened(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of every value; names of nested ones are joined by commas."""
    if isinstance(values, Mapping) or (isinstance(values, list) and any(isinstance(v, (dict, list)) for v in values)):
        items: Iterable[tuple[Any, Any]] = values.items() if isinstance(values, Mapping) else enumerate(values, start=1)
        for name, value in items:
            yield from _flattened(value, f"{prefix}, {name}" if prefix else str(name))
    elif isinstance(values, list):
        yield prefix.replace("_", " "), ", ".join(_formatted(value) for value in values)
    else:
        yield prefix.replace("_", " "), _formatted(values)


def _formatted(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Iterable[int]) -> str:
    right = set(numeric)
    rule = ["--:" if column in right else "---" for column in range(len(headers))]
    cells = [headers, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


if __name__ == "__main__":
    sys.exit(main())
