"""What blogs, notes and the page of transformers tell their readers to write runs, with our classes for theirs."""

from __future__ import annotations

import importlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.inference.model_source import find_config
from tests.integrations.tiny_transformers import NUM_CLASSES, NUM_QUERIES, integration, register_for_one_test, saved

# One line differs: the import of the model's class.
HEAD = """
import torch
from PIL import Image
from transformers import AutoImageProcessor
from mask2former.integrations.transformers import Mask2FormerForUniversalSegmentation, Mask2FormerModel

image_processor = processor = AutoImageProcessor.from_pretrained(name)
model = {model}.from_pretrained(name)
inputs = image_processor(image, return_tensors="pt")

with torch.no_grad():
    outputs = model(**inputs)
"""
TAILS = {
    "base model": "shape = outputs.transformer_decoder_last_hidden_state.shape",
    "logits": "shape = outputs.masks_queries_logits.shape[:2]\nclasses = outputs.class_queries_logits.shape",
    "semantic": """
shape = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0].shape
""",
    "panoptic": """
shape = image_processor.post_process_panoptic_segmentation(
    outputs, target_sizes=[image.size[::-1]]
)[0]["segmentation"].shape
""",
    "drawing panoptic segments": """
prediction = processor.post_process_panoptic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
segmentation, segments_info = prediction["segmentation"], prediction["segments_info"]
shape, instances_counter = segmentation.shape, defaultdict(int)
labels = []
for segment in segments_info:
    segment_id, segment_label_id = segment["id"], segment["label_id"]
    segment_label = model.config.id2label[segment_label_id]
    labels.append(f"{segment_label}-{instances_counter[segment_label_id]}")
    instances_counter[segment_label_id] += 1
    assert (segmentation == segment_id).any()
assert int(torch.max(segmentation)) == len(segments_info) == len(set(labels))
""",
    "mask of an instance": """
results = processor.post_process_instance_segmentation(
    outputs, target_sizes=[image.size[::-1]], threshold=0.5
)[0]
shape = results["segmentation"].shape
segment_to_label = {segment["id"]: segment["label_id"] for segment in results["segments_info"]}

def get_mask(segment_id):
    assert model.config.id2label[segment_to_label[segment_id]]
    mask = (results["segmentation"].numpy() == segment_id)
    return Image.fromarray((mask * 255).astype(np.uint8))

for segment in results["segments_info"]:
    assert get_mask(segment["id"]).size == image.size
""",
}


@pytest.mark.parametrize("tail", TAILS)
def test_inference_of_published_pages_runs(tail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_for_one_test(monkeypatch)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    sure = integration.Mask2FormerForUniversalSegmentation.from_pretrained(saved(tmp_path))
    sure.class_predictor.weight.data.mul_(20)
    sure.save_pretrained(tmp_path)
    names: dict[str, Any] = {"name": str(tmp_path), "image": Image.fromarray(noise)}
    names |= {"defaultdict": defaultdict, "np": np}
    model = "Mask2FormerModel" if tail == "base model" else "Mask2FormerForUniversalSegmentation"
    exec(compile(HEAD.format(model=model) + TAILS[tail], tail, "exec"), names)
    expected = {"base model": (1, NUM_QUERIES, 32), "logits": (1, NUM_QUERIES)}
    assert tuple(names["shape"]) == expected.get(tail, (48, 64))
    if "results" in names or "prediction" in names:
        assert (names.get("results") or names["prediction"])["segments_info"]
    assert type(names["model"]).__module__.startswith("mask2former.")
    assert type(names["processor"]) is integration.Mask2FormerImageProcessor
    if tail == "logits":
        assert names["classes"] == (1, NUM_QUERIES, NUM_CLASSES + 1)


def test_model_of_a_default_config_is_built() -> None:
    with torch.device("meta"):
        model = integration.Mask2FormerModel(integration.Mask2FormerConfig())
    assert isinstance(model.config, integration.Mask2FormerConfig)
    assert model.config.init_xavier_std == 1.0


def test_data_set_made_as_the_example_tells_is_fine_tuned_on(tmp_path: Path) -> None:
    pytest.importorskip("datasets.config", reason="needs the extra [transformers]")
    pytest.importorskip("accelerate", reason="needs the extra [transformers]")
    library: Any = importlib.import_module("datasets")
    from mask2former.integrations.transformers import fine_tuning

    library.config.HF_DATASETS_CACHE = tmp_path / "cache"
    label2id = {"background": 0, "person": 1, "car": 2}

    def rows(count: int) -> dict[str, list[Any]]:
        annotation = np.zeros((32, 40, 3), np.uint8)
        annotation[4:20, 4:20, 0], annotation[4:20, 4:20, 1] = 1, 1  # class, and number of the instance
        annotation[8:30, 24:36, 0], annotation[8:30, 24:36, 1] = 2, 2
        image = Image.fromarray(annotation * 60)
        return {"image": [image] * count, "annotation": [Image.fromarray(annotation)] * count}

    def create_instance_segmentation_dataset(label2id: dict[str, int], **splits: Any) -> Any:
        dataset_dict = {}
        for split_name, split in splits.items():
            split["semantic_class_to_id"] = [label2id] * len(split["image"])
            dataset_split = (
                library.Dataset.from_dict(split)
                .cast_column("image", library.Image())
                .cast_column("annotation", library.Image())
            )
            dataset_dict[split_name] = dataset_split
        return library.DatasetDict(dataset_dict)

    create_instance_segmentation_dataset(label2id, train=rows(2), validation=rows(1)).save_to_disk(tmp_path / "mine")
    command = f"""
        --model_name_or_path {saved(tmp_path / "start")} --output_dir {tmp_path / "out"}
        --dataset_name {tmp_path / "mine"} --gradient_accumulation_steps 2
        --do_reduce_labels --image_height 64 --image_width 64 --do_train --num_train_epochs 1
        --learning_rate 1e-5 --lr_scheduler_type constant --per_device_train_batch_size 2
        --do_eval --eval_strategy epoch --logging_strategy epoch --save_strategy epoch --save_total_limit 2 --use_cpu
    """.split()
    assert fine_tuning.main(command) == 0
    saved_model = integration.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert saved_model.config.label2id == {"person": 0, "car": 1}


@pytest.mark.parametrize(
    ("url", "config"),
    [
        ("maskformer2_R50_bs16_50ep/model_final_3c8ec9.pkl", "maskformer2_R50_bs16_50ep"),
        ("maskformer2_swin_tiny_bs16_50ep/model_final_86143f.pkl", "maskformer2_swin_tiny_bs16_50ep"),
    ],
)
def test_published_address_of_weights_finds_their_config(url: str, config: str) -> None:
    cfg = find_config(f"https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/instance/{url}")
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 80
    assert cfg.MODEL.BACKBONE.NAME == ("D2SwinTransformer" if "swin" in config else "build_resnet_backbone")
