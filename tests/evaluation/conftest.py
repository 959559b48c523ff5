"""Data sets that the evaluators' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mask2former.structures.metadata import MetadataCatalog
from tests.evaluation.reference_data import ReferenceData, load_reference


@pytest.fixture
def reference() -> Iterator[ReferenceData]:
    data = load_reference()
    yield data
    MetadataCatalog.remove(data.name)


@pytest.fixture
def dataset_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name of its own for the metadata of one test."""
    name = f"evaluation_{request.node.name}"
    yield name
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
