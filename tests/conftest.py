"""Every test starts from the same seeds, on few threads; GPU tests are skipped where there is no GPU."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: worker processes started by tests inherit these. Tests side by side share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command lines do
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples at every run, so that a failure can be repeated; HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def draw_shapes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Draws a small shapes data set, ShapesParameters by keyword, and returns the root of data sets that it lies in."""
    from mask2former.data.shapes.prepare import prepare_shapes
    from mask2former.data.shapes.writing import ShapesParameters

    def draw(**parameters: Any) -> Path:
        root = tmp_path_factory.mktemp("data")
        small = {"num_train": 4, "num_val": 2, "num_train_videos": 0, "num_val_videos": 0, "size": (32, 32)}
        prepare_shapes(root / "shapes", ShapesParameters(**{**small, **parameters}), num_workers=1)
        return root

    return draw


@pytest.fixture(autouse=True)
def _seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _restore_process_state() -> Iterator[None]:
    """What a run sets for its whole process does not outlive the test: log handlers, deterministic kernels."""
    logger = logging.getLogger("mask2former")
    handlers, level = list(logger.handlers), logger.level
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    for handler in [handler for handler in logger.handlers if handler not in handlers]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
