"""A project of its own adds parts of every kind; the page on extending shows its code."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "project"
MODULES = sorted(path for path in (PROJECT / "segmentation_extras").glob("*.py") if path.name != "__init__.py")
CONFIG = ROOT / "configs/shapes/instance-segmentation/maskformer2_R18_quickstart.yaml"
PARTS = """
    MODEL.BACKBONE.NAME Stairs MODEL.STAIRS.WIDTH 8 MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME SumDecoder
    MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME OneLookDecoder MODEL.MASK_FORMER.LOSSES [["soft_iou",2.0]]
    MODEL.MASK_FORMER.MATCHER GreedyMatcher MODEL.MASK_FORMER.POSTPROCESSING without_specks
    INPUT.DATASET_MAPPER_NAME PlainMapper TEST.EVALUATORS ["Confidence"] TEST.VIDEO.TRACKER LeftToRight
    SOLVER.HOOKS ["GradientNorm"] SOLVER.WRITERS ["CsvWriter"]
""".split()
SIZES = """
    MODEL.DEVICE cpu MODEL.WEIGHTS "" MODEL.SEM_SEG_HEAD.CONVS_DIM 8 MODEL.SEM_SEG_HEAD.MASK_DIM 8
    MODEL.MASK_FORMER.HIDDEN_DIM 8 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 6 MODEL.MASK_FORMER.TRAIN_NUM_POINTS 16
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1 SOLVER.AMP.ENABLED False DATALOADER.NUM_WORKERS 0
    INPUT.IMAGE_SIZE 32 INPUT.MIN_SIZE_TEST 32
""".split()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_page_shows_the_code_of_the_project(path: Path) -> None:
    shown = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/extending.md").read_text(), flags=re.M | re.S)
    code = path.read_text()
    assert code in shown
    assert len(code.splitlines()) <= 40
    assert len(shown) == len(MODULES) >= 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data in the project's format, and the run that was trained on them."""
    place = tmp_path_factory.mktemp("extending")
    (place / "boxes").mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "valid"):
        rows = [["file", "class", "x", "y", "width", "height"]]
        for index in range(2):
            name = f"{part}{index}.png"
            Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(place / "boxes" / name)
            rows += [[name, "cup", 3, 4, 12, 9], [name, "pen", 20, 2, 10, 25]]
        with (place / "boxes" / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    options = ["--import", "segmentation_extras", "--config-file", str(CONFIG), "--data", str(place / "boxes")]
    train = ["train", *options, *PARTS, *SIZES, "OUTPUT_DIR", str(place / "run")]
    run(place, [train])
    weights = ["--weights", str(place / "run/model_final.pth")]
    tasks = ["--tasks", "parameter", "flop", "-n", "1", "--size", "32", "32"]
    # No --import: the run remembers which module its parts are of.
    rest = [
        ["evaluate", *weights, "OUTPUT_DIR", str(place / "again")],
        ["predict", *weights, "boxes/valid0.png", "--output", "predicted"],
        ["analyze", *weights, *tasks, "--output", "analysed.txt"],
        ["convert", weights[1], "plain.safetensors"],
        ["convert-dataset", "--import", "segmentation_extras", "boxes", "converted", "--to", "coco-instances"],
        ["count-images", "--import", "segmentation_extras", *weights, "--output", "counted.txt"],
    ]
    run(place, rest, then=TRACK)
    return place


TRACK = """
import numpy as np
from mask2former import Predictor
predictor = Predictor("run/config.yaml", "run/model_final.pth", score_threshold=0.0)
frames = np.random.default_rng(0).integers(0, 255, (2, 32, 40, 3), dtype=np.uint8)
for _, results in predictor.video(frames):
    found = results["instances"]
    centres = [float(np.argwhere(mask.numpy())[:, 1].mean()) for mask in found.pred_masks]
    print("centres", *(centres[i] for i in found.track_ids.argsort().tolist()), file=open("tracked.txt", "a"))
"""


def run(place: Path, commands: list[list[str]], *, then: str = "") -> None:
    """Commands one after the other in a process of their own, in a folder elsewhere; then some code."""
    code = "import json, sys; from mask2former.commands.cli import main\n"
    code += "for command in json.loads(sys.argv[1]): assert main(command) == 0, command\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(ROOT)])}
    command = [sys.executable, "-c", code + then, json.dumps(commands)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_training_uses_every_part(place: Path) -> None:
    log = (place / "run/log.txt").read_text()
    for part in ("Stairs", "SumDecoder", "OneLookDecoder", "a table of boxes", "UpsideDown"):
        assert part in log
    metrics = json.loads((place / "run/metrics.json").read_text().splitlines()[-1])
    assert {"loss_soft_iou", "largest_gradient", "confidence/mean", "segm/AP"} <= metrics.keys()
    assert metrics["largest_gradient"] > 0
    written = {row[1] for row in csv.reader((place / "run/metrics.csv").open())}
    assert metrics.keys() - {"iteration"} == written


def test_run_is_evaluated_predicted_analysed_and_converted(place: Path) -> None:
    assert "confidence: mean" in (place / "again/log.txt").read_text()
    assert list((place / "predicted").iterdir())
    assert "backbone" in (place / "analysed.txt").read_text()
    assert (place / "plain.safetensors").stat().st_size > 0


def test_data_of_the_format_are_converted(place: Path) -> None:
    content = json.loads((place / "converted/annotations/instances_train.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["cup", "pen"]
    assert [annotation["area"] for annotation in content["annotations"]] == [108, 250] * 2


def test_command_of_the_project_runs(place: Path) -> None:
    assert (place / "counted.txt").read_text().endswith(": 2 images\n")


def test_command_of_an_installed_project_is_listed_and_runs(tmp_path: Path) -> None:
    installed = tmp_path / "segmentation_extras-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: segmentation-extras\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[mask2former.commands]\ncount-images = segmentation_extras.command\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tmp_path, PROJECT, ROOT]))}
    for options, shown in (
        (["--help"], "count-images          from segmentation-extras"),
        (["count-images", "--help"], "Print how many images each data set of DATASETS.TRAIN has."),
    ):
        command = [sys.executable, "-m", "mask2former", *options]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


def test_video_is_tracked_from_left_to_right(place: Path) -> None:
    lines = [line.split()[1:] for line in (place / "tracked.txt").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        centres = [float(centre) for centre in line]
        assert centres
        assert centres == sorted(centres)
