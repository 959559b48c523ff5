#!/usr/bin/env python
"""Writes the pages of the documentation that follow from the code: make_docs.py [FOLDER].

reference/config.md from the defaults, reference/commands.md from the commands' own help, model-zoo.md from the zoo.
They are not kept in the repository: `make docs` makes them, then the site.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main as run_command
from mask2former.config import get_cfg
from mask2former.files.atomic import write_text_atomic
from tools.make_model_zoo import make_page as make_zoo_page

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = ROOT / "mask2former" / "config" / "defaults.yaml"
CONFIG_INTRODUCTION = """\
# Config keys

Every key with its default, as `mask2former/config/defaults.yaml` has it. A config file or `KEY VALUE` on a command line
overrides it; an unknown key is an error that names the nearest known ones.
"""
COMMANDS_INTRODUCTION = """\
# Commands

What `mask2former COMMAND --help` prints. The scripts in `tools/`, `demo/` and `datasets/` forward to these commands.
[Exit codes](files.md#exit-codes).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs", help="folder of the pages (%(default)s)")
    folder = parser.parse_args().folder
    for name, make_page in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(make_page(), path)
    return 0


def make_config_page() -> str:
    """Tables of key, default and remark, one for each section."""
    remarks = read_remarks(DEFAULTS.read_text(encoding="utf-8"))
    sections: dict[str, list[str]] = {}
    for key, value in _leaves(get_cfg()):
        first, _, rest = key.partition(".")
        section = first if not rest else ".".join(key.split(".")[: 2 if first == "MODEL" and rest.count(".") else 1])
        row = f"| `{key}` | `{_shown(value)}` | {_cell(remarks.get(key, ''))} |"
        sections.setdefault(section if rest else "Others", []).append(row)
    parts = [CONFIG_INTRODUCTION]
    for section, rows in sorted(sections.items()):
        parts.append("\n".join([f"## {section}\n", "| key | default | |", "| --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def read_remarks(text: str) -> dict[str, str]:
    """The comment of each key of a YAML file of nested keys: that beside it, or the lines above it."""
    remarks: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        found = re.match(r"( *)([A-Z0-9_]+):(.*)", line)
        if found is None:
            comment = re.match(r" +# ?(.*)", line)
            above = [*above, comment.group(1)] if comment else []
            continue
        indent, key, rest = len(found.group(1)), found.group(2), found.group(3)
        path = [*(item for item in path if item[0] < indent), (indent, key)]
        beside = re.search(r"(?:^| )# (.*)", rest)
        remark = " ".join([*above, *([beside.group(1)] if beside else [])])
        if remark:
            remarks[".".join(name for _, name in path)] = remark
        above = []
    return remarks


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(node):
        if isinstance(node[key], Mapping):
            yield from _leaves(node[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", node[key]


def _shown(value: Any) -> str:
    text = '""' if value == "" else str(value)
    return text.replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def make_commands_page() -> str:
    """The help of every command."""
    listed = _help([])
    names = re.findall(r"^    ([a-z][a-z-]*)", listed.partition("COMMAND\n")[2], flags=re.MULTILINE)
    parts = [COMMANDS_INTRODUCTION, f"```text\n{listed}```\n"]
    for name in names:
        parts.append(f"## {name}\n\n```text\n{_help([name])}```\n")
    return "\n".join(parts)


def _help(arguments: list[str]) -> str:
    os.environ["COLUMNS"] = "110"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        run_command([*arguments, "--help"])
    return output.getvalue()


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/config.md": make_config_page,
    "reference/commands.md": make_commands_page,
    "model-zoo.md": lambda: make_zoo_page(is_site=True),
}

if __name__ == "__main__":
    sys.exit(main())
