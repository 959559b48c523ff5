#!/usr/bin/env python
"""Writes docs/benchmarks.md and its plots out of benchmarks/results/*.jsonl: make_benchmarks.py [--check].

Of each file the last line counts. What has no section of its own stands at the end, value by value.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.files.atomic import write_text_atomic
from tools.page_parts import bars, flattened, table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
Line = Mapping[str, Any]
Lines = dict[str, Line]

INTRODUCTION = """\
# Benchmarks

<!-- Written by tools/make_benchmarks.py: change its source, benchmarks/results/*.jsonl, not this page. -->

Measured by this project, on its own machine, by scripts in the repository. Two things that are compared run in one
process and take turns, with equal weights and inputs; their results are compared before they are timed. Times on shared
machines move by a fifth, and ratios with the machine: run the script on yours. `make bench` measures all of it anew and
writes this page.
"""
WITHOUT_GPU = """\
**No GPU was at hand: nothing here was measured on one.** The CUDA kernels compile without warnings for sm_80, sm_90 and
sm_100, and their arithmetic is compared with float64 by the same source compiled for the host
(`tests/ops/test_cuda_source_on_host.py`); how fast they are is not known. On a machine with a GPU these fill the gap:

    python benchmarks/ms_deform_attn.py --device cuda --dtype bfloat16
    python benchmarks/training.py --device cuda --dtype bfloat16 --size 1024
    python benchmarks/inference.py --device cuda --dtype bfloat16
    python tools/make_benchmarks.py
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is out of date")
    args = parser.parse_args()
    try:
        files = make_files()
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [path for path, text in files.items() if not path.is_file() or text != path.read_text(encoding="utf-8")]
    if args.check and stale:
        print(f"error: {stale[0].relative_to(ROOT)} is out of date: run {Path(__file__).name}", file=sys.stderr)
        return 1
    for path in stale:
        write_text_atomic(files[path], path)
    return 0


def make_files(results: Path = RESULTS, docs: Path = DOCS) -> dict[Path, str]:
    """The page and its plots."""
    lines = read_last_lines(results)
    files = {docs / "benchmarks.md": make_page(lines)}
    for name, make_plot in PLOTS.items():
        plot = make_plot(lines)
        if plot:
            files[docs / "images" / f"{name}.svg"] = plot
    return files


def read_last_lines(folder: Path) -> Lines:
    """The last line of each file by the name of its benchmark.

    Raises:
        ValueError: a line is no JSON, or lacks a field.
    """
    lines = {}
    for path in sorted(folder.glob("*.jsonl")):
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if texts:
            try:
                line = json.loads(texts[-1])
            except ValueError as error:
                raise ValueError(f"{path}: the last line is no JSON: {error}") from error
            missing = {"date", "benchmark", "machine", "results"} - set(line)
            if missing:
                raise ValueError(f"{path}: the last line lacks {', '.join(sorted(missing))}")
            lines[line["benchmark"]] = line
    return lines


def make_page(lines: Lines) -> str:
    """The whole page."""
    is_any_on_gpu = not all(_is_on_cpu(line) for line in lines.values())
    parts = [INTRODUCTION, *([] if is_any_on_gpu else [WITHOUT_GPU])]
    used: set[str] = set()
    for title, text, names_of, section in SECTIONS:
        chosen = {name: line for name, line in lines.items() if names_of(name)}
        if chosen:
            parts.append(f"## {title}\n\n{text}{section(chosen)}\n")
            used |= set(chosen)
    others = {name: line for name, line in lines.items() if name not in used}
    for name, line in others.items():
        values = table(("", "measured"), list(flattened(line["results"])), numeric=[1])
        parts.append(f"## {name.replace('_', ' ').capitalize()}\n\n{values}\n")
    if lines:
        parts.append(f"## Where and when\n\n{_circumstances(lines)}\n")
    return "\n".join(parts)


def _beside_transformers(lines: Lines) -> str:
    rows = []
    for line in lines.values():
        results = line["results"]
        ours, theirs = results["seconds"]["ours"], results["seconds"]["theirs"]
        rows.append(
            (_work(line), f"{ours:.2f} s", f"{theirs:.2f} s", f"**{theirs / ours:.2f} ×**", f"`{line['script']}`")
        )
        memory = results.get("step memory MiB")
        if memory:
            values = (
                f"{memory['ours']:.0f} MiB",
                f"{memory['theirs']:.0f} MiB",
                f"**{memory['theirs'] / memory['ours']:.2f} ×**",
            )
            rows.append((f"{_work(line)}: memory of the step", *values, f"`{line['script']}`"))
    picture = _picture(lines, "benchmark_transformers", "Seconds, ours and transformers")
    ratios = table(("", "ours", "transformers", "ratio", "script"), rows, numeric=[1, 2, 3])
    return f"{picture}{ratios}\n\n{_stages(lines)}"


def _is_on_cpu(line: Line) -> bool:
    return str(line["results"].get("device", "cpu")) == "cpu"


def _work(line: Line) -> str:
    results = line["results"]
    device = (
        "" if str(results.get("device", "cpu")) == "cpu" else f", {line['machine'].get('device', results['device'])}"
    )
    dtype = str(results.get("dtype", ""))
    if "output_size" in results:
        batch = "" if results.get("batch", 1) == 1 else f"{results['batch']} × "
        size = f"{batch}{_by(results['size'])} → {_by(results['output_size'])}"
        note = " (transformers' in float32)" if dtype != "float32" and not device else ""
        return f"Inference, {results['model']}, {size}, {dtype}{note}{device}"
    sizes = f"{results['batch']} × {results['size']}², {results['objects']} objects each"
    return f"Training step, {results['model']}, {sizes}, {dtype}{device}"


def _by(size: Sequence[int]) -> str:
    return " × ".join(str(side) for side in size)


def _stages(lines: Lines) -> str:
    """Where our time of an image goes, and how far the two agree on it."""
    stages = [line for line in lines.values() if "our stages" in line["results"]]
    if not stages:
        return ""
    names = list(stages[0]["results"]["our stages"])
    headers = ("", *names, "difference of logits, relative", "panoptic pixels that differ")
    rows = []
    for line in stages:
        seconds = [f"{line['results']['our stages'][name]:.2f} s" for name in names]
        name = _work(line).removeprefix("Inference, ")
        rows.append((name, *seconds, *_differences(line)))
    title = "Where our time of an image goes, and how far the two agree on it:"
    return f"{title}\n\n{table(headers, rows, numeric=range(1, len(headers)))}"


def _differences(line: Line) -> tuple[str, str]:
    """The largest of features and logits, and that of panoptic maps; dashes where they were not compared."""
    differences = line["results"].get("differences")
    if not differences:
        return "–", "–"
    pixels = {name: value for name, value in differences.items() if name.startswith("panoptic")}
    logits = max(value for name, value in differences.items() if name not in pixels)
    return f"{logits:.1e}", f"{max(pixels.values()):.2%}"


def _evaluation(lines: Lines) -> str:
    (line,) = lines.values()
    results = line["results"]
    panoptic = results["panoptic"]
    pairs = [
        (
            "PQ, predictions in memory",
            panoptic["in memory"],
            "panopticapi, PNG files written",
            panoptic["panopticapi"] + panoptic["writing of predictions"],
        ),
        ("PQ, predictions in PNG files", panoptic["files"], "panopticapi", panoptic["panopticapi"]),
        ("PQ, PNG files, all cores", panoptic["files, all cores"], "panopticapi", panoptic["panopticapi, all cores"]),
        ("AP of masks", results["segm"]["ours"], "pycocotools", results["segm"]["pycocotools"]),
        ("AP of boxes", results["bbox"]["ours"], "pycocotools", results["bbox"]["pycocotools"]),
    ]
    rows = [
        (what, f"{ours:.2f} ms", name, f"{theirs:.1f} ms", f"**{theirs / ours:.1f} ×**")
        for what, ours, name, theirs in pairs
    ]
    caption = f"A mean image of {results['num_images']}, {_by(results['size'])}; both find the same numbers.\n\n"
    picture = _picture(lines, "benchmark_evaluation", "Milliseconds an image, ours and the published tools")
    return f"{caption}{picture}{table(('', 'ours', 'beside', 'theirs', 'ratio'), rows, numeric=[1, 3, 4])}"


def _data_loading(lines: Lines) -> str:
    (line,) = lines.values()
    rows = [
        (
            task,
            f"{values['images_per_second']:.1f}",
            f"{values['plain_images_per_second']:.1f}",
            f"**{values['ratio']:.2f} ×**",
            f"`{values['recipe']}`",
        )
        for task, values in line["results"].items()
        if isinstance(values, Mapping)
    ]
    size = _by(line["results"]["image"])
    headers = ("", "ours", "full masks, one by one", "ratio", "recipe")
    text = f"Samples a second on one core, images of {size}, read, augmented and packed."
    return f"{text}\n\n{table(headers, rows, numeric=[1, 2, 3])}"


def _attention(lines: Lines) -> str:
    rows = []
    for line in lines.values():
        results = line["results"]
        where = (
            f"{results['device']}, {results['dtype']}, {results['batch']} × {results['height']} × {results['width']}"
        )
        for name in ("forward", "forward + backward"):
            if name in results:
                values = results[name]
                rows.append(
                    (
                        f"{name}, {where}",
                        f"{values['ms']:.1f} ms",
                        f"{values['reference, ms']:.0f} ms",
                        f"**{values['ratio']:.1f} ×**",
                    )
                )
    return table(("", "ours", "the same in PyTorch", "ratio"), rows, numeric=[1, 2, 3])


def _convolution(lines: Lines) -> str:
    parts = []
    for name, line in lines.items():
        results = line["results"]
        rows = [
            (
                layer,
                f"{1e3 * values['ours_seconds']:.0f} ms",
                f"{1e3 * values['direct_seconds']:.0f} ms",
                f"{values['direct_seconds'] / values['ours_seconds']:.2f} ×",
            )
            for layer, values in results.items()
            if isinstance(values, Mapping)
        ]
        what = "Forward and backward" if name.endswith("training") else "Forward"
        size = f"{results['batch']} × {results['height']} × {results['width']}"
        layers = table(("3 × 3 convolution of", "Winograd", "direct (oneDNN)", "ratio"), rows, numeric=[1, 2, 3])
        parts.append(f"{what}, {size}:\n\n{layers}")
    return "\n\n".join(parts) + "\n\nThe model takes whichever is the faster for a layer."


def _scaling(lines: Lines) -> str:
    rows = [
        (
            f"{line['results']['model']}, {line['results']['dtype']}",
            *(f"{seconds:.2f} s" for seconds in line["results"]["seconds by pixels"].values()),
        )
        for line in lines.values()
    ]
    (first, *_) = lines.values()
    headers = ("", *(f"{factor} × the pixels" for factor in first["results"]["seconds by pixels"]))
    return table(headers, rows, numeric=range(1, len(headers)))


def _memory(lines: Lines) -> str:
    (line,) = lines.values()
    peaks = line["results"]["peak bytes of the process"]
    rows = [
        (name, f"{values['before inference'] / 1e9:.2f} GB", f"{values['peak'] / 1e9:.2f} GB")
        for name, values in (
            ("class of each pixel (`TEST.SEMANTIC_LABELS`)", peaks["labels"]),
            ("scores of all classes", peaks["scores"]),
        )
    ]
    return table(("semantic results as", "model loaded", "peak"), rows, numeric=[1, 2])


def _quality(lines: Lines) -> str:
    rows = []
    for line in lines.values():
        results = line["results"]
        for name in ("float32", "bfloat16"):
            if name in results:
                rows.append(
                    (f"quickstart's model, inference in {name}", f"{results[name]['PQ']:.2f}", f"`{line['script']}`")
                )
        if "PQ" in results:
            time = next((value for key, value in results.items() if key.startswith("time")), "")
            rows.append((f"`make quickstart`, {time}", f"{results['PQ']:.2f}", f"`{line['script']}`"))
    return table(("", "PQ", "by"), rows, numeric=[1])


def _circumstances(lines: Lines) -> str:
    """One row for all results of one day, machine, set of versions and commit."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, line in lines.items():
        machine = line["machine"]
        threads = f"{machine.get('threads')} thread{'' if machine.get('threads') == 1 else 's'}"
        where = ", ".join(
            part for part in (str(machine.get("processor", "")), threads, str(machine.get("device", ""))) if part
        )
        versions = ", ".join(f"{package} {version}" for package, version in line.get("versions", {}).items())
        names.setdefault((line["date"][:10], where, versions, str(line.get("commit", ""))), []).append(f"`{name}`")
    rows = [(", ".join(results), *circumstances) for circumstances, results in names.items()]
    return table(("results", "date", "machine", "versions", "commit"), rows, numeric=[])


Section = tuple[str, str, Callable[[str], bool], Callable[[Lines], str]]
SECTIONS: tuple[Section, ...] = (
    (
        "Beside transformers",
        "Mask2Former of transformers and ours, from pixels to panoptic results, or one optimiser step.\n\n",
        lambda name: (name.startswith("inference_") and "scaling" not in name) or name.startswith("training_"),
        _beside_transformers,
    ),
    ("Evaluation", "", lambda name: name == "evaluation", _evaluation),
    ("Data loading", "", lambda name: name == "data_loading", _data_loading),
    (
        "Multi-scale deformable attention",
        "The operator alone, with locations of an initialised model.\n\n",
        lambda name: name.startswith("ms_deform_attn_"),
        _attention,
    ),
    ("Convolutions on a CPU", "", lambda name: name.startswith("convolution"), _convolution),
    ("Larger images", "Inference grows with the pixels, not faster.\n\n", lambda name: "scaling" in name, _scaling),
    (
        "Memory",
        "Panoptic, instance and semantic results of one image at 3000 × 4000, R50, 133 classes; the whole process.\n\n",
        lambda name: name == "memory",
        _memory,
    ),
    ("Quality", "", lambda name: name.startswith(("precision_", "shapes_quickstart")), _quality),
)


def _plot_transformers(lines: Lines) -> str:
    chosen = [
        line
        for name, line in lines.items()
        if SECTIONS[0][2](name) and str(line["results"].get("device", "cpu")) == "cpu"
    ]
    groups = []
    for line in chosen:
        results = line["results"]
        kind = "Inference" if "output_size" in results else "Training step"
        seconds = results["seconds"]
        groups.append((f"{kind}, {results['model']}, {results['dtype']}", seconds["ours"], seconds["theirs"]))
    return bars("Seconds on two CPU cores", ("ours", "transformers"), groups)


def _plot_evaluation(lines: Lines) -> str:
    if "evaluation" not in lines:
        return ""
    results = lines["evaluation"]["results"]
    groups = [
        ("PQ from PNG files", results["panoptic"]["files"], results["panoptic"]["panopticapi"]),
        ("AP of masks", results["segm"]["ours"], results["segm"]["pycocotools"]),
        ("AP of boxes", results["bbox"]["ours"], results["bbox"]["pycocotools"]),
    ]
    return bars("Milliseconds an image, on one core", ("ours", "panopticapi, pycocotools"), groups)


PLOTS: dict[str, Callable[[Lines], str]] = {
    "benchmark_transformers": _plot_transformers,
    "benchmark_evaluation": _plot_evaluation,
}


def _picture(lines: Lines, name: str, text: str) -> str:
    return f"![{text}](images/{name}.svg)\n\n" if PLOTS[name](lines) else ""


if __name__ == "__main__":
    sys.exit(main())
