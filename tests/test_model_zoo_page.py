"""MODEL_ZOO.md is what its script writes, and what it names exists."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mask2former.checkpoint import find_zoo_model, zoo_models

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "make_model_zoo.py"
PAGE = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
PUBLISHED = json.loads((ROOT / "tests" / "data" / "reference" / "model_zoo.json").read_text())
LINE: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "benchmark": "some_speed",
    "machine": {"processor": "a | b", "threads": 2},
    "versions": {"torch": "2.15"},
    "commit": "abc1234",
    "results": {"R50": {"ms": 1.23456, "sizes": [1, 2]}, "runs": [{"s": 3}], "verdict": "faster"},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_model_zoo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_page_is_what_the_script_writes(script: ModuleType) -> None:
    assert script.make_page() == PAGE, "run tools/make_model_zoo.py"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_page_says_where_no_gpu_was_at_hand(script: ModuleType, tmp_path: Path, device: str) -> None:
    line = {**LINE, "results": {"device": device}}
    (tmp_path / "speed.jsonl").write_text(json.dumps(line) + "\n")
    assert ("No GPU was at hand" in script.make_page(tmp_path)) == (device == "cpu")


def test_script_checks_the_page() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_page_links_to_files_that_exist() -> None:
    links = set(re.findall(r"\]\((configs[^)]*)\)", PAGE))
    assert len(links) > 55
    assert not [link for link in links if not (ROOT / link).exists()]


def test_page_names_every_model_of_the_zoo() -> None:
    names = re.findall(r"`zoo://([^`]+)` \| \[[^]]+\]\(([^)]+)\)", PAGE)
    assert [name for name, _ in names] == list(zoo_models())
    for name, url in names:
        assert find_zoo_model(name).checkpoint_url == url


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["model_id"])
def test_page_holds_published_facts(entry: dict[str, Any]) -> None:
    (row,) = (line for line in PAGE.splitlines() if entry["checkpoint_url"] in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == [entry["backbone"], entry["schedule"]]
    assert cells[2:-3] == [str(value) for value in entry["metrics"].values()]
    assert entry["model_id"] in cells[-1]


def test_measurement_is_marked_as_ours(script: ModuleType, tmp_path: Path) -> None:
    old = {**LINE, "results": {"ms": 99}}
    (tmp_path / "some_speed.jsonl").write_text("\n".join(json.dumps(line) for line in (old, LINE)) + "\n\n")
    (tmp_path / "empty.jsonl").write_text("")
    measured = script.make_page(tmp_path).split("## Measured by this project")[1]
    assert "### Some speed (ours)" in measured
    assert "2026-01-02, by `benchmarks/some_speed.py`; on a | b, 2 threads; torch 2.15; commit abc1234." in measured
    rows = [line for line in measured.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| R50, ms | 1.235 |", "| R50, sizes | 1, 2 |", "| runs, 1, s | 3 |", "| verdict | faster |"]


def test_quickstart_is_among_what_was_measured() -> None:
    measured = PAGE.split("## Measured by this project")[1]
    assert "### Shapes quickstart (ours)" in measured
    for value in ("61.78", "20.82", "65.77", "1400", "10 min 45 s", "2026-11-21"):
        assert value in measured


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), (json.dumps({"date": "2026"}), "lacks benchmark")])
def test_damaged_results_are_named(script: ModuleType, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"x.jsonl: the last line .*{message}"):
        script.make_page(tmp_path)
