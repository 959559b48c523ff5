"""The table of keys that are read says the truth about the code, and a project can add its own."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask2former.config import CfgNode, Key, get_cfg, keys, register_keys
from mask2former.config.keys import accepted_keys, iter_leaves, read_descriptions, read_keys
from mask2former.errors import ConfigError

PACKAGE = Path(keys.__file__).parents[1]


def _chain(node: ast.expr) -> tuple[str | None, tuple[str, ...]]:
    """``cfg.MODEL["DEVICE"]`` → its root name and ("MODEL", "DEVICE")."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            parts.append(node.slice.value)
        else:
            break
        node = node.value
    upper = tuple(part for part in reversed(parts) if part.lstrip("_")[:1].isupper())  # MODEL.DiNAT too
    return node.id if isinstance(node, ast.Name) else None, upper


def _assigned(function: ast.AST) -> dict[str, tuple[str, ...]]:
    """Names that stand for a part of the configuration: ``solver, test = cfg.SOLVER, cfg.TEST``."""
    names: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(function):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts) if both else [(target, node.value)]
            names.update({a.id: parts for a, b in pairs if isinstance(a, ast.Name) and (parts := _chain(b)[1])})
    return names


def _accesses() -> Iterator[str]:
    """Keys that the package reads: in full, or their last parts where a function takes a part of the config."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if not isinstance(function, (ast.FunctionDef, ast.Module)):
                continue
            names = _assigned(function)
            for node in ast.walk(function):
                if isinstance(node, (ast.Attribute, ast.Subscript)):
                    root, parts = _chain(node)
                    yield ".".join([*names.get(root or "", ()), *parts])


ACCESSES = frozenset(_accesses())
# Read through a variable that holds the name: by _checked_dilation and in a loop over the flags of results.
BY_NAME = {
    *(f"DATASETS.TEST_{task}" for task in ("INSTANCE", "PANOPTIC", "SEMANTIC")),
    "MODEL.RESNETS.RES4_DILATION",
    "MODEL.RESNETS.RES5_DILATION",
}
# Read from what a function is handed, INPUT or INPUT.PSEUDO.
# Read by MODEL.MASK_FORMER's name: as_mask_former copies what both models share.
SHARED = {"MODEL.ONE_FORMER.": "MODEL.MASK_FORMER.", "MODEL.TEST.": "MODEL.MASK_FORMER.TEST."}
HANDED = {key for key in read_keys() if key.startswith(("INPUT.PSEUDO.", "INPUT.AUGMENTATIONS"))}


@pytest.mark.parametrize("key", [pytest.param(key, id=key) for key in read_keys()])
def test_key_in_the_table_of_read_keys_is_read(key: str) -> None:
    suffix = key.removeprefix("INPUT.PSEUDO.").removeprefix("INPUT.")
    shared = [key.replace(own, other, 1) for own, other in SHARED.items() if key.startswith(own)]
    assert ACCESSES & {key, *shared} or key in BY_NAME or (key in HANDED and suffix in ACCESSES)


def test_accepted_keys_are_read_nowhere() -> None:
    assert not ACCESSES & set(accepted_keys())
    assert not set(read_keys()) & set(accepted_keys())


def test_tables_together_hold_every_key() -> None:
    assert {key for key, _ in iter_leaves(get_cfg())} == {*read_keys(), *accepted_keys()}


def test_every_read_key_is_described_in_a_line() -> None:
    undescribed = [key for key, entry in read_keys().items() if not 2 < len(entry.description) < 260]
    assert undescribed == []


def test_descriptions_are_the_comments_beside_and_above_a_key() -> None:
    text = "# head\nA: 1  # one\nB:  # of B\n  # above\n  C: x\n  D: '# no'\nE: 2\n"
    assert read_descriptions(text) == {"A": "one", "B": "of B", "B.C": "above"}


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_REGISTERED", {})


@pytest.mark.usefixtures("_own_registry")
def test_registered_keys_are_like_all_others(tmp_path: Path) -> None:
    register_keys({"MODEL.TINY.WIDTH": Key(32, "channels"), "MY_LIST": Key([1.0], "weights of my losses")})
    cfg = get_cfg()
    (tmp_path / "c.yaml").write_text("MODEL: {TINY: {WIDTH: 64}}")
    cfg.merge_from_file(tmp_path / "c.yaml")
    cfg.merge_from_list(["MY_LIST", "(2, 1 / 2)"])
    assert (cfg.MODEL.TINY.WIDTH, cfg.MY_LIST) == (64, [2, 0.5])
    assert copy.deepcopy(cfg) == cfg.clone() == cfg
    assert get_cfg().MY_LIST == [1.0]
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(tmp_path / "config.yaml")
    assert again == cfg
    with pytest.raises(ConfigError, match=r"TINY\.WIDTH must be int.*32"):
        get_cfg().merge_from_list(["MODEL.TINY.WIDTH", "wide"])
    with pytest.raises(ConfigError, match=r"did you mean MODEL\.TINY\.WIDTH"):
        get_cfg().merge_from_list(["MODEL.TINY.WIDHT", 1])


@pytest.mark.usefixtures("_own_registry")
def test_written_config_with_own_keys_needs_their_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_keys({"MODEL.TINY.WIDTH": Key(32, "channels")})
    (tmp_path / "config.yaml").write_text(get_cfg().dump())
    monkeypatch.setattr(keys, "_REGISTERED", {})
    with pytest.raises(ConfigError, match=r"unknown key MODEL\.TINY"):
        get_cfg().merge_from_file(tmp_path / "config.yaml")


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("MODEL.DEVICE", Key("cpu", "text"), "exists already, with the default 'cuda'"),
        ("MODEL.RPN.NMS_THRESH", Key(0.5, "text"), "exists already"),
        ("MODEL.MINE", Key(2, "another default"), "exists already"),
        ("MODEL", Key(1, "text"), "MODEL exists already"),
        ("MODEL.DEVICE.NAME", Key(1, "text"), "MODEL.DEVICE.NAME cannot stand below it"),
        ("model.mine", Key(1, "text"), "in capitals"),
        ("MODEL.OTHER", Key(object(), "text"), "the default must be"),
    ],
)
def test_keys_that_cannot_be_registered_are_refused(key: str, entry: Key, message: str) -> None:
    register_keys({"MODEL.MINE": Key(1, "text")})
    register_keys({"MODEL.MINE": Key(1, "text")})  # a module imported twice
    with pytest.raises(ConfigError, match=message):
        register_keys({key: entry})
    assert isinstance(get_cfg(), CfgNode)
