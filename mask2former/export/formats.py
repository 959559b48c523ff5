"""The formats of exported files: how each is written from a traced program, and how its metadata get into it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram

from mask2former.errors import ConfigError
from mask2former.export.lowering import OPERATOR
from mask2former.runtime.exported_info import ARCHIVE_MEMBER, METADATA_KEY, onnx_property

OPSET = 18  # the first with what resizing in both directions needs; runtimes of the last years have it


@dataclass(frozen=True)
class Format:
    """``write(program, path, output_names)`` writes a file, ``annotate(path, text)`` its metadata; ``sampling`` is the
    default lowering of deformable attention. ``members``: the suffixes of all files that it consists of.
    """

    suffix: str
    sampling: str
    write: Callable[[ExportedProgram, Path, Sequence[str]], None]
    annotate: Callable[[Path, str], None]
    members: tuple[str, ...]


def _write_onnx(program: ExportedProgram, path: Path, output_names: Sequence[str]) -> None:
    _require("onnx", "onnxscript")
    model = _to_onnx(program, output_names)
    model.save(str(path), external_data=False)


def _to_onnx(program: ExportedProgram, output_names: Sequence[str]) -> Any:
    with _quiet():
        model = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    assert model is not None
    for value, name in zip(model.model.graph.outputs, output_names, strict=True):
        value.name = name
    return model


def _annotate_onnx(path: Path, text: str) -> None:
    with open(path, "ab") as file:
        file.write(onnx_property(text))


def _write_openvino(program: ExportedProgram, path: Path, output_names: Sequence[str]) -> None:
    _require("onnx", "onnxscript", "openvino")
    import openvino

    exported = path.with_suffix(".onnx")
    _write_onnx(program, exported, output_names)
    try:
        openvino.save_model(openvino.convert_model(exported), path, compress_to_fp16=False)
    finally:
        exported.unlink(missing_ok=True)


def _annotate_openvino(path: Path, text: str) -> None:
    import xml.etree.ElementTree as ElementTree

    tree = ElementTree.parse(path)
    root = tree.getroot()
    info = root.find("rt_info")
    info = ElementTree.SubElement(root, "rt_info") if info is None else info
    for old in info.findall(METADATA_KEY):
        info.remove(old)
    ElementTree.SubElement(info, METADATA_KEY, value=text)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _write_program(program: ExportedProgram, path: Path, output_names: Sequence[str]) -> None:
    torch.export.save(program, path)


def _write_aoti(program: ExportedProgram, path: Path, output_names: Sequence[str]) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))


def _annotate_archive(path: Path, text: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/{ARCHIVE_MEMBER}", text)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "onnx": Format(".onnx", "grid_sample", _write_onnx, _annotate_onnx, (".onnx",)),
        "openvino": Format(".xml", "grid_sample", _write_openvino, _annotate_openvino, (".bin", ".xml")),
        "torch-export": Format(".pt2", OPERATOR, _write_program, _annotate_archive, (".pt2",)),
        "aoti": Format(".pt2", OPERATOR, _write_aoti, _annotate_archive, (".pt2",)),
    }
)


def _require(*packages: str) -> None:
    import importlib.util

    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"--format: {', '.join(missing)} not installed: pip install 'mask2former[export]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says about its own passes from the terminal; errors are raised all the same."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def move_files(kind: Format, source: Path, target: Path) -> None:
    """Put the files of an export in the place of ``target``; the one that names the others comes last."""
    for suffix in kind.members:
        os.replace(source.with_suffix(suffix), target.with_suffix(suffix))
