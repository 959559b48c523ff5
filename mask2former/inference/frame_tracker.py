"""Track ids of things in a video whose frames an image model predicts one by one.

A thing gets the track id of a thing of the same class in an earlier frame if their masks overlap, or if that thing
would be near after moving on as before. This keeps colours stable; things that reappear elsewhere get new ids.
Letters: N M things, H W size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from mask2former.config import Registry
from mask2former.structures import Instances, bitmasks_to_rles, track_ious

MIN_IOU = 0.2
MAX_DISTANCE = 1.5  # between the expected and the found centre, in sides of a square as the thing
MAX_MISSED_FRAMES = 15  # how long a thing that is not seen keeps its id


@dataclass
class _Sighting:
    """A thing in a frame; its centre is (x, y) in pixels."""

    class_id: int
    rle: dict[str, Any]
    centre: np.ndarray
    area: float


@dataclass
class _Known:
    number: int
    last: _Sighting
    frame: int
    velocity: np.ndarray  # pixels a frame

    def see(self, sighting: _Sighting, frame: int) -> None:
        """Update the known thing with a new sighting."""
        self.velocity = (sighting.centre - self.last.centre) / (frame - self.frame)
        self.last, self.frame = sighting, frame


class Tracker(Protocol):
    """Assigns track ids in the results of successive frames of one video."""

    def track_instances(self, instances: Instances) -> Instances:
        """Return the instances of the next frame with ``track_ids`` (N,)."""

    def track_panoptic(
        self, ids: torch.Tensor, segments_info: list[dict[str, Any]]
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Return the segments of the next frame with ids that stay the same from frame to frame.

        The id of a thing is also its ``track_id``.
        """


# Builders that take the config, or classes with `from_config`: one is built for each video and kind of results.
TRACKER_REGISTRY = Registry("tracker", key="TEST.VIDEO.TRACKER")


@TRACKER_REGISTRY.register()
class FrameTracker:
    """Tracks masks that overlap or move evenly; track ids begin with 1."""

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self._stuff: dict[int, int] = {}
        self._num_numbers = 0
        self._frame = 0

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Return no arguments: this tracker has no options."""
        return {}

    def track_instances(self, instances: Instances) -> Instances:
        """Return the instances of the next frame with ``track_ids`` (N,)."""
        numbers = self.track(instances.pred_masks.cpu().numpy(), instances.pred_classes.tolist())
        fields = {**instances.get_fields(), "track_ids": torch.tensor(numbers, dtype=torch.int64)}
        return Instances(instances.image_size, **fields)

    def track_panoptic(
        self, ids: torch.Tensor, segments_info: list[dict[str, Any]]
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Return the segments of the next frame with ids that stay the same from frame to frame.

        The id of a thing is also its ``track_id``.
        """
        things = [info for info in segments_info if info["isthing"]]
        array = ids.cpu().numpy()
        masks = np.stack([array == info["id"] for info in things]) if things else np.zeros((0, *array.shape), bool)
        numbers = iter(self.track(masks, [info["category_id"] for info in things]))
        table = np.zeros(max([0, *(info["id"] for info in segments_info)]) + 1, dtype=np.int32)
        numbered = []
        for info in segments_info:
            number = next(numbers) if info["isthing"] else self._number_of_stuff(info["category_id"])
            table[info["id"]] = number
            numbered.append({**info, "id": number, **({"track_id": number} if info["isthing"] else {})})
        return torch.from_numpy(table[array]), numbered

    def track(self, masks: np.ndarray, class_ids: list[int]) -> list[int]:
        """Return track ids of the things of the next frame: masks (N, H, W) bool and contiguous class ids."""
        sightings = [_look_at(mask, class_id) for mask, class_id in zip(masks, class_ids, strict=True)]
        similarity = self._compare(sightings)
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        found = {
            int(column): self._known[row] for row, column in zip(rows, columns, strict=True) if similarity[row, column]
        }
        for index, sighting in enumerate(sightings):
            if index in found:
                found[index].see(sighting, self._frame)
            else:
                found[index] = _Known(self._next_number(), sighting, self._frame, np.zeros(2))
                self._known.append(found[index])
        self._known = [known for known in self._known if self._frame - known.frame <= MAX_MISSED_FRAMES]
        self._frame += 1
        return [found[index].number for index in range(len(sightings))]

    def _compare(self, sightings: list[_Sighting]) -> np.ndarray:
        """Return the similarity (N, M) of known things (N) and those of the frame (M); 0: not the same."""
        intersections, unions = track_ious(
            [[known.last.rle] for known in self._known], [[sighting.rle] for sighting in sightings]
        )
        similarity = intersections / np.maximum(unions, 1)  # (N, M)
        similarity[similarity < MIN_IOU] = 0
        for row, known in zip(similarity, self._known, strict=True):
            expected = known.last.centre + known.velocity * (self._frame - known.frame)
            for column, sighting in enumerate(sightings):
                # Of the larger of both: what enters or comes from behind something shows little of itself at first.
                side = max(known.last.area, sighting.area, 1.0) ** 0.5
                distance = float(np.linalg.norm(expected - sighting.centre)) / side
                if known.last.class_id != sighting.class_id:
                    row[column] = 0
                elif distance < MAX_DISTANCE:
                    row[column] += MAX_DISTANCE - distance
        return similarity

    def _number_of_stuff(self, class_id: int) -> int:
        if class_id not in self._stuff:
            self._stuff[class_id] = self._next_number()
        return self._stuff[class_id]

    def _next_number(self) -> int:
        self._num_numbers += 1
        return self._num_numbers


def _look_at(mask: np.ndarray, class_id: int) -> _Sighting:
    rows, columns = mask.sum(axis=1), mask.sum(axis=0)
    area = float(rows.sum())
    centre = np.array([columns @ np.arange(mask.shape[1]), rows @ np.arange(mask.shape[0])]) / max(area, 1.0)
    return _Sighting(class_id, bitmasks_to_rles(mask[None])[0], centre, area)
