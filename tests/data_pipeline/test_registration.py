"""The built-in data sets: every published fact, nothing read too early, and what is said where files are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mask2former.data import DatasetCatalog, MetadataCatalog, register_builtin_datasets
from mask2former.data.datasets.builtin import provision_of
from mask2former.data.datasets.classes import class_table, read_table
from mask2former.errors import DatasetError

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "tests" / "data" / "reference"
PUBLISHED = json.loads((REFERENCE / "dataset_metadata.json").read_text())


def _published_metadata(name: str, root: Path) -> dict[str, Any]:
    entry = dict(PUBLISHED["datasets"][name])
    taxonomy = PUBLISHED["taxonomies"][entry.pop("taxonomy")]
    expected = {k: v.replace("ROOT", str(root)) if isinstance(v, str) else v for k, v in entry.items()}
    for key, value in taxonomy.items():
        expected[key] = {int(i): j for i, j in value.items()} if key.endswith("_to_contiguous_id") else value
    return expected


@pytest.mark.parametrize("name", PUBLISHED["datasets"])
def test_registration_matches_the_published_metadata(name: str, tmp_path: Path) -> None:
    register_builtin_datasets(tmp_path)
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name).as_dict()
    assert metadata.pop("name") == name
    assert metadata == _published_metadata(name, tmp_path)


def test_registration_knows_no_other_names() -> None:
    of_oneformer = {"coco_2017_val_panoptic2instance"}
    assert set(read_table("datasets")) == set(PUBLISHED["datasets"]) | of_oneformer
    assert len(PUBLISHED["datasets"]) == 48


def test_registration_does_not_share_tables_between_names(tmp_path: Path) -> None:
    register_builtin_datasets(tmp_path)
    MetadataCatalog.get("coco_2017_train").thing_classes.append("changed")
    assert len(MetadataCatalog.get("coco_2017_val").thing_classes) == 80


def test_nothing_is_read_at_import() -> None:
    code = (
        "import mask2former.data, mask2former.data.datasets.classes as c;"
        "from mask2former.data import DatasetCatalog;"
        "print(c.read_table.cache_info().currsize, len(DatasetCatalog.list()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]


@pytest.mark.parametrize("name", PUBLISHED["datasets"])
def test_missing_dataset_names_the_place_and_where_it_comes_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        DatasetCatalog.get(name)
    message = str(caught.value)
    assert message.startswith(f"data set '{name}': {tmp_path}/")
    place = message.split(": ", 1)[1].split(" not found", 1)[0]
    assert place.rstrip("/") in {
        str(v).rstrip("/") for v in MetadataCatalog.get(name).as_dict().values() if isinstance(v, str)
    }
    assert "made by: python datasets/prepare_" in message or "unpack " in message or "detectron2's" in message


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("coco_2017_train_panoptic_with_sem_seg", "prepare_coco_semantic_annos_from_panoptic_annos.py"),
        ("coco_2017_val_panoptic_stuffonly", "prepare_panoptic_fpn.py"),
        ("coco_2017_test_stuff_10k_sem_seg", "prepare_coco_stuff_10k_v1.0_sem_seg.py"),
        ("ade20k_sem_seg_val", "prepare_ade20k_sem_seg.py"),
        ("ade20k_instance_val", "prepare_ade20k_ins_seg.py"),
        ("ade20k_panoptic_train", "prepare_ade20k_pan_seg.py"),
        ("ade20k_full_sem_seg_train", "prepare_ade20k_full_sem_seg.py"),
        ("cityscapes_fine_panoptic_val", "prepare_cityscapes.py"),
        ("mapillary_vistas_panoptic_train", "prepare_mapillary_vistas.py"),
    ],
)
def test_missing_dataset_names_an_existing_script(
    name: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    entry = read_table("datasets")[name]["metadata"]
    if "sem_seg_root" in entry and "panoptic_json" in entry:  # what comes before it is not made by the script
        (tmp_path / entry["panoptic_json"]).parent.mkdir(parents=True)
        (tmp_path / entry["panoptic_json"]).write_text("{}")
        (tmp_path / entry["panoptic_root"]).mkdir()
        (tmp_path / entry["panoptic_root"] / "1.png").touch()
    with pytest.raises(DatasetError, match=f"python datasets/{script}"):
        DatasetCatalog.get(name)
    assert (REPOSITORY / "datasets" / script).is_file()


def test_empty_folder_is_said_to_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "ADEChallengeData2016/annotations_detectron2/training").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"annotations_detectron2/training is empty .*prepare_ade20k_sem_seg"):
        DatasetCatalog.get("ade20k_sem_seg_train")


def test_every_path_has_a_provision() -> None:
    for entry in read_table("datasets").values():
        for value in entry["metadata"].values():
            if isinstance(value, str) and "/" in value:
                assert "shows what belongs there" not in provision_of(value), value
    assert "shows what belongs there" in provision_of("elsewhere/file.json")


def test_ade20k_instance_classes_are_those_of_the_scene_classes() -> None:
    categories = json.loads((REFERENCE / "ade20k_instance_categories.json").read_text())
    published = {c["instance_id"]: (c["name"], c["scene_parsing_id"] - 1) for c in categories}
    things = [c for c in class_table("ade20k") if c.isthing]
    assert {n: (c.instance_name, c.id) for n, c in enumerate(things, start=1)} == published
