"""Windows over a video: how frames are split, how instances are carried across, and what the model makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mask2former.errors import ConfigError
from mask2former.modeling import MaskFormer, build_model
from mask2former.modeling.layers import position_encoding
from mask2former.modeling.video_windows import (
    WindowOptions,
    WindowPrediction,
    WindowStitcher,
    join_settled,
    match_windows,
    split_windows,
)
from mask2former.structures import bitmasks_to_rles
from tests.parity import build_fixture_model, fill_model, fixture_config, load_fixture

SIZE = (24, 40)


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (0, []),
        (3, [(0, 3)]),
        (5, [(0, 5)]),
        (6, [(0, 5), (1, 6)]),
        (8, [(0, 5), (3, 8)]),
        (13, [(0, 5), (3, 8), (6, 11), (8, 13)]),
    ],
)
def test_split_windows_cover_every_frame_in_full_windows(num_frames: int, expected: list[tuple[int, int]]) -> None:
    windows = list(split_windows(range(num_frames), WindowOptions(5, 2)))
    assert [(window.start, window.start + len(window.frames)) for window in windows] == expected
    assert all(window.frames[0] == window.start for window in windows)
    assert [window.is_last for window in windows] == [False] * (len(expected) - 1) + [True] * bool(expected)


def test_split_windows_without_length_is_one_window() -> None:
    (window,) = split_windows(range(7), WindowOptions(0))
    assert (window.frames, window.is_last) == (list(range(7)), True)


def test_split_windows_reads_one_frame_ahead() -> None:
    read = []

    def frames() -> Iterator[int]:
        for frame in range(100):
            read.append(frame)
            yield frame

    windows = split_windows(frames(), WindowOptions(5, 2))
    assert len(next(windows).frames) == 5
    assert len(read) == 6


@pytest.mark.parametrize(("length", "overlap"), [(5, 0), (5, 5), (1, 1), (-1, 1)])
def test_window_options_wrong_are_named(length: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=rf"WINDOW {length} and OVERLAP {overlap}"):
        WindowOptions(length, overlap)


def square(frame: int, *, row: int, speed: int = 1) -> Tensor:
    """A mask of a square that moves to the right; nothing once it has left the picture."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[row : row + 6, frame * speed : frame * speed + 6] = True
    return mask


def window_of(masks: list[list[Tensor]], embeddings: Tensor, *, labels: list[int]) -> WindowPrediction:
    rles = [bitmasks_to_rles(torch.stack(frames)) for frames in masks]
    probs = torch.full((len(masks), 4), 0.1)
    for index, label in enumerate(labels):
        probs[index, label] = 0.7
    return WindowPrediction(probs, embeddings, rles)


def test_stitcher_keeps_instances_when_their_order_changes() -> None:
    embeddings = torch.eye(3)
    stitcher = WindowStitcher(overlap=2)
    first = window_of(
        [[square(t, row=0) for t in range(5)], [square(t, row=10) for t in range(5)]], embeddings[:2], labels=[0, 1]
    )
    second = window_of(
        [[square(t, row=10) for t in range(3, 8)], [square(t, row=0) for t in range(3, 8)]],
        embeddings[[1, 0]],
        labels=[1, 0],
    )
    settled = [stitcher.add(first, start=0, is_last=False), stitcher.add(second, start=3, is_last=True)]
    assert [(part.start, part.stop) for part in settled] == [(0, 4), (4, 8)]
    assert [[track.track_id for track in part.tracks] for part in settled] == [[1, 2], [2, 1]]
    result = join_settled(settled, image_size=SIZE)
    assert len(result["pred_masks"]) == 6  # pairs of two tracks and three classes
    best = dict(zip(result["pred_labels"][:2], result["pred_masks"], strict=False))
    for label, row in ((0, 0), (1, 10)):
        assert torch.equal(best[label].to_tensor(), torch.stack([square(t, row=row) for t in range(8)]))


def test_stitcher_new_and_ended_instances_are_empty_elsewhere() -> None:
    embeddings = torch.eye(2)
    stitcher = WindowStitcher(overlap=2)
    first = window_of([[square(t, row=0) for t in range(4)]], embeddings[:1], labels=[0])
    second = window_of([[square(t, row=10) for t in range(2, 6)]], embeddings[1:], labels=[1])
    settled = [stitcher.add(first, start=0, is_last=False), stitcher.add(second, start=2, is_last=True)]
    result = join_settled(settled, image_size=SIZE)
    by_label = dict(zip(result["pred_labels"][:2], result["pred_masks"], strict=False))
    assert [bool(mask.any()) for mask in by_label[0]] == [True] * 3 + [False] * 3
    assert [bool(mask.any()) for mask in by_label[1]] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(("similar", "expected"), [(True, {0: 0}), (False, {})])
