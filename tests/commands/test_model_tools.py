"""The tools that analyze a model, time a config and draw data, from their command lines."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.commands.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml")
VIDEO_CONFIG = str(ROOT / "configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml")
TINY = """
    MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1
    MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32
    MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 5 MODEL.MASK_FORMER.TRAIN_NUM_POINTS 32
    MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 INPUT.MIN_SIZE_TEST 64 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0
""".split()


@pytest.fixture(scope="module")
def data_root(draw_shapes: Callable[..., Path]) -> Path:
    return draw_shapes(num_train=2, num_train_videos=1, num_val_videos=1, size=(48, 64))


@pytest.fixture(autouse=True)
def use_data_root(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))


def row(output: str, title: str) -> list[str]:
    """The cells of the first table row of this title, without it."""
    (first, *_) = [line for line in output.splitlines() if re.match(rf"{re.escape(title)} {{2}}", line)]
    return first[len(title) :].split()


@pytest.mark.parametrize("script", ("analyze_model", "visualize_data", "benchmark"))
def test_script_explains_itself(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as exited:
        runpy.run_path(str(ROOT / "tools" / f"{script}.py"), run_name="__main__")
    assert exited.value.code == 0
    assert "--config-file" in capsys.readouterr().out


def test_analyze_describes_the_model_for_images_of_the_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tasks", "parameter", "structure", "flop", "--max-depth", "1", "-n", "2"]
    assert main(["analyze", "--config-file", CONFIG, *arguments, *TINY]) == 0
    output = capsys.readouterr().out
    total, trained = (float(cell) for cell in row(output, "in all"))
    assert total == trained > float(row(output, "backbone")[0]) > 11  # million: ResNet-18
    assert "MaskFormer(" in output
    assert "mean and standard deviation over 2 images of shapes_panoptic_val; padded to 64 x 96" in output
    flops = output.split("\nflop\n")[1]
    mean, deviation, percent = (float(cell) for cell in row(flops, "in all"))
    assert (mean > 0, deviation, percent) == (True, 0, 100)
    assert float(row(flops, "ms_deform_attn")[0]) >= 0
    assert "sem_seg_head.predictor" not in flops
    assert "not counted (calls in one image): " in flops


def test_analyze_takes_a_random_image_where_the_data_set_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    tasks = ["--tasks", "activation", *TINY]  # pairs right after the tasks
    assert main(["analyze", "--config-file", CONFIG, *tasks]) == 0
    output = capsys.readouterr().out
    assert "no images of shapes_panoptic_val, a random one is taken: " in output
    assert "one random image of 64 x 85; padded to 64 x 96" in output
    assert len(row(output, "in all")) == 2  # of one image there is no deviation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "--tasks", "flip"], "--tasks: expected some of flop"),
        (["analyze", "--tasks", "flop", "--num-inputs", "0"], "--num-inputs: expected at least 1"),
        (["analyze", "--tasks", "flop", "--size", "0", "4"], "--size: expected at least 1"),
        (["benchmark", "--task", "eval", "--num-iters", "0"], "--num-iters: expected at least 1"),
        (["benchmark", "--task", "data", "--size", "32", "32"], "--size: data is about the data set"),
        (["visualize-data", "--source", "annotation"], "--output or --show"),
        (["visualize-data", "--source", "annotation", "--show", "-n", "0"], "--num-images: expected at least 1"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments[:1], "--config-file", CONFIG, *arguments[1:]]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("task", "options", "titles"),
    [
        ("data", [], ["batch"]),
        ("data_advanced", [], ["list of the data set", "image file", "batch, no workers"]),
        ("train", [], ["data", "backbone", "head", "losses", "gradients and rest", "optimiser", "whole step"]),
        ("train", ["--size", "33", "64"], ["losses", "whole step"]),
        ("eval", [], ["data", "backbone", "head", "post-processing", "model", "data and model"]),
        ("eval", ["--size", "33", "64"], ["post-processing", "data and model"]),
    ],
)
def test_benchmark_prints_a_row_for_each_stage(
    task: str, options: list[str], titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", task, "--num-iters", "2", "--warmup", "1", *options]
    assert main(["benchmark", "--config-file", CONFIG, *arguments, *TINY]) == 0
    output = capsys.readouterr().out
    for title in titles:
        milliseconds, images_per_second = (float(cell) for cell in row(output, title))
        assert milliseconds >= 0
        assert images_per_second > 0
    assert "peak memory of the process" in output or sys.platform == "win32"


def pictures_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_visualize_draws_what_the_loader_yields(tmp_path: Path) -> None:
    arguments = ["--source", "dataloader", "--output-dir", str(tmp_path / "new"), "-n", "3"]
    assert main(["visualize-data", "--config-file", CONFIG, *arguments, *TINY]) == 0
    assert len(pictures_in(tmp_path / "new")) == 3
    picture = np.asarray(Image.open(tmp_path / "new" / pictures_in(tmp_path / "new")[0]))
    assert picture.shape[0] >= 512  # enlarged, so that labels can be read
    assert picture.std() > 10


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("panoptic", 4, ["0001_000001_panoptic.png", "0002_000001_semantic.png"]),
        ("instance", 2, ["0001_000001_instance.png", "0002_000002_instance.png"]),
        ("sem_seg", 2, ["0001_000001_semantic.png", "0002_000002_semantic.png"]),
        ("video", 1, ["0001_0001_00000_video.png"]),
    ],
)
def test_visualize_draws_annotations(name: str, count: int, expected: list[str], tmp_path: Path) -> None:
    arguments = ["--source", "annotation", "--output-dir", str(tmp_path)]
    dataset = ["DATASETS.TRAIN", f"('shapes_{name}_train',)"]
    assert main(["visualize-data", "--config-file", CONFIG, *arguments, *dataset]) == 0
    assert len(pictures_in(tmp_path)) == count
    assert pictures_in(tmp_path)[:2] == expected


def test_visualize_draws_frames_of_a_clip_side_by_side(tmp_path: Path) -> None:
    arguments = ["--source", "dataloader", "--output-dir", str(tmp_path), "-n", "1"]
    changes = """
        DATASETS.TRAIN ('shapes_video_train',) MODEL.SEM_SEG_HEAD.NUM_CLASSES 7 DATALOADER.NUM_WORKERS 0
        SOLVER.IMS_PER_BATCH 1 INPUT.MIN_SIZE_TRAIN (48,) INPUT.SAMPLING_FRAME_NUM 3
    """.split()
    assert main(["visualize-data", "--config-file", VIDEO_CONFIG, *arguments, *changes]) == 0
    (name,) = pictures_in(tmp_path)
    width, height = Image.open(tmp_path / name).size
    assert width == pytest.approx(3 * height * 64 / 48, rel=0.1)


def test_visualize_names_a_missing_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    arguments = ["--source", "annotation", "--output-dir", str(tmp_path / "pictures")]
    assert main(["visualize-data", "--config-file", CONFIG, *arguments]) == 1
    assert "data set 'shapes_panoptic_train'" in capsys.readouterr().err
