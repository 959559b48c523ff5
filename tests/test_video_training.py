"""Video models from files to results: training, evaluation, weights shared with image models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mask2former import build_model
from mask2former.checkpoint import load_weights
from mask2former.commands.cli import train_main
from mask2former.config import CfgNode, get_cfg
from mask2former.data import DatasetCatalog, build_train_loader
from mask2former.data.clip_mapper import ClipMapper

REPOSITORY = Path(__file__).parents[1]
VIDEO_CONFIG = REPOSITORY / "configs/shapes/video-instance-segmentation/maskformer2_R18_quickstart.yaml"
FRAMES_CONFIG = VIDEO_CONFIG.with_name("maskformer2_R18_quickstart_frames.yaml")
IMAGE_CONFIG = REPOSITORY / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
PUBLISHED_CONFIGS = sorted((REPOSITORY / "configs").glob("youtubevis_20*/**/video_*.yaml"))
TINY = """
    MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8
    MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 MODEL.SEM_SEG_HEAD.NUM_CLASSES 7 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2
    SOLVER.AMP.ENABLED False SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0
    INPUT.MIN_SIZE_TRAIN [32] INPUT.PSEUDO.MIN_SIZE_TRAIN [32] INPUT.MIN_SIZE_TEST 32 INPUT.IMAGE_SIZE 32
""".split()


@pytest.fixture(scope="module")
def data_root(draw_shapes: Callable[..., Path]) -> Path:
    return draw_shapes(num_val=1, num_train_videos=2, num_val_videos=2, num_frames=(3, 5))


@pytest.fixture(autouse=True)
def _dataset_root(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))


def _config(path: Path = VIDEO_CONFIG, *overrides: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list([*TINY, *overrides])
    return cfg


def _randomise(model: nn.Module) -> nn.Module:
    """Weights for which masks are neither empty nor full."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_video_recipe_trains_and_evaluates(data_root: Path, tmp_path: Path) -> None:
    options = ["--config-file", str(VIDEO_CONFIG), *TINY, "OUTPUT_DIR", str(tmp_path)]
    assert train_main(options) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert np.isfinite([line["total_loss"] for line in lines if "total_loss" in line]).all()
    metrics = next(line for line in reversed(lines) if any("AR10" in key for key in line))
    assert any(key.endswith("segm/AP") for key in metrics)
    results_file = tmp_path / "inference/shapes_video_val/results.json"
    results = json.loads(results_file.read_text())
    videos = json.loads((data_root / "shapes/annotations/video_val.json").read_text())["videos"]
    assert {entry["video_id"] for entry in results} == {video["id"] for video in videos}
    for entry in results:
        video = next(video for video in videos if video["id"] == entry["video_id"])
        assert len(entry["segmentations"]) == video["length"]
    evaluation = [*options, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "again")]
    assert train_main(["--eval-only", *evaluation]) == 0
    assert json.loads((tmp_path / "again/inference/shapes_video_val/results.json").read_text()) == results


def test_recipes_of_frames_and_clips_build_one_model() -> None:
    """What the first learns is what the second starts from: they differ in the weight of a loss alone."""
    frames, clips = (get_cfg(), get_cfg())
    frames.merge_from_file(str(FRAMES_CONFIG))
    clips.merge_from_file(str(VIDEO_CONFIG))
    assert (frames.INPUT.SAMPLING_FRAME_NUM, clips.INPUT.SAMPLING_FRAME_NUM) == (1, 2)
    frames.MODEL.MASK_FORMER.CLASS_WEIGHT = clips.MODEL.MASK_FORMER.CLASS_WEIGHT
    assert frames.MODEL == clips.MODEL
    assert "shapes_video_val" not in {*frames.DATASETS.TRAIN, *clips.DATASETS.TRAIN}


@pytest.mark.parametrize("num_frames", [1, 3])
def test_every_clip_of_the_loader_trains(num_frames: int) -> None:
    cfg = _config(VIDEO_CONFIG, "INPUT.SAMPLING_FRAME_NUM", num_frames, "SEED", 0)
    model = _randomise(build_model(cfg)).train()
    for _, batch in zip(range(3), build_train_loader(cfg), strict=False):
        losses = model(batch)
        assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_clips_without_any_instance_train() -> None:
    cfg = _config()
    record = DatasetCatalog.get("shapes_video_train")[0]
    record["annotations"] = [[] for _ in record["annotations"]]
    batch = [ClipMapper.from_config(cfg)(record, np.random.default_rng(0)) for _ in range(2)]
    model = _randomise(build_model(cfg)).train()
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_class_of_an_instance_does_not_depend_on_the_last_frame() -> None:
    cfg = _config(VIDEO_CONFIG, "INPUT.SAMPLING_FRAME_NUM", 3, "INPUT.SAMPLING_FRAME_RANGE", 5)
    record = DatasetCatalog.get("shapes_video_train")[0]
    seen = record["annotations"][0][:1] or record["annotations"][-1][:1]
    record["annotations"] = [seen, *([[]] * (record["length"] - 1))]
    for position in range(20):
        sample = ClipMapper.from_config(cfg)(record, np.random.default_rng(position))
        if 0 in sample["frame_indices"]:
            assert [len(frame) for frame in sample["instances"]] == [1, 1, 1]
            assert all(frame.gt_classes.tolist() == [seen[0]["category_id"]] for frame in sample["instances"])


@pytest.mark.parametrize("to_video", [True, False])
def test_image_and_video_models_initialise_one_another(to_video: bool, tmp_path: Path) -> None:
    image = _randomise(build_model(_config(IMAGE_CONFIG)))
    video = build_model(_config(VIDEO_CONFIG))
    source, target = (image, video) if to_video else (video, image)
    _randomise(source)
    torch.save({"model": source.state_dict()}, tmp_path / "model.pth")
    report = load_weights(target, str(tmp_path / "model.pth"))
    assert not report.missing
    assert not report.unexpected
    assert not report.mismatched
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_video_model_infers_images_as_the_image_model_does() -> None:
    video = _randomise(build_model(_config(VIDEO_CONFIG))).eval()
    image = build_model(_config(IMAGE_CONFIG)).eval()
    image.load_state_dict(video.state_dict())
    sample = {"image": torch.randint(256, (3, 32, 48), dtype=torch.uint8)}
    found, expected = video([sample])[0]["instances"], image([sample])[0]["instances"]
    found, expected = (sorted(zip(i.scores.tolist(), i.pred_classes.tolist())) for i in (found, expected))
    assert found == expected


@pytest.mark.parametrize("path", PUBLISHED_CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_video_recipes_map_clips(path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    record = DatasetCatalog.get("shapes_video_train")[0]
    mapper = ClipMapper.from_config(cfg)
    sample = mapper(record, np.random.default_rng(0))
    assert cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    assert [tuple(image.shape) in {(3, 360, 360), (3, 480, 480)} for image in sample["image"]] == [True, True]
    picture = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    drawn = [mapper.augmentations.sample(np.random.default_rng(p), (32, 32), num_frames=2)[0] for p in range(20)]
    assert len({transform.apply_image(picture).tobytes() for transform in drawn}) == 4  # two sizes, flipped or not


def test_there_are_twelve_published_video_recipes() -> None:
    assert len(PUBLISHED_CONFIGS) == 12
