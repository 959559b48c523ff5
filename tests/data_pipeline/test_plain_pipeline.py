"""Samples are those of the same pipeline written in the obvious way, to the last bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mask2former.data.samplers import sample_generator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_loading_benchmark", BENCHMARKS / "data_loading.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


@pytest.mark.parametrize("recipe", ["instance", "panoptic", "semantic"])
def test_mapper_equals_the_plain_pipeline(benchmark: ModuleType, tmp_path: Path, recipe: str) -> None:
    mapper = benchmark.build_mapper(recipe)
    for index, record in enumerate(benchmark.draw_records(tmp_path, num_images=2)):
        for position in range(index, 8, 2):
            expected = benchmark.read_plainly(mapper, record, sample_generator(1, position))
            sample = mapper(record, sample_generator(1, position))
            benchmark.check_equal(sample, expected)  # raises what differs
            assert len(sample["instances"]) == len(expected[1])
