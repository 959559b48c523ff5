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
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main as run_command
from mask2former.commands.table import COMMANDS, subcommands_of
from mask2former.config.keys import accepted_keys, describe_foreign, foreign_names, read_keys
from mask2former.files.atomic import write_text_atomic
from tools.make_model_zoo import make_page as make_zoo_page

ROOT = Path(__file__).resolve().parents[1]
CONFIG_INTRODUCTION = """\
# Config keys

Every key that has an effect, as `mask2former/config/defaults.yaml` has it. A config file or `KEY VALUE` on a command
line overrides it. All that is wrong with a config is said at once: unknown keys with the nearest that have an effect,
values of another type. Text is read as a literal, arithmetic of numbers included (`SOLVER.WARMUP_FACTOR: 1.0 / 1000`);
nothing is executed. Keys of your own: [`register_keys`](../extending.md).
"""
IDLE_INTRODUCTION = """\
## Keys of other projects

Those of detectron2's detectors are accepted, because config files hold them, and have no effect: another value than
detectron2's default is warned of. The others are unknown keys, and the error says this.
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
    """The keys that are read, by section, with default, type and description; then those that nothing reads."""
    sections: dict[str, list[str]] = {}
    for key, entry in sorted(read_keys().items()):
        names = key.split(".")
        section = "Others" if len(names) == 1 else ".".join(names[: 2 if names[0] == "MODEL" and len(names) > 2 else 1])
        item = f"- `{key}` = `{_shown(entry.default)}`, {type_name(entry.default)}"
        sections.setdefault(section, []).append(item + (f"  \n  {entry.description}" if entry.description else ""))
    parts = [CONFIG_INTRODUCTION]
    parts += [f"## {section}\n\n" + "\n".join(items) + "\n" for section, items in sorted(sections.items())]
    idle = [
        f"- `{key}`: {describe_foreign(key) or 'no effect'}" for key in sorted({*accepted_keys(), *foreign_names()})
    ]
    return "\n".join([*parts, IDLE_INTRODUCTION, *idle, ""])


def type_name(default: object) -> str:
    """What values of a key are, by its default."""
    if isinstance(default, (list, tuple)):
        inner = {type_name(entry) for entry in default}
        return f"list of {inner.pop()}" if len(inner) == 1 else "list"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(
        type(default), "number or null"
    )


def _shown(value: Any) -> str:
    return '""' if value == "" else str(value)


def make_commands_page() -> str:
    """The help of every command."""
    parts = [COMMANDS_INTRODUCTION, f"```text\n{_help([])}```\n"]
    for command in COMMANDS:
        needs = f"Needs `pip install 'mask2former[{command.extra}]'`.\n\n" if command.extra else ""
        text = "" if command.extra else f"```text\n{_help([command.name])}```\n"
        parts.append(f"## {command.name}\n\n{command.summary[0].upper()}{command.summary[1:]}.\n\n{needs}{text}")
        for name in subcommands_of(command):
            parts.append(f"### {command.name} {name}\n\n```text\n{_help([command.name, name])}```\n")
    return "\n".join(parts)


def _help(arguments: list[str]) -> str:
    os.environ["COLUMNS"] = "110"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        run_command([*arguments, "--help-all" if arguments else "--help"])
    return output.getvalue()


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/config.md": make_config_page,
    "reference/commands.md": make_commands_page,
    "model-zoo.md": lambda: make_zoo_page(is_site=True),
}

if __name__ == "__main__":
    sys.exit(main())
