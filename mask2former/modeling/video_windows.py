"""Videos of any length: inference in overlapping windows, and matching of instances from one window to the next.

A window's masks become run-length codes when it is done; memory grows with the window, not with the video. Each frame's
masks come from one window, so a video that fits into one window has the results of the whole clip. Instances of two
windows are the same if their masks agree in the shared frames and their queries' mask embeddings are similar; if both
are hidden in all of these frames, the embeddings alone decide.

Letters: N M instances, Q queries, K classes, C channels, T frames, H W size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.errors import ConfigError
from mask2former.modeling.postprocess import NUM_CLIP_RESULTS, MaskGeometry, best_pairs, clip_masks
from mask2former.modeling.prediction import QueryPrediction
from mask2former.structures import Boxes, Instances, MaskTrack, bitmasks_to_rles, masks_to_boxes_xyxy, track_ious

# Masks of one object by two windows agree far better than this, those of two objects far worse.
MIN_MASK_IOU = 0.3
MIN_HIDDEN_SIMILARITY = 0.9  # cosine of mask embeddings, where no mask says anything

Frame = TypeVar("Frame")
Rle = dict[str, Any]


@dataclass(frozen=True)
class WindowOptions:
    """Infer ``length`` frames together, 0: all; successive windows share at least ``overlap`` frames."""

    length: int = 0
    overlap: int = 1

    def __post_init__(self) -> None:
        if self.length < 0 or (self.length and not 0 < self.overlap < self.length):
            raise ConfigError(
                "TEST.VIDEO.WINDOW must be 0 or more, and TEST.VIDEO.OVERLAP lie in 1..WINDOW - 1, "
                f"found WINDOW {self.length} and OVERLAP {self.overlap}"
            )

    def covers(self, num_frames: int) -> bool:
        """Return whether one window covers that many frames."""
        return not self.length or num_frames <= self.length


@dataclass(frozen=True)
class Window(Generic[Frame]):
    """Frames of a video from ``start`` on."""

    start: int
    frames: list[Frame]
    is_last: bool


def split_windows(frames: Iterable[Frame], options: WindowOptions) -> Iterator[Window[Frame]]:
    """Yield windows over frames, which are read as needed, one ahead; the last window is moved back, not shortened."""
    remaining = iter(frames)
    held = list(islice(remaining, options.length or None))
    start = 0
    while held:
        ahead = list(islice(remaining, 1))
        yield Window(start, held, is_last=not ahead)
        if not ahead:
            return
        ahead += islice(remaining, options.length - options.overlap - 1)
        held = held[len(ahead) :] + ahead
        start += len(ahead)


@dataclass(frozen=True)
class WindowPrediction:
    """N instances of a window, on the host: class_probs (N, K + 1), embeddings (N, C), a code for each of T frames."""

    class_probs: Tensor
    embeddings: Tensor
    rles: list[list[Rle]]


def infer_window(prediction: QueryPrediction, *, geometry: MaskGeometry) -> WindowPrediction:
    """Return the queries of a clip's results from the prediction of one window (B = 1)."""
    class_probs = prediction.class_logits[0].float().softmax(-1)
    chosen = best_pairs(class_probs, NUM_CLIP_RESULTS)[2].unique()
    embeddings = prediction.mask_embed[0, chosen]
    codes: list[Rle] = []
    for masks in clip_masks(prediction, chosen, geometry=geometry):
        codes += bitmasks_to_rles(masks)
    num_frames = len(codes) // len(chosen)
    return WindowPrediction(
        class_probs[chosen].cpu(),
        embeddings.float().cpu(),
        [codes[start : start + num_frames] for start in range(0, len(codes), num_frames)],
    )


@dataclass
class TrackPart:
    """One instance in the frames that a window decides: mean class_probs (K + 1,) so far, and codes by frame."""

    track_id: int
    class_probs: Tensor
    rles: dict[int, Rle]

    @property
    def best(self) -> tuple[float, int]:
        """Return probability and contiguous id of the most probable class."""
        score, label = self.class_probs[:-1].max(0)
        return float(score), int(label)


@dataclass(frozen=True)
class SettledFrames:
    """Frames ``start`` to ``stop`` (excluded), and the instances that their window found."""

    start: int
    stop: int
    tracks: list[TrackPart]


@dataclass
class _Track:
    id: int
    class_probs: Tensor
    num_frames: int = 0

    def update(self, class_probs: Tensor, num_frames: int) -> None:
        """Update the mean over the frames of the windows that found the instance."""
        self.num_frames += num_frames
        self.class_probs = self.class_probs + (class_probs - self.class_probs) * (num_frames / self.num_frames)


