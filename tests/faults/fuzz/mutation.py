"""Changes of files that keep their structure, so that what is wrong lies behind the parser.

A mutator takes a valid or mutated file and a source of random choices, and returns another file.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.0,
    1.5,
    -0.0,
    1e30,
    1e308,
    2**31,
    2**32,
    2**63,
    2**70,
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "1",
    "x",
    "x" * 5000,
    "a\0b",
    "\ud800",
    "../../x",
    "/etc/passwd",
    [],
    [None],
    [[]],
    [1],
    [[1, 2]],
    {},
    {"": None},
]
_DEEPEST = 40
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place below the root, of long lists the first two entries."""
    if len(place) > _DEEPEST or not isinstance(content, dict | list):
        return
    for key, child in content.items() if isinstance(content, dict) else enumerate(content[:2]):
        yield (*place, key)
        yield from places(child, (*place, key))


def parent_of(content: Any, place: tuple[Any, ...]) -> Any:
    """What holds the value at a place."""
    for key in place[:-1]:
        content = content[key]
    return content


def with_value(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of the content with another value at a place."""
    changed = copy.deepcopy(content)
    parent_of(changed, place)[place[-1]] = value
    return changed


def change_tree(content: Any, choices: random.Random) -> Any:
    """A value replaced, removed, repeated or taken from another place."""
    everywhere = list(places(content))
    if not everywhere:
        return choices.choice(NASTY)
    place = choices.choice(everywhere)
    parent, key = parent_of(content, place), place[-1]
    kind = choices.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(choices.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    elif kind == 2:
        other = choices.choice(everywhere)
        parent[key] = copy.deepcopy(parent_of(content, other)[other[-1]])
    elif kind == 3 and isinstance(parent[key], int | float):
        parent[key] = parent[key] + choices.choice([-1, 1, 0.5, 255, 2**16]) if abs(parent[key]) < 1e300 else 0
    elif kind == 4 and isinstance(parent[key], str):
        parent[key] = change_bytes(parent[key].encode("latin1", "replace"), choices).decode("latin1")
    else:
        parent[key] = copy.deepcopy(choices.choice(NASTY))
    return content


def change_json(data: bytes, choices: random.Random) -> bytes:
    """JSON of another tree; now and then other bytes."""
    if choices.random() < 0.1:
        return change_bytes(data, choices)
    try:
        content = json.loads(data)
        for _ in range(choices.choice([1, 1, 1, 2, 4])):
            content = change_tree(content, choices)
        return json.dumps(content).encode()
    except (ValueError, RecursionError):
        return change_bytes(data, choices)


def change_bytes(data: bytes, choices: random.Random) -> bytes:
    """Bytes flipped, removed, repeated or replaced."""
    changed = bytearray(data) or bytearray(b"\0")
    for _ in range(choices.choice([1, 1, 2, 4])):
        at, length = choices.randrange(len(changed) + 1), choices.choice([1, 1, 2, 4, 16])
        kind = choices.randrange(5)
        if kind == 0:
            del changed[at : at + length]
        elif kind == 1:
            changed[at:at] = changed[at : at + length] or b"\0"
        elif kind == 2:
            changed[at : at + length] = choices.randbytes(length)
        elif kind == 3:
            changed[at : at + length] = choices.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
        elif at < len(changed):
            changed[at] ^= 1 << choices.randrange(8)
    return bytes(changed)


def change_text(data: bytes, choices: random.Random) -> bytes:
    """Text with a number or word replaced, a line removed or repeated; now and then other bytes."""
    pieces = re.split(rb"([A-Za-z0-9_.+-]+)", data)
    lines = data.split(b"\n")
    kind = choices.randrange(5)
    if kind == 0 or len(pieces) < 2:
        return change_bytes(data, choices)
    if kind == 1:
        at = choices.randrange(len(lines))
        lines[at : at + 1] = choices.choice([[], [lines[at]] * 2, [choices.choice(lines)]])
        return b"\n".join(lines)
    for _ in range(choices.choice([1, 1, 2, 4])):
        value = choices.choice(NASTY)
        pieces[choices.randrange(len(pieces) // 2) * 2 + 1] = str(value).encode("utf-8", "replace")
    return b"".join(pieces)


def change_png(data: bytes, choices: random.Random) -> bytes:
    """A PNG with a part or its unpacked pixels changed and the check sums right."""
    parts = list(_png_parts(data))
    if not parts or choices.random() < 0.2:
        return change_bytes(data, choices)
    number = choices.randrange(len(parts))
    kind, content = parts[number]
    if kind == b"IDAT" and choices.random() < 0.7:
        try:
            unpacker = zlib.decompressobj()
            content = zlib.compress(change_bytes(unpacker.decompress(content, 1 << 20), choices), 1)
        except zlib.error:
            content = change_bytes(content, choices)
    else:
        content = change_bytes(content, choices)
    parts[number] = (kind, content)
    if choices.random() < 0.1:
        parts.insert(choices.randrange(len(parts)), choices.choice(parts))
    return _SIGNATURE + b"".join(_png_part(*part) for part in parts)


def change_zip(data: bytes, choices: random.Random) -> bytes:
    """An archive with one of its files changed."""
    if choices.random() < 0.3:
        return change_bytes(data, choices)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [(name, archive.read(name)) for name in archive.namelist()]
        number = choices.randrange(len(files))
        name, content = files[number]
        files[number] = choices.choice([(name, change_bytes(content, choices))] * 4 + [(name + "x", content)])
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return target.getvalue()
    except Exception:  # a damaged archive: zipfile raises of all kinds
        return change_bytes(data, choices)


def change_headed_json(data: bytes, choices: random.Random) -> bytes:
    """A safetensors file: its JSON header changed, and the length before it right."""
    if len(data) < 8 or choices.random() < 0.2:
        return change_bytes(data, choices)
    length = struct.unpack("<Q", data[:8])[0]
    header = change_json(data[8 : 8 + length], choices)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _png_parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _png_part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
