"""The built CPU library, for tests of what is behind the operators."""

from __future__ import annotations

import pytest

from mask2former.ops import build, kernel_status, native


@pytest.fixture(scope="session")
def cpu_library() -> object:
    """The built CPU library; compiled here if the installation has none."""
    if not (native.LIBRARY_DIR / native.CPU_LIBRARY).is_file():
        build.build_cpu(native.LIBRARY_DIR)
        native._load_cpu_library.cache_clear()
    library = native.cpu_library()
    assert library is not None, kernel_status()
    return library
