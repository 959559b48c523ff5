"""The table of commands: what there is, and which module does it, which is imported once it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


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


def find_command(name: str) -> Command | None:
    """Return the command of a name or alias; None where there is none."""
    return next((command for command in COMMANDS if name in (command.name, *command.aliases)), None)


def describe_commands() -> str:
    """Return one line for each command."""
    width = max(len(command.name) for command in COMMANDS)
    return "\n".join(f"  {command.name:{width}}  {command.summary}" for command in COMMANDS)


def subcommands_of(command: Command) -> Mapping[str, Any]:
    """Return the second words that a command takes, from its module.

    None where the module's libraries are not installed.
    """
    if command.extra:
        return {}
    return getattr(importlib.import_module(command.module), "SUBCOMMANDS", {})
