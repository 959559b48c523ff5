"""What all preparations have in common: command lines, running again, several processes, and errors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mask2former.commands.cli import main as run_command
from mask2former.commands.prepare import PREPARATIONS, run_preparation
from mask2former.data import DatasetCatalog
from mask2former.data.preparation.work import RunOptions
from mask2former.errors import DatasetError
from mask2former.files.atomic import temporary_path
from tests.data_pipeline import prepared_trees

REPOSITORY = Path(__file__).parents[2]
TREES: dict[str, Callable[[Path], Any]] = {
    "coco_semantic": prepared_trees.coco_tree,
    "coco_stuff": prepared_trees.coco_tree,
    "coco_stuff_10k": prepared_trees.coco_stuff_10k_tree,
    "ade20k_sem_seg": prepared_trees.ade20k_tree,
    "ade20k_ins_seg": prepared_trees.ade20k_tree,
    "ade20k_pan_seg": prepared_trees.ade20k_tree,
    "ade20k_full_sem_seg": prepared_trees.ade20k_full_tree,
    "cityscapes": prepared_trees.cityscapes_tree,
    "mapillary_vistas": lambda root: prepared_trees.mapillary_tree(root, nested=True),
}


def main(name: str, arguments: list[str]) -> int:
    return run_command(["prepare", name, *arguments])


def _files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _times(paths: set[Path]) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def test_every_preparation_has_a_tree_and_a_script() -> None:
    scripts = [p.read_text() for p in (REPOSITORY / "datasets").glob("prepare_*.py") if p.stem != "prepare_shapes"]
    assert set(TREES) == set(PREPARATIONS)
    assert len(scripts) == len(PREPARATIONS)
    for name in PREPARATIONS:
        assert sum(f'main(["prepare", "{name.replace("_", "-")}",' in script for script in scripts) == 1


@pytest.mark.parametrize("name", TREES)
def test_preparation_may_run_again(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    sources = set(_files(tmp_path))
    run_preparation(name, tmp_path)
    first = _files(tmp_path)
    made = set(first) - sources
    assert made
    times = _times(set(first))
    run_preparation(name, tmp_path)
    assert _times(set(_files(tmp_path))) == times
    # What is missing, cut off or left by a killed run is put right; the rest stays.
    *_, cut = sorted(p for p in made if p.suffix in (".png", ".tif", ".json", ".jpg"))
    cut.unlink()
    cut.write_bytes(first[cut][: len(first[cut]) // 2])
    leftover = temporary_path(cut)
    leftover.write_bytes(b"half")
    run_preparation(name, tmp_path)
    again = _files(tmp_path)
    if leftover in again:  # only folders that a preparation owns are cleared
        assert cut.suffix == ".json"
        again.pop(leftover)
    assert again == first


@pytest.mark.parametrize("name", ["cityscapes", "ade20k_ins_seg"])
def test_preparation_by_two_processes_gives_the_same_files(name: str, tmp_path: Path) -> None:
    for folder, workers in (("one", 1), ("two", 2)):
        TREES[name](tmp_path / folder)
        run_preparation(name, tmp_path / folder, options=RunOptions(num_workers=workers))
    one, two = (
        {p.relative_to(tmp_path / folder): content for p, content in _files(tmp_path / folder).items()}
        for folder in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize("name", ["coco_semantic", "ade20k_pan_seg"])
def test_force_makes_everything_anew(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    sources = set(_files(tmp_path))
    run_preparation(name, tmp_path)
    made = set(_files(tmp_path)) - sources
    before = _times(made)
    run_preparation(name, tmp_path, options=RunOptions(force=True))
    after = _times(made)
    assert all(before[path] != after[path] for path in made)


def test_error_in_a_process_is_the_same_error(tmp_path: Path) -> None:
    prepared_trees.ade20k_tree(tmp_path)
    (tmp_path / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png").write_bytes(b"no picture")
    for workers in (1, 2):
        with pytest.raises(DatasetError, match=r"ADE_train_00000001.png: cannot be read as an image"):
            run_preparation("ade20k_sem_seg", tmp_path, options=RunOptions(num_workers=workers))


@pytest.mark.parametrize("name", PREPARATIONS)
def test_missing_source_is_named_with_its_origin(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(name, ["--root", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}/")
    assert "not found; " in message
    assert main(name, ["--root", str(tmp_path), "--verbose"]) == 1
    assert re.search("Traceback(.|\n)*DatasetError: .* not found", capsys.readouterr().err)


def test_wrong_options_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared_trees.ade20k_tree(tmp_path, ("training",))
    root = ["--root", str(tmp_path)]
    assert main("ade20k_sem_seg", [*root, "--splits", "val"]) == 1
    assert "'val' is none of training, validation" in capsys.readouterr().err
    assert main("ade20k_sem_seg", [*root, "--splits", "validation"]) == 1
    assert "annotations/validation not found; unpack ADEChallengeData2016.zip" in capsys.readouterr().err
    assert main("ade20k_sem_seg", [*root, "--num-workers", "0"]) == 1
    assert "--num-workers: expected at least 1" in capsys.readouterr().err
    assert main("ade20k_sem_seg", [*root, "--num-workers", "1"]) == 0
    assert "2 files written" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main("ade20k_sem_seg", ["--unknown"])
    assert caught.value.code == 2


def test_every_script_finds_the_package_beside_it() -> None:
    for script in (REPOSITORY / "datasets").glob("prepare_*.py"):
        lines = script.read_text().splitlines()
        assert lines.index(next(line for line in lines if line.startswith("sys.path.insert(0, "))) < lines.index(
            next(line for line in lines if line.startswith("from mask2former"))
        )


def test_scripts_are_doors_to_the_command(tmp_path: Path) -> None:
    prepared_trees.ade20k_tree(tmp_path, ("validation",))
    script = [sys.executable, str(REPOSITORY / "datasets" / "prepare_ade20k_sem_seg.py")]
    environment = {"DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*script, "--num-workers", "1"], env=environment, capture_output=True, text=True, check=True)
    assert "annotations_detectron2/validation: 2 files written, 0 were there" in done.stdout
    shown = subprocess.run([*script, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "--num-workers" in shown.stdout


@pytest.mark.parametrize("name", PREPARATIONS)
def test_help_tells_what_is_made(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(name, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert next(iter(PREPARATIONS[name].splits)) in shown


def test_mapillary_checks_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepared_trees.mapillary_tree(tmp_path, nested=True)
    with pytest.raises(DatasetError, match=r"labels not found .*prepare_mapillary_vistas.py"):
        DatasetCatalog.get("mapillary_vistas_sem_seg_train")
    run_preparation("mapillary_vistas")
    (record,) = DatasetCatalog.get("mapillary_vistas_sem_seg_train")
    with Image.open(record["sem_seg_file_name"]) as image:
        assert image.mode == "P"
    (record,) = DatasetCatalog.get("mapillary_vistas_panoptic_val")
    assert [(s["category_id"], s["isthing"]) for s in record["segments_info"]] == [(27, False), (19, True)]
    assert record["sem_seg_file_name"].endswith("validation/labels/a_b.png")
    (tmp_path / "mapillary_vistas/validation/v1.2/labels/a_b.png").unlink()
    (tmp_path / "mapillary_vistas/validation/labels/a_b.png").unlink()
    with pytest.raises(DatasetError, match=r"validation/labels/a_b.png not found"):
        run_preparation("mapillary_vistas")


def test_mapillary_of_version_1_2_is_only_checked(tmp_path: Path) -> None:
    prepared_trees.mapillary_tree(tmp_path, nested=False)
    before = _files(tmp_path)
    run_preparation("mapillary_vistas", tmp_path)
    assert _files(tmp_path) == before
