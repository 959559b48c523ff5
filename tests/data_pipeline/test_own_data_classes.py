"""Which ids train and as what: names, ignored ids, histogram, held-out images, and what the index keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former.data.own_data import (
    format_own_histogram,
    hold_out,
    parse_ignored,
    rare_ids_note,
    read_class_names,
    read_own_data,
    training_classes,
)
from mask2former.errors import DatasetError
from mask2former.structures.ids import labels_to_train_ids
from tests.data_pipeline import own_data_trees as trees


def names_file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def write_masks(tmp_path: Path, labels: np.ndarray, num: int = 1) -> Path:
    for number in range(num):
        trees.write_image(tmp_path / "tree/train/images" / f"{number}.jpg", size=labels.shape)
        trees.write_mask(tmp_path / "tree/train/masks" / f"{number}.png", labels)
    return tmp_path / "tree"


def test_ids_found_in_masks_train_in_their_order_without_names(tmp_path: Path) -> None:
    dataset = read_own_data(trees.write_png_tree(tmp_path / "tree"))
    ignored = parse_ignored(None, dataset)
    classes = training_classes(dataset, ignored=ignored)
    assert [(c.id, c.name) for c in classes] == [(3, "class_3"), (7, "class_7"), (20, "class_20")]
    rows = [line.split() for line in format_own_histogram(dataset, classes, ignored=ignored).splitlines()]
    assert rows[2][:3] == ["3", "0", "class_3"]
    assert rows[3] == ["7", "1", "class_7", "96", "1", "96", "1"]
    assert rows[5][:2] == ["255", "-"]


def test_names_by_line_or_by_id_name_the_classes(tmp_path: Path) -> None:
    dataset = read_own_data(trees.write_png_tree(tmp_path / "tree"))
    numbered = read_class_names(names_file(tmp_path, "20: disc", "3: sky", "7: a box: big"))
    classes = training_classes(dataset, numbered, ignored=frozenset([255]))
    assert [(c.id, c.name) for c in classes] == [(20, "disc"), (3, "sky"), (7, "a box: big")]
    by_line = read_class_names(names_file(tmp_path, *(f"thing {i}" for i in range(21))))
    assert len(training_classes(dataset, by_line, ignored=frozenset([255, 0]))) == 20


def test_ids_out_of_range_are_refused_with_file_names(tmp_path: Path) -> None:
    dataset = read_own_data(trees.write_png_tree(tmp_path / "tree", num_train=40))
    names = read_class_names(names_file(tmp_path, *"abcd"))
    with pytest.raises(DatasetError) as caught:
        training_classes(dataset, names, ignored=frozenset([255]))
    for part in ("[7, 20]", "train/masks/0.png has 7, 20", "names.txt", "0..3", "and 1 more"):
        assert part in str(caught.value)
    with pytest.raises(DatasetError, match="255"):
        training_classes(dataset, read_class_names(names_file(tmp_path, *map(str, range(21)))))


def test_binary_masks_of_0_and_255_get_advice_that_works(tmp_path: Path) -> None:
    labels = np.zeros((8, 10), np.uint8)
    labels[2:5] = 255
    dataset = read_own_data(write_masks(tmp_path, labels))
    with pytest.raises(DatasetError, match="--ignore-label none"):
        training_classes(dataset, ignored=parse_ignored(None, dataset))
    ignored = parse_ignored(["none"], dataset)
    assert [c.id for c in training_classes(dataset, ignored=ignored)] == [0, 255]
    names = read_class_names(names_file(tmp_path, "0: background", "255: cell"))
    assert [c.name for c in training_classes(dataset, names, ignored=ignored)] == ["background", "cell"]


def test_masks_of_many_values_are_refused_and_smoothed_ones_warned_of(tmp_path: Path) -> None:
    many = np.arange(600, dtype=np.uint16).reshape(20, 30)
    dataset = read_own_data(write_masks(tmp_path / "many", many))
    with pytest.raises(DatasetError, match=r"599 different ids.*0\.png has 600"):
        training_classes(dataset, ignored=frozenset([255]))
    smoothed = np.zeros((200, 200), np.uint8)
    smoothed[:100], smoothed[100, :20] = 1, np.arange(2, 22)
    dataset = read_own_data(write_masks(tmp_path / "smoothed", smoothed))
    note = rare_ids_note(dataset, training_classes(dataset))
    assert note is not None
    assert "20 of 22 ids" in note


def test_coco_names_order_and_extend_the_classes(tmp_path: Path) -> None:
    dataset = read_own_data(trees.write_coco_instances(tmp_path / "coco"))
    names = read_class_names(names_file(tmp_path, "disc", "ring", "box"))
    assert [(c.id, c.name) for c in training_classes(dataset, names)] == [(20, "disc"), (21, "ring"), (7, "box")]
    with pytest.raises(DatasetError, match=r"lacks the classes \['box'\]"):
        training_classes(dataset, read_class_names(names_file(tmp_path, "disc")))


def test_ignored_classes_may_be_ids_or_names(tmp_path: Path) -> None:
    dataset = read_own_data(trees.write_coco_panoptic(tmp_path / "coco"))
    assert parse_ignored(None, dataset) == frozenset()
    ignored = parse_ignored(["7", "sky"], dataset)
    assert ignored == {3, 7}
    assert [c.name for c in training_classes(dataset, ignored=ignored)] == ["disc"]
    with pytest.raises(DatasetError, match="no class remains"):
        training_classes(dataset, ignored=frozenset([3, 7, 20]))
    with pytest.raises(DatasetError, match="--ignore-label rocks"):
        parse_ignored(["rocks"], dataset)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "found none"),
        (["a", "b", "a"], "'a' occurs twice"),
        (["1: a", "1: b"], "1 occurs twice"),
        (["1: a", "b"], "either all lines"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_class_names(names_file(tmp_path, *lines))


def test_missing_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.txt: class names cannot be read"):
        read_class_names(tmp_path / "none.txt")


def test_held_out_images_are_a_tenth_and_always_the_same(tmp_path: Path) -> None:
    def parts() -> dict[str, list[str]]:
        dataset = read_own_data(tmp_path / "tree")
        note = hold_out(dataset)
        assert note is not None
        assert "2 of 21 images" in note
        return {part: [image.file.name for image in images] for part, images in dataset.parts.items()}

    write_masks(tmp_path, trees.labels_of(0), num=21)
    first = parts()
    assert {part: len(names) for part, names in first.items()} == {"train": 19, "valid": 2}
    assert not set(first["train"]) & set(first["valid"])
    assert parts() == first


def test_held_out_part_of_a_single_image_is_itself(tmp_path: Path) -> None:
    dataset = read_own_data(write_masks(tmp_path, trees.labels_of(0)))
    assert "single image" in str(hold_out(dataset))
    assert dataset.parts["valid"] == dataset.parts["train"]
    assert hold_out(dataset) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_become_train_ids(dtype: type) -> None:
    labels = np.array([[3, 7], [255, 3]], dtype=dtype)
    mapped = labels_to_train_ids(labels, {3: 0, 7: 1, 255: 255}, file_name="a.png")
    np.testing.assert_array_equal(mapped, [[0, 1], [255, 0]])
    with pytest.raises(DatasetError, match=r"a\.png: labels \[7, 255\]"):
        labels_to_train_ids(labels, {3: 0}, file_name="a.png")
    assert labels_to_train_ids(np.zeros((0, 4), dtype), {}, file_name="a.png").shape == (0, 4)


def test_labels_to_train_ids_place_unknown_labels_beyond_the_range_of_their_type() -> None:
    # 256 places: the one that stands for what has no class is no number of a byte.
    mapped = labels_to_train_ids(np.array([[0, 255]], np.uint8), {0: 1, 255: 2}, file_name="a.png")
    assert mapped.tolist() == [[1, 2]]
    with pytest.raises(DatasetError, match=r"a\.png: labels \[9\] have no class"):
        labels_to_train_ids(np.array([[0, 9]], np.uint8), {0: 1, 255: 2}, file_name="a.png")
