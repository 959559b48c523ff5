"""Results from raw outputs, as the model makes them, in numpy and in strips: memory grows with the result alone.

Letters: Q queries, G chosen queries, N instances, K classes, H W size of the result, S rows of a strip, h w size of the
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

_STRIP_VALUES = 1 << 22
_AREA_EPSILON = 1e-6
_MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class Segment:
    """A panoptic segment; ``id`` is its number in ``panoptic_ids``."""

    id: int
    class_id: int
    label: str
    is_thing: bool
    score: float


@dataclass(frozen=True)
class Instances:
    """N instances by descending score: scores (N,), class_ids (N,), masks (N, H, W) bool, boxes (N, 4).

    Boxes are x0, y0, x1, y1 in pixels, the last two exclusive.
    """

    scores: np.ndarray
    class_ids: np.ndarray
    labels: list[str]
    masks: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Result:
    """What a model found in an image; None for tasks that it does not do.

    ``panoptic_ids`` (H, W) int32, 0 is void; ``semantic_labels`` (H, W) int32 class ids.
    """

    panoptic_ids: np.ndarray | None = None
    segments: list[Segment] = field(default_factory=list)
    instances: Instances | None = None
    semantic_labels: np.ndarray | None = None

    def merged(self, other: Result) -> Result:
        """Return this with what the other one found, of other tasks."""
        found = {name: value for name, value in vars(other).items() if value is not None}
        return replace(self, **{**found, "segments": [*self.segments, *other.segments]})


@dataclass(frozen=True)
class Sizes:
    """Sizes (height, width) of the ``padded`` image, the ``image``, and the result (``output``)."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


class Strips:
    """Resizes maps (N, h, w) of the padded image to the output, some rows at a time."""

    def __init__(self, sizes: Sizes, size: tuple[int, int], *, to_output: bool = True) -> None:
        self.target = sizes.output if to_output else sizes.image
        axes = zip(size, sizes.padded, sizes.image, self.target, strict=True)
        self._rows, columns = (
            _lines(image, target) @ _lines(source, padded)[:image] for source, padded, image, target in axes
        )
        self._columns = np.ascontiguousarray(columns.T)  # (w, W)

    def slices(self, num_maps: int) -> list[slice]:
        """Return ranges of rows that are small enough for so many maps."""
        height, width = self.target
        step = max(1, _STRIP_VALUES // max(1, num_maps * width))
        return [slice(start, min(start + step, height)) for start in range(0, height, step)]

    def __call__(self, maps: np.ndarray, strip: slice) -> np.ndarray:
        """Map (N, h, w) to (N, S, W)."""
        rows = self._rows[strip]
        used = np.flatnonzero(rows.any(axis=0))
        first, stop = used[0], used[-1] + 1
        return np.matmul(rows[:, first:stop], np.matmul(maps[:, first:stop], self._columns))


def _lines(source: int, length: int) -> np.ndarray:
    """Return the matrix (length, source) of linear resizing without aligned corners."""
    if source == length:
        return np.eye(source, dtype=np.float32)
    places = np.clip((np.arange(length) + 0.5) * (source / length) - 0.5, 0, source - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(source)), 0).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))


@dataclass(frozen=True)
class Options:
    """Thresholds, which tasks are wanted, and names and kinds of the classes."""

    tasks: Sequence[str]
    thresholds: dict[str, Any]
    classes: Sequence[str]
    is_thing: Sequence[bool]
    things_only: bool = False  # of instances; so it is wherever panoptic results are wanted, too


def results_of_queries(class_logits: np.ndarray, mask_logits: np.ndarray, *, sizes: Sizes, options: Options) -> Result:
    """Return the result of one image from class logits (Q, K + 1) and mask logits (Q, h, w)."""
    probs, found = softmax(class_logits), {}
    resize_first = bool({"panoptic", "instance"} & set(options.tasks)) or options.thresholds["resize_before_inference"]
    tasks: dict[str, Any] = {
        task: _TASKS[task](probs, sizes.output if resize_first else sizes.image, options) for task in options.tasks
    }
    wanted = sorted({query for task in tasks.values() for query in task.queries})
    strips = Strips(sizes, mask_logits.shape[1:], to_output=resize_first)
    maps = np.ascontiguousarray(mask_logits[wanted])
    for strip in strips.slices(len(wanted)) if wanted else []:
        logits = strips(maps, strip)
        mask_probs = _sigmoid(logits)
        for task in tasks.values():
            if task.queries:
                rows = np.searchsorted(wanted, task.queries)
                task.add(strip, mask_probs[rows], logits[rows] > 0)
    for task in tasks.values():
        found.update(task.result())
    if "semantic" in tasks:
        sums = found.pop("sums")
        found["semantic_labels"] = largest(sums) if resize_first else labels_of_maps(sums, sizes.image, sizes)
    return Result(**found)


def labels_of_maps(maps: np.ndarray, padded: tuple[int, int], sizes: Sizes) -> np.ndarray:
    """Return the class of each pixel of the output from maps (K, h, w) that cover ``padded``."""
    strips = Strips(Sizes(padded, sizes.image, sizes.output), maps.shape[1:])
    return np.concatenate([largest(strips(maps, strip)) for strip in strips.slices(len(maps))])


