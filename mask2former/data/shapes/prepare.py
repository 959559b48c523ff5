"""Writing the shapes data set to disk, in several processes, so that a killed run can be started again.

The scratch folder keeps the records of finished chunks; the manifest comes last. The result depends on the parameters
alone, not on the number of processes nor on interruptions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mask2former.data.processes import process_pool
from mask2former.data.shapes.writing import (
    KINDS,
    SCRATCH,
    SPLITS,
    Chunk,
    Record,
    ShapesParameters,
    chunks_of,
    draw_chunk,
    write_annotations,
)
from mask2former.errors import DatasetError
from mask2former.files.atomic import remove_temporaries, write_json

MANIFEST = "manifest.json"
_FOLDERS = ("annotations", *(f"{role}{split}" for role in ("", "panoptic_", "sem_seg_", "video_") for split in SPLITS))


def prepare_shapes(
    output: str | os.PathLike[str], parameters: ShapesParameters, *, num_workers: int = 2, force: bool = False
) -> bool:
    """Write the data set below ``output``; returns False where it was complete already.

    An interrupted run with the same parameters is continued. With ``force`` a data set drawn before is drawn anew.

    Raises:
        DatasetError: ``output`` holds shapes drawn with other parameters and ``force`` is not set, holds files that are
            not from here, or cannot be written.
    """
    if num_workers < 1:
        raise DatasetError(f"num_workers: expected at least 1, found {num_workers}")
    root = Path(output)
    try:
        if not force and _is_complete(root, parameters):
            shutil.rmtree(root / SCRATCH, ignore_errors=True)
            return False
        _make_room(root, parameters, force=force)
        _draw_all(root, parameters, num_workers)
        write_json(parameters.manifest(), root / MANIFEST)
        shutil.rmtree(root / SCRATCH, ignore_errors=True)
    except OSError as error:
        raise DatasetError(f"cannot write the shapes data set below {root}: {error}") from error
    return True


def _is_complete(root: Path, parameters: ShapesParameters) -> bool:
    if _read_manifest(root / MANIFEST) != parameters.manifest():
        return False
    return all(
        sum(1 for _ in (root / folder).glob("*")) == parameters.count(kind, split)
        for split in SPLITS
        for kind, folder in (
            ("image", split),
            ("image", f"panoptic_{split}"),
            ("image", f"sem_seg_{split}"),
            ("video", f"video_{split}/JPEGImages"),
        )
    )


def _read_manifest(path: Path) -> Record | None:
    """Return the manifest, an empty one after an interrupted run, or None if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from error
    if content != {} and (not isinstance(content, dict) or content.get("dataset") != "shapes"):
        raise DatasetError(f"{path} is not the manifest of a shapes data set: choose another --output")
    return content


def _make_room(root: Path, parameters: ShapesParameters, *, force: bool) -> None:
    """Remove what another run left, if it may be removed; what remains was drawn with these parameters."""
    complete, unfinished = (_read_manifest(folder / MANIFEST) for folder in (root, root / SCRATCH))
    present = [root / name for name in _FOLDERS if (root / name).exists()]
    wanted = parameters.manifest()
    if present and complete is None and unfinished is None:
        raise DatasetError(f"{present[0]} exists but was not written by this command: choose another --output")
    if complete not in (None, wanted) and not force:
        changes = [f"{k} is {complete.get(k)}, asked for {v}" for k, v in wanted.items() if complete.get(k) != v]
        raise DatasetError(
            f"{root} holds shapes drawn with other parameters ({'; '.join(changes)}): "
            "choose another --output, or --force to draw them anew"
        )
    if complete is None and unfinished == wanted and not force:
        remove_temporaries(root)
        return
    # An empty manifest until all is removed: a run stopped here begins with removing again.
    shutil.rmtree(root / SCRATCH, ignore_errors=True)
    write_json({}, root / f"{SCRATCH}/{MANIFEST}")
    (root / MANIFEST).unlink(missing_ok=True)
    for folder in present:
        shutil.rmtree(folder)
    write_json(wanted, root / f"{SCRATCH}/{MANIFEST}")


def _draw_all(root: Path, parameters: ShapesParameters, num_workers: int) -> None:
    chunks = list(chunks_of(parameters))
    records: dict[Chunk, list[Record]] = {}
    draw = partial(draw_chunk, root=root, parameters=parameters)
    with tqdm(total=sum(c.stop - c.start for c in chunks), desc="shapes", unit="item", disable=None) as progress:
        for chunk, result in _map_unordered(draw, chunks, num_workers):
            records[chunk] = result
            progress.update(chunk.stop - chunk.start)
    for split in SPLITS:
        images, videos = (
            [record for chunk in chunks if (chunk.kind, chunk.split) == (kind, split) for record in records[chunk]]
            for kind in KINDS
        )
        write_annotations(root, split, images, videos)


def _map_unordered(
    function: Callable[[Chunk], list[Record]], chunks: list[Chunk], num_workers: int
) -> Iterator[tuple[Chunk, list[Record]]]:
    if num_workers == 1:
        yield from ((chunk, function(chunk)) for chunk in chunks)
        return
    with process_pool(num_workers, preload=[draw_chunk.__module__]) as pool:
        futures: dict[Future[list[Record]], Chunk] = {pool.submit(function, chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield futures[future], future.result()
