"""COCO instances that contradict themselves or would damage in silence are refused, or put right with a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mask2former.data.datasets import load_coco_json
from mask2former.data.own_data import read_class_names, read_own_data, training_classes, write_index
from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import evaluate_coco
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.files.coco import read_instances
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json
from mask2former.structures.segmentations import check_segmentation, run_lengths, segmentation_to_bitmask
from tests.agreement.annotation_scene import OBJECTS, SIZES, bitmap_of, content_of, write_scene

Change = Callable[[dict[str, Any]], object]


def segmentation(value: Any) -> Change:
    return lambda content: content["annotations"][0].update(segmentation=value)


def code(change: Callable[[str], str]) -> Change:
    def apply(content: dict[str, Any]) -> None:
        rle = content["annotations"][0]["segmentation"]
        rle["counts"] = change(rle["counts"])

    return apply


def of_part(mask: np.ndarray) -> dict[str, Any]:
    """A code that stops before the last columns of the image."""
    rle = coco_mask.encode(np.asfortranarray(mask[:, :-8]))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def join_exports(content: dict[str, Any]) -> None:
    content["images"] += [{**image, "file_name": f"other/{image['file_name']}"} for image in content["images"]]


POLYGON = [3, 2, 15, 2, 15, 12]
REFUSED: dict[str, tuple[Change, str]] = {
    "code too short": (
        segmentation(of_part(bitmap_of(OBJECTS[0]))),
        "annotation 1: RLE counts sum to 552, expected 24",
    ),
    "code too long": (code(lambda text: text + "5"), "annotation 1: RLE counts sum to"),
    "code cut": (code(lambda text: text[:-1]), "annotation 1: RLE counts"),
    "code cut within a number": (code(lambda text: text + "P"), "annotation 1: RLE counts .* cut off within a number"),
    "code empty": (code(lambda text: ""), "annotation 1: RLE counts sum to 0"),
    "code with a digit more": (code(lambda text: text[:4] + "0" + text[4:]), "annotation 1: RLE counts"),
    "code of other letters": (code(lambda text: text + " \n"), "annotation 1: RLE .* no code has"),
    "code beyond ASCII": (code(lambda text: text + "é"), "annotation 1: RLE .* no code has"),
    "code of one endless number": (code(lambda text: "o" * 400), "annotation 1: RLE counts"),
    "runs beyond any image": (segmentation({"size": [24, 31], "counts": [2**63, 5]}), "RLE .* too large"),
    "runs that are not whole": (segmentation({"size": [24, 31], "counts": [743.5, 0.5]}), "RLE .* whole numbers"),
    "runs below 0": (segmentation({"size": [24, 31], "counts": [-5, 749]}), "RLE counts hold a negative run, -5"),
    "size beyond any image": (
        segmentation({"size": [24, 31 * 10**9], "counts": "0"}),
        r"RLE has size \[24, 31000000000",
    ),
    "size that is no size": (segmentation({"size": "24", "counts": "0"}), "RLE has size '24'"),
    "coordinate of 2^31": (segmentation([[*POLYGON[:-1], 2.0**31]]), "leaves the image by far: coordinate 2.14748e"),
    "coordinate of 1e30": (segmentation([[1e30, *POLYGON[1:]]]), "annotation 1: .* coordinate 1e.30"),
    "coordinate of 10^400": (segmentation([[10**400, *POLYGON[1:]]]), "annotation 1: a polygon"),
    "not a number": (segmentation([[float("nan"), *POLYGON[1:]]]), "annotation 1: .* finite numbers"),
    "endless outline": (segmentation([[0, 0, 1400, 1400] * 5000]), "pixels long"),
    "image id twice": (join_exports, r"image 5: the id occurs twice, for '0.png' and 'other/0.png'"),
    "image id twice, once as 5.0": (
        lambda c: c["images"].append({**c["images"][0], "id": 5.0}),
        "image 5.0: the id occurs twice",
    ),
    "annotation id twice": (lambda c: c["annotations"][1].update(id=1.0), "annotation 1.0: the id occurs twice"),
    "category id twice": (
        lambda c: c["categories"].append({"id": "7", "name": "x"}),
        "category '7': the id occurs twice",
    ),
    "two categories of one name": (lambda c: c["categories"][0].update(name="disc"), r"categories \[7, 3\] .* 'disc'"),
    "image not listed": (lambda c: c["annotations"][0].update(image_id=99), "annotation 1: belongs to image 99"),
    "id that is none": (lambda c: c["annotations"][0].update(id=[1]), "'id' must be a whole number or text"),
    "id true": (lambda c: c["images"][2].update(id=True), "'id' must be a whole number or text, found True"),
    "image id null": (lambda c: c["annotations"][0].update(image_id=None), "belongs to image None"),
    "category not whole": (lambda c: c["annotations"][0].update(category_id=7.5), "must be a whole number, found 7.5"),
    "iscrowd 2": (lambda c: c["annotations"][0].update(iscrowd=2), "'iscrowd' must be 0 or 1, found 2"),
    "no height": (lambda c: c["images"][0].update(height=None), "image 5: 'height' must be a whole number of pixels"),
    "height 0": (lambda c: c["images"][0].update(height=0), "image 5: 'height' must be a whole number of pixels"),
    "image too large": (lambda c: c["images"][2].update(width=10**9), "image 7: .* more than"),
    "name that is none": (lambda c: c["images"][0].update(file_name=3), "image 5: 'file_name' must be the name"),
    "name with NUL": (lambda c: c["images"][0].update(file_name="a\0b"), "image 5: 'file_name' must be the name"),
    "half a letter": (lambda c: c["images"][0].update(file_name="\ud800"), "image 5: 'file_name' must be the name"),
    "negative box": (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "annotation 1: bbox has a negative"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_instances_are_refused_alike_wherever_they_are_read(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    content = content_of()
    change(content)
    json_file = write_scene(tmp_path, content)
    readers: list[Callable[[], Any]] = [
        lambda: load_coco_json(json_file, tmp_path / "images"),
        lambda: read_own_data(tmp_path),
    ]
    if "file_name" not in message:  # evaluation opens no image
        readers.append(lambda: CocoGroundTruth(json_file, ("segm",)))
    for read in readers:
        with pytest.raises(DatasetError, match=message) as caught:
            read()
        assert "train.json" in str(caught.value)
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("case", [name for name, (_, message) in REFUSED.items() if "RLE" in message])
def test_wrong_codes_are_refused_in_results(case: str, tmp_path: Path) -> None:
    content = content_of()
    REFUSED[case][0](content)
    truth = write_scene(tmp_path, content_of())
    (tmp_path / "found.json").write_text(json.dumps([{**a, "score": 0.5} for a in content["annotations"]]))
    with pytest.raises(InputError, match=r"found.json: entry 0 \(image 5\): RLE"):
        evaluate_coco(truth, tmp_path / "found.json")


def test_all_faults_are_listed_and_counted(tmp_path: Path) -> None:
    content = content_of()
    content["images"][2]["height"] = -1
    content["annotations"] = [{**content["annotations"][0], "id": i, "category_id": 8} for i in range(30)]
    with pytest.raises(DatasetError) as caught:
        load_coco_json(write_scene(tmp_path, content), tmp_path / "images")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("train.json: 31 faults")
    assert len(lines) == 1 + 20 + 1
    assert "image 7" in lines[1]
    assert lines[2].strip() == "annotation 0: category id 8 has no class; classes have ids [3, 7] (image 0.png)"
    assert lines[-1].strip() == "and 11 more"


def test_faults_of_one_are_one_line() -> None:
    faults = Faults("a.json")
    faults.refuse()
    faults.add("image 3: no size")
    with pytest.raises(DatasetError, match=r"^a\.json: image 3: no size$"):
        faults.refuse()


@pytest.mark.parametrize("scale", ["0..1", "off the image"])
def test_masks_without_a_pixel_are_refused_where_most_are_so(scale: str, tmp_path: Path) -> None:
    content = content_of(form="polygons")
    for annotation, place in zip(content["annotations"], OBJECTS):
        sides = SIZES[place[0]]
        numbers = annotation["segmentation"][0]
        moved = [v / sides[1 - i % 2] if scale == "0..1" else v - 100 for i, v in enumerate(numbers)]
        annotation["segmentation"] = [moved]
    json_file = write_scene(tmp_path, content)
    for read in (lambda: load_coco_json(json_file, tmp_path / "images"), lambda: read_own_data(tmp_path)):
        with pytest.raises(DatasetError, match=r"train.json: [34] of 4 annotations have no pixel") as caught:
            read()
        assert ("normalised to 0..1" in str(caught.value)) is (scale == "0..1")


def test_a_mask_without_a_pixel_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = content_of(form="polygons")
    content["annotations"][1]["segmentation"] = [[-9, -9, -5, -9, -5, -5]]
    json_file = write_scene(tmp_path, content)
    records = load_coco_json(json_file, tmp_path / "images")
    assert [a["id"] for a in records[0]["annotations"]] == [1, 3]
    assert "train.json: left out 1 of 4 annotations have no pixel in their image (annotation 2)" in caplog.text
    assert any("no pixel" in note for note in read_own_data(tmp_path).notes)


def test_crowds_are_counted_and_their_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    json_file = write_scene(tmp_path, content_of())
    load_coco_json(json_file, tmp_path / "images")
    assert f"{json_file}: left out 1 of 4 annotations: iscrowd 1" in caplog.text
    assert read_own_data(tmp_path).notes == [f"{json_file}: left out 1 of 4 annotations: iscrowd 1"]


@pytest.mark.parametrize("place", [0, 2])
def test_a_category_without_objects_may_share_a_name(place: int, tmp_path: Path) -> None:
    content = content_of()
    content["categories"].insert(place, {"id": 9 * (place > 0), "name": "disc"})
    json_file = write_scene(tmp_path, content)
    parent = 9 * (place > 0)
    assert CocoGroundTruth(json_file, ("segm",)).category_names[parent] == f"disc (id {parent})"
    dataset = read_own_data(tmp_path)
    assert {entry.id: entry.name for entry in dataset.classes} == {3: "disc", 7: "box"}
    assert f"left out categories [{parent}]" in dataset.notes[-1]
    (tmp_path / "names.txt").write_bytes("\ufeffdisc\r\nbox\r\n".encode())
    assert [c.id for c in training_classes(dataset, read_class_names(tmp_path / "names.txt"))] == [3, 7]


def test_annotation_of_id_zero_is_found_unless_as_pycocotools(tmp_path: Path) -> None:
    truth = write_scene(tmp_path, content_of(change="ids from zero"))
    found = [{**a, "score": 0.5} for a in content_of()["annotations"] if not a["iscrowd"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    plain = evaluate_coco(truth, tmp_path / "found.json")["segm"]
    parity = evaluate_coco(truth, tmp_path / "found.json", as_pycocotools=True)["segm"]
    assert plain["AP"] == pytest.approx(100)
    assert parity["AP"] < 80


def test_areas_that_no_mask_can_have_are_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    json_file = write_scene(tmp_path, content_of(change="impossible areas"))
    truth = CocoGroundTruth(json_file, ("segm",))
    measured = [a["area"] for image_id in truth.image_sizes for a in truth.annotations_of(image_id)]
    assert measured == [bitmap_of(place).sum() for place in OBJECTS]
    assert "annotation 3 states an area of 1e+12" in caplog.text
    assert "annotations 1, 2, 4" in caplog.text


@pytest.mark.parametrize("layout", ["images/train", "images/default", "images/site_b"])
def test_subset_folders_are_found_by_the_name_of_the_json(layout: str, tmp_path: Path) -> None:
    subset = layout.rpartition("/")[2]
    content = content_of()
    write_scene(tmp_path, content)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train.json").rename(tmp_path / f"annotations/instances_{subset}.json")
    (tmp_path / layout).mkdir()
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).rename(tmp_path / layout / image["file_name"])
    assert [i.file for i in read_own_data(tmp_path).parts["train"]] == [
        tmp_path / layout / f"{i}.png" for i in range(3)
    ]


@pytest.mark.parametrize("prefix", ["images\\", "..\\..\\media\\upload\\4\\", "/home/somebody/upload/"])
def test_names_may_be_those_of_windows_or_of_another_machine(prefix: str, tmp_path: Path) -> None:
    content = content_of()
    for image in content["images"]:
        image["file_name"] = prefix + image["file_name"]
    write_scene(tmp_path, content)
    assert [i.file for i in read_own_data(tmp_path).parts["train"]] == [tmp_path / f"images/{i}.png" for i in range(3)]
    if prefix == "images\\":
        records = load_coco_json(tmp_path / "train.json", tmp_path)
        assert [record["file_name"] for record in records] == [str(tmp_path / f"images/{i}.png") for i in range(3)]


def test_index_of_own_data_is_taken_back(tmp_path: Path) -> None:
    write_scene(tmp_path / "data", content_of(change="ids as names"))
    dataset = read_own_data(tmp_path / "data")
    write_index(dataset, training_classes(dataset), tmp_path / "index")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".json") == [
        "train.json",
        "train.json",
    ]
    read_instances(tmp_path / "index/train.json")


DEEP = b"[" * 200_000


@pytest.mark.parametrize("content", [b"", DEEP, b'{"a":' * 100_000, b"\xff\xfe\x00", b"9" * 5000, b"[1,]", b"\x00"])
def test_broken_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.json: not a valid JSON file") as caught:
        read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("bytes_of", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("utf-16")])
def test_json_of_windows_editors_is_read(bytes_of: Callable[[str], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(bytes_of('{"name": "Größe"}'))
    assert read_json(tmp_path / "a.json") == {"name": "Größe"}


@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_code_is_a_mask_or_refused(text: str) -> None:
    try:
        mask = segmentation_to_bitmask({"size": [7, 9], "counts": text}, 7, 9)
    except DatasetError:
        return
    runs = run_lengths(text)
    assert mask.sum() == runs[1::2].sum()
    assert runs.sum() == 63


@given(runs=st.lists(st.integers(0, 12), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_runs_of_length_zero_change_nothing(runs: list[int]) -> None:
    total = max(sum(runs), 1)
    runs = [*runs, total - sum(runs)]
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    checked = check_segmentation({"size": [total, 1], "counts": runs}, (total, 1))
    assert all(length > 0 for length in checked["counts"][1:])
    np.testing.assert_array_equal(segmentation_to_bitmask(checked, total, 1)[:, 0], expected)


@given(
    numbers=st.lists(
        st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans()), min_size=6, max_size=10
    )
)
@settings(max_examples=300, deadline=2000)
def test_any_polygon_is_drawn_or_refused(numbers: list[Any]) -> None:
    try:
        mask = segmentation_to_bitmask([numbers], 20, 30)
    except DatasetError as error:
        mask, message = None, str(error)
    if mask is None:
        assert 0 < len(message) < 500
    else:
        assert mask.shape == (20, 30)


def test_reading_says_nothing_of_right_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = content_of()
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    with caplog.at_level(logging.WARNING):
        load_coco_json(write_scene(tmp_path, content), tmp_path / "images")
    assert not caplog.records
