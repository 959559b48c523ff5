"""Scenes and clips in memory: determinism, consistent labels, occlusion, variety."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from mask2former.data.shapes import (
    Scene,
    draw_scene,
    draw_video,
    shape_classes,
    stuff_classes,
    thing_classes,
)
from mask2former.data.shapes.classes import class_named
from mask2former.data.shapes.placement import MIN_VISIBLE_PIXELS, Stage, min_visible_pixels, place_things
from mask2former.data.shapes.things import Pose, Thing, sample_outline
from mask2former.errors import DatasetError

NUM_SCENES = 150


@lru_cache(maxsize=1)
def scenes() -> tuple[Scene, ...]:
    return tuple(draw_scene(seed) for seed in range(NUM_SCENES))


def thing(name: str) -> Thing:
    return Thing(class_named(name), sample_outline(np.random.default_rng(0), name))


def test_classes_are_contiguous_things_first_with_gaps_between_their_ids() -> None:
    classes = shape_classes()
    assert [c.contiguous_id for c in classes] == list(range(len(classes)))
    assert classes == thing_classes() + stuff_classes()
    ids = [c.category_id for c in classes]
    assert len(set(ids)) == len(ids)
    assert ids != list(range(1, len(ids) + 1))
    assert len({c.color for c in classes}) == len(classes)


def test_scene_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    first, again, other = draw_scene(5), draw_scene(5), draw_scene(6)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.ids, again.ids)
    assert first.segments == again.segments
    assert not np.array_equal(first.image, other.image)


def test_scene_accepts_a_generator() -> None:
    assert np.array_equal(draw_scene(np.random.default_rng(3)).ids, draw_scene(3).ids)


@pytest.mark.parametrize("size", [(128, 128), (67, 101), (200, 64), (32, 32)])
def test_scene_segments_describe_the_id_map(size: tuple[int, int]) -> None:
    for seed in range(6):
        scene = draw_scene(seed, size)
        assert scene.image.shape == (*size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.ids.shape == size
        assert scene.ids.dtype == np.int32
        assert {s.id for s in scene.segments} == set(np.unique(scene.ids).tolist()) - {0}
        for segment in scene.segments:
            mask = scene.ids == segment.id
            x, y, width, height = segment.bbox_xywh
            assert segment.area == mask.sum()
            assert mask[y : y + height, x : x + width].sum() == segment.area
            assert mask[y].any()
            assert mask[y + height - 1].any()
            assert mask[:, x].any()
            assert mask[:, x + width - 1].any()


def test_scene_semantic_map_agrees_with_the_segments() -> None:
    for scene in scenes()[:20]:
        semantic = scene.semantic()
        assert np.array_equal(semantic == 255, scene.ids == 0)
        for segment in scene.segments:
            assert np.all(semantic[scene.ids == segment.id] == segment.category.contiguous_id)


def test_scenes_show_stuff_once_a_class_and_things_large_enough() -> None:
    for scene in scenes():
        stuff = [s.category.name for s in scene.segments if not s.category.isthing]
        assert len(stuff) == len(set(stuff))
        assert all(s.area >= MIN_VISIBLE_PIXELS for s in scene.segments)


def test_scenes_vary() -> None:
    seen = {s.category.name for scene in scenes() for s in scene.segments}
    assert seen == {c.name for c in shape_classes()}
    counts = [sum(s.category.isthing for s in scene.segments) for scene in scenes()]
    assert 0 < counts.count(0) < 0.15 * NUM_SCENES
    assert max(counts) >= 9
    assert 2.5 < np.mean(counts) < 6
    assert np.mean([np.mean(scene.ids == 0) for scene in scenes()]) < 0.01


def test_some_crowds_are_annotated_as_one_segment() -> None:
    crowds = [s for scene in (draw_scene(seed, (48, 48)) for seed in range(300)) for s in scene.segments if s.iscrowd]
    assert 1 <= len(crowds) <= 15
    assert all(s.category.isthing for s in crowds)


def test_color_does_not_tell_the_class_of_a_thing() -> None:
    colors: dict[str, list[np.ndarray]] = {c.name: [] for c in thing_classes()}
    for scene in scenes():
        for s in scene.segments:
            if s.category.isthing:
                colors[s.category.name].append(scene.image[scene.ids == s.id].mean(0))
    means = np.stack([np.mean(of_class, 0) for of_class in colors.values()])
    spread = np.mean([np.std(of_class, 0) for of_class in colors.values()])
    assert np.abs(means - means.mean(0)).max() < spread


def test_stage_keeps_the_front_thing_whole_and_cuts_the_one_behind() -> None:
    stage = Stage((128, 128))
    assert stage.try_place(thing("square"), Pose(60, 60, 25, 0))
    alone = stage.owner == 0
    assert stage.try_place(thing("circle"), Pose(80, 60, 15, 0))
    front, behind = stage.owner == 1, stage.owner == 0
    assert front.sum() == pytest.approx(np.pi * 15**2, rel=0.25)
    assert np.array_equal(behind, alone & ~front)
    assert (alone & front).sum() > 100


def test_stage_refuses_to_hide_a_thing_and_to_place_one_outside() -> None:
    stage = Stage((128, 128))
    assert stage.try_place(thing("circle"), Pose(60, 60, 10, 0))
    assert not stage.try_place(thing("square"), Pose(60, 60, 30, 0))
    assert not stage.try_place(thing("circle"), Pose(-5, 60, 10, 0))
    assert not stage.try_place(thing("circle"), Pose(500, 500, 10, 0))
    assert len(stage.placed) == 1


def test_ring_shows_what_lies_behind_its_hole() -> None:
    stage = Stage((128, 128))
    assert stage.try_place(thing("square"), Pose(64, 64, 40, 0.3))
    assert stage.try_place(thing("ring"), Pose(64, 64, 25, 0))
    assert stage.owner[64, 64] == 0
    assert (stage.owner == 1).any()


def test_placed_things_show_at_least_a_quarter() -> None:
    for seed in range(60):
        stage = place_things(np.random.default_rng(seed), (128, 128))
        for index, placed in enumerate(stage.placed):
            visible = np.count_nonzero(stage.owner == index)
            assert visible >= min_visible_pixels((128, 128))
            assert visible >= 0.25 * np.count_nonzero(placed.patch.label_mask()[2])


def test_things_cover_the_pixels_that_bear_their_label() -> None:
    # A thing's label must lie where it was painted: the picture changes most where ids change.
    on_edge, elsewhere = [], []
    for scene in scenes()[:40]:
        image = scene.image.astype(float)
        steps = np.abs(np.diff(image, axis=1)).sum(2)
        thing_ids = np.isin(scene.ids, [s.id for s in scene.segments if s.category.isthing])
        edge = thing_ids[:, 1:] != thing_ids[:, :-1]
        on_edge.append(steps[edge])
        elsewhere.append(steps[~edge])
    assert np.concatenate(on_edge).mean() > 3 * np.concatenate(elsewhere).mean()


@pytest.mark.parametrize("draw", [draw_scene, draw_video])
def test_tiny_size_is_refused(draw: object) -> None:
    with pytest.raises(DatasetError, match="at least 32"):
        draw(0, (16, 128))  # type: ignore[operator]


def test_video_is_the_same_for_the_same_seed() -> None:
    first, again = draw_video(1, (64, 80), num_frames=3), draw_video(1, (64, 80), num_frames=3)
    assert first.frames.shape == (3, 64, 80, 3)
    assert first.ids.shape == (3, 64, 80)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.ids, again.ids)
    assert first.tracks == again.tracks


def test_video_of_one_frame_and_of_odd_size() -> None:
    video = draw_video(2, (33, 47), num_frames=1)
    assert video.frames.shape == (1, 33, 47, 3)
    assert {t.id for t in video.tracks} == set(np.unique(video.ids).tolist()) - {0}


def test_videos_hold_things_that_move_enter_leave_and_hide_each_other() -> None:
    entered = left = moved = 0
    for seed in range(12):
        video = draw_video(seed, (64, 64), num_frames=10)
        assert video.tracks
        for track in video.tracks:
            masks = video.ids == track.id
            seen = masks.any((1, 2))
            assert seen.any()
            entered += bool(not seen[0])
            left += bool(not seen[-1])
            moved += bool((masks[0] != masks[-1]).any())
    assert entered > 0
    assert left > 0
    assert moved > 12
