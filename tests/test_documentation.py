"""What the documentation says exists: pages, links, commands, options, config keys; and its Python runs or compiles."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mask2former.checkpoint import zoo_models
from mask2former.commands.cli import main as run_command
from mask2former.commands.table import COMMANDS, find_command, subcommands_of
from mask2former.config import get_cfg
from tools import make_docs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = set(make_docs.PAGES)
WRITTEN = sorted(path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).as_posix() not in GENERATED)
PAGES = [*(ROOT / name for name in ("README.md", "GETTING_STARTED.md", "CONTRIBUTING.md", "MODEL_ZOO.md")), *WRITTEN]
PAGES += [ROOT / "datasets" / "README.md"]
COMMAND = re.compile(r"^(?:mask2former|python|torchrun|make|srun) ")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _code(text: str) -> Iterator[tuple[str, str, bool]]:
    """(language, code, whether it is marked as running) of each fenced or indented block."""
    for mark, language, code in re.findall(r"(<!-- runs -->\n)?^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        yield language, code, bool(mark)
    without_fences = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for code in re.findall(r"(?:^ {4}.*\n)+", without_fences, flags=re.M):
        yield "", re.sub(r"^ {4}", "", code, flags=re.M), False


def _commands(path: Path) -> list[list[str]]:
    found = []
    for language, code, _ in _code(path.read_text(encoding="utf-8")):
        if language in ("", "sh", "bash", "console"):
            lines = re.sub(r"\\\n", " ", code).splitlines()
            found += [shlex.split(line, comments=True) for line in lines if COMMAND.match(line)]
    return found


ALL_COMMANDS = {f"{_name(path)}: {' '.join(words)[:70]}": words for path in PAGES for words in _commands(path)}


@cache
def _help(program: str, command: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        if program == "mask2former":
            run_command([*command.split(), "--help"])
        else:
            arguments, sys.argv = sys.argv, [program, "--help"]
            try:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            finally:
                sys.argv = arguments
    return output.getvalue()


def _split(words: list[str]) -> tuple[str, str, list[str]]:
    """The program, its subcommand, and what follows."""
    scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
    if words[0] == "mask2former":
        command = find_command(words[1])
        assert command is not None, f"mask2former {words[1]} does not exist"
        subcommands = subcommands_of(command)
        length = 3 if len(words) > 2 and words[2] in subcommands else 2
        return "mask2former", " ".join(words[1:length]), words[length:]
    if scripts:
        return words[scripts[0]], "", words[scripts[0] + 1 :]
    return words[0], "", words[1:]


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


@cache
def _known_keys() -> frozenset[str]:
    return frozenset(_keys(get_cfg()))


@pytest.mark.parametrize("label", ALL_COMMANDS)
def test_command_exists_with_its_options(label: str) -> None:
    if ALL_COMMANDS[label][1] == "count-images":
        code = (ROOT / "tests/extending/project/segmentation_extras/command.py").read_text(encoding="utf-8")
        assert 'register_command("count-images"' in code  # of the page's own project, which another test runs
        return
    program, command, rest = _split(ALL_COMMANDS[label])
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert rest[0] in targets
        return
    if program.endswith("train_hf.py") or command == "fine-tune-hf":
        pytest.importorskip("transformers")
    if program.endswith("detectron2.py"):
        pytest.importorskip("detectron2")
    is_ours = program == "mask2former" or (ROOT / program).is_file()
    if program.endswith(".py") and not program.startswith(("train_mine", "my_")):
        assert is_ours, f"{program} does not exist"
    if is_ours:
        text = _help(program, command)
        options = {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)}
        assert text, f"{program} {command} does not exist"
        assert not {option for option in options if not re.search(rf"{option}\b", text)}
    recipes = {path.name for path in (ROOT / "configs").iterdir()}
    configs = [word.removeprefix("configs/") for word in rest if word.removeprefix("configs/").split("/")[0] in recipes]
    assert not [config for config in configs if config.endswith(".yaml") and not (ROOT / "configs" / config).exists()]
    keys = {word for word in rest if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Za-z0-9_]*)*\.[A-Z0-9_]+", word)}
    assert keys <= _known_keys()


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_config_keys_in_text_exist(path: Path) -> None:
    key = r"[A-Z][A-Z0-9_]+(?:\.[A-Z][A-Za-z0-9_]*)*\.[A-Z0-9_]+"
    named = set(re.findall(rf"`({key})(?: [^`]*)?`", path.read_text(encoding="utf-8")))
    files = {name for name in named if name.endswith((".JPG", ".PNG"))}
    assert named - files <= _known_keys()


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_zoo_names_exist(path: Path) -> None:
    named = set(re.findall(r"zoo://(\w[\w/-]+)", path.read_text(encoding="utf-8")))
    assert named <= set(zoo_models())


def _links(path: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            yield link


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in _links(path):
        file, _, anchor = link.partition("#")
        target = path if not file else (path.parent / file).resolve()
        is_generated = target.is_relative_to(DOCS) and target.relative_to(DOCS).as_posix() in GENERATED
        assert is_generated or target.exists(), f"{link} leads nowhere"
        if anchor and not is_generated:
            assert anchor in _anchors(target), f"{link}: no such heading"


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_chinese_first_hour_is_true_to_the_english_one() -> None:
    english, chinese = ROOT / "GETTING_STARTED.md", DOCS / "zh" / "getting-started.md"
    assert list(_code(chinese.read_text(encoding="utf-8"))) == list(_code(english.read_text(encoding="utf-8")))
    zoo = {ROOT / "MODEL_ZOO.md": DOCS / "model-zoo.md"}
    targets = [[(path.parent / link).resolve() for link in _links(path)] for path in (chinese, english)]
    assert targets[0] == [zoo.get(target, target) for target in targets[1]]
    for mark in (r"^#+(?= )", r"^\|", r"(?<!`)`[^`\n]+`(?!`)", r"\d+(?= minutes?| 分钟)"):
        found = [re.findall(mark, path.read_text(encoding="utf-8"), flags=re.M) for path in (chinese, english)]
        assert found[0] == found[1], mark


def test_every_page_is_in_the_navigation() -> None:
    nav = set(re.findall(r"= \"([\w/.-]+\.md)\"", (ROOT / "zensical.toml").read_text(encoding="utf-8")))
    assert nav == {path.relative_to(DOCS).as_posix() for path in WRITTEN} | GENERATED


PYTHON = {
    f"{_name(path)}:{index}": (code, runs)
    for path in PAGES
    for index, (language, code, runs) in enumerate(_code(path.read_text(encoding="utf-8")))
    if language == "python"
}


@pytest.mark.parametrize("label", PYTHON)
def test_python_compiles_and_runs_where_marked(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, runs = PYTHON[label]
    compiled = compile(code, label, "exec")
    assert compiled.co_names or compiled.co_consts
    if runs:
        monkeypatch.chdir(ROOT)
        names: dict[str, Any] = {"__name__": "snippet"}
        exec(compiled, names)
        assert names.keys() > {"__name__", "__builtins__"}  # it defined or imported something


@pytest.mark.parametrize("label", PYTHON)
def test_python_imports_what_exists(label: str) -> None:
    lines = re.findall(r"^(?:from mask2former\S* import [^(\n]+|import mask2former\S*)$", PYTHON[label][0], flags=re.M)
    for line in lines:
        if "transformers" in line:
            pytest.importorskip("transformers")
        names: dict[str, Any] = {}
        exec(line, names)
        assert names.keys() - {"__builtins__"}, line


def test_page_of_config_keys_holds_every_key() -> None:
    page, accepted = make_docs.make_config_page().split("## Keys of other projects")
    assert "`MODEL.SEM_SEG_HEAD.NUM_CLASSES`" in page
    assert "`MODEL.RPN.NMS_THRESH`" in accepted
    page += accepted
    leaves = {key for key in _known_keys() if not any(other.startswith(f"{key}.") for other in _known_keys())}
    assert not [key for key in leaves if f"`{key}`" not in page]


def test_page_of_config_keys_says_default_type_and_use() -> None:
    page = make_docs.make_config_page()
    assert "- `SOLVER.MAX_ITER` = `40000`, whole number  \n  optimiser steps of the whole training\n" in page
    assert "- `INPUT.MIN_SIZE_TRAIN` = `[800]`, list of whole number" in page
    assert "- `MODEL.MASK_FORMER.NUM_QUERIES`: it is called MODEL.MASK_FORMER.NUM_OBJECT_QUERIES here\n" in page
    assert "- `MODEL.RPN.NMS_THRESH`: no effect\n" in page


def test_page_of_commands_holds_every_command() -> None:
    page = make_docs.make_commands_page()
    for command in COMMANDS:
        assert f"\n## {command.name}\n" in page
        assert command.extra or f"usage: mask2former {command.name} " in page
    assert "### prepare shapes\n" in page