def test_match_windows_hidden_instances_by_their_queries(similar: bool, expected: dict[int, int]) -> None:
    hidden = torch.zeros(SIZE, dtype=torch.bool)
    last = window_of([[square(0, row=0), hidden, hidden]], torch.tensor([[1.0, 0.0]]), labels=[0])
    embedding = torch.tensor([[1.0, 0.1]]) if similar else torch.tensor([[0.1, 1.0]])
    following = window_of([[hidden, hidden, square(9, row=0)]], embedding, labels=[0])
    assert match_windows(last, following, num_shared=2) == expected


def test_match_windows_far_masks_are_not_the_same_however_alike_the_queries() -> None:
    embedding = torch.ones(1, 2)
    last = window_of([[square(0, row=0)] * 2], embedding, labels=[0])
    assert match_windows(last, window_of([[square(0, row=12)] * 2], embedding, labels=[0]), num_shared=2) == {}


@pytest.fixture
def fixture_model() -> MaskFormer:
    model = build_fixture_model(load_fixture("tiny_video"))
    assert isinstance(model, MaskFormer)
    return model


@torch.no_grad()
def test_model_one_window_equals_the_whole_clip(fixture_model: MaskFormer) -> None:
    frames = list(torch.randint(256, (6, 3, 50, 70), dtype=torch.uint8))
    fixture_model.windows = WindowOptions(6, 2)
    (whole,) = fixture_model([{"image": frames, "height": 41, "width": 63}])
    windowed = join_settled(fixture_model.track(frames, height=41, width=63), image_size=(41, 63))
    assert windowed["pred_scores"] == whole["pred_scores"]
    assert windowed["pred_labels"] == whole["pred_labels"]
    for track, masks in zip(windowed["pred_masks"], whole["pred_masks"], strict=True):
        assert torch.equal(track.to_tensor(), masks)


@torch.no_grad()
def test_model_takes_windows_where_a_clip_is_longer(fixture_model: MaskFormer) -> None:
    frame = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    fixture_model.windows = WindowOptions(4, 2)
    (result,) = fixture_model([{"image": [frame] * 11, "height": 41, "width": 63}])
    assert result["image_size"] == (41, 63)
    assert {masks.shape for masks in result["pred_masks"]} == {(11, 41, 63)}
    (clip,) = fixture_model([{"image": [frame] * 4, "height": 41, "width": 63}])
    # A still is the same in every window: its instances are carried through all of them.
    assert result["pred_scores"] == pytest.approx(clip["pred_scores"])
    assert result["pred_labels"] == clip["pred_labels"]


@torch.no_grad()
def test_model_repeated_frame_gives_the_results_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the term that encodes time, a still of T frames is T times the image."""
    encode = position_encoding.sine_position_encoding
    monkeypatch.setattr(
        position_encoding,
        "sine_position_encoding",
        lambda size, *args, **kwargs: (
            encode(size[-2:], *args, **kwargs)[None].expand(size[0], -1, -1, -1)
            if len(size) == 3
            else encode(size, *args, **kwargs)
        ),
    )
    model = build_fixture_model(load_fixture("tiny_video"))
    frame = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    (image,) = model([{"image": [frame]}])
    for num_frames in (2, 5):
        (clip,) = model([{"image": [frame] * num_frames}])
        assert clip["pred_scores"] == pytest.approx(image["pred_scores"], abs=1e-5)
        assert clip["pred_labels"] == image["pred_labels"]
        for masks, expected in zip(clip["pred_masks"], image["pred_masks"], strict=True):
            assert (masks != expected).float().mean() < 1e-3


def small_video_model(*, window: int) -> MaskFormer:
    fixture = load_fixture("tiny_video")
    cfg = fixture_config(fixture)
    cfg.TEST.VIDEO.WINDOW, cfg.TEST.VIDEO.OVERLAP = window, 5
    model = build_model(cfg).eval()
    fill_model(model, fixture.seed)
    return model


def peak_memory(model: MaskFormer, num_frames: int, size: tuple[int, int]) -> int:
    """Peak memory of the process in bytes during inference over noise that is made frame by frame."""
    generator = torch.Generator().manual_seed(0)
    frames = (torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(num_frames))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is that of what follows
    except OSError:
        pytest.skip("needs a Linux kernel that can reset the peak memory of a process")
    result = join_settled(model.track(frames), image_size=size)
    assert {track.shape for track in result["pred_masks"]} == {(num_frames, *size)}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def test_long_video_memory_does_not_grow_with_its_length() -> None:
    model = small_video_model(window=20)
    peak_memory(model, 21, (72, 128))  # fills caches
    short, long = (peak_memory(model, num_frames, (72, 128)) for num_frames in (30, 150))
    assert long - short < 20e6  # as float masks, ten instances in 120 frames more would be 44 MB


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thousand_frames_fit_in_four_gigabytes() -> None:
    assert peak_memory(small_video_model(window=20), 1000, (360, 640)) <= 4e9
