"""Turn class and mask logits of queries into semantic, panoptic and instance results of an image or a clip.

Queries are chosen by class probability first and only their masks are resized to the output, in one pass over strips of
the output for all tasks: memory grows with the output, not with queries times pixels.

Letters: Q queries, G chosen queries, N results, T frames, K classes, H W output size, S rows of a strip, h w size of
the mask logits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mask2former.modeling.mask_geometry import MaskGeometry, MaskResizer
from mask2former.modeling.prediction import QueryPrediction, multiply_masks
from mask2former.modeling.registry import POSTPROCESSING_REGISTRY
from mask2former.ops import MaskStrip, mask_winners
from mask2former.structures import Boxes, Instances, masks_to_boxes_xyxy

AREA_EPSILON = 1e-6  # keeps the score of an empty mask at zero
_MAPS_RESIZED_AT_ONCE = 4
_ROWS_NAMED_AT_ONCE = 1024  # of a panoptic map, whose indices take twice its memory
_SMALL_MASKS = 1 << 28  # bytes of masks of which a second copy does no harm
NUM_CLIP_RESULTS = 10  # Parity: the published video model keeps ten, whatever the config says (test_parity_video)


@dataclass(frozen=True)
class InferenceOptions:
    """Which tasks are inferred, and their thresholds."""

    semantic: bool = True
    semantic_labels: bool = False  # the class of each pixel instead of the scores of all classes
    panoptic: bool = False
    instance: bool = False
    object_mask_threshold: float = 0.0
    overlap_threshold: float = 0.0
    detections_per_image: int = 100
    score_threshold: float = 0.0
    mask_threshold: float = 0.5  # probability from which on a pixel belongs to a mask, for panoptic and instance
    resize_before_inference: bool = False
    things_only: bool = False  # instances of stuff are dropped, as they are wherever panoptic maps are inferred, too


class _Task(Protocol):
    queries: list[int]

    def add(self, strip: slice, seen: MaskStrip) -> None:
        """Add a strip of rows of the task's queries, (G, S, W)."""

    def result(self) -> Any:
        """Return the model's result of this task."""


@POSTPROCESSING_REGISTRY.register()
def infer_image(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    geometry: MaskGeometry,
    options: InferenceOptions,
    thing_ids: Set[int] | None = None,
) -> dict[str, Any]:
    """Return ``sem_seg``, ``panoptic_seg`` and ``instances`` of an image, those that ``options`` asks for.

    ``sem_seg`` is scores (K, H, W), or with ``semantic_labels`` the class of the largest, (H, W) int32.

    Args:
        class_logits: (Q, K + 1), "no object" last.
        mask_logits: (Q, h, w), at a size of which the padded input's is a multiple.
        geometry: the sizes between these masks and the output.
        options: tasks and thresholds.
        thing_ids: classes that are things; None: all.
    """
    class_probs = class_logits.float().softmax(-1)
    num_classes = class_probs.shape[-1] - 1
    things = set(range(num_classes)) if thing_ids is None else thing_ids
    # Parity: semantic masks are resized after the sum over queries unless another task needs them at the output size.
    resize_first = options.resize_before_inference or options.panoptic or options.instance
    tasks: dict[str, _Task] = {}
    if options.semantic:
        semantic_task = _SemanticLabelTask if options.semantic_labels else _SemanticTask
        tasks["sem_seg"] = semantic_task(class_probs, geometry=geometry, resize_first=resize_first)
    if options.panoptic:
        tasks["panoptic_seg"] = _PanopticTask(class_probs, size=geometry.output, things=things, options=options)
    if options.instance:
        # Parity: with panoptic inference on, instances of stuff are dropped after the choice of the best.
        kept = things if options.panoptic or options.things_only else set(range(num_classes))
        tasks["instances"] = _InstanceTask(class_probs, size=geometry.output, kept=kept, options=options)
    _run(list(tasks.values()), mask_logits, geometry, resize_first=resize_first, threshold=options.mask_threshold)
    return {name: task.result() for name, task in tasks.items()}


