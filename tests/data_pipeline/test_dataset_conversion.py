"""Own data of every format to and from the columns of the library datasets; nothing is left half-written."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.commands.cli import main
from mask2former.data.own_data import (
    ClassChoice,
    all_formats,
    convert_own_data,
    is_datasets_folder,
    read_own_data,
    segment_masks,
)
from mask2former.data.own_data.conversion import open_samples
from mask2former.data.own_data.dataset import DATASETS
from mask2former.data.own_data.samples import Sample
from mask2former.errors import DatasetError
from tests.data_pipeline import own_data_trees as trees

# Without the library, the folder datasets/ is what the name stands for.
pytest.importorskip("datasets.config", reason="needs the extra [transformers]")
library = importlib.import_module("datasets")

SOURCES: dict[str, Callable[[Path], Path]] = {
    "coco-instances": trees.write_coco_instances,
    "coco-panoptic": trees.write_coco_panoptic,
    "labelme": trees.write_labelme,
    "png": trees.write_png_tree,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def samples(folder: Path, part: str = "train", **choice: Any) -> list[Sample]:
    return list(open_samples(folder, preferred=None, choice=ClassChoice(**choice)).parts[part])


def regions(sample: Sample, names: dict[int, str]) -> list[tuple[str, bytes]]:
    """What must survive: each region's class and pixels."""
    return sorted((names[region.class_id], region.mask.tobytes()) for region in sample.regions())


def class_names(folder: Path) -> dict[int, str]:
    return {c.id: c.name for c in open_samples(folder, preferred=None, choice=ClassChoice()).classes}


@pytest.mark.parametrize("source", SOURCES)
def test_segments_survive_the_way_to_datasets_and_back(source: str, tmp_path: Path) -> None:
    original = SOURCES[source](tmp_path / "original")
    convert_own_data(original, tmp_path / "hub", target=DATASETS)
    assert is_datasets_folder(tmp_path / "hub")
    convert_own_data(
        tmp_path / "hub", tmp_path / "back", target=next(f.name for f in all_formats() if f.option == source)
    )
    expected = [regions(sample, class_names(original)) for sample in samples(original)]
    assert [regions(s, class_names(tmp_path / "hub")) for s in samples(tmp_path / "hub")] == expected
    names_file = tmp_path / "back" / "classes.txt"
    found = samples(tmp_path / "back", names_file=str(names_file) if names_file.exists() else None)
    names = class_names(tmp_path / "hub")  # ids that were numbered once stay
    if source == "labelme":  # which knows labels alone
        names = class_names(tmp_path / "back")
    assert [regions(sample, names) for sample in found] == expected
    assert any(expected)
    assert [sample.image for sample in found] == [sample.image for sample in samples(original)]


def test_columns_are_those_of_the_example(tmp_path: Path) -> None:
    convert_own_data(trees.write_coco_panoptic(tmp_path / "original"), tmp_path / "hub", target=DATASETS)
    loaded = library.load_dataset(str(tmp_path / "hub"))
    assert set(loaded) == {"train", "validation"}
    row = loaded["train"][0]
    assert row["semantic_class_to_id"] == {"background": 0, "box": 1, "disc": 2, "sky": 3}
    assert row["thing_classes"] == ["box", "disc"]
    annotation = np.asarray(row["annotation"])
    assert row["annotation"].mode == row["image"].mode == "RGB"
    ids, segments = trees.scene(0)
    for segment, label in zip(segments, (3, 1, 2, 2), strict=True):
        assert (annotation[ids == segment["id"], 0] == label).all()
    assert not annotation[ids == 0].any()
    assert len(np.unique(annotation[..., 1])) == 5  # four segments and the background
    assert not annotation[..., 2].any()


def test_smaller_of_overlapping_objects_lies_on_top(tmp_path: Path) -> None:
    root = trees.write_coco_instances(tmp_path / "original", num=1)
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    small = content["annotations"][-1]
    small["segmentation"] = [[3.0, 9.0, 6.0, 9.0, 6.0, 12.0, 3.0, 12.0]]  # inside the box, first in the file
    content["annotations"] = [small, *content["annotations"][:-1]]
    file.write_text(json.dumps(content))
    convert_own_data(root, tmp_path / "hub", target=DATASETS)
    (sample,) = samples(tmp_path / "hub")
    assert set(np.unique(sample.class_ids[9:12, 3:6])) == {2}  # disc
    assert sample.class_ids[18, 8] == 1


