"""Folders of frames become video files that can be read again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.files.videos import VideoSource

SCRIPT = Path(__file__).parents[1] / "tools" / "frames_to_video.py"


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _write_frames(folder: Path, *, count: int) -> None:
    folder.mkdir()
    for time in range(count):
        Image.fromarray(np.full((32, 48, 3), 40 * time, np.uint8)).save(folder / f"{time:05d}.jpg")


def test_frames_become_a_video_in_the_order_of_their_names(tmp_path: Path) -> None:
    _write_frames(tmp_path / "a", count=4)
    done = _run(tmp_path / "a", "--output", tmp_path / "out", "--fps", 5)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").iterdir()
    frames = list(VideoSource(path))
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 4
    assert [round(float(frame.mean())) for frame in frames] == pytest.approx([0, 40, 80, 120], abs=8)


def test_wrong_frames_are_one_line_and_leave_no_video(tmp_path: Path) -> None:
    done = _run(tmp_path / "nothing", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'nothing'}: no folder with pictures\n"
    _write_frames(tmp_path / "a", count=2)
    (tmp_path / "a/00001.jpg").write_bytes(b"")
    done = _run(tmp_path / "a", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "00001.jpg" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