def _run(
    tasks: list[_Task], mask_logits: Tensor, geometry: MaskGeometry, *, resize_first: bool, threshold: float
) -> None:
    """Resize the masks that any task needs once, strip by strip, and pass them to the tasks."""
    wanted = sorted({query for task in tasks for query in task.queries})
    positions = {query: position for position, query in enumerate(wanted)}
    rows = [[positions[query] for query in task.queries] for task in tasks]
    maps = _select(mask_logits, wanted).float()
    size = (maps.shape[-2], maps.shape[-1])
    resizer = MaskResizer(geometry, size, device=maps.device, to_output=resize_first)
    least_logit = (
        math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else math.copysign(math.inf, threshold - 0.5)
    )
    for strip in resizer.strips(len(wanted)):
        seen = resizer.masks(maps, strip, least_logit=least_logit)
        for task, chosen in zip(tasks, rows):
            if chosen:
                task.add(strip, MaskStrip(*(_select(part, chosen) for part in seen)))


class _SemanticTask:
    """Class maps (K, H, W): sums over queries of class probability times mask probability."""

    def __init__(self, class_probs: Tensor, *, geometry: MaskGeometry, resize_first: bool) -> None:
        """Without ``resize_first`` the sums have the image's size and are resized to the output afterwards."""
        self.weights = class_probs[:, :-1].T  # (K, Q)
        self.queries = list(range(len(class_probs)))
        self.geometry = geometry
        self.resize_last = not resize_first
        size = geometry.output if resize_first else geometry.image
        self.maps = class_probs.new_empty((len(self.weights), *size))

    def add(self, strip: slice, seen: MaskStrip) -> None:
        sums = self.maps[:, strip].flatten(1)  # (K, SW), rows of the maps: a view
        torch.mm(self.weights, seen.probs.flatten(1), out=sums)

    def result(self) -> Tensor:
        return self.geometry.image_to_output(self.maps) if self.resize_last else self.maps


class _SemanticLabelTask:
    """The class of each pixel (H, W) int32 with the largest value in ``_SemanticTask``, the first of equal ones."""

    def __init__(self, class_probs: Tensor, *, geometry: MaskGeometry, resize_first: bool) -> None:
        """The sums are stored, at the image's size, only if they must be resized from it to another."""
        self.weights = class_probs[:, :-1].T  # (K, Q)
        self.queries = list(range(len(class_probs)))
        self.sums: _SemanticTask | None = None
        if not resize_first and geometry.image != geometry.output:
            self.sums = _SemanticTask(class_probs, geometry=geometry, resize_first=False)
        self.labels = torch.empty(geometry.output, dtype=torch.int32, device=class_probs.device)

    def add(self, strip: slice, seen: MaskStrip) -> None:
        if self.sums is not None:
            self.sums.add(strip, seen)
        else:
            self.labels[strip] = (self.weights @ seen.probs.flatten(1)).argmax(0).view_as(self.labels[strip])

    def result(self) -> Tensor:
        return self.labels if self.sums is None else largest_of_resized(self.sums.maps, self.sums.geometry)


def largest_of_resized(maps: Tensor, geometry: MaskGeometry) -> Tensor:
    """Return which of maps (K, *image), resized to the output, is the largest, (H, W) int32, the first of equal ones.

    Maps are resized a few at a time, so memory does not grow with their number.
    """
    best = maps.new_full(geometry.output, -math.inf)
    labels = torch.zeros(geometry.output, dtype=torch.int32, device=maps.device)
    for first in range(0, len(maps), _MAPS_RESIZED_AT_ONCE):
        resized = geometry.image_to_output(maps[first : first + _MAPS_RESIZED_AT_ONCE])
        for label, scores in enumerate(resized, start=first):
            labels.masked_fill_(scores > best, label)
            torch.maximum(best, scores, out=best)
    return labels


