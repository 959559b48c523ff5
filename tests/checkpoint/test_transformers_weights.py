"""Mask2Former of the library transformers: same logits after conversion, and the same tensors after the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former import build_model, get_cfg
from mask2former.checkpoint import load_state, load_state_dict, load_weights
from mask2former.checkpoint.conversion import read_converted, to_transformers, write_ours, write_transformers
from mask2former.checkpoint.transformers_config import (
    config_from_transformers,
    config_to_transformers,
    read_transformers_folder,
)
from mask2former.errors import CheckpointError, ConfigError

transformers = pytest.importorskip("transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
UNUSED = "swin.layernorm"  # theirs has a norm after the last stage that the head does not read


def _backbone(name: str) -> Any:
    if name == "maskformer-swin":
        options = {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 3], "window_size": 3}
        return transformers.MaskFormerSwinConfig(**options, drop_path_rate=0.0, out_features=STAGES)
    if name == "swin":
        options = {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 3], "window_size": 3}
        return transformers.SwinConfig(**options, drop_path_rate=0.0, out_features=STAGES)
    layer_type = "basic" if name == "resnet18" else "bottleneck"
    depths = [2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3]
    sizes = [64, 128, 256, 512] if name == "resnet18" else [16, 32, 64, 128]
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=sizes,
        depths=depths,
        layer_type=layer_type,
        downsample_in_bottleneck=name == "resnet50-msra",
        out_features=STAGES,
    )


def _their_model(name: str, **options: Any) -> Any:
    options = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 4,
        "num_attention_heads": 2,
        "dim_feedforward": 20,
        "num_queries": 5,
        "num_labels": 7,
    } | options
    config = transformers.Mask2FormerConfig(backbone_config=_backbone(name), **options)
    return _randomize(transformers.Mask2FormerForUniversalSegmentation(config).eval())


def _randomize(model: Any) -> Any:
    """Values that no initialisation has, so that a tensor that is not copied shows."""
    generator = torch.Generator().manual_seed(1)
    for entry, tensor in model.state_dict().items():
        if tensor.is_floating_point() and entry != "criterion.empty_weight":
            noise = torch.rand(tensor.shape, generator=generator) - 0.5
            tensor.copy_(1 + noise if entry.endswith("running_var") else tensor + 0.2 * noise)
    return model


def _their_maskformer(name: str) -> Any:
    """The model before, of the same size; theirs always projects features of other widths than the queries'."""
    decoder = transformers.DetrConfig(
        d_model=32, decoder_layers=2, encoder_layers=0, decoder_attention_heads=2, decoder_ffn_dim=20, num_queries=5
    )
    options = {"decoder_config": decoder, "fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 7}
    config = transformers.MaskFormerConfig(backbone_config=_backbone(name), **options)
    return _randomize(transformers.MaskFormerForInstanceSegmentation(config).eval())


def _our_model(folder: Path) -> Any:
    cfg = get_cfg()
    values = config_from_transformers(json.loads((folder / "config.json").read_text()), source=str(folder))
    for key, value in values.items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).eval(), cfg


def _assert_same_logits(theirs: Any, ours: Any) -> None:
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, actual = theirs(pixel_values=image), ours.sem_seg_head(ours.backbone(image))
    for wanted, found in (
        (expected.class_queries_logits, actual["pred_logits"]),
        (expected.masks_queries_logits, actual["pred_masks"]),
    ):
        assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def _assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("name", ["swin", "resnet18", "resnet50", "resnet50-msra"])
def test_transformers_weights_give_same_logits_there_and_back(tmp_path: Path, name: str) -> None:
    theirs = _their_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, cfg = _our_model(tmp_path / "theirs")
    report = load_weights(ours, tmp_path / "theirs")
    assert report.is_complete
    assert not report.unexpected
    _assert_same_logits(theirs, ours)

    write_transformers(ours.state_dict(), tmp_path / "back", cfg=cfg)
    again = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "back").eval()
    _assert_same_logits(again, ours)
    expected = {k: v for k, v in load_state(tmp_path / "theirs")["model"].items() if UNUSED not in k}
    _assert_equal(load_state(tmp_path / "back")["model"], expected)


@pytest.mark.parametrize("name", ["swin", "maskformer-swin", "resnet50"])
def test_maskformer_weights_give_same_logits_there_and_back(tmp_path: Path, name: str) -> None:
    theirs = _their_maskformer(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, cfg = _our_model(tmp_path / "theirs")
    report = load_weights(ours, tmp_path / "theirs")
    assert report.is_complete
    assert not report.unexpected
    _assert_same_logits(theirs, ours)

    write_transformers(ours.state_dict(), tmp_path / "back", cfg=cfg)
    again = transformers.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path / "back").eval()
    _assert_same_logits(again, ours)
    stored = load_state(tmp_path / "theirs")["model"]
    expected = {k: v for k, v in stored.items() if "layernorm" not in k.split(".")[-2:-1] or "decoder" in k}
    expected = {k: v for k, v in expected.items() if not k.endswith("relative_position_index")}
    _assert_equal(load_state(tmp_path / "back")["model"], expected)


