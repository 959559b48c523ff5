"""A plugin of pytest: the compiled kernels of a folder in the environment, in the place of those installed."""

from __future__ import annotations

import os
from pathlib import Path

from mask2former.ops import native

FOLDER, OWN_THREADS = "SANITIZED_KERNELS", "SANITIZED_KERNELS_OWN_THREADS"


def pytest_configure() -> None:
    """Before the tests are imported, and with them the library is opened."""
    native.LIBRARY_DIR = Path(os.environ[FOLDER])
    if os.environ.get(OWN_THREADS):  # the thread sanitizer does not see how torch's OpenMP threads wait for each other
        native._torch_gomp_parallel = lambda: None
