"""Tiny Mask2Formers of transformers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

# A file of tests that imports this one is skipped as a whole where the library is absent.
transformers = pytest.importorskip("transformers", minversion="5.23", reason="needs the extra [transformers]")
integration = pytest.importorskip("mask2former.integrations.transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NUM_CLASSES, NUM_QUERIES = 7, 6


def tiny_config(backbone: str = "swin", *, config_class: Any = None, **options: Any) -> Any:
    values = {
        "backbone_config": _swin() if backbone == "swin" else _resnet(),
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 48,
        "decoder_layers": 4,
        "num_attention_heads": 2,
        "dim_feedforward": 20,
        "num_queries": NUM_QUERIES,
        "num_labels": NUM_CLASSES,
        "train_num_points": 64,
    }
    return (config_class or transformers.Mask2FormerConfig)(**{**values, **options})


def _swin() -> Any:
    options = {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 3], "window_size": 3}
    return transformers.SwinConfig(**options, drop_path_rate=0.0, out_features=STAGES)


def _resnet() -> Any:
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], out_features=STAGES)


def their_model(backbone: str = "swin", **options: Any) -> Any:
    """Theirs with values that no initialisation has, so that a tensor that is not copied shows."""
    return _randomized(transformers.Mask2FormerForUniversalSegmentation(tiny_config(backbone, **options)).eval())


def _randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for entry, tensor in model.state_dict().items():
        if tensor.is_floating_point() and entry != "criterion.empty_weight":
            noise = torch.rand(tensor.shape, generator=generator) - 0.5
            tensor.copy_(1 + noise if entry.endswith("running_var") else tensor + 0.2 * noise)
    return model


def tiny_oneformer(**options: Any) -> Any:
    """A OneFormer of theirs with random weights; keys of its config change it."""
    options = {
        "conv_dim": 64,
        "mask_dim": 64,
        "hidden_dim": 64,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 1024,
        "decoder_layers": 4,
        "num_attention_heads": 2,
        "dim_feedforward": 20,
        "num_queries": NUM_QUERIES + 1,
        "num_labels": NUM_CLASSES,
        "text_encoder_width": 64,
        "text_encoder_num_layers": 1,
        "text_encoder_n_ctx": 2,
        "train_num_points": 64,
    } | options
    config = transformers.OneFormerConfig(backbone_config=_swin(), **options)
    return _randomized(transformers.OneFormerForUniversalSegmentation(config).eval())


def saved(folder: Path, backbone: str = "swin", **options: Any) -> Path:
    """A folder that transformers wrote, with weights, config and image processor."""
    their_model(backbone, **options).save_pretrained(folder)
    transformers.Mask2FormerImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


def images(*, seed: int = 2, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def register_for_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours for the `Auto*` classes, until the test ends."""
    from transformers.models.auto import configuration_auto, image_processing_auto, modeling_auto

    for mapping in (
        configuration_auto.CONFIG_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        modeling_auto.MODEL_MAPPING,
        modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
        modeling_auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING,
    ):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    integration.register()
