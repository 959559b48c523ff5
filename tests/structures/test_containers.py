from __future__ import annotations

import numpy as np
import pytest
import torch

from mask2former.structures import Boxes, ImageList, Instances, Metadata, MetadataCatalog, id_to_rgb, rgb_to_id


def test_image_list_pads_at_right_and_bottom() -> None:
    images = [torch.ones(3, 5, 9), torch.ones(3, 8, 4)]
    batch = ImageList.from_tensors(images, 4, pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, 8, 12)
    assert batch.image_sizes == [(5, 9), (8, 4)]
    assert torch.equal(batch[1], images[1])
    assert (batch.tensor[0, :, 5:] == -1).all()
    assert (batch.tensor[0, :, :, 9:] == -1).all()
    with pytest.raises(ValueError, match="at least one image"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match=r"channel counts, found \[1, 3\]"):
        ImageList.from_tensors([torch.ones(1, 2, 2), torch.ones(3, 2, 2)])


def test_instances_select_every_field_together() -> None:
    instances = Instances((4, 5), scores=torch.tensor([0.1, 0.2, 0.3]), names=["a", "b", "c"])
    instances.boxes = Boxes(torch.arange(12.0).reshape(3, 4))
    for selected in (instances[torch.tensor([False, True, True])], instances[1:], instances[torch.tensor([1, 2])]):
        assert selected.scores.tolist() == pytest.approx([0.2, 0.3])
        assert selected.names == ["b", "c"]
        assert selected.boxes.tensor[0].tolist() == [4, 5, 6, 7]
    assert instances[-1].names == ["c"]
    assert len(Instances.cat([instances, instances[:0], instances[0]])) == 4
    with pytest.raises(ValueError, match="length 2, the instances have 3"):
        instances.labels = torch.zeros(2)
    with pytest.raises(AttributeError, match="no field 'colour'"):
        _ = instances.colour
    with pytest.raises(IndexError):
        instances[3]


def test_boxes_area_clip_and_scale() -> None:
    boxes = Boxes([[-2.0, 1.0, 3.0, 9.0], [4.0, 4.0, 4.0, 8.0]])
    boxes.clip((6, 10))
    assert boxes.tensor.tolist() == [[0, 1, 3, 6], [4, 4, 4, 6]]
    assert boxes.area().tolist() == [15, 0]
    assert boxes.nonempty().tolist() == [True, False]
    boxes.scale(2.0, 3.0)
    assert boxes.tensor[0].tolist() == [0, 3, 6, 18]
    assert len(Boxes([])) == 0
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Boxes(torch.zeros(2, 3))


def test_metadata_refuses_to_change_a_value() -> None:
    metadata = Metadata("toys").set(thing_classes=["ball"])
    metadata.thing_classes = ["ball"]
    with pytest.raises(ValueError, match="'thing_classes' of data set 'toys'"):
        metadata.thing_classes = ["cube"]
    with pytest.raises(AttributeError, match=r"'toys' has no metadata 'stuff_classes', it has \['thing_classes'\]"):
        _ = metadata.stuff_classes
    assert metadata.get("stuff_classes", []) == []


def test_metadata_catalog_creates_and_removes() -> None:
    MetadataCatalog.get("test_catalog_entry").evaluator_type = "coco"
    assert MetadataCatalog.get("test_catalog_entry").evaluator_type == "coco"
    assert "test_catalog_entry" in MetadataCatalog.list()
    MetadataCatalog.remove("test_catalog_entry")
    assert "test_catalog_entry" not in MetadataCatalog


def test_panoptic_ids_round_trip() -> None:
    ids = np.array([[0, 1, 255], [256, 70000, (1 << 24) - 1]])
    assert id_to_rgb(ids).dtype == np.uint8
    np.testing.assert_array_equal(rgb_to_id(id_to_rgb(ids)), ids)
    assert id_to_rgb(np.array([70000])).tolist() == [[112, 17, 1]]
    with pytest.raises(ValueError, match="16777216"):
        id_to_rgb(np.array([1 << 24]))
