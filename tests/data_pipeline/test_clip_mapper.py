"""Clips from videos and from images: identity over frames, transforms that move together, seeds, resuming."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, MetadataCatalog, build_test_loader, build_train_loader
from mask2former.data.catalog import annotated_objects
from mask2former.data.clip_mapper import ClipMapper, FrameSampling
from mask2former.data.datasets import register_coco_instances
from mask2former.data.datasets.ytvis import load_ytvis_json
from mask2former.data.presets import preset_of
from mask2former.data.samplers import sample_generator
from mask2former.data.transforms import ByClip, ByFrame, ClipAugmentationList, PanningCrop, RandomCrop, RandomFlip
from mask2former.data.transforms.color import BlendTransform
from mask2former.errors import ConfigError, DatasetError
from mask2former.modeling import META_ARCH_REGISTRY, MaskFormer
from mask2former.structures import bitmasks_to_rles

HEIGHT, WIDTH, LENGTH = 20, 28, 5
# Columns at which the tracks of video 1 stand in its frames; None: out of sight.
LEFT = {11: [1, 3, 5, 7, 8], 12: [21, None, None, 21, 21], 13: [None, None, None, None, 14]}


def _mask(left: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:12, left : left + 6] = True
    return mask


def _segmentations(lefts: list[int | None], *, polygons: bool) -> list[Any]:
    if polygons:
        return [None if x is None else [[x, 5, x + 6, 5, x + 6, 12, x, 12]] for x in lefts]
    return [None if x is None else bitmasks_to_rles(_mask(x)[None])[0] for x in lefts]


@pytest.fixture
def video_json(tmp_path: Path) -> Path:
    """Video 1 with three tracks and a crowd, dark where there is no object; video 2 without any."""
    names = {video: [f"{video}/{time:05d}.png" for time in range(LENGTH)] for video in (1, 2)}
    for video, time in itertools.product((1, 2), range(LENGTH)):
        frame = np.full((HEIGHT, WIDTH), 10, np.uint8)
        for track, lefts in LEFT.items() if video == 1 else ():
            if lefts[time] is not None:
                frame[_mask(lefts[time])] = 12 * track
        path = tmp_path / "frames" / names[video][time]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(frame[..., None], 3, axis=2)).save(path)
    tracks = [
        {"id": i, "video_id": 1, "category_id": i % 2 + 5, "segmentations": _segmentations(lefts, polygons=i == 11)}
        for i, lefts in LEFT.items()
    ]
    crowd = {"id": 14, "video_id": 1, "category_id": 5, "iscrowd": 1, "segmentations": tracks[1]["segmentations"]}
    content = {
        "videos": [
            {"id": v, "height": HEIGHT, "width": WIDTH, "length": LENGTH, "file_names": names[v]} for v in names
        ],
        "annotations": [*tracks, crowd],
        "categories": [{"id": 5, "name": "a"}, {"id": 6, "name": "b"}],
    }
    path = tmp_path / "videos.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def video_cfg(video_json: Path, cfg: CfgNode) -> CfgNode:
    folder = video_json.parent / "frames"
    DatasetCatalog.register("tiny_video", lambda: load_ytvis_json(video_json, folder, "tiny_video"))
    cfg.MODEL.META_ARCHITECTURE = "VideoMaskFormer"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = ["tiny_video"]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.MIN_SIZE_TRAIN = cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN = [HEIGHT]
    cfg.INPUT.SAMPLING_FRAME_NUM = 3
    return cfg


def _mapped(cfg: CfgNode, index: int = 0, position: int = 0) -> dict[str, Any]:
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[index]
    return ClipMapper.from_config(cfg)(record, sample_generator(0, position))


def _assert_pictures_show_masks(sample: dict[str, Any]) -> None:
    """In the fixture's videos an object has twelve times the brightness of its id."""
    for image, frame in zip(sample["image"], sample["instances"], strict=True):
        for identity, mask in zip(frame.gt_ids.tolist(), frame.gt_masks, strict=True):
            assert torch.equal(mask, image[0] == 12 * identity)