def test_more_than_255_instances_stay_apart(tmp_path: Path) -> None:
    root = tmp_path / "original"
    ids = np.zeros((20, 20), np.int32)
    ids[...] = np.arange(1, 401).reshape(20, 20)
    trees.write_image(root / "train" / "0.png", size=(20, 20))
    (root / "panoptic_train").mkdir()
    from mask2former.structures import id_to_rgb

    Image.fromarray(id_to_rgb(ids)).save(root / "panoptic_train" / "0.png")
    infos = [{"id": i, "category_id": 5} for i in range(1, 401)]
    images = [{"id": 1, "file_name": "0.png", "height": 20, "width": 20}]
    annotations = [{"image_id": 1, "file_name": "0.png", "segments_info": infos}]
    categories = [{"id": 5, "name": "cell", "isthing": 1}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    trees.write_json(root / "annotations" / "panoptic_train.json", content)
    convert_own_data(root, tmp_path / "hub", target=DATASETS)
    (sample,) = samples(tmp_path / "hub")
    assert len(list(sample.regions())) == 400


def test_ignored_classes_become_background(tmp_path: Path) -> None:
    root = trees.write_coco_instances(tmp_path / "original")
    convert_own_data(root, tmp_path / "hub", target=DATASETS, choice=ClassChoice(ignored=("disc",)))
    assert class_names(tmp_path / "hub") == {1: "box"}
    assert [len(list(sample.regions())) for sample in samples(tmp_path / "hub")] == [1, 0]
    assert not any(list(sample.regions()) for sample in samples(tmp_path / "hub", ignored=("box",)))


def test_what_was_saved_to_disk_is_read(tmp_path: Path) -> None:
    convert_own_data(trees.write_coco_instances(tmp_path / "original"), tmp_path / "hub", target=DATASETS)
    library.load_dataset(str(tmp_path / "hub")).save_to_disk(tmp_path / "saved")
    assert is_datasets_folder(tmp_path / "saved")
    expected = [sample.class_ids.tolist() for sample in samples(tmp_path / "hub")]
    assert [sample.class_ids.tolist() for sample in samples(tmp_path / "saved")] == expected


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    root = trees.write_coco_instances(tmp_path / "original")
    (root / "val2017" / "11.jpg").write_bytes((root / "val2017" / "11.jpg").read_bytes()[:50])
    with pytest.raises(DatasetError):
        convert_own_data(root, tmp_path / "hub", target=DATASETS)
    damaged = trees.write_coco_panoptic(tmp_path / "panoptic")
    convert_own_data(damaged, tmp_path / "hub", target=DATASETS)
    file = next((tmp_path / "hub" / "data").glob("train*"))
    rows = list(library.Dataset.from_parquet(str(file)))
    rows[1]["annotation"] = rows[1]["annotation"].convert("L")
    broken = library.Dataset.from_list(rows[:2])
    library.DatasetDict({"train": broken}).save_to_disk(tmp_path / "broken")
    (tmp_path / ".out.partial").mkdir()  # of a run that was killed
    with pytest.raises(DatasetError, match="row 1: annotation: expected an RGB picture"):
        convert_own_data(tmp_path / "broken", tmp_path / "out", target="coco_panoptic")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": 0}, "expected the columns image, annotation, semantic_class_to_id, found image"),
        ({"image": 0, "annotation": 0, "semantic_class_to_id": {"a": 1, "b": 1}}, "different ids"),
        ({"image": 0, "annotation": 0, "semantic_class_to_id": {"cat": 0}}, "class id 0 is 'cat'"),
    ],
)
def test_wrong_columns_are_named(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    library.Dataset.from_list([columns]).save_to_disk(tmp_path / "hub")
    with pytest.raises(DatasetError, match=message):
        convert_own_data(tmp_path / "hub", tmp_path / "out", target="png_tree")


def test_command_converts_and_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, hub = str(trees.write_png_tree(tmp_path / "original")), str(tmp_path / "hub")
    assert main(["convert-dataset", source, hub]) == 0
    assert "datasets, 2 train images and 1 valid images, 3 classes" in capsys.readouterr().out
    assert main(["convert-dataset", source, hub]) == 1
    assert f"error: {hub}: exists already" in capsys.readouterr().err
    assert main(["convert-dataset", hub, str(tmp_path / "out")]) == 1
    assert "error: --to:" in capsys.readouterr().err
    assert main(["convert-dataset", hub, str(tmp_path / "out"), "--to", "coco-instances"]) == 1
    assert "no class is a thing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_readers_name_the_converter(tmp_path: Path) -> None:
    convert_own_data(trees.write_coco_instances(tmp_path / "original"), tmp_path / "hub", target=DATASETS)
    with pytest.raises(DatasetError, match="convert_dataset"):
        read_own_data(tmp_path / "hub")


def test_masks_of_written_files_equal_the_maps(tmp_path: Path) -> None:
    convert_own_data(trees.write_coco_panoptic(tmp_path / "original"), tmp_path / "out", target="coco_instances")
    image = read_own_data(tmp_path / "out").parts["train"][0]
    ids, segments = trees.scene(0)
    expected = sorted((ids == segment["id"]).tobytes() for segment in segments[1:])
    assert sorted(mask.tobytes() for mask in segment_masks(image)) == expected
