"""MaskFormer's decoders: the feature pyramid, the plain transformer, and the ways they are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling import MaskFormer, build_model
from mask2former.modeling.layers import MultiheadAttention, TransformerEncoder, TransformerOptions
from mask2former.modeling.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.modeling.transformer_decoder import StandardTransformerDecoder
from mask2former.structures import Instances, ShapeSpec
from tests.parity import NUM_CLASSES, fixture_config, load_fixture, register_metadata

CHANNELS = {"res2": 8, "res3": 12, "res4": 16, "res5": 20}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
SHAPES = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in CHANNELS}
FIXTURES = ("tiny_maskformer_v1", "tiny_maskformer_v1_encoder")


def random_features(batch: int, height: int, width: int) -> dict[str, Tensor]:
    return {
        name: torch.randn(batch, CHANNELS[name], -(-height // stride), -(-width // stride))
        for name, stride in STRIDES.items()
    }


def build_decoder(**changes: Any) -> StandardTransformerDecoder:
    options: dict[str, Any] = {
        "num_classes": 5,
        "hidden_dim": 16,
        "num_queries": 7,
        "nheads": 4,
        "dim_feedforward": 24,
        "enc_layers": 0,
        "dec_layers": 3,
        "pre_norm": False,
        "mask_dim": 8,
    }
    return StandardTransformerDecoder(20, **{**options, **changes}).eval()


def build_encoder_decoder() -> TransformerEncoderPixelDecoder:
    return TransformerEncoderPixelDecoder(
        SHAPES,
        conv_dim=32,
        mask_dim=24,
        transformer_enc_layers=1,
        transformer_nheads=4,
        transformer_dim_feedforward=16,
    ).eval()


def build_mask_former(name: str, *overrides: Any) -> MaskFormer:
    register_metadata()
    cfg = fixture_config(load_fixture(name))
    cfg.merge_from_list(["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 32, *overrides])
    return build_model(cfg)


def training_sample(count: int, height: int, width: int) -> dict[str, Any]:
    masks = torch.rand(count, height, width) > 0.5
    instances = Instances((height, width), gt_classes=torch.randint(NUM_CLASSES, (count,)), gt_masks=masks)
    return {"image": torch.randint(256, (3, height, width), dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
def test_feature_pyramid_maps_have_the_sizes_of_the_backbone(size: tuple[int, int]) -> None:
    features = random_features(2, *size)
    mask_features, encoded, maps = BasePixelDecoder(SHAPES, conv_dim=32, mask_dim=24).forward_features(features)
    assert mask_features.shape == (2, 24, *features["res2"].shape[2:])
    assert encoded is None
    assert [tuple(m.shape) for m in maps] == [(2, 32, *features[name].shape[2:]) for name in ("res5", "res4", "res3")]


def test_feature_pyramid_with_encoder_returns_the_encoded_map() -> None:
    features = random_features(2, 61, 93)
    mask_features, encoded, maps = build_encoder_decoder().forward_features(features)
    assert mask_features.shape == (2, 24, 16, 24)
    assert encoded is not None
    assert encoded.shape == maps[0].shape == (2, 32, 2, 3)


@pytest.mark.parametrize("with_encoder", [False, True])
def test_feature_pyramid_gradients_reach_every_parameter(with_encoder: bool) -> None:
    decoder = build_encoder_decoder() if with_encoder else BasePixelDecoder(SHAPES, conv_dim=32, mask_dim=24)
    decoder.train().forward_features(random_features(1, 61, 45))[0].square().sum().backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_equals_that_of_torch_without_positions(pre_norm: bool) -> None:
    encoder = TransformerEncoder(16, TransformerOptions(4, 24, pre_norm=pre_norm), num_layers=1).eval()
    reference = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm)
    reference.load_state_dict(encoder.layers[0].state_dict())
    tokens = torch.randn(2, 9, 16)
    expected = encoder.norm(reference.train()(tokens))  # in training torch takes no short cut
    torch.testing.assert_close(encoder(tokens, torch.zeros(1, 9, 16)), expected)


def test_attention_dropout_acts_in_training_alone() -> None:
    attention, x = MultiheadAttention(16, 4, dropout=0.5), torch.randn(2, 9, 16)
    assert torch.equal(attention.eval()(x, x, x), attention(x, x, x))
    assert not torch.equal(attention.train()(x, x, x), attention(x, x, x))


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(("enc_layers", "frames"), [(0, 1), (1, 1), (1, 3)])
def test_standard_decoder_predicts_after_each_layer(enc_layers: int, frames: int, pre_norm: bool) -> None:
    decoder = build_decoder(enc_layers=enc_layers, pre_norm=pre_norm)
    predictions = decoder(torch.randn(2 * frames, 20, 3, 5), torch.randn(2 * frames, 8, 12, 20), num_frames=frames)
    assert len(predictions) == 3
    for prediction in predictions:
        assert prediction.class_logits.shape == (2, 7, 6)
        assert prediction.mask_logits().shape == (2, 7, frames, 12, 20)
        assert not torch.allclose(prediction.class_logits[0], prediction.class_logits[1])


def test_standard_decoder_batch_decodes_as_its_single_images_do() -> None:
    decoder = build_decoder(enc_layers=1)
    maps, mask_features = torch.randn(3, 20, 3, 5), torch.randn(3, 8, 12, 20)
    together = decoder(maps, mask_features)[-1].class_logits
    for index in range(3):
        alone = decoder(maps[index : index + 1], mask_features[index : index + 1])[-1].class_logits
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_standard_decoder_without_deep_supervision_returns_the_final_prediction() -> None:
    decoder, shallow = build_decoder(), build_decoder(deep_supervision=False)
    shallow.load_state_dict(decoder.state_dict())
    inputs = torch.randn(1, 20, 3, 5), torch.randn(1, 8, 12, 20)
    (only,) = shallow(*inputs)
    assert torch.equal(only.class_logits, decoder(*inputs)[-1].class_logits)


def test_standard_decoder_without_classes_has_masks_alone() -> None:
    decoder = build_decoder(num_classes=None)
    prediction = decoder(torch.randn(2, 20, 3, 5), torch.randn(2, 8, 12, 20))[-1]
    assert prediction.class_logits.shape == (2, 7, 0)
    assert prediction.mask_logits().shape == (2, 7, 1, 12, 20)
    assert not any(name.startswith("class_embed") for name in decoder.state_dict())


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (0, 0), (15, 1)])
def test_older_model_losses_are_finite_and_reach_every_parameter(name: str, counts: tuple[int, int]) -> None:
    model = build_mask_former(name, "MODEL.MASK_FORMER.DROPOUT", 0.1).train()
    losses = model([training_sample(counts[0], 61, 93), training_sample(counts[1], 40, 50)])
    assert len(losses) == 9
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", FIXTURES)
def test_older_model_takes_clips(name: str) -> None:
    model = build_mask_former(name)
    frames = [torch.randint(256, (3, 61, 90), dtype=torch.uint8) for _ in range(2)]
    (result,) = model.eval()([{"image": frames}])
    assert all(mask.shape == (2, 61, 90) for mask in result["pred_masks"])
    instances = [training_sample(3, 61, 90)["instances"] for _ in frames]
    losses = model.train()([{"image": frames, "instances": instances}])
    assert all(loss.isfinite() for loss in losses.values())


def test_older_model_steps_under_bfloat16_lower_the_loss() -> None:
    model = build_mask_former("tiny_maskformer_v1_encoder").train()
    sample = training_sample(2, 64, 64)
    sample["instances"].gt_masks = torch.stack((torch.ones(64, 64), torch.zeros(64, 64))).bool()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(model([sample]).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("feature", "channels"), [("res3", 64), ("res5", 256), ("pixel_embedding", 24), ("transformer_encoder", 32)]
)
def test_queries_look_at_the_feature_that_the_config_names(feature: str, channels: int) -> None:
    model = build_mask_former(
        FIXTURES[1],
        *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", feature, "MODEL.SEM_SEG_HEAD.MASK_DIM", 24),
        *("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", True),
    )
    seen: list[Tensor] = []
    model.sem_seg_head.predictor.input_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    (result,) = model.eval()([{"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8)}])
    assert seen[0].shape[1] == channels
    assert result["sem_seg"].shape == (NUM_CLASSES, 64, 64)


def test_feature_pyramid_serves_the_masked_decoder_too() -> None:
    model = build_mask_former(
        FIXTURES[0],
        *("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MultiScaleMaskedTransformerDecoder"),
        *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"),
    )
    losses = model.train()([training_sample(2, 61, 93)])
    assert all(loss.isfinite() for loss in losses.values())


def test_decoders_that_do_not_fit_are_refused() -> None:
    key = "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE"
    with pytest.raises(ConfigError, match=r"expected one of res2, .*pixel_embedding; found 'p7'"):
        build_mask_former(FIXTURES[0], key, "p7")
    with pytest.raises(ConfigError, match=r"StandardTransformerDecoder expects one map"):
        build_mask_former(FIXTURES[0], key, "multi_scale_pixel_decoder")
    with pytest.raises(ConfigError, match=r"DEC_LAYERS: expected at least 1, found 0"):
        build_mask_former(FIXTURES[0], "MODEL.MASK_FORMER.DEC_LAYERS", 0)
    with pytest.raises(ConfigError, match=r"IN_FEATURES: expected features of the backbone .*found p2"):
        build_mask_former(FIXTURES[0], "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "res5"])
    model = build_mask_former(FIXTURES[0], key, "transformer_encoder").eval()
    with pytest.raises(ConfigError, match=r"BasePixelDecoder has no 'transformer_encoder'"):
        model([{"image": torch.zeros(3, 64, 64)}])


def test_feature_pyramid_brings_the_top_down_by_nearest_neighbours() -> None:
    decoder = BasePixelDecoder({name: SHAPES[name] for name in ("res4", "res5")}, conv_dim=32, mask_dim=24).eval()
    features = random_features(1, 64, 64)
    _, _, maps = decoder.forward_features(features)
    above = F.interpolate(maps[0], scale_factor=2, mode="nearest")
    torch.testing.assert_close(maps[1], decoder.layer_1(decoder.adapter_1(features["res4"]) + above))
