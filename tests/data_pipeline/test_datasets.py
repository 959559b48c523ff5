"""Catalogs and the readers of data-set formats, on right and on wrong files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data import (
    DatasetCatalog,
    MetadataCatalog,
    dataset_root,
    register_builtin_datasets,
    register_coco_instances,
    register_coco_panoptic,
    register_sem_seg,
)
from mask2former.data.datasets import load_coco_json, load_coco_panoptic_json, load_sem_seg
from mask2former.errors import DatasetError
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.structures import Metadata

REFERENCE = Path(__file__).parents[1] / "data" / "reference"


def test_catalog_registers_gets_and_removes() -> None:
    DatasetCatalog.register("one", lambda: [{"file_name": "a.jpg"}])
    assert DatasetCatalog.get("one") == [{"file_name": "a.jpg"}]
    assert "one" in DatasetCatalog
    assert "one" in list(DatasetCatalog)
    with pytest.raises(DatasetError, match="'one' is registered already"):
        DatasetCatalog.register("one", list)
    DatasetCatalog.remove("one")
    assert "one" not in DatasetCatalog.list()


def test_catalog_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(DatasetError, match=r"'coco_2017_trian'.*did you mean.*coco_2017_train"):
        DatasetCatalog.get("coco_2017_trian")
    with pytest.raises(DatasetError, match=r"known are .*ade20k_panoptic_val"):
        DatasetCatalog.get("0123456789")


def test_dataset_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert dataset_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    assert dataset_root() == Path("/data/sets")


def test_builtin_datasets_have_the_published_classes(tmp_path: Path) -> None:
    register_builtin_datasets(tmp_path)
    register_builtin_datasets(tmp_path)
    coco = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert (len(coco.thing_classes), len(coco.stuff_classes)) == (80, 133)
    assert coco.thing_dataset_id_to_contiguous_id[90] == 79
    assert coco.stuff_dataset_id_to_contiguous_id[200] == 132
    assert coco.panoptic_json == str(tmp_path / "coco/annotations/panoptic_val2017.json")
    assert coco.evaluator_type == "coco_panoptic_seg"
    assert MetadataCatalog.get("ade20k_full_sem_seg_val").ignore_label == 65535
    assert len(MetadataCatalog.get("cityscapes_fine_panoptic_val").stuff_classes) == 19
    assert len(MetadataCatalog.get("ytvis_2021_train").thing_classes) == 40
    assert "shapes_panoptic_train" in DatasetCatalog
    assert "cityscapes_fine_panoptic_val" in DatasetCatalog


def test_builtin_datasets_move_with_the_root(tmp_path: Path) -> None:
    register_builtin_datasets(tmp_path / "first")
    register_builtin_datasets(tmp_path / "second")
    assert MetadataCatalog.get("coco_2017_train").image_root == str(tmp_path / "second/coco/train2017")
    assert str(tmp_path / "second") in MetadataCatalog.get("shapes_sem_seg_val").image_root


def test_builtin_datasets_stay_below_a_given_root_until_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "first"))
    register_builtin_datasets(tmp_path / "given")
    with pytest.raises(DatasetError, match="given/coco"):
        DatasetCatalog.get("coco_2017_train")
    assert MetadataCatalog.get("coco_2017_train").image_root == str(tmp_path / "given/coco/train2017")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "second"))
    with pytest.raises(DatasetError, match="second/coco"):
        DatasetCatalog.get("coco_2017_train")
    assert MetadataCatalog.get("coco_2017_train").image_root == str(tmp_path / "second/coco/train2017")


def test_builtin_dataset_that_is_missing_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, place in (
        ("coco_2017_train", "coco/annotations/instances_train2017.json"),
        ("coco_2017_train_panoptic", "coco/annotations/panoptic_train2017.json"),
        ("ade20k_sem_seg_train", "ADEChallengeData2016/annotations_detectron2/training"),
        ("shapes_panoptic_train", "shapes"),
    ):
        with pytest.raises(DatasetError) as caught:
            DatasetCatalog.get(name)
        assert str(tmp_path / place) in str(caught.value)
        assert name in str(caught.value)


def test_coco_instances_become_dataset_dicts(tiny: Any) -> None:
    register_coco_instances("tiny_instances", {}, tiny.instances_json, tiny.images)
    dicts = DatasetCatalog.get("tiny_instances")
    metadata = MetadataCatalog.get("tiny_instances")
    assert metadata.thing_classes == ["disc", "box"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco"
    assert [len(d["annotations"]) for d in dicts] == [3, 0, 0, 1]
    assert [(d["image_id"], d["height"], d["width"]) for d in dicts] == [(100 + i, 24, 32) for i in range(4)]
    assert dicts[0]["file_name"] == str(tiny.images / "000.jpg")
    first = dicts[0]["annotations"][0]
    assert (first["category_id"], first["iscrowd"], first["bbox"], first["bbox_mode"]) == (1, 0, [3, 4, 6, 8], 1)


def test_coco_instances_without_name_keep_ids(tiny: Any) -> None:
    dicts = load_coco_json(tiny.instances_json, tiny.images)
    assert [a["category_id"] for a in dicts[0]["annotations"]] == [7, 3, 3]


def test_coco_json_accepts_bitmap_and_uncompressed_rle(tiny: Any) -> None:
    bitmap = (tiny.ids[0] == 256).astype(int).tolist()

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = bitmap
        content["annotations"][1]["segmentation"] = {"size": [24, 32], "counts": [5, 3, 24 * 32 - 8]}

    tiny.edit(tiny.instances_json, change)
    annotations = load_coco_json(tiny.instances_json, tiny.images)[0]["annotations"]
    assert np.array_equal(annotations[0]["segmentation"], np.array(bitmap))
    assert annotations[1]["segmentation"]["counts"][1] == 3


def test_coco_json_leaves_out_degenerate_parts_of_a_valid_mask(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 1, 5, 5], [1, 1, 9, 1, 9, 9]]

    tiny.edit(tiny.instances_json, change)
    annotations = load_coco_json(tiny.instances_json, tiny.images)[0]["annotations"]
    assert annotations[0]["segmentation"] == [[1, 1, 9, 1, 9, 9]]
    assert "left out parts of fewer than 3 points: annotation 1" in caplog.text


def test_coco_json_leaves_out_objects_of_polygons_without_three_points(
    tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 1, 5, 5], [3, 3]]

    tiny.edit(tiny.instances_json, change)
    annotations = load_coco_json(tiny.instances_json, tiny.images)[0]["annotations"]
    assert [a["id"] for a in annotations] == [2, 3]
    assert "left out 1 of 4 annotations, whose polygons all have fewer than 3 points: annotation 1" in caplog.text
    truth = CocoGroundTruth(tiny.instances_json, ["segm"])
    assert [a["id"] for a in truth.annotations_of(100)] == [2, 3]


def test_coco_json_refuses_a_file_whose_objects_mostly_lack_three_points(tiny: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"][:3]:
            annotation["segmentation"] = [[1, 1, 5, 5]]

    tiny.edit(tiny.instances_json, change)
    with pytest.raises(
        DatasetError, match=r"annotation 1: a polygon needs at least 3 points.*found 4 numbers"
    ) as caught:
        load_coco_json(tiny.instances_json, tiny.images)
    assert "annotation 3: " in str(caught.value)


def _set_first(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set_first("category_id", 8), r"annotation 1: category id 8 has no class; classes have ids \[3, 7\]"),
        (_set_first("segmentation", [[1, 1, 5, 5, 9, "x"]]), "annotation 1: a polygon holds something else"),
        (_set_first("segmentation", [[1, 1, 5, 5, 9, float("nan")]]), "annotation 1: a polygon holds something else"),
        (_set_first("segmentation", []), "annotation 1: segmentation holds no polygon"),
        (_set_first("segmentation", "mask.png"), "annotation 1: segmentation must be polygons"),
        (_set_first("segmentation", {"size": [24, 31], "counts": "0"}), r"annotation 1: RLE has size \[24, 31\]"),
        (_set_first("segmentation", {"counts": "0"}), "annotation 1: RLE: missing 'size'"),
        (_set_first("bbox", [1, 2, 3]), "annotation 1: bbox must be four finite numbers"),
        (_set_first("bbox", "wide"), "annotation 1: bbox must be four finite numbers"),
        (_set_first("id", 2), "annotation 2: the id occurs twice"),
        (_set_first("image_id", 5), "annotation 1: belongs to image 5, which is not listed"),
        (lambda c: c["annotations"][0].pop("category_id"), "annotation 1: missing 'category_id'"),
        (lambda c: c["annotations"].append(3), "annotation without id: expected an object, found int"),
        (lambda c: c["images"][1].pop("height"), "image 101: missing 'height'"),
        (lambda c: c.pop("annotations"), "expected a list under 'annotations', found no such key"),
        (lambda c: c.update(images={}), "expected a list under 'images', found dict"),
        (lambda c: c.pop("categories"), "has no 'categories'"),
        (lambda c: c.update(images=[], annotations=[]), "lists no image"),
    ],
)
def test_coco_json_wrong_entry_is_named(tiny: Any, change: Callable[[Any], None], message: str) -> None:
    tiny.edit(tiny.instances_json, change)
    register_coco_instances("tiny_wrong", {}, tiny.instances_json, tiny.images)
    with pytest.raises(DatasetError, match=message) as caught:
        DatasetCatalog.get("tiny_wrong")
    assert str(tiny.instances_json) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe{"])
def test_coco_json_that_is_no_json_object_is_named(tiny: Any, content: bytes) -> None:
    tiny.instances_json.write_bytes(content)
    with pytest.raises(DatasetError, match=r"instances\.json"):
        load_coco_json(tiny.instances_json, tiny.images)


def test_missing_and_empty_folders_are_named(tiny: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, reason in ((tmp_path / "absent", "not found"), (empty, "empty")):
        with pytest.raises(DatasetError, match=f"image folder.*{reason}.*{folder}"):
            load_coco_json(tiny.instances_json, folder)
        with pytest.raises(DatasetError, match=f"image folder.*{reason}.*{folder}"):
            load_coco_panoptic_json(tiny.panoptic_json, folder, tiny.panoptic, metadata=Metadata("x"))
        with pytest.raises(DatasetError, match=f"panoptic segmentation folder.*{reason}.*{folder}"):
            load_coco_panoptic_json(tiny.panoptic_json, tiny.images, folder, metadata=Metadata("x"))
        with pytest.raises(DatasetError, match=f"semantic segmentation folder.*{reason}.*{folder}"):
            load_sem_seg(folder, tiny.images)
        with pytest.raises(DatasetError, match=f"image folder.*{reason}.*{folder}"):
            load_sem_seg(tiny.sem_seg, folder)


def test_contradicting_class_names_are_an_error(tiny: Any) -> None:
    register_coco_instances("tiny_names", {"thing_classes": ["cat", "dog"]}, tiny.instances_json, tiny.images)
    with pytest.raises(DatasetError, match="contradict"):
        DatasetCatalog.get("tiny_names")
    metadata = {"thing_classes": ["cat"]}
    register_coco_panoptic("tiny_pan_names", metadata, tiny.images, tiny.panoptic, tiny.panoptic_json)
    with pytest.raises(DatasetError, match="contradict"):
        DatasetCatalog.get("tiny_pan_names")


def test_coco_panoptic_becomes_dataset_dicts(tiny: Any) -> None:
    register_coco_panoptic(
        "tiny_panoptic",
        {},
        tiny.images,
        tiny.panoptic,
        tiny.panoptic_json,
        tiny.sem_seg,
        tiny.instances_json,
    )
    dicts = DatasetCatalog.get("tiny_panoptic")
    metadata = MetadataCatalog.get("tiny_panoptic")
    assert metadata.thing_classes == ["disc", "box"]
    assert metadata.stuff_classes == ["disc", "box", "grass", "sky"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.stuff_dataset_id_to_contiguous_id == {3: 0, 7: 1, 41: 2, 50: 3}
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.json_file == str(tiny.instances_json)
    assert [len(d["segments_info"]) for d in dicts] == [5, 2, 0, 1]
    crowd = dicts[0]["segments_info"][-1]
    assert (crowd["id"], crowd["category_id"], crowd["isthing"], crowd["iscrowd"]) == (999, 0, True, 1)
    assert dicts[1]["segments_info"][0]["isthing"] is False
    assert dicts[3]["sem_seg_file_name"] == str(tiny.sem_seg / "003.png")
    assert (dicts[3]["height"], dicts[3]["width"]) == (24, 32)


def test_coco_panoptic_without_image_list_takes_the_png_name(tiny: Any) -> None:
    tiny.edit(tiny.panoptic_json, lambda c: c.pop("images"))
    dicts = load_coco_panoptic_json(tiny.panoptic_json, tiny.images, tiny.panoptic, metadata=Metadata("x"))
    assert dicts[2]["file_name"] == str(tiny.images / "002.jpg")
    assert "height" not in dicts[2]


def test_coco_panoptic_reads_the_reference_data() -> None:
    folder = REFERENCE / "evaluation"
    metadata = Metadata("reference")
    dicts = load_coco_panoptic_json(folder / "panoptic.json", folder / "images", folder / "panoptic", metadata=metadata)
    assert len(dicts) == 8
    assert metadata.thing_classes == ["circle", "square", "triangle", "star", "ring"]
    assert dicts[0]["segments_info"][2]["category_id"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0]["segments_info"][2].update(category_id=9),
            "image 100: segment 256: category id 9 has no class",
        ),
        (lambda c: c["annotations"][1].pop("segments_info"), "image 101: missing 'segments_info'"),
        (lambda c: c["annotations"][1]["segments_info"][0].pop("id"), "image 101: segment: missing 'id'"),
        (lambda c: c["images"][1].pop("file_name"), "image 101: missing 'file_name'"),
        (lambda c: c["categories"][0].pop("isthing"), "category 50: missing 'isthing'"),
        (lambda c: c.update(annotations=[]), "holds no annotation"),
        (lambda c: c.pop("categories"), "has no 'categories'"),
        (lambda c: c["images"][0].update(file_name="no.jpg"), "file not found: .*no.jpg"),
    ],
)
def test_coco_panoptic_wrong_entry_is_named(tiny: Any, change: Callable[[Any], None], message: str) -> None:
    tiny.edit(tiny.panoptic_json, change)
    with pytest.raises(DatasetError, match=message) as caught:
        load_coco_panoptic_json(tiny.panoptic_json, tiny.images, tiny.panoptic, metadata=Metadata("x"))
    assert str(tiny.panoptic_json) in str(caught.value)


def test_sem_seg_pairs_files_below_subfolders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b/x", "a/y", "c"):
        for folder, extension in (("images", "jpg"), ("labels", "png")):
            path = tmp_path / folder / f"{name}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    Image.new("L", (4, 4)).save(tmp_path / "images" / "alone.jpg")
    register_sem_seg("pairs", {"stuff_classes": ["a"]}, tmp_path / "images", tmp_path / "labels")
    dicts = DatasetCatalog.get("pairs")
    assert [d["image_id"] for d in dicts] == ["a/y", "b/x", "c"]
    assert dicts[0]["sem_seg_file_name"] == str(tmp_path / "labels/a/y.png")
    assert "share only 3 names" in caplog.text
    assert MetadataCatalog.get("pairs").ignore_label == 255


def test_sem_seg_without_a_pair_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "images" / "one.jpg")
    Image.new("L", (4, 4)).save(tmp_path / "labels" / "two.png")
    with pytest.raises(DatasetError, match=r"no \*\.jpg file below .* has a \*\.png file of its name"):
        load_sem_seg(tmp_path / "labels", tmp_path / "images")
    with pytest.raises(DatasetError, match=r"no \*\.tif file below"):
        load_sem_seg(tmp_path / "labels", tmp_path / "images", gt_ext="tif")


def test_json_written_by_the_fixture_is_plain(tiny: Any) -> None:
    assert set(json.loads(tiny.panoptic_json.read_text())) == {"images", "annotations", "categories"}
