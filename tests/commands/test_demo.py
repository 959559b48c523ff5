"""The prediction command around a stub predictor: what it reads, writes, and says when something is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.commands import predict as predict_command
from mask2former.commands.arguments import CommandParser, parse_arguments
from mask2former.commands.predict import find_images
from mask2former.errors import InputError
from mask2former.files.images import to_rgb_array
from mask2former.files.inputs import NamedFile
from mask2former.structures import Boxes, Instances, Metadata, masks_to_boxes_xyxy

REPOSITORY = Path(__file__).parents[2]
CONFIG = "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


class HalvesPredictor:
    """Finds a thing in the left half and stuff in the right half of every image."""

    def __init__(
        self, cfg: Any, *, task: list[str] | None, score_threshold: float | None, precision: str | None
    ) -> None:
        self.cfg, self.task = cfg, task or ["panoptic"]
        self.metadata = Metadata("halves", thing_classes=["thing"], stuff_classes=["thing", "stuff"])

    def read(self, image: Any) -> np.ndarray:
        return to_rgb_array(image)

    def picture_of(self, image: np.ndarray) -> np.ndarray:
        return image

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        height, width = to_rgb_array(image).shape[:2]
        left = torch.zeros(height, width, dtype=torch.bool)
        left[:, : width // 2] = True
        infos = [
            {"id": 1, "category_id": 0, "isthing": True, "score": 0.9},
            {"id": 2, "category_id": 1, "isthing": False, "score": 0.8},
        ]
        masks = torch.stack([left, ~left])
        results = {
            "panoptic": {"panoptic_seg": (torch.where(left, 1, 2).int(), infos)},
            "semantic": {"sem_seg": masks.float()},
            "instance": {
                "instances": Instances(
                    (height, width),
                    pred_masks=masks,
                    scores=torch.tensor([0.9, 0.2]),
                    pred_classes=torch.tensor([0, 0]),
                    pred_boxes=Boxes(masks_to_boxes_xyxy(masks)),
                )
            },
        }
        return {key: value for task in self.task for key, value in results[task].items()}


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_command, "Predictor", HalvesPredictor)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("b.jpg", (31, 21)), ("a.png", (8, 9))):
        Image.new("RGB", size, (90, 120, 150)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*arguments: str | Path) -> None:
    parser = CommandParser()
    predict_command.add_arguments(parser)
    parser.add_verbose()
    options = ["--config-file", str(REPOSITORY / CONFIG), *map(str, arguments)]
    predict_command.run(parse_arguments(parser, options))


def load_demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_script", REPOSITORY / "demo" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_predict_directory_writes_one_picture_per_image(photos: Path, tmp_path: Path) -> None:
    run("--input", photos, "--output", tmp_path / "new" / "out")
    assert names(tmp_path / "new" / "out") == ["a_panoptic.png", "b_panoptic.png"]
    assert Image.open(tmp_path / "new" / "out" / "b_panoptic.png").size == (248, 168)


def test_predict_all_tasks_with_masks(photos: Path, tmp_path: Path) -> None:
    run("--input", photos / "a.png", "--output", tmp_path, "--task", "panoptic", "instance", "semantic", "--save-masks")
    written = [path.name for path in sorted(tmp_path.glob("a_*"))]
    assert written == [
        "a_instance.png",
        "a_instances.json",
        "a_panoptic.json",
        "a_panoptic.png",
        "a_panoptic_ids.png",
        "a_semantic.png",
        "a_semantic_labels.png",
    ]
    assert len(json.loads((tmp_path / "a_instances.json").read_text())) == 1


def test_predict_threshold_is_used(photos: Path, tmp_path: Path) -> None:
    run("--input", photos / "a.png", "--output", tmp_path, "--task", "instance", "--save-masks",
        "--confidence-threshold", "0.1")  # fmt: skip
    assert len(json.loads((tmp_path / "a_instances.json").read_text())) == 2


def test_predict_same_names_do_not_overwrite(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (5, 5)).save(other / "a.jpg")
    run("--input", photos, other, "--output", tmp_path / "out")
    assert names(tmp_path / "out") == ["a_2_panoptic.png", "a_panoptic.png", "b_panoptic.png"]


def test_predict_corrupt_image_is_named_and_others_are_done(photos: Path, tmp_path: Path) -> None:
    (photos / "aa.jpg").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"1 of 3 images could not be read: .*aa\.jpg"):
        run("--input", photos, "--output", tmp_path / "out")
    assert names(tmp_path / "out") == ["a_panoptic.png", "b_panoptic.png"]


def test_predict_output_that_is_a_file_is_named(photos: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt: cannot be the output directory"):
        run("--input", photos, "--output", photos / "notes.txt")


def test_predict_one_image_to_the_file_that_is_named(photos: Path, tmp_path: Path) -> None:
    run("--input", photos / "a.png", "--output", tmp_path / "new" / "seen.jpeg")
    assert names(tmp_path / "new") == ["seen.jpeg"]
    assert Image.open(tmp_path / "new" / "seen.jpeg").format == "JPEG"
    run(photos / "a.png", "--output", tmp_path / "two" / "seen.png", "--task", "panoptic", "semantic")
    assert names(tmp_path / "two") == ["seen_panoptic.png", "seen_semantic.png"]
    with pytest.raises(InputError, match="one file for 2 images"):
        run("--input", photos, "--output", tmp_path / "seen.png")
    with pytest.raises(InputError, match="is the image that is to be read"):
        run("--input", photos / "a.png", "--output", photos / "a.png")


def test_predict_result_that_cannot_be_written_is_named_and_others_are_done(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a_panoptic.png").mkdir(parents=True)
    with pytest.raises(InputError, match=r"1 of 2 images could not be written: .*a_panoptic\.png"):
        run("--input", photos, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "b_panoptic.png").is_file()
    assert not [name for name in names(tmp_path / "out") if name.startswith(".")]


def test_predict_folder_results_mirror_it(photos: Path, tmp_path: Path) -> None:
    below = photos / "2024" / "may"
    below.mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(below / "a.JPG")
    run("--input", photos, "--output", tmp_path / "out", "--task", "instance", "--save-masks")
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["2024/may/a_instance.png", "a_instance.png", "b_instance.png"]
    assert (tmp_path / "out/2024/may/a_instances.json").exists()


def test_predict_output_below_the_input_is_no_input(photos: Path) -> None:
    for _ in range(2):
        run("--input", photos, "--output", photos / "out")
    assert names(photos / "out") == ["a_panoptic.png", "b_panoptic.png"]
    with pytest.raises(InputError, match="is the output directory too"):
        run("--input", photos, "--output", photos)


def test_predict_many_failures_are_counted(photos: Path, tmp_path: Path) -> None:
    for index in range(25):
        (photos / f"torn{index:02d}.jpg").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"25 of 27 images .*torn19\.jpg.*; and 5 more"):
        run("--input", photos, "--output", tmp_path / "out")


def paths_and_names(files: list[NamedFile]) -> list[tuple[Path, str]]:
    return [(file.path, file.name) for file in files]


def test_find_images_patterns_and_repeats(photos: Path) -> None:
    assert paths_and_names(find_images([str(photos / "*.jpg")])) == [(photos / "b.jpg", "b")]
    assert paths_and_names(find_images([str(photos), str(photos / "a.png")])) == [
        (photos / "a.png", "a"),
        (photos / "b.jpg", "b"),
    ]


def test_find_images_pattern_results_mirror_what_is_below_its_wildcards(photos: Path) -> None:
    for folder in ("x", "y"):
        (photos / folder).mkdir()
        Image.new("RGB", (4, 4)).save(photos / folder / "a.png")
    found = find_images([str(photos / "**" / "*")])
    assert [file.name for file in found] == ["a", "b", "x/a", "y/a"]


def test_find_images_hidden_files_are_passed_over(photos: Path) -> None:
    (photos / "._a.png").write_bytes(b"resource fork")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "c.png").write_bytes(b"")
    assert [file.name for file in find_images([str(photos)])] == ["a", "b"]


def test_find_images_names_differ_where_case_is_ignored(photos: Path) -> None:
    for name in ("A.jpg", "a_2.png"):
        Image.new("RGB", (4, 4)).save(photos / name)
    found = [file.name for file in find_images([str(photos)])]
    assert len({name.lower() for name in found}) == len(found) == 4


def test_find_images_brackets_in_a_name(photos: Path) -> None:
    odd = photos / "c[1].png"
    Image.new("RGB", (4, 4)).save(odd)
    assert paths_and_names(find_images([str(odd)])) == [(odd, "c[1]")]


def test_find_images_nothing_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no image in this directory"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(InputError, match=r"\*\.jpg: no such file"):
        find_images([str(tmp_path / "*.jpg")])
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"clip\.mp4: a video.*--video-input"):
        find_images([str(tmp_path / "clip.mp4")])


def test_demo_exit_codes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = load_demo()
    arguments = ["--config-file", str(REPOSITORY / CONFIG), "--output", str(tmp_path / "out")]
    assert demo.predict_main([*arguments, "--input", str(photos)]) == 0
    assert demo.predict_main([*arguments, "--input", str(tmp_path / "none.jpg")]) == 1
    captured = capsys.readouterr()
    assert "none.jpg: no such file" in captured.err
    assert "Traceback" not in captured.err
    with pytest.raises(SystemExit) as stopped:
        demo.predict_main(["--input", str(photos)])
    assert stopped.value.code == 2
