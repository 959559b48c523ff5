"""Process many files: in several processes, with one progress bar, without repeating what is done; map their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from mask2former.data.processes import process_pool
from mask2former.errors import DatasetError
from mask2former.files.atomic import link_or_copy
from mask2former.files.images import read_image_size
from mask2former.files.maps import read_panoptic_ids
from mask2former.files.pictures import is_intact, write_picture

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_CHUNK = 16  # files handed to a process at a time


@dataclass(frozen=True)
class RunOptions:
    """``force`` repeats what is already there."""

    num_workers: int = 1
    force: bool = False


@dataclass(frozen=True)
class Conversion:
    """A target image to be made from ``source``; its size is that of ``size_of`` (``source`` if None)."""

    source: Path
    target: Path
    detail: Any = None
    size_of: Path | None = None


def convert_all(
    conversions: Sequence[Conversion],
    convert: Callable[[Conversion], np.ndarray],
    options: RunOptions,
    *,
    description: str,
) -> None:
    """Write what ``convert`` returns, pixels (H, W) or (H, W, 3), to each target that is missing or damaged."""
    convert_one = partial(_convert_one, convert=convert, force=options.force)
    written = run_all(convert_one, conversions, options, description=description)
    print(f"{description}: {sum(written)} files written, {len(written) - sum(written)} were there")


def _convert_one(conversion: Conversion, convert: Callable[[Conversion], np.ndarray], force: bool) -> bool:
    size = read_image_size(conversion.size_of or conversion.source)
    if not force and is_intact(conversion.target, size):
        return False
    pixels = convert(conversion)
    if pixels.shape[:2] != size:
        raise DatasetError(
            f"{conversion.source}: (height, width) is {pixels.shape[:2]}, that of {conversion.size_of} is {size}"
        )
    write_picture(pixels, conversion.target)
    return True


def link_all(pairs: Sequence[tuple[Path, Path]], options: RunOptions, *, description: str) -> None:
    """Make each target a link to its source, or a copy; existing ones are kept."""
    written = run_all(_link, pairs, options, description=description)
    print(f"{description}: {sum(written)} files placed, {len(written) - sum(written)} were there")


def _link(pair: tuple[Path, Path]) -> bool:
    return link_or_copy(*pair)


def run_all(
    function: Callable[[Item], Result], items: Sequence[Item], options: RunOptions, *, description: str
) -> list[Result]:
    """Return the results of ``function`` for each item, in their order.

    Raises:
        DatasetError: what ``function`` raised, a file that cannot be written, or a process that was killed.
    """
    try:
        results = _map(function, items, min(options.num_workers, max(len(items), 1)))
        return list(tqdm(results, total=len(items), desc=description, unit="file", disable=None))
    except OSError as error:
        raise DatasetError(f"{description}: {error}") from error


def _map(function: Callable[[Item], Result], items: Sequence[Item], num_workers: int) -> Iterator[Result]:
    if num_workers == 1:
        yield from map(function, items)
        return
    chunksize = max(1, min(_MAX_CHUNK, len(items) // (4 * num_workers)))
    with process_pool(num_workers, preload=[__name__]) as pool:
        yield from pool.map(function, items, chunksize=chunksize)


_NUM_VALUES = 1 << 16


def lookup(
    values: np.ndarray, table: dict[int, int], path: Path, *, default: int | None = None, dtype: type = np.uint8
) -> np.ndarray:
    """Return ``table[value]`` (H, W) for values (H, W) of 0 to 65535; ``default`` for values without an entry.

    Raises:
        DatasetError: a value of the file ``path`` has no entry and there is no default.
    """
    mapped_values = np.full(_NUM_VALUES, -1 if default is None else default, dtype=np.int32)
    mapped_values[list(table)] = list(table.values())
    mapped = mapped_values[values]
    if (mapped < 0).any():
        unknown = np.unique(values[mapped < 0]).tolist()
        raise DatasetError(f"{path}: labels {unknown[:10]} have no class; those with one are {sorted(table)}")
    return mapped.astype(dtype)


def read_red_and_green(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two channels (H, W) int32 of an RGB label file.

    Raises:
        DatasetError: the file is missing, damaged or not coloured.
    """
    channels = read_panoptic_ids(path)
    return channels & 255, channels >> 8 & 255
