"""One row per kind of wrong input: one line that names what is wrong, exit code 1, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mask2former.commands.cli import main, train_main

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
TINY = """
    MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8
    MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 1 DATALOADER.NUM_WORKERS 0
    INPUT.IMAGE_SIZE 32 SOLVER.AMP.ENABLED False
""".split()
INSTANCES = ["DATASETS.TRAIN", "('shapes_instance_train',)", "INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj"]


@dataclass
class Workplace:
    """A prepared data set, an output folder with a checkpoint in it, and the options a case adds to the command."""

    shapes: Path
    output: Path
    options: list[str] = field(default_factory=list)
    config: Path = CONFIG

    def edit_json(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.shapes / "annotations" / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def truncate(self, name: str) -> None:
        path = self.shapes / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def use_weights(self, name: str, write: Callable[[Path], object]) -> None:
        path = self.output.parent / name
        write(path)
        self.options += ["MODEL.WEIGHTS", str(path)]


class Payload:
    """Pickles into a call that would leave a file behind."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


@pytest.fixture(scope="session")
def prepared_shapes(draw_shapes: Callable[..., Path]) -> Path:
    return draw_shapes() / "shapes"


@pytest.fixture
def workplace(prepared_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    shapes = tmp_path / "data" / "shapes"
    shutil.copytree(prepared_shapes, shapes)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes.parent))
    output = tmp_path / "output"
    output.mkdir()
    (output / "model_final.pth").write_bytes(b"the result of another run")
    return Workplace(shapes, output)


def missing_dataset(place: Workplace) -> None:
    shutil.rmtree(place.shapes)


def unknown_dataset(place: Workplace) -> None:
    place.options += ["DATASETS.TRAIN", "('shapes_panoptic_trian',)"]


def corrupt_image(place: Workplace) -> None:
    place.truncate("train/000002.jpg")


def missing_image(place: Workplace) -> None:
    (place.shapes / "train" / "000003.jpg").unlink()


def corrupt_panoptic_png(place: Workplace) -> None:
    place.truncate("panoptic_train/000001.png")


def corrupt_json(place: Workplace) -> None:
    place.truncate("annotations/panoptic_train.json")


def category_without_class(place: Workplace) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["category_id"] = 4711

    place.edit_json("instances_train.json", change)
    place.options += INSTANCES


def segment_category_without_class(place: Workplace) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"][0]["category_id"] = 4711

    place.edit_json("panoptic_train.json", change)


def run_lengths_below_zero(place: Workplace) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0].update(id=77, segmentation={"size": [32, 32], "counts": [-5, 1029]})

    place.edit_json("instances_train.json", change)
    place.options += INSTANCES


def only_a_polygon_of_two_points(place: Workplace) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["annotations"][1:]  # one of many would be left out
        content["annotations"][0].update(id=77, segmentation=[[1.0, 1.0, 9.0, 9.0]])

    place.edit_json("instances_train.json", change)
    place.options += INSTANCES


def empty_json(place: Workplace) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(images=[], annotations=[])

    place.edit_json("instances_train.json", change)
    place.options += INSTANCES


def missing_test_dataset(place: Workplace) -> None:
    (place.shapes / "annotations" / "panoptic_val.json").unlink()
    place.options += ["DATASETS.TEST", "('shapes_panoptic_val',)", "SOLVER.MAX_ITER", "1000000"]


def output_is_a_file(place: Workplace) -> None:
    place.options += ["OUTPUT_DIR", str(place.output / "model_final.pth")]


def unknown_device(place: Workplace) -> None:
    place.options += ["MODEL.DEVICE", "gpu"]


def parts_that_do_not_fit(place: Workplace) -> None:
    place.options += ["MODEL.MASK_FORMER.NHEADS", "3"]


def no_queries(place: Workplace) -> None:
    place.options += ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "0"]


def negative_learning_rate(place: Workplace) -> None:
    place.options += ["SOLVER.BASE_LR", "-1.0"]


def no_image_size(place: Workplace) -> None:
    place.options += ["INPUT.IMAGE_SIZE", "0"]


def unknown_key(place: Workplace) -> None:
    place.options += ["SOLVER.BASE_RL", "0.1"]


