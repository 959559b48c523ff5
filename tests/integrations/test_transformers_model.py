"""The models of the integration beside those of transformers: outputs, losses, files, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.checkpoint import load_state
from mask2former.errors import CheckpointError, ConfigError, InputError
from tests.integrations.tiny_transformers import (
    NUM_CLASSES,
    NUM_QUERIES,
    images,
    integration,
    register_for_one_test,
    saved,
    tiny_config,
    transformers,
)

Mask2FormerConfig = integration.Mask2FormerConfig
Mask2FormerForUniversalSegmentation = integration.Mask2FormerForUniversalSegmentation
Mask2FormerModel = integration.Mask2FormerModel

ALL = {"output_hidden_states": True, "output_attentions": True}


def _assert_close(expected: Any, actual: Any, where: str = "") -> None:
    """Equal structures, tensors within 1e-4 of the largest value."""
    if isinstance(expected, Tensor):
        assert actual.shape == expected.shape, where
        assert float((actual - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), where
        return
    keys = expected.keys() if isinstance(expected, dict) else range(len(expected))
    assert len(actual) == len(expected), where
    for key in keys:
        _assert_close(expected[key], actual[key], f"{where}.{key}")


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@torch.no_grad()
def test_model_outputs_equal_theirs(tmp_path: Path, backbone: str) -> None:
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path, backbone)).eval()
    ours, info = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = theirs(images(), **ALL, output_auxiliary_logits=True)
    actual = ours(images(), **ALL, output_auxiliary_logits=True)
    assert list(actual) == list(expected)
    for field in expected:
        _assert_close(expected[field], actual[field], field)
    _assert_close(expected.to_tuple(), ours(images(), **ALL, output_auxiliary_logits=True, return_dict=False))
    assert list(ours(images())) == list(theirs(images()))


@torch.no_grad()
def test_base_model_outputs_equal_theirs(tmp_path: Path) -> None:
    theirs = transformers.Mask2FormerModel.from_pretrained(saved(tmp_path)).eval()
    expected, actual = theirs(images(), **ALL), Mask2FormerModel.from_pretrained(tmp_path)(images(), **ALL)
    assert list(actual) == list(expected)
    for field in expected:
        _assert_close(expected[field], actual[field], field)


@pytest.mark.parametrize("options", [{"pre_norm": True}, {"enforce_input_projection": True}, {"feature_size": 64}])
@torch.no_grad()
def test_model_follows_options(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path, **options)).eval()
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    _assert_close(theirs(images()).masks_queries_logits, ours(images()).masks_queries_logits)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("shards", [None, "100KB"])
def test_weights_are_bit_equal_there_and_back(tmp_path: Path, backbone: str, shards: str | None) -> None:
    stored = load_state(saved(tmp_path / "theirs", backbone))["model"]
    options = {} if shards is None else {"max_shard_size": shards}
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", **options)
    back = load_state(tmp_path / "ours")["model"]
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in stored.items())
    _, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())


def test_models_without_and_with_heads_read_each_other(tmp_path: Path) -> None:
    headed = Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path / "headed"))
    base = Mask2FormerModel.from_pretrained(tmp_path / "headed")
    base.save_pretrained(tmp_path / "base")
    assert all(torch.equal(tensor, headed.model.state_dict()[name]) for name, tensor in base.state_dict().items())
    again, info = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"class_predictor", "criterion"}
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in base.state_dict().items())
    _, info = transformers.Mask2FormerModel.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not info["missing_keys"]


def test_load_state_dict_takes_their_names(tmp_path: Path) -> None:
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path))
    other = Mask2FormerForUniversalSegmentation(tiny_config(config_class=Mask2FormerConfig))
    other.load_state_dict(load_state(tmp_path)["model"])
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in ours.state_dict().items())
    other.load_state_dict(ours.state_dict())


def test_other_number_of_classes_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"class_predictor.*ignore_mismatched_sizes"):
        Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path), num_labels=3)
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}, ignore_mismatched_sizes=True
    )
    assert ours(images()).class_queries_logits.shape == (2, NUM_QUERIES, 4)
    assert ours.criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 0.1])


def test_from_pretrained_takes_dtype_device_and_state_dict(tmp_path: Path) -> None:
    saved(tmp_path)
    half = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, dtype="bfloat16", device_map="auto")
    assert half.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    assert Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    full = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(
        None, config=full.config, state_dict=load_state(tmp_path)["model"]
    )
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in full.state_dict().items())


def _labels(num_masks: tuple[int, ...], *, size: tuple[int, int] = (64, 96)) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    coarse = [torch.rand(count, 1, 4, 6, generator=generator) > 0.6 for count in num_masks]
    masks = [torch.nn.functional.interpolate(mask.float(), size=size)[:, 0] for mask in coarse]
    classes = [torch.randint(0, NUM_CLASSES, (count,), generator=generator) for count in num_masks]
    return {"mask_labels": masks, "class_labels": classes}


def test_loss_equals_theirs_up_to_sampled_points(tmp_path: Path) -> None:
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        saved(tmp_path, train_num_points=20000, importance_sample_ratio=0.0)
    )
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        losses = [float(model(images(), **_labels((3, 1))).loss) for model in (theirs.eval(), ours)]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


@pytest.mark.parametrize("num_masks", [(3, 1), (2, 0)])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_loss_equals_theirs_at_the_same_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_masks: tuple[int, ...], backbone: str
) -> None:
    def same_points(num_maps: int, num_points: int, *_: int, **__: Any) -> Tensor:
        generator = torch.Generator().manual_seed(num_points)
        return torch.empty(1, num_points, 2).uniform_(generator=generator).expand(num_maps, -1, -1).contiguous()

    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path, backbone)).eval()
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    labels = _labels(num_masks)
    monkeypatch.setattr(torch, "rand", same_points)
    losses, gradients = [], []
    for model in (theirs, ours):
        loss = model(images(), **labels).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.class_predictor.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_masks", [(3, 0), (0, 0)])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_loss_trains_every_parameter(num_masks: tuple[int, ...], backbone: str) -> None:
    model = Mask2FormerForUniversalSegmentation(tiny_config(backbone)).train()
    model(images(), **_labels(num_masks)).loss.backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not {name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()}


def test_last_layer_alone_counts_without_auxiliary_loss() -> None:
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(tiny_config(use_auxiliary_loss=False)).eval()
    alone = model(images(), **_labels((3, 1))).loss.item()
    model.config.use_auxiliary_loss = True
    assert model(images(), **_labels((3, 1))).loss.item() > 2 * alone


def test_padding_of_their_processor_is_background() -> None:
    model = Mask2FormerForUniversalSegmentation(tiny_config()).eval()
    labels = _labels((2, 1))
    filled = copy.deepcopy(labels)
    for masks, other in zip(labels["mask_labels"], filled["mask_labels"], strict=True):
        masks[:, :, 80:], other[:, :, 80:] = 0, 255
    losses = []
    for given in (labels, filled):
        torch.manual_seed(0)
        losses.append(model(images(), **given).loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_gradient_checkpointing_changes_no_gradient(backbone: str) -> None:
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(tiny_config(backbone)).train()
    gradients = []
    for is_on in (False, True):
        if is_on:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == is_on
        model.zero_grad()
        torch.manual_seed(0)
        outputs = model(images(), **_labels((2, 1)), output_hidden_states=True)
        outputs.loss.backward()
        assert len(outputs.transformer_decoder_hidden_states) == 4
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)
    model(images(), **_labels((2, 1)), output_attentions=True).loss.backward()  # its weights are kept, not recomputed


def test_hidden_states_and_attentions_carry_gradients() -> None:
    model = Mask2FormerForUniversalSegmentation(tiny_config()).train()
    outputs = model(images(), **_labels((2, 1)), **ALL)
    shown = [
        *outputs.encoder_hidden_states,
        *outputs.pixel_decoder_hidden_states,
        *outputs.transformer_decoder_hidden_states[:-1],
        *outputs.attentions,
    ]
    for tensor in shown:
        tensor.retain_grad()
    outputs.loss.backward()
    assert all(tensor.grad is not None for tensor in shown)


@torch.no_grad()
def test_sizes_of_images_are_returned_with_a_pixel_mask() -> None:
    model = Mask2FormerForUniversalSegmentation(tiny_config()).eval()
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[0, :50, :70], mask[1] = 1, 1
    outputs = model(images(), pixel_mask=mask)
    assert outputs.image_sizes.tolist() == [[50, 70], [64, 96]]
    assert outputs.padded_sizes.tolist() == [[64, 96]] * 2


def test_register_makes_auto_classes_choose_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    auto = transformers.AutoModelForUniversalSegmentation
    assert not isinstance(auto.from_pretrained(tmp_path), Mask2FormerForUniversalSegmentation)
    register_for_one_test(monkeypatch)
    integration.register()  # again does no harm
    assert isinstance(auto.from_pretrained(tmp_path), Mask2FormerForUniversalSegmentation)
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path), Mask2FormerModel)
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), Mask2FormerConfig)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.parity == "published"


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    load = Mask2FormerForUniversalSegmentation.from_pretrained
    with pytest.raises(CheckpointError, match="found no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"with preprocessor_config\.json, found no such folder"):
        integration.Mask2FormerImageProcessor.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"found no config\.json"):
        load(tmp_path / "empty")
    tiny_config().save_pretrained(tmp_path / "config")
    with pytest.raises(CheckpointError, match="a folder without weights"):
        load(tmp_path / "config")
    with pytest.raises(CheckpointError, match="neither a folder nor to be had from the hub"):
        load("nobody/nothing", local_files_only=True)
    with pytest.raises(CheckpointError, match="both config and state_dict"):
        load(None)
    with pytest.raises(ConfigError, match="unknown options colour"):
        load(saved(tmp_path / "good"), colour=3)
    with pytest.raises(ConfigError, match="device_map: expected one device"):
        load(tmp_path / "good", device_map={"model": "cpu", "class_predictor": "cuda:0"})


def test_folders_of_another_model_are_named(tmp_path: Path) -> None:
    backbone = transformers.SwinForImageClassification(tiny_config().backbone_config)
    backbone.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type: expected 'mask2former', found 'swin'"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected the weights of a Mask2Former"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"no usable config\.json: .*JSON"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu"),
        ("backbone_config.use_absolute_embeddings", True),
        ("backbone_config.hidden_act", "relu"),
        ("backbone_config.out_features", ["stage2", "stage3", "stage4"]),
    ],
)
def test_option_that_is_not_built_is_named(key: str, value: Any) -> None:
    content = json.loads(tiny_config().to_json_string(use_diff=False))
    node = content["backbone_config"] if "." in key else content
    node[key.rpartition(".")[2]] = value
    if "out_features" in key:
        node.pop("out_indices", None)
    with pytest.raises(ConfigError, match=f"^{key}: expected"):
        Mask2FormerModel(Mask2FormerConfig.from_dict(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_labels": None}, "mask_labels: missing"),
        ({"class_labels": None}, "class_labels: missing"),
        ({"class_labels": [torch.zeros(1)]}, "class_labels: expected one tensor for each of 2 images, found 1"),
        ({"class_labels": [torch.zeros(3), torch.zeros(2)]}, r"labels of image 0: expected masks \(N, H, W\)"),
        ({"class_labels": [torch.tensor([0, NUM_CLASSES]), torch.zeros(2)]}, r"image 0: expected 0\.\.6, found 0\.\.7"),
    ],
)
def test_wrong_labels_are_named(change: dict[str, Any], message: str) -> None:
    model = Mask2FormerForUniversalSegmentation(tiny_config()).eval()
    with pytest.raises(InputError, match=message):
        model(images(), **{**_labels((2, 2)), **change})


def test_initial_ranges_follow_the_config() -> None:
    models = []
    for gain, std in ((1.0, 0.02), (3.0, 0.1)):
        torch.manual_seed(0)
        options = {"init_xavier_std": gain, "init_std": std, "enforce_input_projection": True}
        models.append(Mask2FormerForUniversalSegmentation(tiny_config(**options)))
    deviations = [{name: float(p.std()) for name, p in model.named_parameters() if p.numel() > 1} for model in models]
    ratios = {name: deviations[1][name] / max(value, 1e-12) for name, value in deviations[0].items()}
    layers = [name for name in ratios if "transformer_" in name and "predictor" in name and name.endswith("weight")]
    layers = [name for name in layers if "norm" not in name]
    projections = [name for name in ratios if "predictor.input_proj" in name and name.endswith("weight")]
    assert len(layers) == 3 * (2 + 2 + 2)
    assert len(projections) == 3
    assert all(2.5 < ratios[name] < 3.5 for name in [*layers, *projections])
    assert deviations[1]["class_predictor.weight"] == pytest.approx(0.1, rel=0.2)
    assert deviations[0]["class_predictor.weight"] == pytest.approx(0.02, rel=0.2)
    drawn = {*layers, *projections, "class_predictor.weight"}
    assert all(ratio == pytest.approx(1, abs=0.2) for name, ratio in ratios.items() if name not in drawn and ratio)
