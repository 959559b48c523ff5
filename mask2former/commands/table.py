"""The table of commands: what there is, and which module does it, which is imported once it is asked for.

A project adds its own: by an entry point of the group ``mask2former.commands`` (name → module), which is found wherever
the project is installed, or by ``register_command`` in a module that ``--import`` names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mask2former.errors import ConfigError


@dataclass(frozen=True)
class Command:
    """A command: ``module`` holds its DESCRIPTION, ``add_arguments(parser)`` and ``run(args)``.

    It may hold SUBCOMMANDS, by name, in their place or beside them, or ``main(argv)`` where another library reads the
    command line. ``extra`` is what of the package's extras it needs.
    """

    name: str
    summary: str
    module: str
    aliases: tuple[str, ...] = ()
    extra: str = ""


_HERE = "mask2former.commands"
COMMANDS = (
    Command("train", "train a model, on a data set with a name or on your own files", f"{_HERE}.train"),
    Command("evaluate", "evaluate weights on a data set, or saved predictions", f"{_HERE}.evaluate"),
    Command("predict", "predict images, videos or a camera and draw the results", f"{_HERE}.predict"),
    Command("export", "write a model as a file for ONNX Runtime, OpenVINO or torch", f"{_HERE}.export"),
    Command("convert", "convert weights between families", f"{_HERE}.convert"),
    Command("convert-dataset", "convert a data set between formats", f"{_HERE}.convert_dataset"),
    Command("analyze", "count operations, activations and parameters of a model", f"{_HERE}.analyze"),
    Command("benchmark", "time data, training or inference on this machine", f"{_HERE}.benchmark"),
    Command("visualize", "draw annotations, or what training sees", f"{_HERE}.visualize", ("visualize-data",)),
    Command("prepare", "prepare a public data set, or draw the embedded one", f"{_HERE}.prepare"),
    Command("show-results", "print what a training run reached", f"{_HERE}.show_results"),
    Command("frames-to-video", "make video files of folders of frames", f"{_HERE}.frames_to_video"),
    Command("evaluate-semantic-pq", "PQ of a semantic model, every class as stuff", f"{_HERE}.evaluate_semantic_pq"),
    Command(
        "fine-tune-hf",
        "fine-tune with the Trainer of transformers",
        "mask2former.integrations.transformers.fine_tuning",
        extra="transformers",
    ),
)
# Names of earlier releases that now are a command with a first argument.
RENAMED: Mapping[str, tuple[str, ...]] = MappingProxyType({"prepare-shapes": ("prepare", "shapes")})


_GROUP = "mask2former.commands"
_registered: dict[str, Command] = {}


def register_command(name: str, *, module: str, summary: str) -> None:
    """Add a command from outside.

    Args:
        name: its first word, as ``mask2former NAME``.
        module: what it does: the module's DESCRIPTION, ``add_arguments(parser)`` and ``run(args)``.
        summary: one line for the list of commands.

    Raises:
        ConfigError: the name is taken.
    """
    known = next((command for command in all_commands() if name in (command.name, *command.aliases)), None)
    if known is not None and known.module != module:
        raise ConfigError(f"command {name!r} is that of {known.module}: expected another name for {module}")
    _registered[name] = Command(name, summary, module)


def all_commands() -> tuple[Command, ...]:
    """Return the commands of this package, those registered, and those of installed projects."""
    own = {name for command in COMMANDS for name in (command.name, *command.aliases)}
    installed = (
        Command(entry.name, f"from {entry.dist.name if entry.dist else entry.value}", entry.value)
        for entry in importlib.metadata.entry_points(group=_GROUP)
        if entry.name not in own and entry.name not in _registered
    )
    return (*COMMANDS, *_registered.values(), *installed)


def find_command(name: str) -> Command | None:
    """Return the command of a name or alias; None where there is none."""
    own = (command for command in COMMANDS if name in (command.name, *command.aliases))
    return next(own, None) or next((command for command in all_commands() if command.name == name), None)


def describe_commands() -> str:
    """Return one line for each command."""
    commands = all_commands()
    width = max(len(command.name) for command in commands)
    return "\n".join(f"  {command.name:{width}}  {command.summary}" for command in commands)


def subcommands_of(command: Command) -> Mapping[str, Any]:
    """Return the second words that a command takes, from its module.

    None where the module's libraries are not installed.
    """
    if command.extra:
        return {}
    return getattr(importlib.import_module(command.module), "SUBCOMMANDS", {})
