"""The predictor around a stub model, and once around a real, tiny one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mask2former import Predictor, build_model, get_cfg
from mask2former.config import CfgNode
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.inference import predictor as predictor_module
from mask2former.inference.predictor import TASKS

REPOSITORY = Path(__file__).parents[2]


class EchoModel(nn.Module):
    """Returns what it was given, so that a test sees the model's input."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not self.training
        return batch


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.INPUT.MIN_SIZE_TEST = 40
    cfg.INPUT.MAX_SIZE_TEST = 60
    return cfg


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "build_model", EchoModel)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 27, 3), dtype=np.uint8)


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(("size", "expected"), [((20, 27), (40, 54)), ((20, 40), (30, 60)), ((50, 20), (60, 24))])
def test_predictor_resizes_as_at_test_time(cfg: CfgNode, size: tuple[int, int], expected: tuple[int, int]) -> None:
    inputs = Predictor(cfg)(np.zeros((*size, 3), np.uint8))
    assert inputs["image"].shape == (3, *expected)
    assert inputs["image"].dtype == torch.uint8
    assert (inputs["height"], inputs["width"]) == size


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predictor_gives_the_model_its_channel_order(cfg: CfgNode, image_format: str) -> None:
    cfg.INPUT.FORMAT = image_format
    red = np.zeros((40, 40, 3), np.uint8)
    red[:, :, 0] = 255
    inputs = Predictor(cfg)(red)
    assert inputs["image"].amax((1, 2)).tolist() == ([255, 0, 0] if image_format == "RGB" else [0, 0, 255])
    from_bgr = Predictor(cfg)(np.ascontiguousarray(red[:, :, ::-1]), channel_order="BGR")
    assert torch.equal(from_bgr["image"], inputs["image"])


@pytest.mark.usefixtures("echo")
def test_predictor_list_gives_list_equal_to_singles(cfg: CfgNode, image: np.ndarray) -> None:
    predictor = Predictor(cfg)
    several = predictor([image, Image.fromarray(image[:10]), torch.from_numpy(image).permute(2, 0, 1)])
    assert [result["height"] for result in several] == [20, 10, 20]
    assert torch.equal(several[0]["image"], predictor(image)["image"])
    assert torch.equal(several[0]["image"], several[2]["image"])
    assert predictor([]) == []


@pytest.mark.usefixtures("echo")
def test_predictor_clip_is_one_input(cfg: CfgNode, image: np.ndarray) -> None:
    result = Predictor(cfg).predict_clip([image, image[:, ::-1]])
    assert [tuple(frame.shape) for frame in result["image"]] == [(3, 40, 54)] * 2
    with pytest.raises(InputError, match="found none"):
        Predictor(cfg).predict_clip([])
    with pytest.raises(InputError, match="frames of one size"):
        Predictor(cfg).predict_clip([image, image[:10]])


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(
    ("task", "expected"),
    [("panoptic", (True, False, False)), (["semantic", "instance"], (False, True, True)), (None, (False, False, True))],
)
def test_predictor_task_turns_inference_on(cfg: CfgNode, task: Any, expected: tuple[bool, bool, bool]) -> None:
    predictor = Predictor(cfg, task=task)
    test = predictor.model.cfg.MODEL.MASK_FORMER.TEST
    assert (test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON) == expected
    assert not cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON


@pytest.mark.usefixtures("echo")
def test_predictor_arguments_go_before_the_config(cfg: CfgNode) -> None:
    predictor = Predictor(cfg, device="cpu", score_threshold=0.25)
    assert predictor.cfg.TEST.SCORE_THRESHOLD == 0.25
    assert predictor.cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD == 0.25
    assert cfg.TEST.SCORE_THRESHOLD == 0.0


