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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main as run_command
from mask2former.config.keys import accepted_keys, read_keys
from mask2former.files.atomic import write_text_atomic
from tools.make_model_zoo import make_page as make_zoo_page

ROOT = Path(__file__).resolve().parents[1]
CONFIG_INTRODUCTION = """\
# Config keys

Every key that is read, with its default. A config file or `KEY VALUE` on a command line overrides it; an unknown key is
an error that names the nearest known ones. How to add keys of your own: `mask2former.config.register_keys`.
"""
ACCEPTED_INTRODUCTION = """\
## Accepted and not read

Published config files hold these keys of detectron2. A value other than the default gets one warning that names it.
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
    """Tables of the keys that are read, by section; then the keys that are only accepted, and what acts instead."""
    sections: dict[str, list[str]] = {}
    for key, entry in read_keys().items():
        names = key.split(".")
        section = "Others" if len(names) == 1 else ".".join(names[: 2 if names[0] == "MODEL" and len(names) > 2 else 1])
        row = f"| `{key}` | `{_shown(entry.default)}` | {_cell(entry.description)} |"
        sections.setdefault(section, []).append(row)
    parts = [CONFIG_INTRODUCTION]
    for section, rows in sorted(sections.items()):
        parts.append("\n".join([f"## {section}\n", "| key | default | |", "| --- | --- | --- |", *rows, ""]))
    accepted = [f"| `{key}` | {_cell(entry.description)} |" for key, entry in sorted(accepted_keys().items())]
    parts.append("\n".join([ACCEPTED_INTRODUCTION, "| key | here |", "| --- | --- |", *accepted, ""]))
    return "\n".join(parts)


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
