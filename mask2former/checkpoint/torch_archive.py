"""Torch's files: looked at first, then read by torch's reader of weights alone.

What torch takes on trust — how large a record is, that a storage is as long as the record behind it, that names stay
inside — is compared with the file before any memory is taken.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import IO, Any

import torch

from mask2former.checkpoint.pickle_machine import DamagedError, Foreign, PickleMachine, check_content
from mask2former.errors import CheckpointError

_MAX_UNPACKED = 16  # torch does not compress; weights that somebody packed anew shrink by a few percent
_ALWAYS_ALLOWED_BYTES = 1 << 24
_LOCAL_HEADER_BYTES = 30
_ZIP_BEGINNING = b"PK\x03\x04"
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_ELEMENT_BYTES = {
    "UntypedStorage": 1,
    **{f"{kind}Storage": 1 for kind in ("Byte", "Char", "Bool", "QUInt8", "QInt8", "QUInt4x2", "QUInt2x4")},
    **{f"{kind}Storage": 2 for kind in ("Half", "BFloat16", "Short")},
    **{f"{kind}Storage": 4 for kind in ("Float", "Int", "QInt32")},
    **{f"{kind}Storage": 8 for kind in ("Double", "Long", "ComplexFloat")},
    "ComplexDoubleStorage": 16,
}


def load_torch(file: IO[bytes], *, source: str, size: int) -> Any:
    """Return the content of a torch file of ``size`` bytes, tensors on the CPU.

    Raises:
        CheckpointError: the file names code, is damaged, or claims more than it has; nothing was run.
        Exception: whatever a damaged byte leads to.
    """
    size = _look(file, source=source, size=size)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # what it cannot read it refuses
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:Unsupported global: )?GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise
        raise CheckpointError(
            f"{source}: refused, nothing was run: the file names {refused.group(1)}, and only tensors and plain "
            "containers are read"
        ) from error
    check_content(content, source=source, size=size)
    return content


def read_outline(file: IO[bytes], *, source: str, size: int) -> Any:
    """Return the content of a torch file without its tensors; None for the format before zip archives.

    Raises:
        CheckpointError: the archive is damaged or contradicts itself.
        Exception: whatever a damaged byte leads to.
    """
    if file.read(4) != _ZIP_BEGINNING:
        return None
    with _open_archive(file, source=source, size=size) as archive:
        return _read_main(archive, _find_main(archive, source=source))[0]


def _look(file: IO[bytes], *, source: str, size: int) -> int:
    """Check the file against itself; returns how many bytes it holds unpacked."""
    is_zip = file.read(4) == _ZIP_BEGINNING  # as torch tells them apart
    file.seek(0)
    if not size or (is_zip and not zipfile.is_zipfile(file)):
        raise DamagedError(f"{source}: truncated: {size} bytes, and the end of the archive is missing")
    file.seek(0)
    if is_zip:
        return _look_at_zip(file, source=source, size=size)
    _look_at_older_file(file, size=size)
    return size


def _look_at_zip(file: IO[bytes], *, source: str, size: int) -> int:
    with _open_archive(file, source=source, size=size) as archive:
        # Torch does not compare records with their checksums (about 5 GB/s).
        damaged = archive.testzip()
        if damaged is not None:
            raise DamagedError(f"{source}: corrupt: the checksum of the record {damaged} is wrong")
        sizes = {record.filename: record.file_size for record in archive.infolist()}
        main = _find_main(archive, source=source)
        _, claims = _read_main(archive, main)
    folder = main.removesuffix("data.pkl")
    for key, claimed in claims.items():
        there = sizes.get(f"{folder}data/{key}")
        if there != claimed:
            raise CheckpointError(
                f"{source}: refused: says that the record {folder}data/{key} has {claimed} bytes; found {there}"
            )
    return sum(sizes.values())


def _open_archive(file: IO[bytes], *, source: str, size: int) -> zipfile.ZipFile:
    """Return an archive whose records lie inside it, one behind the other."""
    archive = zipfile.ZipFile(file)
    problem = _find_problem(archive.infolist(), size=size)
    if problem:
        raise CheckpointError(f"{source}: refused: {problem}")
    return archive


def _find_main(archive: zipfile.ZipFile, *, source: str) -> str:
    main = [name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"]
    if len(main) != 1:
        raise CheckpointError(f"{source}: a zip archive, but not of torch: found {len(main)} records data.pkl")
    return main[0]


def _read_main(archive: zipfile.ZipFile, name: str) -> tuple[Any, dict[str, int]]:
    """Return the content without tensors, and how many bytes it says each storage has."""
    with archive.open(name) as file:
        storages = _StorageClaims(file, size=archive.getinfo(name).file_size)
        return storages.run(), storages.claims


def _find_problem(records: Sequence[zipfile.ZipInfo], *, size: int) -> str | None:
    names = Counter(record.filename for record in records)
    for name, count in names.items():
        if count > 1:
            return f"{count} records of the name {name[:80]!r}"
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
            return f"the name of the record {name[:80]!r} leads out of the archive"
    unpacked = sum(record.file_size for record in records)
    if unpacked > _MAX_UNPACKED * size + _ALWAYS_ALLOWED_BYTES:
        return f"{size} bytes that unpack to {unpacked}"
    if min((record.header_offset for record in records), default=0):
        return "the first record does not begin the file"
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.header_offset < end:
            return f"the record {record.filename!r} lies in the one before it"
        end = record.header_offset + _LOCAL_HEADER_BYTES + len(record.filename) + record.compress_size
        if end > size:
            return f"the record {record.filename!r} ends {end - size} bytes behind the end of the file"
    return None


def _look_at_older_file(file: IO[bytes], *, size: int) -> None:
    """The format before zip archives: pickles in a row, then the storages one by one."""
    if PickleMachine(file, size=size).run() != _MAGIC_NUMBER:
        raise ValueError("neither a zip archive nor the format before it")
    for _ in ("protocol", "system"):
        PickleMachine(file, size=size).run()
    storages = _StorageClaims(file, size=size)
    storages.run()
    keys = PickleMachine(file, size=size).run()
    if not isinstance(keys, list) or set(map(str, keys)) != set(storages.claims):
        raise ValueError("the list of storages is not that of the tensors")
    claimed, left = sum(storages.claims.values()), size - file.tell()
    if claimed > left:
        raise ValueError(f"storages of {claimed} bytes, and {left} are left in the file")


class _StorageClaims(PickleMachine):
    """Notes of each storage that a pickle refers to how many bytes it says that it has."""

    def __init__(self, file: IO[bytes], *, size: int) -> None:
        super().__init__(file, size=size)
        self.claims: dict[str, int] = {}

    def refer(self, reference: Any) -> Any:
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] not in ("storage", b"storage"):
            raise ValueError("a reference to something else than a storage")
        kind, key, count = reference[1], str(reference[2]), reference[4]
        name = kind.name.rpartition(".")[2] if isinstance(kind, Foreign) else ""
        if name not in _ELEMENT_BYTES or type(count) is not int or count < 0:
            raise ValueError(f"a storage of the type {name or type(kind).__name__!r}")
        claimed = count * _ELEMENT_BYTES[name]
        if self.claims.setdefault(key, claimed) != claimed:
            raise ValueError(f"two sizes of the storage {key}")
        return Foreign("a storage")