def test_crowds_of_frames_train_nothing_where_asked_for(video_cfg: CfgNode) -> None:
    record = DatasetCatalog.get("tiny_video")[0]
    objects = [[a for a in frame if a["id"] in (11, 12)] for frame in record["annotations"]]
    record["annotations"] = [[{**a, "iscrowd": int(a["id"] == 12)} for a in frame] for frame in objects]
    assert "ignore_mask" not in ClipMapper.from_config(video_cfg)(record, sample_generator(0, 0))
    video_cfg.MODEL.MASK_FORMER.IGNORE_REGIONS = True
    mapper, shown = ClipMapper.from_config(video_cfg), 0
    for position in range(10):
        sample = mapper(record, sample_generator(0, position))
        for time, image in enumerate(sample["image"]):
            is_crowd = image[0] == 12 * 12
            shown += int(is_crowd.any())
            if "ignore_mask" in sample:
                assert torch.equal(sample["ignore_mask"][time], is_crowd & ~sample["instances"][time].gt_masks.any(0))
            else:
                assert not is_crowd.any()
    assert shown > 5


def test_frames_lie_within_reach_of_one_another_and_differ() -> None:
    for position in range(200):
        frames = FrameSampling(3, reach=2).sample(sample_generator(0, position), 30)
        assert frames == sorted(set(frames))
        assert len(frames) == 3
        assert max(frames) - min(frames) <= 4
        assert 0 <= min(frames)
        assert max(frames) < 30


@pytest.mark.parametrize(("length", "reach"), [(1, 20), (2, 20), (9, 0)])
def test_frames_repeat_where_there_are_too_few(length: int, reach: int) -> None:
    frames = FrameSampling(4, reach=reach).sample(sample_generator(0, 0), length)
    assert len(frames) == 4
    assert set(frames) <= set(range(length))


def test_frames_are_shuffled_where_asked_for() -> None:
    drawn = [FrameSampling(4, reach=9, shuffle=True).sample(sample_generator(0, p), 10) for p in range(20)]
    assert any(frames != sorted(frames) for frames in drawn)
    assert all(len(set(frames)) == 4 for frames in drawn)


def test_every_frame_of_a_video_is_drawn() -> None:
    drawn = {f for p in range(200) for f in FrameSampling(1, reach=0).sample(sample_generator(0, p), 6)}
    assert drawn == set(range(6))


def test_clip_keeps_identity_over_frames(video_cfg: CfgNode) -> None:
    seen = set()
    for position in range(20):
        sample = _mapped(video_cfg, position=position)
        assert len(sample["image"]) == len(sample["instances"]) == 3
        assert "annotations" not in sample
        first = sample["instances"][0]
        for time, frame in zip(sample["frame_indices"], sample["instances"], strict=True):
            assert torch.equal(frame.gt_classes, first.gt_classes)
            for row, (identity, mask) in enumerate(zip(frame.gt_ids.tolist(), frame.gt_masks, strict=True)):
                track = next(f.gt_ids[row].item() for f in sample["instances"] if f.gt_ids[row] != -1)
                left = LEFT[track][time]
                assert identity == (-1 if left is None else track)
                assert np.array_equal(mask.numpy(), _mask(left) if left is not None else np.zeros_like(mask.numpy()))
                assert frame.gt_classes[row] == track % 2
                seen.add((track, left is None))
        _assert_pictures_show_masks(sample)
    assert {(12, True), (12, False), (13, True), (13, False), (11, False)} <= seen


def test_clip_without_any_instance(video_cfg: CfgNode) -> None:
    sample = _mapped(video_cfg, index=1)
    for frame in sample["instances"]:
        assert len(frame) == 0
        assert frame.gt_masks.shape == (0, HEIGHT, WIDTH)
        assert frame.gt_ids.shape == frame.gt_classes.shape == (0,)


