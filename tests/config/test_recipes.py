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
ONEFORMER_RECIPES = json.loads((REFERENCE / "oneformer" / "recipes.json").read_text())
RECIPES = {
    **json.loads((REFERENCE / "recipes.json").read_text()),
    **{f"oneformer/{name}": values for name, values in ONEFORMER_RECIPES.items()},
}
DEFAULTS = {
    **json.loads((REFERENCE / "config_defaults.json").read_text()),
    **json.loads((REFERENCE / "config_defaults_video_extra.json").read_text()),
}
# OneFormer's own keys; its mapper is another project's default.
ONEFORMER_DEFAULTS = {
    **json.loads((REFERENCE / "oneformer" / "config_defaults_extra.json").read_text())["added_keys_with_default"],
    "INPUT.DATASET_MAPPER_NAME": "oneformer_unified",
}


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return json.loads(json.dumps(cfg))  # tuples compare as lists


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_resolves_to_published_values(recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(ROOT / "configs" / recipe)
    defaults = {**DEFAULTS, **ONEFORMER_DEFAULTS} if recipe.startswith("oneformer/") else DEFAULTS
    expected = {**defaults, **RECIPES[recipe]}
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
    own = {key: value for key, value in ONEFORMER_DEFAULTS.items() if key != "INPUT.DATASET_MAPPER_NAME"}
    assert {key: _get(cfg, key) for key in own} == own


def test_every_recipe_of_oneformer_is_there() -> None:
    assert len(ONEFORMER_RECIPES) == 32
    found = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs" / "oneformer").rglob("*.yaml")}
    assert found == {name for name in RECIPES if name.startswith("oneformer/")}
