"""What happens where a native library is missing, damaged or of another version."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mask2former.ops import kernel_status, ms_deform_attn, ms_deform_attn_reference, native

INPUTS = (torch.randn(2, 40, 2, 8), [5, 7, 3, 1, 1, 2], torch.rand(2, 7, 2, 3, 3, 2), torch.rand(2, 7, 2, 3, 3))


@pytest.fixture
def library_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installation without libraries."""
    caches = (native._load_cpu_library, native._load_cuda_library, native._warn_once)
    monkeypatch.setattr(native, "LIBRARY_DIR", tmp_path)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_missing_library_is_said_once_and_the_reference_serves(library_dir: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        outputs = [ms_deform_attn(*INPUTS) for _ in range(3)]
    assert len(caplog.messages) == 1
    assert "libm2f_ops_cpu.so is not built" in caplog.messages[0]
    assert "python -m mask2former.ops.build" in caplog.messages[0]
    torch.testing.assert_close(outputs[2], ms_deform_attn_reference(*INPUTS))
    assert "python -m mask2former.ops.build" in kernel_status()


def test_damaged_library_is_said_and_the_reference_serves(library_dir: Path, caplog) -> None:
    (library_dir / native.CPU_LIBRARY).write_bytes(b"not a library")
    output = ms_deform_attn(*INPUTS)
    assert output.shape == (2, 7, 16)
    assert len(caplog.messages) == 1
    assert "cannot be loaded" in caplog.messages[0]


def test_library_of_another_version_is_refused(library_dir: Path, cpu_library, monkeypatch, caplog) -> None:
    built = Path(native.__file__).with_name("lib") / native.CPU_LIBRARY
    (library_dir / native.CPU_LIBRARY).write_bytes(built.read_bytes())
    monkeypatch.setattr(native, "_CPU_ABI_VERSION", 999)
    assert native.cpu_library() is None
    assert "another version" in caplog.messages[0]


def test_missing_cuda_library_is_said_once(library_dir: Path, caplog) -> None:
    assert native.cuda_library() is None
    assert native.cuda_library() is None
    assert caplog.messages[0].startswith("CUDA kernels not in use")
    assert len(caplog.messages) == 1


def test_kernel_status_names_the_instruction_set(cpu_library) -> None:
    assert cpu_library.m2f_instruction_set().decode() in kernel_status()
    assert "\n" not in kernel_status()
