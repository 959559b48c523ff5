from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.data.shapes.video import draw_video
from mask2former.inference.frame_tracker import MAX_MISSED_FRAMES, FrameTracker
from mask2former.structures import Instances

SIZE = (20, 40)


def box(left: int, top: int = 4, side: int = 6) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, max(left, 0) : left + side] = True
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_tracker_numbers_moving_shapes_as_the_truth_does(seed: int) -> None:
    video = draw_video(seed, (64, 96), num_frames=10)
    classes = {track.id: track.category.contiguous_id for track in video.tracks}
    tracker, numbers_of = FrameTracker(), {}
    shuffle = random.Random(0).shuffle
    for ids in video.ids:
        order = [track for track in classes if (ids == track).any()]
        shuffle(order)
        masks = np.stack([ids == track for track in order]) if order else np.zeros((0, 64, 96), bool)
        for track, number in zip(order, tracker.track(masks, [classes[track] for track in order]), strict=True):
            numbers_of.setdefault(track, set()).add(number)
    assert all(len(numbers) == 1 for numbers in numbers_of.values())


def test_tracker_follows_a_thing_faster_than_its_size_once_it_knows_its_way() -> None:
    tracker = FrameTracker()
    lefts = [0, 5, 12, 19, 26]
    assert {tracker.track(box(left)[None], [0])[0] for left in lefts} == {1}


def test_tracker_another_class_or_place_is_another_thing() -> None:
    tracker = FrameTracker()
    assert tracker.track(box(0)[None], [0]) == [1]
    assert tracker.track(box(0)[None], [1]) == [2]
    assert tracker.track(np.stack([box(30), box(0)]), [0, 0]) == [3, 1]


@pytest.mark.parametrize(("missed", "number"), [(MAX_MISSED_FRAMES, 1), (MAX_MISSED_FRAMES + 1, 2)])
def test_tracker_remembers_a_thing_for_a_while(missed: int, number: int) -> None:
    tracker = FrameTracker()
    tracker.track(box(3)[None], [0])
    for _ in range(missed):
        assert tracker.track(np.zeros((0, *SIZE), bool), []) == []
    assert tracker.track(box(3)[None], [0]) == [number]


def segment(id_: int, category_id: int, isthing: bool) -> dict[str, Any]:
    return {"id": id_, "category_id": category_id, "isthing": isthing, "score": 0.5}


def test_tracker_panoptic_ids_stay_with_things_and_stuff() -> None:
    tracker = FrameTracker()
    first = torch.full(SIZE, 2, dtype=torch.int32)
    first[box(0)], first[box(20)] = 1, 3
    ids, infos = tracker.track_panoptic(first, [segment(1, 0, True), segment(2, 7, False), segment(3, 0, True)])
    assert [info.get("track_id") for info in infos] == [1, None, 2]
    second = torch.full(SIZE, 5, dtype=torch.int32)
    second[box(1)], second[box(21)], second[0] = 9, 4, 0
    following, following_infos = tracker.track_panoptic(
        second, [segment(4, 0, True), segment(5, 7, False), segment(9, 0, True)]
    )
    assert {info["id"]: info.get("track_id") for info in following_infos} == {2: 2, infos[1]["id"]: None, 1: 1}
    assert (following[0] == 0).all()
    assert following[5, 3] == ids[5, 2] == 1
    assert following[19, 39] == ids[19, 39] == infos[1]["id"]


def test_tracker_void_frame_has_no_segments() -> None:
    ids, infos = FrameTracker().track_panoptic(torch.zeros(SIZE, dtype=torch.int32), [])
    assert (int(ids.max()), infos) == (0, [])


def test_tracker_instances_get_numbers_and_keep_their_fields() -> None:
    tracker = FrameTracker()
    masks = torch.from_numpy(np.stack([box(0), box(20)]))
    instances = Instances(SIZE, pred_masks=masks, pred_classes=torch.tensor([0, 0]), scores=torch.tensor([0.9, 0.8]))
    assert tracker.track_instances(instances).track_ids.tolist() == [1, 2]
    swapped = tracker.track_instances(instances[torch.tensor([1, 0])])
    assert swapped.track_ids.tolist() == [2, 1]
    assert swapped.scores.tolist() == pytest.approx([0.8, 0.9])
    assert tracker.track_instances(instances[:0]).track_ids.tolist() == []
