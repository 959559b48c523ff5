"""The options that commands share, in the same words, and how a command line is read.

KEY VALUE pairs may stand anywhere: after ``--opts``, at the end, or between options.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Za-z0-9_]+)*")
_FILE_ENDING = re.compile(
    r"\.(avi|bmp|gif|jpe?g|json|m4v|mkv|mov|mp4|mpe?g|pkl|png|pth?|safetensors|tiff?|webm|webp|ya?ml)$", re.IGNORECASE
)
_HELP_WIDTH = 100


@dataclass(frozen=True)
class Subcommand:
    """A command of two words, such as ``prepare shapes``."""

    summary: str
    description: str
    add_arguments: Callable[[CommandParser], None]
    run: Callable[[argparse.Namespace], Any]


class CommandParser(argparse.ArgumentParser):
    """A parser with the options that commands share; a typo in an option is called so, with the nearest option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self._rare: list[argparse.Action] = []
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help=argparse.SUPPRESS)

    def keep_for_help_all(self, *names: str) -> None:
        """Options that --help names without explaining them, so that it fits a screen; --help-all shows everything."""
        self._rare += [action for action in self._actions if set(names) & set(action.option_strings)]

    def format_usage(self) -> str:
        """Return the usage, with options as one word."""
        words = [_place(action) for action in self._actions if not action.option_strings]
        words += ["[options]", *(["[KEY VALUE ...]"] if "--opts" in self.option_names() else [])]
        return f"usage: {' '.join([self.prog, *words])}\n"

    def format_help(self) -> str:
        """Return the help, without the options of `keep_for_help_all`, whose names end it."""
        explained = [(action, action.help) for action in self._rare]
        try:
            for action, _ in explained:
                action.help = argparse.SUPPRESS
            text = self.format_help_all()
        finally:
            for action, help_text in explained:
                action.help = help_text
        names = ", ".join(action.option_strings[-1] for action in self._rare)
        return text + (f"\n--help-all explains more: {textwrap.fill(names, _HELP_WIDTH - 26)}\n" if names else "")

    def format_help_all(self) -> str:
        """Return the help with all options."""
        usage = self.format_usage().removeprefix("usage: ").rstrip()
        self.usage, kept = usage.replace("%", "%%"), self.usage
        try:
            return super().format_help()
        finally:
            self.usage = kept

    def add_model_options(self, *, needs: str = "the weights do not tell it") -> None:
        """The options that say which model: --config-file, --weights, --import, --device and KEY VALUE pairs."""
        group = self.add_argument_group("model")
        group.add_argument(
            "--weights",
            metavar="WEIGHTS",
            help="checkpoint, run folder, zoo://NAME, or folder of transformers; its config is found by itself",
        )
        self.add_config_options(group, needs=needs)
        group.add_argument("--device", metavar="DEVICE", help="cuda, cuda:1, cpu, …; by default MODEL.DEVICE")

    def add_config_options(self, group: Any = None, *, needs: str = "nothing else tells it") -> None:
        """--config-file, --import and KEY VALUE pairs."""
        group = group or self
        group.add_argument(
            "--config-file",
            metavar="FILE",
            help=f"path of a config, or name of a published one; needed where {needs}",
        )
        self.add_import_option(group)
        group.add_argument(
            "--opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides; --opts may be left out"
        )

    def add_import_option(self, group: Any = None) -> None:
        """--import."""
        (group or self).add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="Python module to import first, which registers data sets, parts of models or config keys; may be "
            "given several times",
        )

    def add_left_out_options(self, group: Any = None) -> None:
        """--drop-empty-classes and --skip-bad."""
        group = group or self
        group.add_argument("--drop-empty-classes", action="store_true", help="leave out classes without an object")
        group.add_argument(
            "--skip-bad",
            action="store_true",
            help="leave out what is wrong, and list it in left_out.txt of the output folder",
        )

    def add_output_option(self, help: str, *aliases: str, **options: Any) -> None:
        """--output."""
        self.add_argument("--output", *aliases, metavar="PATH", help=help, **options)

    def add_verbose(self) -> None:
        """--verbose."""
        self.add_argument("--verbose", action="store_true", help="show tracebacks and more of the log")

    def describe(self, description: str, subcommands: Mapping[str, Subcommand] = MappingProxyType({})) -> None:
        """Head the help with a description, and with the second words that there are."""
        self.description = textwrap.fill(description, _HELP_WIDTH)
        if subcommands:
            width = max(map(len, subcommands))
            lines = "\n".join(f"  {name:{width}}  {part.summary}" for name, part in subcommands.items())
            self.description += f"\n\n{self.prog} NAME, with options of its own:\n{lines}"

    def refuse_option(self, name: str) -> NoReturn:
        """End with the nearest option to one that does not exist."""
        near = difflib.get_close_matches(name, self.option_names(), n=1)
        self.error(f"no such option: {name}{f'; did you mean {near[0]}?' if near else ''}")

    def option_names(self) -> list[str]:
        """Return all options, such as --output and -n."""
        return [name for action in self._actions for name in action.option_strings]


