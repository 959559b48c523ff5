"""Predicts videos and cameras: an annotated video per task, on request the masks of each frame; frame by frame."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from mask2former.errors import InputError
from mask2former.files.inputs import VIDEO_SUFFIXES, NamedFile, find_files, prepare_folder
from mask2former.files.videos import OUTPUT_SUFFIXES, VideoSource, VideoWriter
from mask2former.inference.outputs import Drawing, save_results
from mask2former.inference.predictor import Predictor

# A camera gives more frames than a model takes; the recording should run as what it shows.
_FRAMES_TO_MEASURE = 10
_STOP_KEYS = (27, ord("q"))
_WINDOW_TITLE = "mask2former: q or Esc ends"


@dataclass(frozen=True)
class VideoOptions:
    """``max_frames``: where to stop, None: at the end."""

    drawing: Drawing
    save_masks: bool = False
    max_frames: int | None = None


def find_videos(inputs: Sequence[str], *, output: str) -> list[NamedFile]:
    """Video files as ``find_files`` finds them.

    Raises:
        InputError: also where ``output`` is one file for several videos, or the video itself.
    """
    if not is_video_name(output):
        return find_files(inputs, VIDEO_SUFFIXES, kind="video", output=Path(output).expanduser())
    videos = find_files(inputs, VIDEO_SUFFIXES, kind="video")
    if len(videos) > 1:
        raise InputError(f"--output {output}: one file for {len(videos)} videos; a directory takes several")
    if Path(output).expanduser().resolve() == videos[0].path.resolve():
        raise InputError(f"--output {output}: is the video that is to be read")
    return videos


def is_video_name(output: str) -> bool:
    """Return whether an output is a video file rather than a folder."""
    return output.lower().endswith(OUTPUT_SUFFIXES)


def _record_to(output: str, name: str, *, suffix: str, fps: float, is_live: bool = False) -> _Recorder:
    """Return a recorder of the video called ``name``, by the ``suffix`` where ``output`` is a folder."""
    path = Path(output).expanduser()
    if is_video_name(output):
        prepare_folder(str(path.parent))
        return _Recorder(path.with_suffix(""), suffix=path.suffix, fps=fps, is_named=True, is_live=is_live)
    return _Recorder(prepare_folder(output) / name, suffix=suffix, fps=fps, is_live=is_live)


def predict_videos(predictor: Predictor, videos: Sequence[NamedFile], *, output: str, options: VideoOptions) -> None:
    """Annotate video files one after the other.

    One that cannot be read is reported and the others are done all the same; InputError then names it at the end.
    Ctrl-C keeps what is done of the video at hand, and ends.
    """
    failures = []
    for video in videos:
        try:
            source = VideoSource(video.path)
            recorder = _record_to(output, video.name, suffix=_suffix_like(video.path), fps=source.fps)
            num_frames = _annotate(predictor, source, recorder, name=video.name, options=options)
        except InputError as error:
            failures.append(str(error))
            continue
        except OSError as error:
            failures.append(f"{video.path}: {error.filename or output}: cannot be written: {error.strerror}")
            continue
        if options.max_frames is None and source.num_frames is not None and num_frames < 0.9 * source.num_frames:
            failures.append(f"{video.path}: damaged, only {num_frames} of {source.num_frames} frames could be read")
    if failures:
        raise InputError(f"{len(failures)} of {len(videos)} videos: " + "; ".join(failures))


def predict_camera(predictor: Predictor, index: int, *, output: str | None, options: VideoOptions) -> None:
    """Annotate what a camera shows until q, Esc or Ctrl-C; shown in a window, or recorded where ``output`` says."""
    source = VideoSource(index)
    sink = _Display() if output is None else _record_to(output, "webcam", suffix=".mp4", fps=source.fps, is_live=True)
    with contextlib.suppress(KeyboardInterrupt):
        _annotate(predictor, source, sink, name=source.name, options=options)


def _suffix_like(path: Path) -> str:
    return path.suffix.lower() if path.suffix.lower() in OUTPUT_SUFFIXES else ".mp4"


def _annotate(
    predictor: Predictor, source: VideoSource, sink: _Recorder | _Display, *, name: str, options: VideoOptions
) -> int:
    """Predict and draw every frame; returns how many there were. What is done when Ctrl-C interrupts it is kept."""
    frames: Iterable[np.ndarray] = source if options.max_frames is None else islice(source, options.max_frames)
    total = source.num_frames if options.max_frames is None else options.max_frames
    num_frames, started, is_kept = 0, time.perf_counter(), False
    try:
        results_of_frames = predictor.video(frames, score_threshold=options.drawing.threshold)
        for frame, results in tqdm(results_of_frames, desc=name, total=total, unit="frame", disable=None):
            pictures = options.drawing.draw(frame, results, predictor.metadata)
            if options.save_masks and sink.stem is not None:
                stem = sink.stem.with_name(f"{sink.stem.name}_masks") / f"{num_frames:06d}"
                save_results(stem, results, predictor.metadata, name=stem.name, threshold=options.drawing.threshold)
            num_frames += 1
            if not sink.show(pictures):
                break
        is_kept = True
    except KeyboardInterrupt:
        is_kept = True
        raise
    finally:
        written = sink.close(keep=is_kept)
        if is_kept:
            rate = num_frames / max(time.perf_counter() - started, 1e-9)
            print(f"{name}: {num_frames} frames, {rate:.1f} frames/s" + "".join(f"\n  {path}" for path in written))
    return num_frames


@dataclass
class _Recorder:
    """One annotated video per task, ``<stem>_<task><suffix>``.

    A single one whose name was given is ``<stem><suffix>``.
    """

    stem: Path
    suffix: str
    fps: float
    is_named: bool = False
    is_live: bool = False
    _writers: dict[str, VideoWriter] = field(default_factory=dict)
    _held: list[dict[str, np.ndarray]] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)

    def show(self, pictures: dict[str, np.ndarray]) -> bool:
        """Take the pictures of the next frame; always goes on."""
        self._held.append(pictures)
        if not self.is_live or len(self._held) >= _FRAMES_TO_MEASURE:
            self._write_held()
        return True

    def close(self, *, keep: bool) -> list[Path]:
        """Finish the videos; returns their paths."""
        if keep:
            self._write_held()
        failures = []
        for writer in self._writers.values():
            try:
                writer.close(keep=keep)
            except InputError as error:  # the others are closed all the same
                failures.append(str(error))
        if failures:
            raise InputError("; ".join(failures))
        return [writer.path for writer in self._writers.values()] if keep else []

    def _write_held(self) -> None:
        if self.is_live and self._held:
            self.fps = min(self.fps, max(1.0, len(self._held) / (time.perf_counter() - self._started)))
            self.is_live = False
        for pictures in self._held:
            for task, picture in pictures.items():
                if task not in self._writers:
                    self._writers[task] = VideoWriter(
                        self._path(task, alone=self.is_named and len(pictures) == 1), fps=self.fps
                    )
                self._writers[task].write(picture)
        self._held.clear()

    def _path(self, task: str, *, alone: bool) -> Path:
        return Path(f"{self.stem}{self.suffix}" if alone else f"{self.stem}_{task}{self.suffix}")


class _Display:
    """A window on the screen, a view per task side by side."""

    stem: Path | None = None

    def show(self, pictures: dict[str, np.ndarray]) -> bool:
        """Show the pictures of a frame; False once the user wants to end."""
        try:
            cv2.imshow(_WINDOW_TITLE, cv2.cvtColor(np.hstack(list(pictures.values())), cv2.COLOR_RGB2BGR))
            return cv2.waitKey(1) & 0xFF not in _STOP_KEYS
        except cv2.error as error:
            raise InputError(
                "no window can be shown (opencv-python-headless has none): --output FILE records instead"
            ) from error

    def close(self, *, keep: bool) -> list[Path]:
        """Close the window."""
        with contextlib.suppress(cv2.error):
            cv2.destroyAllWindows()
        return []
