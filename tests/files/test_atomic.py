"""Atomic writing leaves the old file or the new one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.files.atomic import save_atomic, write_text_atomic


class _Unpicklable:
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("cannot be written")


def test_save_atomic_replaces_file_and_makes_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pth"
    for value in (1, 2):
        save_atomic({"model": {"a": torch.full((2,), value)}}, path)
    assert load_state(path)["model"]["a"].tolist() == [2, 2]
    assert os.listdir(path.parent) == ["model.pth"]


def test_save_atomic_keeps_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_atomic({"iteration": 1}, path)
    with pytest.raises(RuntimeError, match="cannot be written"):
        save_atomic({"a": torch.ones(1000), "bad": _Unpicklable()}, path)
    assert load_state(path) == {"iteration": 1}
    assert os.listdir(tmp_path) == ["model.pth"]


def test_write_text_atomic_follows_umask(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    previous = os.umask(0o022)
    try:
        write_text_atomic("a: é\n", path)
    finally:
        os.umask(previous)
    assert path.read_text(encoding="utf-8") == "a: é\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
