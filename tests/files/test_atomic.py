"""Atomic writing leaves the old file or the new one."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.errors import InputError
from mask2former.files.atomic import (
    remove_temporaries,
    save_atomic,
    temporary_path,
    write_bytes_atomic,
    write_json,
    write_text_atomic,
)


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


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(1, path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"a\.json: cannot be written: disk full"):
        write_json(2, path)
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [save_atomic, write_text_atomic, write_json])
def test_writing_where_it_cannot_be_is_one_error_and_leaves_nothing(write: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("file/a.json", "Not a directory|File exists"),
        ("folder", "Is a directory"),
        ("a" * 300, "name too long"),
    ):
        with pytest.raises(InputError, match=f"{name}: cannot be written: .*({reason})"):
            write("content", tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize("name", ["a" * 250, "é" * 127])
def test_writing_takes_names_as_long_as_the_disk_does(name: str, tmp_path: Path) -> None:
    write_text_atomic("content", tmp_path / name)
    assert (tmp_path / name).read_text() == "content"


@pytest.mark.parametrize("write", [save_atomic, write_bytes_atomic])
def test_full_disk_is_one_error_and_leaves_the_old_file(write: Callable[..., None], tmp_path: Path) -> None:
    write(b"old", tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # a file that grows beyond fails as on a full disk
    try:
        with pytest.raises(InputError, match="file: cannot be written: File too large"):
            write(os.urandom(1 << 20), tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_remove_temporaries_of_killed_writers_alone(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("a.tmp", "b.png", "folder/.hidden")]
    left = [temporary_path(tmp_path / "folder/a.png"), temporary_path(tmp_path / "b.mp4", keeps_suffix=True)]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_temporaries(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)
