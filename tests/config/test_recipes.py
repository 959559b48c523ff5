"""Every published recipe resolves to exactly its published values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former.config import CfgNode, get_cfg

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "reference"
RECIPES = json.loads((REFERENCE / "recipes.json").read_text())
DEFAULTS = {
    **json.loads((REFERENCE / "config_defaults.json").read_text()),
    **json.loads((REFERENCE / "config_defaults_video_extra.json").read_text()),
}


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return json.loads(json.dumps(cfg))  # tuples compare as lists


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_resolves_to_published_values(recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(ROOT / "configs" / recipe)
    expected = {**DEFAULTS, **RECIPES[recipe]}
    assert {key: _get(cfg, key) for key in expected} == expected


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_has_at_most_two_bases_above_it(recipe: str) -> None:
    path, depth = ROOT / "configs" / recipe, 0
    while base := yaml.safe_load(path.read_text()).get("_BASE_"):
        path, depth = path.parent / base, depth + 1
    assert depth <= 2


def test_defaults_equal_published_ones() -> None:
    cfg = get_cfg()
    assert {key: _get(cfg, key) for key in DEFAULTS} == DEFAULTS
