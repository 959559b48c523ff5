from __future__ import annotations

import os

import pytest

from mask2former.data.processes import process_pool
from mask2former.errors import DatasetError


def test_process_pool_says_that_a_process_was_killed() -> None:
    with pytest.raises(DatasetError, match="a process was killed; memory may be short"), process_pool(1) as pool:
        pool.submit(os._exit, 1).result()