def test_clip_flips_and_resizes_together(video_cfg: CfgNode) -> None:
    video_cfg.INPUT.RANDOM_FLIP = "flip_by_clip"
    video_cfg.INPUT.MIN_SIZE_TRAIN = [HEIGHT, 2 * HEIGHT, 37]
    video_cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice_by_clip"
    flipped = {position: _is_flipped(_mapped(video_cfg, position=position)) for position in range(30)}
    assert all(len(set(frames)) == 1 for frames in flipped.values())
    assert {frames[0] for frames in flipped.values()} == {True, False}
    video_cfg.INPUT.RANDOM_FLIP = "horizontal"  # published: each frame for itself
    flipped = {position: _is_flipped(_mapped(video_cfg, position=position)) for position in range(30)}
    assert any(len(set(frames)) == 2 for frames in flipped.values())
    sizes = {tuple(i.shape) for p in range(30) for i in _mapped(video_cfg, position=p)["image"]}
    assert len(sizes) == 3


def _is_flipped(sample: dict[str, Any]) -> list[bool]:
    """Track 11 stands in the left half, whatever the frame."""
    assert len({tuple(image.shape) for image in sample["image"]}) == 1
    row = next(
        row for row in range(len(sample["instances"][0])) if any(f.gt_ids[row] == 11 for f in sample["instances"])
    )
    return [
        bool(frame.gt_masks[row].any(dim=0).float().argmax() > frame.gt_masks.shape[2] * 0.4)
        for frame in sample["instances"]
    ]


def test_clip_colours_and_rotation_move_masks_with_pictures(video_cfg: CfgNode) -> None:
    video_cfg.INPUT.AUGMENTATIONS = ["brightness", "contrast", "saturation", "rotation"]
    video_cfg.INPUT.MIN_SIZE_TRAIN = [4 * HEIGHT]
    plain = _mapped(video_cfg)["image"][0]
    video_cfg.INPUT.AUGMENTATIONS = ["rotation"]
    for position in range(10):
        sample = _mapped(video_cfg, position=position)
        assert not torch.equal(sample["image"][0], sample["image"][1])
        for image, frame in zip(sample["image"], sample["instances"], strict=True):
            masks = frame.gt_masks.any(dim=0)
            assert ((image[0] > 70) ^ masks).sum() <= 0.1 * masks.sum()
    assert plain.shape == sample["image"][0].shape


def test_blends_as_published() -> None:
    image = np.array([[[200, 100, 50], [0, 10, 20]]], np.uint8)
    assert BlendTransform("brightness", 0.5).apply_image(image).tolist() == [[[100, 50, 25], [0, 5, 10]]]
    mean = image.mean()
    assert BlendTransform("contrast", 0.5).apply_image(image)[0, 0, 0] == int((200 + mean) / 2)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert BlendTransform("saturation", 0.0).apply_image(image)[0, 0].tolist() == [int(grey)] * 3
    reversed_grey = BlendTransform("saturation", 0.0, is_rgb=False).apply_image(image[..., ::-1])
    assert reversed_grey[0, 0].tolist() == [int(grey)] * 3
    assert BlendTransform("brightness", 1.1).apply_image(image)[0, 0, 0] == 220


def test_clip_is_a_function_of_its_generator(video_cfg: CfgNode) -> None:
    video_cfg.INPUT.AUGMENTATIONS = ["brightness", "rotation"]
    video_cfg.INPUT.SAMPLING_FRAME_SHUFFLE = True
    first, second, other = (_mapped(video_cfg, position=p) for p in (1, 1, 2))
    assert first["frame_indices"] == second["frame_indices"]
    assert all(torch.equal(a, b) for a, b in zip(first["image"], second["image"], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first["image"], other["image"], strict=True))


def test_image_becomes_a_clip_of_its_copies(video_cfg: CfgNode, tiny: Any) -> None:
    register_coco_instances("tiny_instance", {}, tiny.instances_json, tiny.images)
    video_cfg.DATASETS.TRAIN = ["tiny_instance"]
    video_cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN = [24]
    video_cfg.INPUT.PSEUDO.AUGMENTATIONS = []
    sample = _mapped(video_cfg)
    assert len(sample["image"]) == 3
    assert all(torch.equal(image, sample["image"][0]) for image in sample["image"])
    assert [frame.gt_ids.tolist() for frame in sample["instances"]] == [[0, 1]] * 3  # without the crowd
    video_cfg.INPUT.PSEUDO.AUGMENTATIONS = ["rotation"]
    sample = _mapped(video_cfg)
    assert not torch.equal(sample["image"][0], sample["image"][1])
    assert torch.equal(sample["instances"][0].gt_classes, sample["instances"][2].gt_classes)


