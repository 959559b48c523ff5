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


def test_page_of_the_site_names_config_files(script: ModuleType) -> None:
    page = script.make_page(is_site=True)
    assert "](configs/" not in page
    assert page.count("zoo://") == PAGE.count("zoo://")


ONEFORMER = json.loads((ROOT / "tests" / "data" / "reference" / "oneformer" / "model_zoo.json").read_text())["models"]


@pytest.mark.parametrize("entry", ONEFORMER, ids=lambda entry: entry["config"].rpartition("/")[2])
def test_models_of_oneformer_have_zoo_names(entry: dict[str, Any]) -> None:
    (model,) = (m for m in zoo_models().values() if m.checkpoint_url == entry["checkpoint_url"])
    assert find_zoo_model(model.name) is model
    assert model.config == f"oneformer/{entry['config']}"
    assert (ROOT / "configs" / model.config).is_file()
    assert all(model.metrics[name] == entry[name] for name in ("PQ", "AP", "mIoU") if name in entry)
