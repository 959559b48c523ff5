"""Find and open the files that a user named; report what is not there, or not a file, in one line with its name.

A folder is searched with the folders below it, and the results of a command mirror it. Hidden files and folders are
passed over, and so is the output folder: results of an earlier run are no inputs.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from mask2former.errors import DatasetError, InputError
from mask2former.files.addresses import is_web_address, name_in_address

ARRAY_SUFFIXES = (".npy", ".npz")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", *ARRAY_SUFFIXES, ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_MAX_FAILURES_NAMED = 20
_WILDCARDS = "*?["


@dataclass(frozen=True)
class NamedFile:
    """A file to predict; ``name`` is the path of its results below the output folder, without suffix.

    Of what lies at a web ``address``, ``path`` is no more than the name.
    """

    path: Path
    name: str
    address: str | None = None

    @property
    def source(self) -> str | Path:
        """What to read."""
        return self.path if self.address is None else self.address


def find_files(
    inputs: Sequence[str], suffixes: Sequence[str], *, kind: str, output: Path | None = None
) -> list[NamedFile]:
    """Files named by paths, folders (searched with those below), patterns and, of images, web addresses, each once.

    Of a folder, and of a pattern that matches any such file, only those with one of the ``suffixes`` are taken. Results
    mirror the tree below a folder, or below the part of a pattern before its first wildcard, and have names that
    differ. ``kind`` is for messages.
    Raises InputError naming the input that does not exist or holds no such file, or that is the output folder itself.
    """
    found: dict[Path | str, str] = {}
    for given in inputs:
        if is_web_address(given):
            if kind != "image":
                raise InputError(f"{given}: web addresses are read for images alone; download the {kind} first")
            found.setdefault(given, name_in_address(given))
            continue
        path = Path(given).expanduser()
        if path.is_dir():
            base, matches = path, _search_folder(path, suffixes, kind=kind, output=output)
        elif path.exists():
            base, matches = path.parent, [path]
        else:
            base, matches = _match_pattern(given, path, suffixes)
        for match in matches:
            found.setdefault(match, match.relative_to(base).with_suffix("").as_posix())
    return [_named(source, name) for source, name in zip(found, _distinct(found.values()), strict=True)]


def _named(source: Path | str, name: str) -> NamedFile:
    return NamedFile(source, name) if isinstance(source, Path) else NamedFile(Path(name), name, address=source)


def _search_folder(folder: Path, suffixes: Sequence[str], *, kind: str, output: Path | None) -> list[Path]:
    excluded = None if output is None else output.resolve()
    if folder.resolve() == excluded:
        raise InputError(f"{folder}: is the output directory too; results must not lie among what is predicted")
    found: list[Path] = []
    for current, folders, files in os.walk(folder):
        # Assigned in place, which is how os.walk is told where not to go.
        folders[:] = [
            name for name in folders if not name.startswith(".") and Path(current, name).resolve() != excluded
        ]
        found += [Path(current, name) for name in files if not name.startswith(".") and _has_suffix(name, suffixes)]
    if not found:
        raise InputError(f"{folder}: no {kind} in this directory or below (looked for {', '.join(suffixes)})")
    return sorted(found)


def _match_pattern(given: str, path: Path, suffixes: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder above the first wildcard, and the files that match."""
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not matches:
        raise InputError(f"{given}: no such file or directory, and no file matches it as a pattern")
    fixed = []
    for part in path.parts[:-1]:
        if any(character in part for character in _WILDCARDS):
            break
        fixed.append(part)
    return Path(*fixed), [match for match in matches if _has_suffix(match.name, suffixes)] or matches


def _has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))


def _distinct(names: Iterable[str]) -> Iterator[str]:
    """The names; one that is there already gets a number, also where the file system ignores case."""
    taken: set[str] = set()
    for given in names:
        name, number = given, 2
        while name.lower() in taken:
            name, number = f"{given}_{number}", number + 1
        taken.add(name.lower())
        yield name


def prepare_folder(given: str) -> Path:
    """Return the folder, made if missing.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(given).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{given}: cannot be the output directory: {error.strerror}") from error
    return folder


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_failures(failures: Sequence[str], what: str, *, of: str) -> str:
    """One line of what became of some of many files, the first twenty named: ``2 of 9 images could not be read: …``."""
    more = len(failures) - _MAX_FAILURES_NAMED
    named = [*failures[:_MAX_FAILURES_NAMED], *([f"and {more} more"] if more > 0 else [])]
    return f"{len(failures)} of {of} {what}: " + "; ".join(named)


PathLike: TypeAlias = "str | os.PathLike[str]"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: PathLike, *, error: type[InputError] = DatasetError) -> BinaryIO:
    """Return the file, opened for reading bytes.

    Raises:
        DatasetError (or ``error``): it is missing, a dangling link, not a regular file, or not readable.
    """
    try:
        mode = os.stat(path).st_mode  # before opening: a pipe nobody writes to would be waited for
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as cause:
        what = "file not found" if not os.path.islink(path) else f"a link to {os.readlink(path)}, which is not there"
        raise error(f"{path}: {what}") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    except ValueError as cause:  # a NUL in the name
        raise error(f"{os.fspath(path)!r}: cannot be the name of a file: {cause}") from cause
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise error(f"{path}: expected a file, found {found}")


def read_file(path: PathLike, *, error: type[InputError] = DatasetError) -> bytes:
    """Return the bytes of a file.

    Raises:
        DatasetError (or ``error``): as ``open_file``, or the disk fails.
    """
    with open_file(path, error=error) as file:
        try:
            return file.read()
        except OSError as cause:
            raise error(f"{path}: cannot be read: {cause.strerror}") from cause