def test_image_crop_pans_and_objects_leave(video_cfg: CfgNode, tiny: Any) -> None:
    register_coco_instances("tiny_instance", {}, tiny.instances_json, tiny.images)
    video_cfg.DATASETS.TRAIN = ["tiny_instance"]
    video_cfg.INPUT.PSEUDO.AUGMENTATIONS = []
    video_cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN = [12]
    video_cfg.INPUT.PSEUDO.CROP.ENABLED = True
    video_cfg.INPUT.PSEUDO.CROP.TYPE = "absolute"
    video_cfg.INPUT.PSEUDO.CROP.SIZE = [12, 12]
    ids = [[f.gt_ids.tolist() for f in _mapped(video_cfg, position=p)["instances"]] for p in range(30)]
    assert any(-1 in frame for clip in ids for frame in clip)
    assert all(any(frame[row] != -1 for frame in clip) for clip in ids for row in range(len(clip[0])))


def test_panning_crop_moves_in_a_straight_line() -> None:
    for position in range(20):
        crop = PanningCrop(RandomCrop("absolute", (10, 20)))
        frames = crop.sample(sample_generator(0, position), (50, 60), num_frames=5)
        places = np.array([(t.top, t.left) for t in frames])
        assert np.abs(np.diff(places, n=2, axis=0)).max() <= 2  # rounded to pixels
        assert {t.output_size((50, 60)) for t in frames} == {(10, 20)}


def test_clip_augmentations_draw_once_or_for_each_frame() -> None:
    together = [ByClip(RandomFlip()).sample(sample_generator(0, p), (4, 6), num_frames=8) for p in range(8)]
    assert all(len({id(t) for t in frames}) == 1 for frames in together)
    alone = ClipAugmentationList([ByFrame(RandomFlip())]).sample(sample_generator(0, 0), (4, 6), num_frames=40)
    image = np.arange(24).reshape(4, 6)
    assert {int(t.apply_image(image)[0, 0]) for t in alone} == {0, 5}


def _take(iterable: Any, count: int) -> list[Any]:
    return list(itertools.islice(iterable, count))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_clip_loader_resumes_bit_equal(video_cfg: CfgNode, num_workers: int) -> None:
    video_cfg.INPUT.AUGMENTATIONS = ["rotation"]
    expected = _take(build_train_loader(video_cfg), 6)
    video_cfg.DATALOADER.NUM_WORKERS = num_workers
    resumed = _take(build_train_loader(video_cfg, start_iter=3), 3)
    for one, other in zip(itertools.chain(*expected[3:]), itertools.chain(*resumed), strict=True):
        assert one["file_names"] == other["file_names"]
        assert all(torch.equal(a, b) for a, b in zip(one["image"], other["image"], strict=True))
        for a, b in zip(one["instances"], other["instances"], strict=True):
            assert torch.equal(a.gt_ids, b.gt_ids)
            assert torch.equal(a.gt_masks, b.gt_masks)


def test_clip_loader_leaves_out_videos_without_objects_where_asked_for(video_cfg: CfgNode) -> None:
    video_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    ids = {sample["video_id"] for batch in _take(build_train_loader(video_cfg), 4) for sample in batch}
    assert ids == {1}


def test_video_objects_count_once(video_cfg: CfgNode) -> None:
    record = DatasetCatalog.get("tiny_video")[0]
    assert sorted(entry["id"] for entry in annotated_objects(record)) == [11, 12, 13, 14]


