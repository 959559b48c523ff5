"""What an exported file says about itself: JSON inside the file, read without the library that runs it.

ONNX holds it among the model's properties, OpenVINO's .xml in its run-time information, and torch's .pt2, a zip
archive, in a member of its own.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.errors import CheckpointError

METADATA_KEY = "mask2former"
ARCHIVE_MEMBER = "mask2former.json"  # of a .pt2
SUFFIXES = {".onnx": ("onnx",), ".xml": ("openvino",), ".pt2": ("torch-export", "aoti")}
RAW_OUTPUTS = ("class_logits", "mask_logits")  # of models with queries
RAW_PIXEL_OUTPUTS = ("class_maps",)  # of others
PANOPTIC_OUTPUTS = ("panoptic_ids", "segment_classes", "segment_scores")
INSTANCE_OUTPUTS = ("instance_scores", "instance_classes", "instance_masks", "instance_boxes")
SEMANTIC_OUTPUTS = ("semantic_labels",)
RAW, FINISHED = "raw", "finished"
VERSION = 1  # of the layout of the metadata

_PROPERTIES_FIELD = 14  # metadata_props of ONNX's ModelProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf
_MAX_BYTES = 1 << 24  # of the metadata; the longest list of classes has a hundredth
_KINDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "format": str,
    "outputs": str,
    "tasks": list,
    "classes": list,
    "is_thing": list,
    "colors": list,
    "image": dict,
    "thresholds": dict,
    "precision": str,
    "sampling": str,
    "versions": dict,
    "verification": (dict, type(None)),
    "model": dict,
}


@dataclass(frozen=True)
class ExportedInfo:
    """The metadata of an exported file; ``content`` is the whole of it, as docs/guides/export.md describes it."""

    path: Path
    content: dict[str, Any]

    def __getattr__(self, key: str) -> Any:
        if key not in _KINDS:
            raise AttributeError(key)
        return self.content[key]


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a name ends as exported files do, and there is such a file."""
    return Path(path).suffix.lower() in SUFFIXES and Path(path).expanduser().is_file()


def read_info(path: str | os.PathLike[str]) -> ExportedInfo:
    """Return the metadata of an exported file.

    Raises:
        CheckpointError: there is no such file, it was not exported by this package, or its metadata are damaged.
    """
    path = Path(path).expanduser()
    read = {".onnx": _read_onnx, ".xml": _read_openvino, ".pt2": _read_archive}.get(path.suffix.lower())
    if read is None:
        raise CheckpointError(f"{path}: expected an exported file, which ends in {', '.join(SUFFIXES)}")
    try:
        text = read(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if text is None:
        raise CheckpointError(f"{path}: holds no {METADATA_KEY!r} metadata: it was not written by mask2former export")
    return ExportedInfo(path, _checked(path, text))


def _checked(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY!r} metadata are damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: {METADATA_KEY!r}: expected an object, found {type(content).__name__}")
    faults = [
        f"{key}: found {'nothing' if key not in content else type(content[key]).__name__}"
        for key, kinds in _KINDS.items()
        if not isinstance(content.get(key, ...), kinds)
    ]
    if faults:
        raise CheckpointError(f"{path}: its {METADATA_KEY!r} metadata are damaged: {'; '.join(faults)}")
    if content["version"] > VERSION:
        found = f"{content['version']}, by mask2former {content['versions'].get('mask2former')}"
        raise CheckpointError(f"{path}: expected metadata of version {VERSION} or before, found {found}")
    return content


def _read_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == ARCHIVE_MEMBER]
            if not names or archive.getinfo(names[-1]).file_size > _MAX_BYTES:
                return None
            return archive.read(names[-1]).decode("utf-8", "replace")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is not an archive of torch.export: {error}") from error


def _read_openvino(path: Path) -> str | None:
    try:
        info = ElementTree.parse(path).getroot().find("rt_info")
    except ElementTree.ParseError as error:
        raise CheckpointError(f"{path}: is not an OpenVINO model: {error}") from error
    found = None if info is None else info.find(METADATA_KEY)
    return None if found is None else found.get("value")


def _read_onnx(path: Path) -> str | None:
    """Return the property of the last entry of our name; everything else, the weights above all, is skipped."""
    found = None
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() < size:
            field, length = _next_field(file, path)
            if field != _PROPERTIES_FIELD:
                file.seek(length, os.SEEK_CUR)
            elif length > _MAX_BYTES:
                raise CheckpointError(f"{path}: is not an ONNX model, or is cut off")
            else:
                key, value = _string_pair(file.read(length), path)
                found = value if key == METADATA_KEY else found
    return found


def _next_field(file: Any, path: Path) -> tuple[int, int]:
    """Return the number of the next protobuf field and how many bytes of content follow."""
    tag = _varint(file, path)
    field, wire = tag >> 3, tag & 7
    if wire == _VARINT:
        _varint(file, path)
        return field, 0
    if wire not in (_FIXED64, _BYTES, _FIXED32) or not field:
        raise CheckpointError(f"{path}: is not an ONNX model, or is cut off")
    return field, {_FIXED64: 8, _FIXED32: 4}.get(wire) or _varint(file, path)


def _varint(file: Any, path: Path) -> int:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return value
        if shift > 63:
            break
    raise CheckpointError(f"{path}: is not an ONNX model, or is cut off")


def _string_pair(entry: bytes, path: Path) -> tuple[str, str]:
    import io

    file, parts = io.BytesIO(entry), {1: "", 2: ""}
    while file.tell() < len(entry):
        field, length = _next_field(file, path)
        parts[field] = file.read(length).decode("utf-8", "replace")
    return parts[1], parts[2]


def onnx_property(text: str) -> bytes:
    """Return the bytes that, at the end of an ONNX file, add the metadata: protobuf joins what is concatenated."""
    entry = b"".join(_field(number, part.encode()) for number, part in ((1, METADATA_KEY), (2, text)))
    return _field(_PROPERTIES_FIELD, entry)


def _field(number: int, content: bytes) -> bytes:
    length, coded = len(content), bytearray()
    while length > 0x7F:
        coded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | _BYTES, *coded, length]) + content
