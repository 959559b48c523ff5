"""The built CPU library, and CUDA sources compiled for the host, for tests of what is behind the operators."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mask2former.ops import build, kernel_status, native

_CUDA_SHIM = Path(__file__).with_name("cuda_on_host")
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


@pytest.fixture(params=["reference", *_INSTRUCTION_SETS])
def implementation(request: pytest.FixtureRequest, cpu_library, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test once with each implementation of the CPU that this machine has."""
    if request.param == "reference":
        monkeypatch.setattr(native, "cpu_library", lambda: None)
        yield "reference"
        return
    in_use = cpu_library.m2f_limit_instruction_set(_INSTRUCTION_SETS.index(request.param)).decode()
    if in_use != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield in_use
    cpu_library.m2f_limit_instruction_set(2)


@pytest.fixture(scope="session")
def compile_cuda_on_host() -> Callable[..., ctypes.CDLL]:
    """Compiles a CUDA source into a library whose kernels run on the host: (source, target, architecture=900)."""
    return _compile_cuda_on_host


def _compile_cuda_on_host(source: Path, target: Path, *, architecture: int = 900) -> ctypes.CDLL:
    defines = [f"-D__CUDA_ARCH__={architecture}", "-DCUDART_VERSION=13000"]
    try:
        command = [*build.find_cxx(), "-O1", "-std=c++17", "-fPIC", "-shared", f"-I{_CUDA_SHIM}", *defines, "-x", "c++"]
        done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True, check=False)
    except (build.BuildError, OSError) as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    if done.returncode != 0 and ("_Float16" in done.stderr or "ucontext" in done.stderr):
        pytest.skip("needs a C++ compiler with _Float16, and ucontext.h")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))