def _place(action: argparse.Action) -> str:
    """How a positional argument stands in the usage."""
    name = action.metavar or action.dest
    nargs = getattr(action, "save_nargs", action.nargs)  # set aside while arguments between options are read
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}.get(str(nargs), str(name))


class _HelpAll(argparse.Action):
    """Print the help with all options, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, CommandParser)
        print(parser.format_help_all(), end="")
        parser.exit()


def parse_arguments(parser: CommandParser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; config overrides are ``opts``, a flat list of keys and values.

    Ends the process with exit code 2 where an option is unknown or lacks its value.
    """
    names = parser.option_names()
    pairs, rest = ([], list(argv)) if "--opts" not in names else split_pairs(argv, parser)
    for argument in rest:
        name = argument.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and not any(known.startswith(name) for known in names):
            parser.refuse_option(name)
    args, left = parser.parse_known_intermixed_args(rest)
    unknown = next((argument for argument in left if argument.startswith("-")), None)
    if unknown is not None:
        parser.refuse_option(unknown)
    if "--opts" in names:
        # What is left is no option: a key in small letters, or a value without a key, which the config then names.
        args.opts = [*pairs, *args.opts, *left]
    elif left:
        parser.error(f"unexpected argument: {left[0]}")
    return args


def imported_modules(argv: Sequence[str]) -> list[str]:
    """Return the modules that --import names on a command line, before anything else of it is understood."""
    modules = [value for option, value in itertools.pairwise(argv) if option == "--import"]
    return modules + [argument.partition("=")[2] for argument in argv if argument.startswith("--import=")]


def split_pairs(argv: Sequence[str], parser: CommandParser) -> tuple[list[str], list[str]]:
    """(keys and values of the config, everything else). A key without a value comes last."""
    single = {name for action in parser._actions if action.nargs is None for name in action.option_strings}
    pairs: list[str] = []
    rest: list[str] = []
    lonely: list[str] = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if (rest and rest[-1] in single) or not is_key(argument):
            rest.append(argument)
        elif arguments and not arguments[0].startswith("--"):
            pairs += [argument, arguments.pop(0)]
        else:
            lonely.append(argument)
    return pairs + lonely, rest


def is_key(argument: str) -> bool:
    """Return whether an argument is a key of the config, known or not, and no name of a file."""
    from mask2former.config import CfgNode, get_cfg

    if not _KEY.fullmatch(argument) or _FILE_ENDING.search(argument):
        return False
    first, *below = argument.split(".")
    known = get_cfg().get(first)
    if not below:
        return known is not None and not isinstance(known, CfgNode)
    return known is not None or not Path(argument).exists()


def print_report(text: str, output: str | None) -> None:
    """Print what a command found, and write it to the file of --output if there is one."""
    print(text)
    if output is not None:
        from mask2former.files.atomic import write_text_atomic

        write_text_atomic(text.lstrip("\n") + "\n", Path(output).expanduser())