@pytest.mark.parametrize("options", [{"pre_norm": True}, {"enforce_input_projection": True}, {"feature_size": 64}])
def test_transformers_options_are_followed(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = _their_model("swin", **options)
    theirs.save_pretrained(tmp_path)
    ours, cfg = _our_model(tmp_path)
    assert load_weights(ours, tmp_path).is_complete
    _assert_same_logits(theirs, ours)
    config = config_to_transformers(cfg, ours.state_dict())
    stored = json.loads((tmp_path / "config.json").read_text())
    for key in config.keys() - {"backbone_config", "architectures", "feature_strides", "id2label", "label2id"}:
        assert config[key] == stored[key], key
    assert config["backbone_config"].items() <= stored["backbone_config"].items()


def test_transformers_folder_in_several_files_is_read(tmp_path: Path) -> None:
    theirs = _their_model("swin")
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, _ = _our_model(tmp_path)
    assert load_weights(ours, tmp_path).is_complete
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"refused: lists '\.\./elsewhere"):
        load_state(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "missing.safetensors"}}))
    with pytest.raises(CheckpointError, match="missing"):
        load_state(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_converted_file_gives_same_weights(tmp_path: Path, suffix: str) -> None:
    _their_model("swin").save_pretrained(tmp_path)
    converted = read_converted(tmp_path)
    write_ours(converted.tensors, tmp_path / f"ours{suffix}")
    ours, _ = _our_model(tmp_path)
    assert load_weights(ours, tmp_path / f"ours{suffix}").is_complete
    for name, tensor in converted.tensors.items():
        assert torch.equal(ours.state_dict()[name], tensor)
    _assert_equal(
        to_transformers(read_converted(tmp_path / f"ours{suffix}").tensors), to_transformers(converted.tensors)
    )


def test_older_layout_and_static_queries_are_loaded(tmp_path: Path) -> None:
    _their_model("swin").save_pretrained(tmp_path)
    ours, _ = _our_model(tmp_path)
    weights = read_converted(tmp_path).tensors
    older = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): tensor
        for name, tensor in weights.items()
    }
    write_ours(older, tmp_path / "older.pkl")
    report = load_weights(ours, tmp_path / "older.pkl")
    assert report.is_complete
    assert not report.unexpected
    for name, tensor in weights.items():
        assert torch.equal(ours.state_dict()[name], tensor)


def _resized(num_queries: int, num_classes: int, folder: Path) -> Any:
    content = json.loads((folder / "config.json").read_text())
    content |= {"num_queries": num_queries, "id2label": {str(i): str(i) for i in range(num_classes)}}
    (folder / "config.json").write_text(json.dumps(content))
    return _our_model(folder)[0]


@pytest.mark.parametrize("num_queries", [3, 8])
def test_queries_are_resized_and_other_heads_listed(tmp_path: Path, num_queries: int) -> None:
    _their_model("swin").save_pretrained(tmp_path)
    stored = read_converted(tmp_path).tensors["sem_seg_head.predictor.query_feat.weight"]
    model = _resized(num_queries, 4, tmp_path)
    initial = model.sem_seg_head.predictor.query_feat.weight.clone()
    report = load_weights(model, tmp_path)
    queries = ["sem_seg_head.predictor.query_feat.weight", "sem_seg_head.predictor.query_embed.weight"]
    heads = ["sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias"]
    assert set(report.mismatched) == {*queries, *heads, "criterion.empty_weight"}
    assert torch.equal(model.sem_seg_head.predictor.query_feat.weight, initial)

    report = load_weights(model, tmp_path, resize_queries=True)
    assert set(report.adapted) == set(queries)
    assert set(report.mismatched) == {*heads, "criterion.empty_weight"}
    both = min(num_queries, len(stored))
    assert torch.equal(model.sem_seg_head.predictor.query_feat.weight[:both], stored[:both])
    assert torch.equal(model.sem_seg_head.predictor.query_feat.weight[both:], initial[both:])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SWIN.APE", True),
        ("MODEL.SWIN.QK_SCALE", 0.5),
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 4),
    ],
)
def test_config_that_transformers_lacks_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    _their_model("swin").save_pretrained(tmp_path)
    _, cfg = _our_model(tmp_path)
    tensors = read_converted(tmp_path).tensors
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        config_to_transformers(cfg, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "detr"}, "model_type"),
        ({"backbone_config": {"model_type": "convnext"}}, "backbone_config.model_type"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}}, "no ResNet"),
        ({"encoder_feedforward_dim": 7}, "encoder_feedforward_dim"),
    ],
)
def test_transformers_config_of_another_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^here: {message}|^here: backbone_config: {message}"):
        config_from_transformers({"model_type": "mask2former", **change}, source="here")


def test_tensors_without_place_in_transformers_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"sem_seg_head\.pixel_decoder\.layer_4"):
        to_transformers({"sem_seg_head.pixel_decoder.layer_4.extra.more.weight": torch.ones(1)})


def test_load_state_dict_ignores_derived_tensors() -> None:
    model = torch.nn.Module()
    model.register_buffer("relative_position_index", torch.zeros(2, dtype=torch.int64))
    model.weight = torch.nn.Parameter(torch.zeros(2))
    report = load_state_dict(model, {"weight": torch.ones(2), "bn.num_batches_tracked": torch.ones(())}, source="x")
    assert report.is_complete
    assert not report.unexpected


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 127.5, 63.75),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 127.5}, 63.75, 31.875),
        ({"image_mean": [100] * 3, "image_std": [50] * 3, "do_rescale": False}, 100, 50),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": False}, 0, 255),
    ],
)
def test_image_statistics_of_a_folder_are_read_and_compared(
    tmp_path: Path, preprocessor: dict[str, Any], mean: float, std: float
) -> None:
    _their_model("swin").save_pretrained(tmp_path)
    _, cfg = _our_model(tmp_path)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [mean] * 3, [std] * 3
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    values = read_transformers_folder(tmp_path)
    assert values["MODEL.PIXEL_MEAN"] == [mean] * 3
    assert values["MODEL.PIXEL_STD"] == [std] * 3
    assert not load_weights(build_model(cfg), tmp_path).notes
    cfg.MODEL.PIXEL_MEAN = [mean + 10] * 3
    (note,) = load_weights(build_model(cfg), tmp_path).notes
    assert f"PIXEL_MEAN {[float(mean)] * 3}" in note