@pytest.mark.parametrize(("ratio", "share"), [([1, 1], 0.5), ([3, 1], 0.75), ([1, 4], 0.2)])
def test_dataset_ratio_divides_the_draws(video_cfg: CfgNode, tiny: Any, ratio: list[int], share: float) -> None:
    register_coco_instances("tiny_instance", {}, tiny.instances_json, tiny.images)
    MetadataCatalog.get("tiny_instance").set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    video_cfg.DATASETS.TRAIN = ["tiny_video", "tiny_instance"]
    video_cfg.DATASETS.DATASET_RATIO = ratio
    loader = build_train_loader(video_cfg, mapper=lambda record: "video_id" in record)
    drawn = [is_video for batch in _take(loader, 300) for is_video in batch]
    assert np.mean(drawn) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("ratio", [[1], [1, 0], [1, -1]])
def test_dataset_ratio_that_does_not_fit_is_named(video_cfg: CfgNode, ratio: list[int]) -> None:
    video_cfg.DATASETS.TRAIN = ["tiny_video", "tiny_video"]
    video_cfg.DATASETS.DATASET_RATIO = ratio
    with pytest.raises(ConfigError, match=r"DATASETS\.DATASET_RATIO.*2 data sets"):
        build_train_loader(video_cfg)


def test_test_loader_gives_all_frames_of_a_video(video_cfg: CfgNode) -> None:
    video_cfg.INPUT.MIN_SIZE_TEST = 2 * HEIGHT
    (first,), _ = build_test_loader(video_cfg, "tiny_video")
    assert [tuple(image.shape) for image in first["image"]] == [(3, 2 * HEIGHT, 2 * WIDTH)] * LENGTH
    assert (first["height"], first["width"], first["video_id"]) == (HEIGHT, WIDTH, 1)
    assert "annotations" not in first


def test_image_model_does_not_train_on_videos(video_cfg: CfgNode) -> None:
    video_cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    with pytest.raises(ConfigError, match=r"tiny_video holds videos.*VideoMaskFormer"):
        build_train_loader(video_cfg)


def test_registered_video_model_of_another_name_trains_on_clips(
    video_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnVideoModel(MaskFormer):
        takes_clips = True

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "TrackEverything", OwnVideoModel)
    video_cfg.MODEL.META_ARCHITECTURE = "TrackEverything"
    assert preset_of(video_cfg).clips
    batch = next(iter(build_train_loader(video_cfg)))
    assert len(batch[0]["image"]) == 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.SAMPLING_FRAME_NUM", 0, r"INPUT\.SAMPLING_FRAME_NUM: expected at least 1, found 0"),
        ("INPUT.SAMPLING_FRAME_RANGE", -1, r"INPUT\.SAMPLING_FRAME_RANGE: expected at least 0"),
        (
            "INPUT.AUGMENTATIONS",
            ["hue"],
            r"INPUT\.AUGMENTATIONS: .*brightness, .*rotation, .*found 'hue'",
        ),
        ("INPUT.PSEUDO.AUGMENTATIONS", ["hue"], r"INPUT\.PSEUDO\.AUGMENTATIONS: expected one of"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "rarely_by_clip", r"INPUT: sample_style .*'rarely'"),
        ("INPUT.FORMAT", "YUV", r"INPUT\.FORMAT.*YUV"),
    ],
)
def test_clip_mapper_wrong_config_is_named(video_cfg: CfgNode, key: str, value: Any, message: str) -> None:
    video_cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=message):
        ClipMapper.from_config(video_cfg)


def test_clip_mapper_names_the_frame_that_is_wrong(video_cfg: CfgNode, video_json: Path) -> None:
    video_cfg.INPUT.SAMPLING_FRAME_NUM = LENGTH
    video_cfg.INPUT.SAMPLING_FRAME_RANGE = LENGTH
    path = video_json.parent / "frames/1/00002.png"
    Image.open(path).resize((WIDTH, HEIGHT + 1)).save(path)
    with pytest.raises(DatasetError, match=r"00002\.png: image has .*\(21, 28\), its annotations say \(20, 28\)"):
        _mapped(video_cfg)
    path.unlink()
    with pytest.raises(DatasetError, match=r"00002\.png"):
        _mapped(video_cfg)
    record = {k: v for k, v in DatasetCatalog.get("tiny_video")[0].items() if k != "annotations"}
    with pytest.raises(DatasetError, match=r"00000\.png: video training needs annotations"):
        ClipMapper.from_config(video_cfg)(record)