def largest(maps: np.ndarray) -> np.ndarray:
    """Return the index of the largest map (N, H, W) at each pixel, int32."""
    return maps.argmax(axis=0).astype(np.int32)


class _Semantic:
    def __init__(self, probs: np.ndarray, size: tuple[int, int], options: Options) -> None:
        self.weights = probs[:, :-1].T  # (K, Q)
        self.queries = list(range(len(probs)))
        self.sums = np.empty((len(self.weights), *size), np.float32)

    def add(self, strip: slice, probs: np.ndarray, inside: np.ndarray) -> None:
        self.sums[:, strip] = np.tensordot(self.weights, probs, axes=1)

    def result(self) -> dict[str, Any]:
        return {"sums": self.sums}


class _Panoptic:
    def __init__(self, probs: np.ndarray, size: tuple[int, int], options: Options) -> None:
        labels, scores = probs.argmax(axis=-1), probs.max(axis=-1)
        kept = (labels != probs.shape[-1] - 1) & (scores > options.thresholds["object_mask"])
        self.queries = np.flatnonzero(kept).tolist()
        self.labels, self.scores = labels[kept].tolist(), scores[kept]
        self.options = options
        self.ids = np.zeros(size, np.int32)  # until the end twice the winner, plus 1 inside its mask
        self.won = np.zeros(2 * len(self.queries), np.int64)
        self.areas = np.zeros(len(self.queries), np.int64)

    def add(self, strip: slice, probs: np.ndarray, inside: np.ndarray) -> None:
        winners = (probs * self.scores[:, None, None]).argmax(axis=0)
        is_inside = probs >= _MASK_THRESHOLD
        numbers = 2 * winners + np.take_along_axis(is_inside, winners[None], axis=0)[0]
        self.won += np.bincount(numbers.ravel(), minlength=len(self.won))
        self.areas += is_inside.sum(axis=(1, 2))
        self.ids[strip] = numbers

    def result(self) -> dict[str, Any]:
        segments: list[Segment] = []
        stuff: dict[int, int] = {}
        id_of = np.zeros(len(self.won) + 1, np.int32)
        for place, label in enumerate(self.labels):
            outside, common = self.won[2 * place : 2 * place + 2].tolist()
            if not common or (outside + common) / self.areas[place] < self.options.thresholds["overlap"]:
                continue
            score, is_thing = float(self.scores[place]), bool(self.options.is_thing[label])
            number = stuff.get(label, len(segments) + 1)
            if number > len(segments):
                segments.append(Segment(number, label, self.options.classes[label], is_thing, score))
                stuff.update({} if is_thing else {label: number})
            elif score > segments[number - 1].score:  # regions of one stuff class are one segment
                segments[number - 1] = Segment(number, label, self.options.classes[label], is_thing, score)
            id_of[2 * place + 1] = number
        return {"panoptic_ids": id_of[self.ids] if self.queries else self.ids, "segments": segments}


class _Instance:
    def __init__(self, probs: np.ndarray, size: tuple[int, int], options: Options) -> None:
        num_classes, thresholds = probs.shape[-1] - 1, options.thresholds
        pairs = probs[:, :-1].ravel()
        order = np.argsort(-pairs, kind="stable")[: thresholds["detections_per_image"]]
        # Stuff is dropped after the choice of the best.
        keeps_stuff = "panoptic" not in options.tasks and not options.things_only
        best = [
            pair
            for pair in order.tolist()
            if pairs[pair] >= thresholds["score"] and (keeps_stuff or options.is_thing[pair % num_classes])
        ]
        self.options = options
        self.scores = pairs[best]
        self.class_ids = np.array(best, np.int64) % num_classes
        self.queries = sorted({pair // num_classes for pair in best})
        self.members = np.searchsorted(self.queries, [pair // num_classes for pair in best]).astype(np.int64)
        self.masks = np.empty((len(self.queries), *size), bool)
        self.sums = np.zeros(len(self.queries))
        self.areas = np.zeros(len(self.queries))

    def add(self, strip: slice, probs: np.ndarray, inside: np.ndarray) -> None:
        self.masks[:, strip] = inside
        self.sums += (probs * inside).sum(axis=(1, 2), dtype=np.float64)
        self.areas += inside.sum(axis=(1, 2))

    def result(self) -> dict[str, Any]:
        quality = (self.sums / (self.areas + _AREA_EPSILON)).astype(np.float32)
        scores = self.scores * quality[self.members]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.options.thresholds["score"]]
        members, class_ids = self.members[order], self.class_ids[order]
        boxes = np.array([_box(mask) for mask in self.masks], np.float32).reshape(-1, 4)
        labels = [self.options.classes[label] for label in class_ids]
        return {"instances": Instances(scores[order], class_ids, labels, self.masks[members], boxes[members])}


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


_TASKS: dict[str, Callable[..., Any]] = {"panoptic": _Panoptic, "instance": _Instance, "semantic": _Semantic}
