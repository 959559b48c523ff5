"""OneFormer of the integration beside that of transformers: outputs, losses, processor, files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.structures.tasks import TASKS, task_token_ids
from tests.integrations.tiny_transformers import (
    NUM_CLASSES,
    NUM_QUERIES,
    images,
    integration,
    register_for_one_test,
    tiny_oneformer,
    transformers,
)

OneFormerForUniversalSegmentation = integration.OneFormerForUniversalSegmentation
OneFormerProcessor = integration.OneFormerProcessor

METADATA = {
    **{str(index): f"class {index}" for index in range(NUM_CLASSES)},
    "class_names": [f"class {index}" for index in range(NUM_CLASSES)],
    "thing_ids": [0, 1, 2],
}
needs_vocabulary = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("open_clip", "ftfy", "regex")), reason="needs the extra [text]"
)


def _tasks(*names: str) -> torch.Tensor:
    return torch.tensor([task_token_ids(name) for name in names])


def _assert_close(actual: Any, expected: Any, field: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert actual.shape == expected.shape, field
        assert float((actual - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), field
        return
    keys = expected.keys() if isinstance(expected, dict) else range(len(expected))
    assert len(actual) == len(expected), field
    for key in keys:
        _assert_close(actual[key], expected[key], f"{field}.{key}")


@torch.no_grad()
def test_model_outputs_equal_theirs(tmp_path: Path) -> None:
    theirs = tiny_oneformer()
    theirs.save_pretrained(tmp_path)
    ours, info = OneFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    options = {"output_hidden_states": True}
    expected, actual = (model(images(), _tasks(*TASKS[:2]), **options) for model in (theirs, ours))
    assert list(actual) == [field for field in expected if field != "attentions"]
    for field in actual:
        if field != "pixel_decoder_hidden_states":  # theirs are in another order in each release
            _assert_close(actual[field], expected[field], field)
    base = integration.OneFormerModel.from_pretrained(tmp_path)
    _assert_close(
        base(images(), _tasks(*TASKS[:2])).transformer_decoder_class_predictions, actual.class_queries_logits, "base"
    )


def test_weights_are_bit_equal_there_and_back(tmp_path: Path) -> None:
    tiny_oneformer().save_pretrained(tmp_path / "theirs")
    OneFormerForUniversalSegmentation.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    expected, actual = (load_state(tmp_path / name)["model"] for name in ("theirs", "ours"))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(actual[name].dtype)), name
    assert transformers.OneFormerForUniversalSegmentation.from_pretrained(tmp_path / "ours") is not None


@needs_vocabulary
def test_one_step_trains_every_parameter(tmp_path: Path) -> None:
    config = integration.OneFormerConfig(**tiny_oneformer(is_training=True).config.to_dict())
    model = OneFormerForUniversalSegmentation(config).train()
    processor = _processor(num_text=model.model.num_texts)
    maps = [np.array([[1, 2], [3, 0]], dtype=np.uint8).repeat(32, 0).repeat(32, 1) for _ in range(2)]
    pictures = [np.full((64, 64, 3), 10 * index, dtype=np.uint8) for index in (1, 5)]
    batch = processor(
        pictures, ["panoptic", "instance"], maps, instance_id_to_semantic_id={0: 6, 1: 0, 2: 1, 3: 5}, ignore_index=255
    )
    assert batch["class_labels"][1].tolist() == [0, 1]  # things alone
    assert batch["text_inputs"].shape == (2, NUM_QUERIES - 1, 77)
    loss = model(**batch).loss
    loss.backward()
    untrained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untrained
    with pytest.raises(InputError, match="text_inputs: missing"):
        model(**{name: value for name, value in batch.items() if name != "text_inputs"})


def _processor(**options: Any) -> Any:
    values = {"size": {"shortest_edge": 64, "longest_edge": 128}, "metadata": METADATA, **options}
    return OneFormerProcessor(integration.OneFormerImageProcessor(**values))


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_processor_and_model_give_results_of_the_image_size(task: str) -> None:
    model = OneFormerForUniversalSegmentation(integration.OneFormerConfig(**tiny_oneformer().config.to_dict())).eval()
    processor = _processor()
    picture = np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8)
    batch = processor(picture, task)
    assert torch.equal(batch["task_inputs"], _tasks(task))
    assert batch["pixel_values"].shape[-2:] == (64, 96)
    outputs = model(**batch)
    (semantic,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 70)])
    (panoptic,) = processor.post_process_panoptic_segmentation(outputs, threshold=0.0, target_sizes=[(48, 70)])
    (instances,) = processor.post_process_instance_segmentation(outputs, is_demo=False, target_sizes=[(48, 70)])
    for result in (semantic, panoptic["segmentation"], instances["segmentation"]):
        assert result.shape == (48, 70)
    assert {segment["label_id"] for segment in instances["segments_info"]} <= {0, 1, 2}
    fused = [segment for segment in panoptic["segments_info"] if segment["label_id"] > 2]
    assert all(segment["was_fused"] for segment in fused)


@needs_vocabulary
def test_texts_are_those_of_the_published_model() -> None:
    processor = _processor(num_text=4)
    texts = [processor.image_processor.describe(classes, "panoptic") for classes in ([5, 0, 5], [1])]
    assert texts[0] == [
        "a photo with a class 0",
        "a photo with a class 5",
        "a photo with a class 5",
        "a panoptic photo",
    ]
    assert texts[1] == ["a photo with a class 1", *["a panoptic photo"] * 3]  # nothing of the image before


def test_processor_of_the_other_parity_equals_theirs(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8)
    ours = integration.OneFormerImageProcessor(parity="transformers", metadata=METADATA)
    theirs = transformers.OneFormerImageProcessor(metadata=METADATA)
    expected, actual = (one([picture], ["panoptic"], return_tensors="pt") for one in (theirs, ours))
    assert torch.equal(actual["pixel_values"], expected["pixel_values"])
    _processor().save_pretrained(tmp_path)
    assert OneFormerProcessor.from_pretrained(tmp_path).image_processor.metadata == METADATA


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: _processor()([np.zeros((8, 8, 3), np.uint8)] * 2, ["panoptic"]),
            InputError,
            "expected one for each of 2",
        ),
        (lambda: _processor()(np.zeros((8, 8, 3), np.uint8), "depth"), ConfigError, "expected one of panoptic"),
        (lambda: integration.OneFormerImageProcessor(parity="other"), ConfigError, "parity"),
        (lambda: integration.OneFormerConfig.from_dict({"model_type": "mask2former"}), ConfigError, "model_type"),
        (lambda: OneFormerForUniversalSegmentation.from_pretrained("./nowhere"), CheckpointError, "no such folder"),
    ],
)
def test_wrong_input_is_one_clear_error(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_tasks_of_another_shape_are_refused() -> None:
    model = OneFormerForUniversalSegmentation(integration.OneFormerConfig(**tiny_oneformer().config.to_dict()))
    with pytest.raises(InputError, match="task_inputs"):
        model(images(), torch.zeros(1, 77))


def test_auto_classes_build_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_oneformer().save_pretrained(tmp_path)
    register_for_one_test(monkeypatch)
    model = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert type(model) is OneFormerForUniversalSegmentation