def unknown_key_in_file(place: Workplace) -> None:
    place.config = place.output.parent / "mine.yaml"
    place.config.write_text(f"_BASE_: {CONFIG}\nSOLVER:\n  MAX_ITERS: 3\n")


def value_of_another_type(place: Workplace) -> None:
    place.options += ["SOLVER.MAX_ITER", "many"]


def torn_config(place: Workplace) -> None:
    place.config = place.output.parent / "torn.yaml"
    place.config.write_text("SOLVER:\n  STEPS: [1,\n")


def missing_config(place: Workplace) -> None:
    place.config = place.output / "none.yaml"


def executable_config(place: Workplace) -> None:
    place.config = place.output.parent / "run_me.yaml"
    place.config.write_text(f"SEED: !!python/object/apply:os.mkdir ['{place.output.parent / 'executed'}']\n")


def missing_checkpoint(place: Workplace) -> None:
    place.options += ["MODEL.WEIGHTS", str(place.output / "none.pth")]


def checkpoint_of_another_model(place: Workplace) -> None:
    place.use_weights("other.pth", lambda path: torch.save({"model": {"encoder.weight": torch.zeros(3, 3)}}, path))


def truncated_checkpoint(place: Workplace) -> None:
    def write(path: Path) -> None:
        torch.save({"model": {"weight": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])

    place.use_weights("torn.pth", write)


def malicious_pickle(place: Workplace) -> None:
    payload = Payload(str(place.output.parent / "executed"))
    place.use_weights("evil.pkl", lambda path: path.write_bytes(pickle.dumps({"model": payload})))


def malicious_torch_file(place: Workplace) -> None:
    payload = Payload(str(place.output.parent / "executed"))
    place.use_weights("evil.pth", lambda path: torch.save({"model": payload}, path))


TRAINING_CASES = [
    (missing_dataset, ["data/shapes", "does not exist"]),
    (unknown_dataset, ["'shapes_panoptic_trian'", "did you mean shapes_panoptic_train"]),
    (corrupt_image, ["train/000002.jpg"]),
    (missing_image, ["train/000003.jpg"]),
    (corrupt_panoptic_png, ["panoptic_train/000001.png"]),
    (corrupt_json, ["panoptic_train.json"]),
    (category_without_class, ["instances_train.json", "4711"]),
    (segment_category_without_class, ["panoptic_train.json", "4711"]),
    (run_lengths_below_zero, ["instances_train.json", "annotation 77", "counts", "-5"]),
    (only_a_polygon_of_two_points, ["annotation 77", "3 points"]),
    (empty_json, ["instances_train.json", "no image"]),
    (unknown_key, ["SOLVER.BASE_RL", "SOLVER.BASE_LR"]),
    (unknown_key_in_file, ["mine.yaml", "SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"]),
    (value_of_another_type, ["SOLVER.MAX_ITER", "many"]),
    (missing_test_dataset, ["panoptic_val.json"]),
    (output_is_a_file, ["OUTPUT_DIR", "model_final.pth"]),
    (unknown_device, ["MODEL.DEVICE", "'gpu'"]),
    (parts_that_do_not_fit, ["expected a multiple of MASK_FORMER.NHEADS (3), found 32"]),
    (no_queries, ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "found 0"]),
    (negative_learning_rate, ["SOLVER.BASE_LR", "-1.0"]),
    (no_image_size, ["INPUT.IMAGE_SIZE", "found 0"]),
    (torn_config, ["torn.yaml", "line 3"]),
    (missing_config, ["none.yaml"]),
    (executable_config, ["run_me.yaml"]),
    (missing_checkpoint, ["none.pth"]),
    (checkpoint_of_another_model, ["other.pth", "another model"]),
    (truncated_checkpoint, ["torn.pth"]),
    (malicious_pickle, ["evil.pkl", "mkdir"]),
    (malicious_torch_file, ["evil.pth", "mkdir"]),
]


def train(place: Workplace, *flags: str) -> int:
    overrides = [*TINY, "DATASETS.TEST", "()", "OUTPUT_DIR", str(place.output), *place.options]
    return train_main(["--config-file", str(place.config), *flags, *overrides])


