"""docs/benchmarks.md is what its script writes out of the results, and the README repeats its figures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tools import make_benchmarks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
LINE: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "benchmark": "some_speed",
    "machine": {"processor": "a | b", "threads": 2},
    "versions": {"torch": "2.15"},
    "commit": "abc1234",
    "results": {"R50": {"ms": 1.23456, "sizes": [1, 2]}, "runs": [{"s": 3}], "verdict": "faster"},
}


def test_committed_files_are_what_the_script_writes() -> None:
    stale = [path.name for path, text in make_benchmarks.make_files().items() if path.read_text("utf-8") != text]
    assert not stale, "run tools/make_benchmarks.py"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_page_says_where_no_gpu_was_at_hand(device: str) -> None:
    page = make_benchmarks.make_page({"speed": {**LINE, "results": {"device": device}}})
    assert ("No GPU was at hand" in page) == (device == "cpu")


def test_unknown_benchmark_is_shown_value_by_value(tmp_path: Path) -> None:
    old = {**LINE, "results": {"ms": 99}}
    (tmp_path / "some_speed.jsonl").write_text("\n".join(json.dumps(line) for line in (old, LINE)) + "\n\n")
    (tmp_path / "empty.jsonl").write_text("")
    page = make_benchmarks.make_page(make_benchmarks.read_last_lines(tmp_path))
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:6] == ["| R50, ms | 1.235 |", "| R50, sizes | 1, 2 |", "| runs, 1, s | 3 |", "| verdict | faster |"]
    assert rows[-1] == "| `some_speed` | 2026-01-02 | a \\| b, 2 threads | torch 2.15 | abc1234 |"


def test_every_result_is_on_the_page() -> None:
    circumstances = PAGE.split("## Where and when")[1]
    for name in make_benchmarks.read_last_lines(make_benchmarks.RESULTS):
        assert f"`{name}`" in circumstances


def test_ratios_follow_from_the_results() -> None:
    for line in make_benchmarks.read_last_lines(make_benchmarks.RESULTS).values():
        seconds = line["results"].get("seconds")
        if seconds:
            ours, theirs = seconds["ours"], seconds["theirs"]
            assert f"| {ours:.2f} s | {theirs:.2f} s | **{theirs / ours:.2f} ×** |" in PAGE


def test_readme_repeats_figures_of_the_page() -> None:
    readme = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## How it compares")[2].partition("## Install")[0]
    )
    ratios = re.findall(r"\*\*([0-9.]+) ×\*\*", readme)
    assert len(ratios) >= 5
    assert not [ratio for ratio in ratios if f"**{ratio} ×**" not in PAGE]
    times = re.findall(r"([0-9.]+ (?:s|MiB)) \|", readme)
    assert not [time for time in times if time not in PAGE]


def test_plots_draw_every_figure() -> None:
    svg = (ROOT / "docs" / "images" / "benchmark_transformers.svg").read_text(encoding="utf-8")
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
    for line in make_benchmarks.read_last_lines(make_benchmarks.RESULTS).values():
        if "seconds" in line["results"] and line["results"]["device"] == "cpu":
            assert f"{line['results']['seconds']['ours']:.2f}" in texts


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), (json.dumps({"date": "2026"}), "lacks benchmark")])
def test_damaged_results_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"x.jsonl: the last line .*{message}"):
        make_benchmarks.read_last_lines(tmp_path)