@pytest.mark.usefixtures("echo")
def test_predictor_metadata_of_an_unknown_data_set_is_empty(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ("nobody_registered_this",)
    assert Predictor(cfg).metadata.get("stuff_classes") is None
    cfg.DATASETS.TEST = ("coco_2017_val_panoptic",)
    assert Predictor(cfg).metadata.stuff_classes[0] == "person"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "detection"}, "'detection'"),
        ({"task": []}, "one or several"),
        ({"score_threshold": 1.5}, r"0\.\.1, found 1\.5"),
    ],
)
def test_predictor_wrong_argument_is_named(cfg: CfgNode, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(cfg, **arguments)


def test_predictor_wrong_format_is_named(cfg: CfgNode) -> None:
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT"):
        Predictor(cfg)


@pytest.mark.usefixtures("echo")
def test_predictor_missing_weights_are_named(cfg: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        Predictor(cfg, tmp_path / "none.pth")


def test_predictor_config_file_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        Predictor("none.yaml")


@pytest.fixture
def tiny_cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(REPOSITORY / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml")
    cfg.MODEL.DEVICE = "cpu"
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.CONVS_DIM = head.MASK_DIM = former.HIDDEN_DIM = former.DIM_FEEDFORWARD = 32
    head.TRANSFORMER_ENC_LAYERS, former.DEC_LAYERS, former.NUM_OBJECT_QUERIES = 1, 2, 8
    cfg.INPUT.MIN_SIZE_TEST = 64
    return cfg


def save_weights(cfg: CfgNode, folder: Path) -> Path:
    """A checkpoint of random weights: the state dict of a predictor's model is none."""
    torch.save({"model": build_model(cfg).state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


def test_predictor_real_model_gives_results_at_the_size_of_the_image(tiny_cfg: CfgNode, image: np.ndarray) -> None:
    results = Predictor(tiny_cfg, task=TASKS, score_threshold=0.0)(image)
    assert results["sem_seg"].shape[1:] == (20, 27)
    ids, segments_info = results["panoptic_seg"]
    assert ids.shape == (20, 27)
    assert {info["id"] for info in segments_info} == set(ids.unique().tolist()) - {0}
    assert results["instances"].pred_masks.shape[1:] == (20, 27)
    assert len(results["instances"]) > 0


def test_predictor_list_runs_in_batches_of_one_padded_size(
    tiny_cfg: CfgNode, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, sizes = Predictor(tiny_cfg, task="semantic"), []
    forward = predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda batch: sizes.append(len(batch)) or forward(batch))
    images = [image, image[:, :9], image[::-1].copy(), np.flip(image, 1).copy(), image[:, :9] // 2, image // 2]
    found = predictor(images, batch_size=3)
    assert sizes == [3, 1, 2]
    for one, result in zip(images, found, strict=True):
        torch.testing.assert_close(result["sem_seg"], predictor(one)["sem_seg"], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="batch_size: expected at least 1, found 0"):
        predictor(images, batch_size=0)


def test_predictor_score_threshold_drops_instances(tiny_cfg: CfgNode, image: np.ndarray) -> None:
    torch.manual_seed(0)
    scores = Predictor(tiny_cfg, task="instance")(image)["instances"].scores
    threshold = float(scores.median())
    torch.manual_seed(0)
    kept = Predictor(tiny_cfg, task="instance", score_threshold=threshold)(image)["instances"].scores
    assert kept.tolist() == scores[scores >= threshold].tolist()
    assert 0 < len(kept) < len(scores)


def test_predictor_same_weights_same_results(tiny_cfg: CfgNode, image: np.ndarray, tmp_path: Path) -> None:
    weights = save_weights(tiny_cfg, tmp_path)
    first, second = (Predictor(tiny_cfg, weights, task="semantic") for _ in range(2))
    assert torch.equal(first(image)["sem_seg"], second(image)["sem_seg"])


def test_predictor_precision_goes_before_the_config(tiny_cfg: CfgNode, image: np.ndarray, tmp_path: Path) -> None:
    weights = save_weights(tiny_cfg, tmp_path)
    results = Predictor(tiny_cfg, weights, task="semantic", precision="bfloat16")(image)["sem_seg"]
    assert results.dtype == torch.float32
    assert tiny_cfg.MODEL.PRECISION == "float32"
    exact = Predictor(tiny_cfg, weights, task="semantic")(image)["sem_seg"]
    assert 0 < (exact - results).abs().max() < 0.1
    with pytest.raises(ConfigError, match=r"MODEL\.PRECISION.*'double'"):
        Predictor(tiny_cfg, precision="double")


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predictor_prepares_its_model_and_results_stay(
    tiny_cfg: CfgNode, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, augment: bool
) -> None:
    tiny_cfg.TEST.AUG.MIN_SIZES = [48, 64]
    arguments = {"weights": save_weights(tiny_cfg, tmp_path), "precision": precision, "augment": augment}
    prepared = Predictor(tiny_cfg, **arguments, task="semantic")
    monkeypatch.setattr(predictor_module, "prepare_for_inference", lambda model: model)
    plain = Predictor(tiny_cfg, **arguments, task="semantic")
    assert any("norm.running_mean" in name for name in plain.model.state_dict())
    assert not any("norm.running_mean" in name for name in prepared.model.state_dict())
    dtypes = {parameter.dtype for parameter in prepared.model.parameters()}
    assert dtypes == {torch.float32, getattr(torch, precision)}
    expected = plain(image)["sem_seg"]
    # Merged norms leave out a rounding to bfloat16.
    tolerance = 1e-5 if precision == "float32" else 0.05
    torch.testing.assert_close(prepared(image)["sem_seg"], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("echo")
def test_predictor_sets_the_precision_of_float32(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", names.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Predictor(cfg)
    assert names == []
    cfg.FLOAT32_PRECISION = "highest"
    Predictor(cfg)
    assert names == ["highest"]
    assert not torch.backends.cudnn.allow_tf32
