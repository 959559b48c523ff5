"""One line from weights and image to masks, labels and scores."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import mask2former
from mask2former.checkpoint.conversion import write_transformers
from mask2former.data.own_data import read_labelme
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.files.atomic import save_atomic
from mask2former.inference.pipeline import find_config
from mask2former.structures import MetadataCatalog
from mask2former.visualization import Style

NAMES = ["sky", "sea", "dog", "cat"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its config beside it, and a folder of transformers with the same weights."""
    folder = tmp_path_factory.mktemp("weights")
    cfg = mask2former.get_cfg()
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(NAMES),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 2,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": 12,
        "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
        "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 3],
        "MODEL.SWIN.WINDOW_SIZE": 3,
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.NHEADS": 2,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 20,
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5,
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": 48,
        "INPUT.MAX_SIZE_TEST": 96,
        "DATASETS.TEST": ("image_pipeline_classes",),
    }
    for key, value in options.items():
        cfg.merge_from_list([key, value])
    torch.manual_seed(0)
    model = mask2former.build_model(cfg)
    model.sem_seg_head.predictor.class_embed.weight.data.mul_(20)
    save_atomic({"model": model.state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    write_transformers(model.state_dict(), folder / "transformers", cfg=cfg, class_names=NAMES)
    return folder


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8)


def _assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["labels"] == other["labels"]
    assert one["scores"] == other["scores"]
    np.testing.assert_array_equal(one["masks"], other["masks"])


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_pipeline_gives_masks_labels_and_scores(files: Path, image: np.ndarray, task: str) -> None:
    threshold = None if task == "semantic" else 0.05
    run = mask2former.pipeline(task, weights=files / "transformers", device="cpu", score_threshold=threshold)
    result = run(image)
    count = len(result["labels"])
    assert count
    assert result["masks"].shape == (count, 40, 57)
    assert result["masks"].dtype == bool
    assert result["masks"].any((1, 2)).all() or task == "instance"
    assert set(result["labels"]) <= set(NAMES)
    assert all(0 <= score <= 1 for score in result["scores"])
    if task == "semantic":
        assert (result["masks"].sum(0) == 1).all()
    if task == "panoptic":
        assert result["masks"].sum(0).max() == 1
    if task == "instance":
        assert result["scores"] == sorted(result["scores"], reverse=True)


def test_pipeline_takes_paths_pictures_arrays_and_lists(files: Path, image: np.ndarray, tmp_path: Path) -> None:
    run = mask2former.pipeline("semantic", weights=files / "model.pth", device="cpu")
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = run(image)
    several = run([str(tmp_path / "image.png"), Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1)])
    assert len(several) == 3
    for result in several:
        _assert_equal(result, expected)
    assert run([]) == []


def test_checkpoint_and_folder_of_transformers_agree(files: Path, image: np.ndarray) -> None:
    results = [
        mask2former.pipeline("semantic", weights=files / name, device="cpu")(image)
        for name in ("model.pth", "transformers")
    ]
    np.testing.assert_array_equal(results[0]["masks"], results[1]["masks"])
    assert results[0]["labels"] == [f"class {NAMES.index(name)}" for name in results[1]["labels"]]


def test_pipeline_takes_a_config(files: Path, image: np.ndarray, tmp_path: Path) -> None:
    weights = tmp_path / "elsewhere.pth"
    weights.write_bytes((files / "model.pth").read_bytes())
    with pytest.raises(ConfigError, match=r"give the config of .*elsewhere\.pth; none was found in it, nor as"):
        mask2former.pipeline("semantic", weights=weights)
    run = mask2former.pipeline("semantic", weights=weights, config=files / "config.yaml", device="cpu")
    _assert_equal(run(image), mask2former.pipeline("semantic", weights=files / "model.pth", device="cpu")(image))


def test_nothing_found_is_empty(files: Path, image: np.ndarray) -> None:
    for task in ("panoptic", "instance"):
        result = mask2former.pipeline(task, weights=files / "transformers", device="cpu", score_threshold=1.0)(image)
        assert result["masks"].shape == (0, 40, 57)
        assert result["labels"] == result["scores"] == []


def test_config_of_a_zoo_model_is_found() -> None:
    assert find_config("zoo://coco/panoptic/r50").MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133


def test_folder_written_anew_has_its_new_classes(files: Path, tmp_path: Path) -> None:
    content = json.loads((files / "transformers" / "config.json").read_text())
    for names in (NAMES, ["a", "b", "c", "d"]):
        content["id2label"] = {str(index): name for index, name in enumerate(names)}
        (tmp_path / "config.json").write_text(json.dumps(content))
        cfg = find_config(str(tmp_path))
        assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes == names


def test_wrong_arguments_are_named(files: Path, image: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task: expected one of panoptic, instance, semantic, found 'depth'"):
        mask2former.pipeline("depth", weights=files / "model.pth")
    with pytest.raises(ConfigError, match=r"expected a folder of transformers, found no config\.json"):
        mask2former.pipeline("semantic", weights=tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: found no such file"):
        mask2former.pipeline("semantic", weights=tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="no such model in the zoo"):
        mask2former.pipeline("semantic", weights="zoo://coco/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(CheckpointError, match=r"model_type: expected .*'oneformer', found 'detr'"):
        mask2former.pipeline("semantic", weights=tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a valid JSON"):
        mask2former.pipeline("semantic", weights=tmp_path)
    with pytest.raises(InputError, match=r"missing\.png"):
        mask2former.pipeline("semantic", weights=files / "model.pth", device="cpu")(tmp_path / "missing.png")


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_results_are_drawn_written_and_handed_on(
    files: Path, image: np.ndarray, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mask2former.pipeline(task, weights=files / "model.pth", device="cpu", score_threshold=0.05)
    found = run(image)
    picture = found.draw()
    assert picture.shape == (320, 456, 3)
    assert (picture != found.draw(Style(labels=False))).any()
    found.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)

    records = found.to_coco("a.jpg")
    assert [record["category_name"] for record in records] == found["labels"]
    for record, mask in zip(records, found["masks"], strict=True):
        assert (record["image_id"], record["segmentation"]["size"]) == ("a.jpg", [40, 57])
        np.testing.assert_array_equal(coco_mask.decode(record["segmentation"]).astype(bool), mask)

    Image.fromarray(image).save(tmp_path / "b.png")
    (tmp_path / "b.json").write_text(json.dumps(found.to_labelme("b.png")))
    (tmp_path / "a.png").unlink()
    (entry,) = read_labelme(tmp_path).images()
    assert len(entry.segments) == sum(mask.any() for mask in found["masks"])

    stub = types.ModuleType("supervision")
    stub.Detections = lambda **fields: fields  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stub)
    fields = found.to_supervision()
    assert fields["xyxy"].shape == (len(records), 4)
    assert fields["data"]["class_name"].tolist() == found["labels"]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        found.to_supervision()
