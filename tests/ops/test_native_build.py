"""Building the native libraries: with a compiler, without one, with one that fails; and the wheel's tag."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mask2former.ops import build, native

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CUDACXX", "CUDA_HOME", build.CUDA_SWITCH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build, "find_nvcc", lambda: None)


def _has_cxx() -> bool:
    try:
        return bool(build.find_cxx())
    except build.BuildError:
        return False


needs_cxx = pytest.mark.skipif(not _has_cxx(), reason="needs a C++ compiler")
needs_nvcc = pytest.mark.skipif(build.find_nvcc() is None, reason="needs nvcc")


@needs_cxx
def test_build_cpu_makes_a_library_without_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = build.build_cpu(tmp_path / "lib")
    assert capfd.readouterr().err == ""
    assert [entry.name for entry in path.parent.iterdir()] == [build.CPU_LIBRARY]
    assert ctypes.CDLL(str(path)).m2f_abi_version() == native._CPU_ABI_VERSION


@needs_nvcc
@pytest.mark.timeout(240)
def test_build_cuda_compiles_without_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = build.build_cuda(tmp_path)
    assert capfd.readouterr().err == ""
    assert ctypes.CDLL(str(path)).m2f_abi_version() == native._CUDA_ABI_VERSION


@pytest.mark.usefixtures("no_compilers")
def test_build_without_compiler_says_so_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.build_available(tmp_path) is False
    assert "CPU kernels not built, PyTorch will be used instead: no C++ compiler found" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert build.main([]) == 1


@pytest.mark.parametrize("compiler", ["false", "/nonexistent/c++"])
def test_build_with_failing_compiler_says_so_and_goes_on(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv(build.CUDA_SWITCH, "0")
    assert build.build_available(tmp_path) is False
    output = capsys.readouterr().out
    assert "CPU kernels not built" in output
    assert compiler in output
    assert "CUDA" not in output


@pytest.mark.usefixtures("no_compilers")
def test_build_fails_where_cuda_is_demanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CUDA_SWITCH, "1")
    with pytest.raises(build.BuildError, match="nvcc not found"):
        build.build_available(tmp_path)
    monkeypatch.setenv(build.CUDA_SWITCH, "yes")
    with pytest.raises(build.BuildError, match="MASK2FORMER_BUILD_CUDA must be 0 or 1, got 'yes'"):
        build.build_available(tmp_path)


@needs_cxx
def test_wheel_is_of_the_platform_and_of_any_python(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    environment = {**os.environ, build.CUDA_SWITCH: "0"}
    command = [sys.executable, "setup.py", "-q", "build", "-b", str(tmp_path / "build")]
    command += ["egg_info", "-e", str(tmp_path), "bdist_wheel", "-b", str(tmp_path / "wheel"), "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"mask2former/ops/lib/{build.CPU_LIBRARY}" in names
    assert f"mask2former/ops/lib/{build.CUDA_LIBRARY}" not in names
    assert "mask2former/ops/csrc/cpu/kernels.cpp" in names
    assert "mask2former/ops/csrc/cuda/ms_deform_attn.cu" in names
    configs = {f"mask2former/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs == {name for name in names if name.startswith("mask2former/configs/")}
