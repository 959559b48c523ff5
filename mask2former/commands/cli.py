"""The command ``mask2former``, which the scripts in ``tools``, ``demo`` and ``datasets`` forward to.

Exit codes: 0 done; 1 something given is wrong, or training diverged; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from mask2former.commands.arguments import CommandParser, Subcommand, imported_modules, parse_arguments
from mask2former.commands.table import RENAMED, Command, all_commands, describe_commands, find_command
from mask2former.errors import InputError, NonFiniteError, UsageError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES, _PIECE_BYTES = 1 << 30, 1 << 28
_OLD_PIECE_BYTES = 1 << 25  # the most that glibc takes before 2.35
EXIT_WRONG_INPUT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # as shells report the signal of Ctrl-C
# What torch (on a CPU, on a GPU) and OpenCV say of memory that they do not get, in errors of several types.
_MEMORY = re.compile(
    r"you tried to allocate \d+ bytes|Tried to allocate [\d.]+ \w+|Failed to allocate \d+ bytes|"
    r"Storage size calculation overflowed"
)
_PROGRAM = "mask2former"
_USAGE = f"usage: {_PROGRAM} COMMAND [options], {_PROGRAM} COMMAND --help, {_PROGRAM} --version"


def main(argv: Sequence[str] | None = None) -> int:
    """The console command; returns the exit code."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # before the command began: while it is imported
        return _say_interrupted()


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help"):
        print(f"{_USAGE}\n\nTrain, evaluate and use segmentation models.\n\n{describe_commands()}")
        return 0
    if first == "--version":
        from mask2former import __version__

        print(f"{_PROGRAM} {__version__}")
        return 0
    name, *rest = [*RENAMED.get(first, (first,)), *arguments[1:]]
    command = find_command(name)
    if command is not None:
        tune_process()  # first: commands import torch
        return _run_command(command, rest)
    modules = imported_modules(rest)
    if not modules:
        _refuse(first)
    tune_process()
    return _run_imported(name, modules, rest)


def train_main(argv: Sequence[str] | None = None) -> int:
    """``tools/train_net.py``; returns the exit code."""
    return main(["train", *(sys.argv[1:] if argv is None else argv)])


def predict_main(argv: Sequence[str] | None = None) -> int:
    """``demo/demo.py``; returns the exit code."""
    return main(["predict", *(sys.argv[1:] if argv is None else argv)])


def run_cli(function: Callable[[], Any], *, verbose: bool = False) -> int:
    """Runs a command; what is the user's to mend becomes one line and exit code 1, without traceback unless verbose.

    An integer that the function returns is the exit code. Unexpected errors pass through with their traceback.
    """
    try:
        code = function()
    except KeyboardInterrupt:
        return _say_interrupted()
    except BrokenPipeError:  # whoever read what we print has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_WRONG_INPUT
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        if verbose:
            _print_traceback()
        print(f"error: {message}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    return code if isinstance(code, int) else 0


def _run_command(command: Command, arguments: Sequence[str]) -> int:
    module = _load(command)
    program, part = f"{_PROGRAM} {command.name}", module
    if hasattr(module, "main"):
        return module.main(arguments)
    subcommands = getattr(module, "SUBCOMMANDS", {})
    if arguments and arguments[0].replace("_", "-") in subcommands:
        name, *arguments = [arguments[0].replace("_", "-"), *arguments[1:]]
        program, part = f"{program} {name}", subcommands[name]
    parser = CommandParser(prog=program)
    _declare(parser, part, subcommands)
    args = parse_arguments(parser, arguments)

    def run() -> Any:
        try:
            _import_modules(args.modules)
            return args.run(args)
        except UsageError as error:
            parser.error(str(error))

    return run_cli(run, verbose=args.verbose)


def _run_imported(name: str, modules: Sequence[str], arguments: Sequence[str]) -> int:
    """Run a command that one of the modules of --import registers."""
    code = run_cli(lambda: _import_modules(modules), verbose="--verbose" in arguments)
    if code:
        return code
    command = find_command(name)
    if command is None:
        _refuse(name)
    return _run_command(command, arguments)


def _import_modules(names: Sequence[str]) -> None:
    if names:  # else torch may not be needed
        from mask2former.inference.model_source import import_modules

        import_modules(names)


def _declare(parser: CommandParser, part: Any, subcommands: Any) -> None:
    """The options of a module or of one of its subcommands."""
    if isinstance(part, Subcommand):
        parser.describe(part.description)
    else:
        parser.describe(part.DESCRIPTION, subcommands)
    part.add_arguments(parser)
    if "--import" not in parser.option_names():
        parser.add_import_option()
    parser.add_verbose()
    parser.set_defaults(run=part.run)


def _load(command: Command) -> ModuleType:
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if not command.extra:
            raise
        print(f"error: {error.name} is not installed: pip install 'mask2former[{command.extra}]'", file=sys.stderr)
        sys.exit(EXIT_WRONG_INPUT)


def _refuse(name: str) -> NoReturn:
    names = [known for entry in all_commands() for known in (entry.name, *entry.aliases)]
    near = difflib.get_close_matches(name, names, n=1)
    found = f"no such command: {name}" if name else "a command is needed"
    print(f"{_USAGE}\n\n{describe_commands()}\n", file=sys.stderr)
    print(f"{_PROGRAM}: error: {found}{f'; did you mean {near[0]}?' if near else ''}", file=sys.stderr)
    sys.exit(EXIT_USAGE)


def _say_interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _explain(error: Exception) -> str | None:
    """One line; what the system refused begins with the file. None where the error is ours to mend."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, InputError | NonFiniteError | OSError):
        return str(error)
    found = _MEMORY.search(str(error))
    if found is None and not isinstance(error, MemoryError):
        return None
    what = found[0] if found else str(error).partition("\n")[0]
    return f"not enough memory: {what}" if what else "not enough memory"


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def tune_process() -> None:
    """What a command does to its whole process; must run before torch is imported, and yields to the user's choice."""
    _limit_spinning()
    _keep_freed_memory()


def _limit_spinning() -> None:
    """Let idle threads of GNU OpenMP sleep early.

    By default they spin for milliseconds. With as many threads as cores, one other busy process (a data worker is
    enough) then holds up every parallel region: measured on two cores, 5.6 s a step instead of 0.4 s. What waking
    costs on an idle machine was within the noise there; OMP_WAIT_POLICY or GOMP_SPINCOUNT overrule this.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for the next use.

    By itself it hands pieces of more than 32 MiB to the system at once, which clears each page before it gives it out
    again: measured on two cores, 12 % of the time of an image and 3 to 15 % of a training step. Pieces of more than
    256 MiB (32 MiB in an old glibc) still go. MALLOC_* or GLIBC_TUNABLES in the environment, and preloaded libraries,
    overrule this.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ) or "LD_PRELOAD" in os.environ:
        return
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # no glibc
        return
    _set_thresholds(set_option)


def _set_thresholds(set_option: Callable[[int, int], int]) -> None:
    """By glibc's mallopt, which returns 0 for a value that it refuses."""
    # Once one of the two is set, glibc no longer raises the other by itself: with that of trimming alone, each piece of
    # more than 128 KiB would come from the system anew.
    if any(set_option(_M_MMAP_THRESHOLD, size) for size in (_PIECE_BYTES, _OLD_PIECE_BYTES)):
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
