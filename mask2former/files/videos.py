"""Read and write videos through OpenCV, one frame at a time: (H, W, 3) uint8 RGB."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from mask2former.errors import InputError
from mask2former.files.atomic import temporary_path

DEFAULT_FPS = 30.0  # where a camera or a file does not say
_MAX_FPS = 1000.0
_PROBE_BYTES = 1 << 16  # more than a writer holds back
# By container: what is tried in turn. A codec counts only if what it wrote can be read back.
_CODECS = {
    ".avi": ("MJPG", "XVID"),
    ".m4v": ("mp4v",),
    ".mkv": ("mp4v", "MJPG"),
    ".mov": ("mp4v", "MJPG"),
    ".mp4": ("mp4v",),
    ".webm": ("VP80", "VP90"),
}
OUTPUT_SUFFIXES = tuple(_CODECS)
_FALLBACK = (".avi", "MJPG")


class VideoSource:
    """A video file, which can be iterated repeatedly, or a camera, given by its number.

    ``fps``: frames a second. ``num_frames``: what the file says, which may be wrong; None if it does not say.
    """

    def __init__(self, source: Path | int) -> None:
        """Open the source.

        Raises:
            InputError: there is no such file or camera, or it has no frame.
        """
        self.source = source
        if isinstance(source, Path) and not source.is_file():
            raise InputError(
                f"{source}: expected a video file, found {'a directory' if source.is_dir() else 'nothing'}"
            )
        capture = self._open()
        try:
            if not capture.read()[0]:
                raise InputError(f"{self.name}: no frame can be read from it; it is empty or damaged")
            fps = capture.get(cv2.CAP_PROP_FPS)
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        finally:
            capture.release()
        self.fps = float(fps) if math.isfinite(fps) and 0 < fps <= _MAX_FPS else DEFAULT_FPS
        self.num_frames = int(count) if isinstance(source, Path) and math.isfinite(count) and count > 0 else None

    @property
    def name(self) -> str:
        """The name in messages."""
        return str(self.source) if isinstance(self.source, Path) else f"camera {self.source}"

    def __iter__(self) -> Iterator[np.ndarray]:
        capture = self._open()
        try:
            while True:
                is_read, frame = capture.read()
                if not is_read:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.source) if isinstance(self.source, Path) else self.source)
        if capture.isOpened():
            return capture
        capture.release()
        reason = "not a video, damaged, or of an unknown codec" if isinstance(self.source, Path) else "cannot be opened"
        raise InputError(f"{self.name}: {reason}")


class VideoWriter:
    """Writes frames to a file, which appears under its name when it is complete.

    ``path`` may change at the first frame: if no codec of its container works, the file becomes an .avi. Codecs need
    even sides, so an odd side is padded by repeating its last row or column.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        """Prepare a file of ``fps`` frames a second.

        Raises:
            InputError: the suffix is none of OUTPUT_SUFFIXES.
        """
        if path.suffix.lower() not in _CODECS:
            raise InputError(f"{path}: expected a video name ending in {', '.join(OUTPUT_SUFFIXES)}")
        self.path = path
        self.fps = fps
        self._num_frames = 0
        self._partial = temporary_path(path, keeps_suffix=True)  # the container is chosen by the suffix
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 RGB.

        Raises:
            InputError: no codec works, or the file cannot be made.
        """
        height, width = frame.shape[:2]
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            self._writer = self._open((even.shape[1], even.shape[0]))
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self._num_frames += 1

    def close(self, *, keep: bool = True) -> None:
        """Finish the file, or with ``keep`` false remove it; a second call does nothing.

        Raises:
            InputError: no frame was written, or the disk did not take all of them; no file is left.
        """
        if self._writer is not None:
            self._writer.release()
        is_new, self._writer = self._writer is not None or self._num_frames == 0, None
        if not (keep and is_new):
            self._partial.unlink(missing_ok=True)
            return
        try:
            if self._num_frames == 0:
                raise InputError(f"{self.path}: cannot be written: no frame was given")
            _check_video(self._partial, self._num_frames)
            self._partial.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        suffix, codec = find_codec(self.path.suffix.lower(), size=size, fps=self.fps)
        if suffix != self.path.suffix.lower():
            self.path = self.path.with_suffix(suffix)
            self._partial = temporary_path(self.path, keeps_suffix=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        writer = _open_writer(self._partial, codec, size=size, fps=self.fps)
        if not writer.isOpened():
            self._partial.unlink(missing_ok=True)
            raise InputError(f"{self.path}: cannot be written as a video")
        return writer


def _check_video(path: Path, num_frames: int) -> None:
    """Raise OSError if a finished file lacks frames, because OpenCV does not report a full disk."""
    with path.open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        file.write(bytes(_PROBE_BYTES))  # fails on a full disk, as the last frames did
        file.flush()
        file.truncate(length)
        os.fsync(file.fileno())
    capture = cv2.VideoCapture(str(path))
    try:
        found = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.read()[0] else 0
    finally:
        capture.release()
    if found < num_frames - 1:  # containers that state a duration may be off by a frame
        raise OSError(errno.EIO, f"{max(int(found), 0)} of {num_frames} frames can be read back")


def find_codec(suffix: str, *, size: tuple[int, int], fps: float) -> tuple[str, str]:
    """Return suffix and codec of videos that can be read back here: of the wanted container, else an .avi.

    ``size``: (width, height), even.

    Raises:
        InputError: none works.
    """
    for candidate in (*((suffix, codec) for codec in _CODECS[suffix]), _FALLBACK):
        if _can_read_back(*candidate, size=size, fps=fps):
            return candidate
    raise InputError(f"no codec of OpenCV can write and read back a {suffix} video of (width, height) = {size}")


def _can_read_back(suffix: str, codec: str, *, size: tuple[int, int], fps: float) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe{suffix}"
        writer = _open_writer(path, codec, size=size, fps=fps)
        if not writer.isOpened():
            return False
        for _ in range(2):
            writer.write(np.zeros((size[1], size[0], 3), np.uint8))
        writer.release()
        capture = cv2.VideoCapture(str(path))
        is_read, frame = capture.read()
        capture.release()
        return bool(is_read) and frame.shape[:2] == (size[1], size[0])


def _open_writer(path: Path, codec: str, *, size: tuple[int, int], fps: float) -> cv2.VideoWriter:
    return cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