def test_train_good_input_passes(workplace: Workplace) -> None:
    """Without this, any failure at all would pass for the expected one."""
    assert train(workplace) == 0


@pytest.mark.parametrize(("spoil", "named"), TRAINING_CASES, ids=[case[0].__name__ for case in TRAINING_CASES])
def test_train_wrong_input_is_named(
    spoil: Callable[[Workplace], None],
    named: list[str],
    workplace: Workplace,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spoil(workplace)
    assert train(workplace) == 1
    captured = capfd.readouterr().err
    message = captured[captured.index("error: ") :]
    for part in named:
        assert part in message
    assert message.count("\n") == 1
    assert "Traceback" not in captured
    assert (workplace.output / "model_final.pth").read_bytes() == b"the result of another run"
    assert not (workplace.output.parent / "executed").exists()


def test_train_verbose_adds_the_traceback(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    missing_checkpoint(workplace)
    assert train(workplace, "--verbose") == 1
    captured = capfd.readouterr().err
    assert "Traceback" in captured
    assert "none.pth" in captured.splitlines()[-1]


def test_train_corrupt_image_in_a_worker_process_is_named(
    workplace: Workplace, capfd: pytest.CaptureFixture[str]
) -> None:
    corrupt_image(workplace)
    workplace.options += ["DATALOADER.NUM_WORKERS", "1"]
    assert train(workplace) == 1
    captured = capfd.readouterr().err
    assert "train/000002.jpg" in captured
    assert "Traceback" not in captured


def test_train_corrupt_image_of_one_of_two_processes_is_named_once(
    workplace: Workplace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    corrupt_image(workplace)
    assert train(workplace, "--num-gpus", "2") == 1
    captured = capfd.readouterr().err
    assert captured.count("error: ") == 1
    assert "train/000002.jpg" in captured
    assert "Traceback" not in captured


def test_evaluate_corrupt_image_is_named(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    workplace.truncate("val/000002.jpg")
    workplace.options += ["DATASETS.TEST", "('shapes_panoptic_val',)"]
    assert train(workplace, "--eval-only") == 1
    captured = capfd.readouterr().err
    assert "val/000002.jpg" in captured
    assert "Traceback" not in captured


def test_train_wrong_usage_exits_with_two(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_main(["--resume"])
    assert stopped.value.code == 2
    assert "--config-file" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "named"),
    [("empty", "no image in this directory"), ("none.jpg", "no such file"), ("torn.jpg", "not an image")],
)
def test_predict_wrong_input_is_named(
    given: str, named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    output = tmp_path / "out"
    output.mkdir()
    (output / "kept.png").write_bytes(b"kept")
    code = main(
        [
            "predict",
            "--config-file",
            str(CONFIG),
            "--input",
            str(tmp_path / given),
            "--output",
            str(output),
            "--random-weights",
            "--opts",
            *TINY,
        ]
    )
    captured = capfd.readouterr().err
    assert code == 1
    assert f"{tmp_path / given}: " in captured
    assert named in captured
    assert "Traceback" not in captured
    assert (output / "kept.png").read_bytes() == b"kept"


def test_predict_checkpoint_of_another_model_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"encoder.weight": torch.zeros(3, 3)}}, tmp_path / "other.pth")
    (tmp_path / "image.png").write_bytes(b"")
    paths = ["--config-file", str(CONFIG), "--input", str(tmp_path / "image.png"), "--output", str(tmp_path)]
    code = main(["predict", *paths, "--opts", *TINY, "MODEL.WEIGHTS", str(tmp_path / "other.pth")])
    assert code == 1
    assert "other.pth: a checkpoint for another model" in capfd.readouterr().err


def test_predict_from_a_backbone_alone_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = {"model": {"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}
    torch.save(weights, tmp_path / "R-18.pth")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    paths = ["--config-file", str(CONFIG), "--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "out")]
    assert main(["predict", *paths, "--weights", str(tmp_path / "R-18.pth"), *TINY]) == 1
    assert "R-18.pth: holds weights of a backbone alone" in capfd.readouterr().err
