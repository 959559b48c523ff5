"""Files of data sets are looked at before the first step, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former import get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import register_coco_instances, register_coco_panoptic
from mask2former.data.loader import build_test_loader
from mask2former.data.own_data import checked_files
from mask2former.data.own_data.checked_files import ListedImage, check_files, listed_images
from mask2former.errors import DatasetError
from tests.agreement.annotation_scene import content_of, write_scene


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_images(folder: Path, number: int = 3) -> list[ListedImage]:
    folder.mkdir()
    for i in range(number):
        Image.new("RGB", (6, 4)).save(folder / f"{i}.png")
    return [ListedImage(str(folder / f"{i}.png"), (4, 6)) for i in range(number)]


def looked(images: list[ListedImage]) -> bool:
    return check_files(images, source="a.json", description="files").was_needed


def test_files_are_looked_at_again_only_when_something_changed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    assert looked(images)
    assert not looked(images)
    os.utime(images[1].file, ns=(5, 5))
    assert looked(images)
    assert not looked(images)
    with pytest.raises(DatasetError, match=r"1\.png: image has .* \(4, 6\), a.json says \(6, 4\)"):
        looked([images[0], images[1]._replace(size=(6, 4))])
    Path(images[2].file).unlink()
    for _ in range(2):  # what was wrong is not remembered
        with pytest.raises(DatasetError, match=r"2\.png"):
            looked(images)


def test_a_cache_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    images = write_images(tmp_path / "images")
    assert looked(images)
    assert looked(images)


def test_old_data_sets_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "_MAX_REMEMBERED", 2)
    images = write_images(tmp_path / "images", 4)
    for image in images:
        assert looked([image])
    assert len(list((tmp_path / "cache/mask2former/checked").iterdir())) == 2
    assert not looked(images[3:])


def test_panoptic_ids_and_frames_are_looked_at(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    Image.fromarray(np.full((4, 6, 3), (7, 0, 0), dtype=np.uint8)).save(tmp_path / "ids.png")
    record: dict[str, Any] = {
        "file_name": images[0].file,
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [{"id": 7}],
    }
    assert looked(list(listed_images([record])))
    record["segments_info"] = [{"id": 8}]
    with pytest.raises(DatasetError, match=r"ids\.png: segment ids \[7\] have no entry in a\.json"):
        looked(list(listed_images([record])))
    video = {"file_names": [image.file for image in images], "height": 4, "width": 7}
    with pytest.raises(DatasetError, match=r"0\.png.*\n.*1\.png"):
        looked(list(listed_images([video])))


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_registered_files_are_looked_at_before_they_are_used(kind: str, tmp_path: Path) -> None:
    json_file = write_scene(tmp_path / "data", content_of())
    name = f"looked_at_{kind}"
    images = tmp_path / "data/images"
    if kind == "instances":
        register_coco_instances(name, {}, json_file, images)
    else:
        (tmp_path / "pngs").mkdir()
        Image.new("RGB", (31, 24), (9, 0, 0)).save(tmp_path / "pngs/0.png")
        content = '{"images": [{"id": 1, "file_name": "0.png"}], "categories": [{"id": 1, "name": "a", "isthing": 1}],'
        content += '"annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": []}]}'
        (tmp_path / "panoptic.json").write_text(content)
        register_coco_panoptic(name, {}, images, tmp_path / "pngs", tmp_path / "panoptic.json")
    (images / "2.png").unlink()
    try:
        message = r"2\.png" if kind == "instances" else r"pngs/0\.png: segment ids \[9\] have no entry"
        with pytest.raises(DatasetError, match=f"{name}.*{message}"):
            build_test_loader(get_cfg(), name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