class _PanopticTask:
    """Segments without overlap: each pixel goes to the kept query with the largest score times probability."""

    def __init__(
        self, class_probs: Tensor, *, size: tuple[int, int], things: Set[int], options: InferenceOptions
    ) -> None:
        scores, labels = class_probs.max(-1)
        rows = torch.stack((scores, labels.to(scores.dtype)), dim=1).tolist()  # exact: labels are small integers
        void = class_probs.shape[-1] - 1
        kept = [
            query
            for query, (score, label) in enumerate(rows)
            if label != void and score > options.object_mask_threshold
        ]
        self.queries = kept
        self.scores = [rows[query][0] for query in kept]
        self.labels = [int(rows[query][1]) for query in kept]
        self.things = things
        self.overlap_threshold = options.overlap_threshold
        self.mask_threshold = options.mask_threshold
        device = class_probs.device
        self.weights = scores[torch.tensor(kept, dtype=torch.long, device=device)]
        self.size = size
        # Twice the pixel's winner among the kept, plus 1 inside its own mask; in the end the ids.
        self.winners = torch.empty(size, dtype=torch.int32, device=device)
        self.won = torch.zeros(2 * len(kept), dtype=torch.long, device=device)  # pixels of each such number
        self.areas = torch.zeros(len(kept), dtype=torch.long, device=device)  # pixels of each kept mask

    def add(self, strip: slice, seen: MaskStrip) -> None:
        winners = mask_winners(seen.probs, self.weights, threshold=self.mask_threshold)
        self.winners[strip] = winners.numbers
        self.won += winners.won
        self.areas += winners.areas

    def result(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return ids (H, W) int32 from 1, 0 is void, and for each its id, isthing, category_id and score."""
        if not self.queries:
            return torch.zeros(self.size, dtype=torch.int32, device=self.weights.device), []
        # One histogram gives, for each kept query, the pixels it won outside and inside its own mask.
        counts = torch.cat((self.won.view(-1, 2), self.areas[:, None]), dim=1)
        segment_of, segments = self._segments(counts.tolist())
        ids = [segment * inside for segment in segment_of for inside in (0, 1)]
        ids_of = torch.tensor(ids, dtype=torch.int32, device=self.winners.device)
        for rows in self.winners.split(_ROWS_NAMED_AT_ONCE):
            rows.copy_(ids_of[rows])
        return self.winners, segments

    def _segments(self, counts: list[list[int]]) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the segment id of each kept query, 0 for none, and the segments."""
        segment_of = [0] * len(counts)
        segments: list[dict[str, Any]] = []
        stuff: dict[int, dict[str, Any]] = {}
        for position, (outside, intersection, area) in enumerate(counts):
            if not intersection or (outside + intersection) / area < self.overlap_threshold:
                continue
            label, score = self.labels[position], self.scores[position]
            if label in stuff:  # regions of one stuff class are one segment
                stuff[label]["score"] = max(stuff[label]["score"], score)
                segment_of[position] = stuff[label]["id"]
                continue
            isthing = label in self.things
            segment = {"id": len(segments) + 1, "isthing": isthing, "category_id": label, "score": score}
            segments.append(segment)
            segment_of[position] = segment["id"]
            if not isthing:
                stuff[label] = segment
        return segment_of, segments


class _InstanceTask:
    """The best pairs of query and class, scored by class probability times mean probability inside the mask."""

    def __init__(
        self, class_probs: Tensor, *, size: tuple[int, int], kept: Set[int], options: InferenceOptions
    ) -> None:
        scores, labels, queries = best_pairs(class_probs, options.detections_per_image)
        chosen = zip(scores.tolist(), labels.tolist(), queries.tolist())
        # A mask's score is at most 1: what is below the threshold now stays below it.
        pairs = [pair for pair in chosen if pair[1] in kept and pair[0] >= options.score_threshold]
        self.queries = sorted({query for _, _, query in pairs})
        position = {query: index for index, query in enumerate(self.queries)}
        device = class_probs.device
        self.scores = torch.tensor([pair[0] for pair in pairs], dtype=torch.float32, device=device)
        self.labels = torch.tensor([pair[1] for pair in pairs], dtype=torch.long, device=device)
        self.members = torch.tensor([position[pair[2]] for pair in pairs], dtype=torch.long, device=device)
        self.size = size
        self.score_threshold = options.score_threshold
        # Room for one mask an instance; the first are those of the queries until the order is known.
        self.masks = torch.empty((len(pairs), *size), dtype=torch.bool, device=device)
        # Probabilities inside each mask, and its pixels.
        self.sums = torch.zeros((2, len(self.queries)), dtype=torch.float32, device=device)

    def add(self, strip: slice, seen: MaskStrip) -> None:
        self.masks[: len(self.queries), strip] = seen.masks
        self.sums += torch.stack((seen.inside_sums, seen.areas))

    def result(self) -> Instances:
        """Return N instances by descending score: scores, pred_classes, pred_masks (N, H, W) bool, pred_boxes."""
        boxes_xyxy = masks_to_boxes_xyxy(self.masks[: len(self.queries)])
        mask_scores = self.sums[0] / (self.sums[1] + AREA_EPSILON)
        scores = self.scores * mask_scores[self.members]
        scores, order = scores.sort(descending=True)
        order = order[scores >= self.score_threshold]
        members = self.members[order]
        return Instances(
            self.size,
            scores=scores[: len(order)],
            pred_classes=self.labels[order],
            pred_masks=_rearranged(self.masks, members),
            pred_boxes=Boxes(boxes_xyxy[members]),
        )


def _rearranged(masks: Tensor, members: Tensor) -> Tensor:
    """Return masks[members] of masks (N, H, W), in place if they are large, to avoid a second copy of them."""
    if masks.numel() <= _SMALL_MASKS:
        return masks[members]
    source_of = {place: source for place, source in enumerate(members.tolist()) if place != source}
    num_readers = Counter(source_of.values())
    free = [place for place in source_of if not num_readers[place]]
    while source_of:
        if free:  # nothing waits for what is in this place
            place = free.pop()
            source = source_of.pop(place)
            masks[place] = masks[source]
            num_readers[source] -= 1
            if source in source_of and not num_readers[source]:
                free.append(source)
        else:
            _turn_ring(masks, source_of)
    return masks[: len(members)]


def _turn_ring(masks: Tensor, source_of: dict[int, int]) -> None:
    """Move masks whose places depend on each other in a cycle, and remove them from ``source_of``."""
    start = place = next(iter(source_of))
    kept = masks[start].clone()
    while (source := source_of.pop(place)) != start:
        masks[place] = masks[source]
        place = source
    masks[place] = kept


def best_pairs(class_probs: Tensor, num_pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, classes and queries (N,) of the best pairs by probability (Q, K + 1), in descending order.

    "No object" is never among them.
    """
    num_classes = class_probs.shape[-1] - 1
    pair_probs = class_probs[:, :-1].flatten()  # (QK,)
    scores, pairs = pair_probs.topk(min(num_pairs, len(pair_probs)))
    return scores, pairs % num_classes, pairs // num_classes


def infer_clip(prediction: QueryPrediction, *, geometry: MaskGeometry) -> dict[str, Any]:
    """Return the ten best pairs of query and class in a clip, by descending score, on the host.

    Args:
        prediction: that of one clip (B = 1).
        geometry: sizes of every frame.

    Returns:
        ``image_size`` (H, W), ``pred_scores`` and ``pred_labels`` lists of numbers, ``pred_masks`` a list of (T, H, W)
            bool.
    """
    scores, labels, queries = best_pairs(prediction.class_logits[0].float().softmax(-1), NUM_CLIP_RESULTS)
    unique, member = queries.unique(return_inverse=True)
    masks = list(clip_masks(prediction, unique, geometry=geometry))
    by_query = torch.cat(masks).unflatten(0, (len(unique), -1))  # (N, T, H, W)
    return {
        "image_size": geometry.output,
        "pred_scores": scores.tolist(),
        "pred_labels": labels.tolist(),
        "pred_masks": [by_query[index] for index in member.tolist()],
    }


def clip_masks(prediction: QueryPrediction, queries: Tensor, *, geometry: MaskGeometry) -> Iterator[Tensor]:
    """Yield masks (T, H, W) bool of each of N queries in one clip (B = 1), at output size, on the host."""
    logits = multiply_masks(prediction.mask_embed[:, queries], prediction.mask_features)[0]  # (N, T, h, w)
    for frames in logits:
        yield (geometry.resize(frames) > 0).cpu()


def _select(maps: Tensor, rows: list[int]) -> Tensor:
    """Return rows of maps (G, ...), without a copy if all are selected."""
    return maps if len(rows) == len(maps) else maps[torch.tensor(rows, dtype=torch.long, device=maps.device)]
