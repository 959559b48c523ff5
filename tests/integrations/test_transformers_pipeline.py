"""The pipeline of transformers on our model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integrations.tiny_transformers import integration, register_for_one_test, saved, transformers


@pytest.mark.parametrize("parity", ["published", "transformers"])
@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_their_pipeline_runs_on_our_model(tmp_path: Path, subtask: str, parity: str) -> None:
    saved(tmp_path)
    model = integration.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    model.class_predictor.weight.data.mul_(20)
    processor = integration.Mask2FormerImageProcessor.from_pretrained(tmp_path, parity=parity)
    run = transformers.pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8))
    options = {} if subtask == "semantic" else {"threshold": 0.05, "overlap_mask_area_threshold": 0.0}
    results = run(image, subtask=subtask, **options)
    assert results
    for result in results:
        assert result["label"].startswith("LABEL_")
        assert result["mask"].size == (57, 40)
    covered = sum(np.asarray(result["mask"]) > 0 for result in results)
    assert covered.max() == 1


def test_their_pipeline_finds_our_model_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_for_one_test(monkeypatch)
    run = transformers.pipeline("image-segmentation", model=str(saved(tmp_path)), device="cpu")
    assert isinstance(run.model, integration.Mask2FormerForUniversalSegmentation)
    assert isinstance(run.image_processor, integration.Mask2FormerImageProcessor)
    assert run(Image.new("RGB", (30, 20)), subtask="semantic")
