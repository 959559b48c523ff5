from __future__ import annotations

import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask2former.errors import InputError
from mask2former.files import videos as video_files
from mask2former.files.videos import OUTPUT_SUFFIXES, VideoSource, VideoWriter, find_codec


def frames_of(num_frames: int, height: int, width: int) -> list[np.ndarray]:
    """Red rises from frame to frame; the left half is blue."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 200, num_frames).astype(np.uint8)[:, None, None]
    frames[:, :, : width // 2, 2] = 180
    return list(frames)


def write(path: Path, frames: list[np.ndarray], *, fps: float = 12.5) -> Path:
    writer = VideoWriter(path, fps=fps)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return writer.path


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_video_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    frames = frames_of(7, 48, 64)
    source = VideoSource(write(tmp_path / f"clip{suffix}", frames))
    assert source.fps == pytest.approx(12.5)
    found = list(source)
    assert len(found) == 7
    assert np.abs(np.stack(found).astype(int) - np.stack(frames)).mean() < 8
    assert len(list(source)) == 7  # a second time


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (33, 35)])
def test_video_odd_sizes_grow_instead_of_losing_a_row(tmp_path: Path, size: tuple[int, int]) -> None:
    (frame,) = VideoSource(write(tmp_path / "clip.mp4", frames_of(1, *size)))
    assert frame.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)


def test_video_fps_that_is_no_integer_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", frames_of(5, 32, 32), fps=30000 / 1001)
    assert VideoSource(path).fps == pytest.approx(29.97, abs=0.01)


def test_video_falls_back_to_a_codec_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video_files._CODECS, ".mp4", ("none",))
    assert find_codec(".mp4", size=(32, 32), fps=10) == (".avi", "MJPG")
    path = write(tmp_path / "clip.mp4", frames_of(3, 32, 32))
    assert path == tmp_path / "clip.avi"
    assert len(list(VideoSource(path))) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["clip.avi"]


def test_video_appears_when_it_is_complete(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", fps=5)
    writer.write(frames_of(1, 32, 32)[0])
    assert not (tmp_path / "clip.mp4").exists()
    writer.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_video_name_of_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip\.txt: expected a video name ending in \.avi"):
        VideoWriter(tmp_path / "clip.txt", fps=5)


def test_video_source_missing_broken_and_empty_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", frames_of(5, 32, 32)).read_bytes()
    (tmp_path / "none.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    writer = cv2.VideoWriter(str(tmp_path / "empty.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (32, 32))
    writer.release()
    for name in ("none.mp4", "text.mp4", "torn.mp4", "empty.avi"):
        with pytest.raises(InputError, match=rf"{name}: (not a video|no frame|expected a video)"):
            VideoSource(tmp_path / name)
    with pytest.raises(InputError, match=r"gone\.mp4: expected a video file, found nothing"):
        VideoSource(tmp_path / "gone.mp4")
    with pytest.raises(InputError, match="found a directory"):
        VideoSource(tmp_path)


def test_video_source_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="camera 97: cannot be opened"):
        VideoSource(97)


def test_video_without_a_frame_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip\.mp4: cannot be written: no frame was given"):
        write(tmp_path / "clip.mp4", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("limit", [20_000, 90_000])
def test_video_on_a_full_disk_is_an_error_and_leaves_nothing(suffix: str, limit: int, tmp_path: Path) -> None:
    frames = [np.random.default_rng(time).integers(0, 256, (96, 96, 3), dtype=np.uint8) for time in range(30)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # a file that grows beyond fails as on a full disk
    try:
        with pytest.raises(InputError, match=rf"clip\{suffix}: cannot be written: File too large"):
            write(tmp_path / f"clip{suffix}", frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_video_where_a_file_is_in_the_way_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"clip\.mp4: cannot be written"):
        write(tmp_path / "file" / "clip.mp4", frames_of(2, 32, 32))
