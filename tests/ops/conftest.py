"""The built CPU library, for tests of what is behind the operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mask2former.ops import build, kernel_status, native

_INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@pytest.fixture(scope="session")
def cpu_library() -> object:
    """The built CPU library; compiled here if the installation has none."""
    if not (native.LIBRARY_DIR / native.CPU_LIBRARY).is_file():
        build.build_cpu(native.LIBRARY_DIR)
        native._load_cpu_library.cache_clear()
    library = native.cpu_library()
    assert library is not None, kernel_status()
    return library


@pytest.fixture(params=_INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, cpu_library) -> Iterator[str]:
    in_use = cpu_library.m2f_limit_instruction_set(_INSTRUCTION_SETS.index(request.param)).decode()
    if in_use != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield in_use
    cpu_library.m2f_limit_instruction_set(2)
