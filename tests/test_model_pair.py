"""The models that benchmarks compare: what makes random weights detect something."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def model_pair(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1]), *sys.path])
    return importlib.import_module("benchmarks.model_pair")


def stub_model(classifier: nn.Linear) -> Any:
    """Its queries are the pixels of the image."""

    def predict(queries: Tensor) -> list[SimpleNamespace]:
        return [SimpleNamespace(class_logits=classifier(queries))]

    head = SimpleNamespace(predictor=SimpleNamespace(class_embed=classifier), predict=predict)
    return SimpleNamespace(sem_seg_head=head, features=lambda images: images.flatten(2).transpose(1, 2))


def test_make_detections_makes_queries_sure(model_pair: ModuleType) -> None:
    torch.manual_seed(0)
    images, classifier = torch.randn(1, 3, 5, 4), nn.Linear(3, 5)
    model_pair.make_detections(stub_model(classifier), images, num_detections=6)
    with torch.no_grad():
        logits = classifier(images.flatten(2).transpose(1, 2))[0]
    assert 3 <= model_pair._count_sure(logits) <= 7


def test_make_detections_ends_where_classes_tie(model_pair: ModuleType) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(3, 5)
    with torch.no_grad():
        classifier.weight[1::2], classifier.bias[1::2] = classifier.weight[:4:2], classifier.bias[:4:2]
    with pytest.raises(RuntimeError, match=r"expected 3 queries that are sure of a class, found 0: .* tie"):
        model_pair.make_detections(stub_model(classifier), torch.randn(1, 3, 5, 4), num_detections=6)