@dataclass
class WindowStitcher:
    """Assigns lasting track ids, from 1, to the instances of successive windows. Keeps only the last window."""

    overlap: int
    _num_tracks: int = 0
    _settled: int = 0  # frames before are done
    _stop: int = 0  # end of the last window
    _tracks: list[_Track] = field(default_factory=list)  # those of the last window, in its order
    _last: WindowPrediction | None = None

    def add(self, prediction: WindowPrediction, *, start: int, is_last: bool) -> SettledFrames:
        """Add the window that begins at frame ``start``; the next window decides the second half of their overlap."""
        stop = start + len(prediction.rles[0])
        until = stop if is_last else stop - self.overlap // 2
        self._tracks = self._continue(prediction, start=start)
        parts = []
        for track, class_probs, rles in zip(self._tracks, prediction.class_probs, prediction.rles, strict=True):
            track.update(class_probs, until - self._settled)
            codes = {frame: rles[frame - start] for frame in range(self._settled, until)}
            parts.append(TrackPart(track.id, track.class_probs, codes))
        settled = SettledFrames(self._settled, until, parts)
        self._settled, self._stop, self._last = until, stop, prediction
        return settled

    def _continue(self, prediction: WindowPrediction, *, start: int) -> list[_Track]:
        """Return the track of each instance of the window: one of the last window, or a new one."""
        same = {} if self._last is None else match_windows(self._last, prediction, num_shared=self._stop - start)
        tracks = []
        for index, class_probs in enumerate(prediction.class_probs):
            if index in same:
                tracks.append(self._tracks[same[index]])
            else:
                self._num_tracks += 1
                tracks.append(_Track(self._num_tracks, class_probs))
        return tracks


def match_windows(last: WindowPrediction, following: WindowPrediction, *, num_shared: int) -> dict[int, int]:
    """Return for instances (M) of the ``following`` window the same instance (N) of the ``last`` one, if any.

    The last ``num_shared`` frames of the one are the first of the other.
    """
    intersections, unions = track_ious(
        [rles[-num_shared:] for rles in last.rles], [rles[:num_shared] for rles in following.rles]
    )
    ious = intersections / np.maximum(unions, 1)
    cosines = (F.normalize(last.embeddings, dim=1) @ F.normalize(following.embeddings, dim=1).T).double().numpy()
    is_visible = unions > 0
    similarity = np.where(is_visible, (ious + cosines) / 2, cosines)
    allowed = np.where(is_visible, ious >= MIN_MASK_IOU, cosines >= MIN_HIDDEN_SIMILARITY)
    # What is not allowed costs more than any pair brings, yet keeps the assignment feasible.
    rows, columns = linear_sum_assignment(np.where(allowed, similarity, -1e3), maximize=True)
    return {int(column): int(row) for row, column in zip(rows, columns, strict=True) if allowed[row, column]}


def instances_of_frame(
    settled: SettledFrames, frame: int, *, image_size: tuple[int, int], score_threshold: float
) -> Instances:
    """Return the instances of one frame, by descending score, each once with its most probable class so far.

    Fields are those of an image's instances, and track_ids (N,).
    """
    best = [(*track.best, track.track_id, track.rles[frame]) for track in settled.tracks]
    chosen = [row for row in best if row[0] >= score_threshold and coco_mask.area(row[3])]
    chosen.sort(key=lambda row: -row[0])
    masks = torch.zeros((len(chosen), *image_size), dtype=torch.bool)
    for mask, row in zip(masks, chosen, strict=True):
        mask.copy_(torch.from_numpy(coco_mask.decode(row[3])))
    return Instances(
        image_size,
        scores=torch.tensor([row[0] for row in chosen]),
        pred_classes=torch.tensor([row[1] for row in chosen], dtype=torch.int64),
        pred_masks=masks,
        pred_boxes=Boxes(masks_to_boxes_xyxy(masks)),
        track_ids=torch.tensor([row[2] for row in chosen], dtype=torch.int64),
    )


def join_settled(settled: Iterable[SettledFrames], *, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the results of the whole video: those of a clip, with masks as MaskTrack, each instance at least once."""
    rles: dict[int, dict[int, Rle]] = {}
    class_probs: dict[int, Tensor] = {}
    num_frames = 0
    for part in settled:
        num_frames = part.stop
        for track in part.tracks:
            rles.setdefault(track.track_id, {}).update(track.rles)
            class_probs[track.track_id] = track.class_probs
    probs = torch.stack(list(class_probs.values()))  # (N, K + 1)
    masks = [MaskTrack(codes, num_frames=num_frames, image_size=image_size) for codes in rles.values()]
    scores, labels, tracks = best_pairs(probs, max(NUM_CLIP_RESULTS, len(probs)))
    return {
        "image_size": image_size,
        "pred_scores": scores.tolist(),
        "pred_labels": labels.tolist(),
        "pred_masks": [masks[track] for track in tracks.tolist()],
    }
