"""Numbers that stay with the things of a video whose frames an image model predicts one by one.

A thing is the one of an earlier frame whose mask of the same class it overlaps most. This is no tracker of objects that
cross or reappear elsewhere: it keeps colours from flickering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from mask2former.structures import Instances, bitmasks_to_rles, track_ious

MIN_IOU = 0.2
MAX_MISSED_FRAMES = 15  # how long a thing that is not seen keeps its number


@dataclass
class _Known:
    number: int
    class_id: int
    rle: dict[str, Any]
    frame: int


class FrameTracker:
    """Takes the results of successive frames of one video; numbers begin with 1."""

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self._stuff: dict[int, int] = {}
        self._num_numbers = 0
        self._frame = 0

    def number_instances(self, instances: Instances) -> Instances:
        """The instances of the next frame with `track_ids` (N,)."""
        numbers = self.number(instances.pred_masks.cpu().numpy(), instances.pred_classes.tolist())
        fields = {**instances.get_fields(), "track_ids": torch.tensor(numbers, dtype=torch.int64)}
        return Instances(instances.image_size, **fields)

    def number_panoptic(
        self, ids: torch.Tensor, segments_info: list[dict[str, Any]]
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """The segments of the next frame with ids that stay; a thing has its id as `track_id` too."""
        things = [info for info in segments_info if info["isthing"]]
        array = ids.cpu().numpy()
        masks = np.stack([array == info["id"] for info in things]) if things else np.zeros((0, *array.shape), bool)
        numbers = iter(self.number(masks, [info["category_id"] for info in things]))
        table = np.zeros(max([0, *(info["id"] for info in segments_info)]) + 1, dtype=np.int32)
        numbered = []
        for info in segments_info:
            number = next(numbers) if info["isthing"] else self._number_of_stuff(info["category_id"])
            table[info["id"]] = number
            numbered.append({**info, "id": number, **({"track_id": number} if info["isthing"] else {})})
        return torch.from_numpy(table[array]), numbered

    def number(self, masks: np.ndarray, class_ids: list[int]) -> list[int]:
        """Numbers of the things of the next frame: masks (N, H, W) bool and contiguous class ids."""
        rles = bitmasks_to_rles(masks) if len(masks) else []
        intersections, unions = track_ious([[known.rle] for known in self._known], [[rle] for rle in rles])
        same_class = np.asarray([known.class_id for known in self._known])[:, None] == np.asarray(class_ids)
        ious = np.where(same_class, intersections / np.maximum(unions, 1), 0) if unions.size else unions
        rows, columns = linear_sum_assignment(ious, maximize=True)
        found = {int(column): self._known[row] for row, column in zip(rows, columns) if ious[row, column] >= MIN_IOU}
        numbers = []
        for index, (rle, class_id) in enumerate(zip(rles, class_ids, strict=True)):
            if index in found:
                found[index].rle, found[index].frame = rle, self._frame
            else:
                found[index] = _Known(self._next_number(), class_id, rle, self._frame)
                self._known.append(found[index])
            numbers.append(found[index].number)
        self._known = [known for known in self._known if self._frame - known.frame <= MAX_MISSED_FRAMES]
        self._frame += 1
        return numbers

    def _number_of_stuff(self, class_id: int) -> int:
        if class_id not in self._stuff:
            self._stuff[class_id] = self._next_number()
        return self._stuff[class_id]

    def _next_number(self) -> int:
        self._num_numbers += 1
        return self._num_numbers
