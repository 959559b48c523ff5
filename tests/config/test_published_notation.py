"""The published files write lists as text and tag size lists for evaluation: they load to the published values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former.config import get_cfg

RECIPES = json.loads((Path(__file__).parents[1] / "data" / "reference" / "recipes.json").read_text())
SIZE_LISTS = {
    str([int(x * 0.1 * side) for x in range(5, stop)]): f"[int(x * 0.1 * {side}) for x in range(5, {stop})]"
    for side in (512, 640, 1024, 2048)
    for stop in (21, 26)
}


def _as_text(value: Any) -> str:
    """As the published files write a value: tuples as text, size lists as expressions, text in quotes."""
    if str(value) in SIZE_LISTS:
        return f'!!python/object/apply:eval ["{SIZE_LISTS[str(value)]}"]'
    if isinstance(value, list):
        return str(tuple(value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def _tree(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = _as_text(value)
    return tree


def _lines(tree: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines


def _write_recipe(folder: Path, values: dict[str, Any], *, ending: str = "\n", comment: str = "") -> Path:
    """Three files, each the base of the next; what the last two say, the first says otherwise."""
    keys = sorted(values)
    thirds = [{key: values[key] for key in keys[part::3]} for part in range(3)]
    thirds[0] = {**thirds[0], "SOLVER.MAX_ITER": 7}
    thirds[2] = {**thirds[2], "SOLVER.MAX_ITER": values["SOLVER.MAX_ITER"]}
    for number, part in enumerate(thirds):
        base = [f"_BASE_: ../{number - 1}/base.yaml"] if number else []
        text = ending.join(line + comment for line in [*base, *_lines(_tree(part)), ""])
        (folder / str(number)).mkdir()
        (folder / str(number) / "base.yaml").write_bytes(text.encode())
    return folder / "2" / "base.yaml"


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_in_published_notation_loads_to_published_values(tmp_path: Path, recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(_write_recipe(tmp_path, RECIPES[recipe]))
    for key, value in RECIPES[recipe].items():
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        assert json.loads(json.dumps(node)) == value, key


@pytest.mark.parametrize(
    "change",
    [
        {"ending": "\r\n"},
        {"comment": "  # a comment\twith tabs\t"},
        {"comment": "\t# a tab before it"},
        {"ending": "\r\n\t# a line of its own\r\n"},
        {"comment": " \t "},
    ],
)
def test_line_ends_and_tabs_change_nothing(tmp_path: Path, change: dict[str, str]) -> None:
    recipe = "cityscapes/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_90k.yaml"
    plain, changed = get_cfg(), get_cfg()
    for name, cfg, options in (("a", plain, {}), ("b", changed, change)):
        (tmp_path / name).mkdir()
        cfg.merge_from_file(_write_recipe(tmp_path / name, RECIPES[recipe], **options))
    assert changed == plain
    assert changed != get_cfg()


def test_recipes_hold_each_form_of_the_notation() -> None:
    values = [value for recipe in RECIPES.values() for value in recipe.values()]
    texts = [_as_text(value) for value in values]
    found: dict[str, Callable[[str], bool]] = {
        "sizes": lambda text: text.startswith("!!python"),
        "one name": lambda text: text.startswith("('") and text.endswith("',)"),
        "numbers": lambda text: text.startswith("(") and text[1].isdigit(),
    }
    assert all(any(is_form(text) for text in texts) for is_form in found.values())


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.WARMUP_FACTOR", "1.0 / 1000", 0.001),
        ("SOLVER.BASE_LR", "0.0001 * 16 / 4", 0.0004),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.MAX_ITER", "100 * 90", 9000),
        ("INPUT.MIN_SIZE_TRAIN", "(640,)", [640]),
        ("INPUT.MIN_SIZE_TRAIN", "(5 * 100, 640)", [500, 640]),
        ("MODEL.PIXEL_STD", "[1, 1.0, 255 / 5]", [1, 1.0, 51.0]),
        ("OUTPUT_DIR", "2024-10-11", "2024-10-11"),  # neither a date nor a difference
        ("OUTPUT_DIR", "'a b'", "a b"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
    ],
)
def test_text_is_read_alike_in_files_and_on_the_command_line(
    tmp_path: Path, key: str, text: str, value: object
) -> None:
    tree = "{" + ": {".join(key.split(".")) + f": {json.dumps(text)}" + "}" * (key.count(".") + 1)
    (tmp_path / "c.yaml").write_text(tree)
    from_file, from_list, from_dict = get_cfg(), get_cfg(), get_cfg()
    from_file.merge_from_file(tmp_path / "c.yaml")
    from_list.merge_from_list([key, text])
    from_dict.merge_from_dict({key: text})
    for cfg in (from_file, from_list, from_dict):
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value
        assert isinstance(node, type(value))


@pytest.mark.parametrize("text", ["__import__('os').system('touch pwned')", "(lambda: 1)()", "9 ** 9 ** 9 ** 9"])
def test_text_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER must be int"):
        get_cfg().merge_from_list(["SOLVER.MAX_ITER", text])
    assert not list(tmp_path.iterdir())
