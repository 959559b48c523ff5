"""Videos through the predictor and the command, with tiny models of random weights and with stubs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import Predictor
from mask2former.commands import predict_video
from mask2former.commands.cli import predict_main
from mask2former.commands.predict_video import VideoOptions, find_videos, predict_camera, predict_videos
from mask2former.data.shapes.video import draw_video
from mask2former.errors import InputError
from mask2former.files.inputs import NamedFile
from mask2former.files.videos import VideoSource, VideoWriter
from mask2former.inference.outputs import Drawing
from mask2former.structures import Boxes, Instances, Metadata, masks_to_boxes_xyxy
from mask2former.visualization import draw_instances
from tests.parity import build_fixture_model, fixture_config, load_fixture, register_metadata

HALF = Drawing(0.5)
QUICKSTART = "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
TINY = [
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32, "MODEL.MASK_FORMER.DEC_LAYERS", 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 8, "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu",
]  # fmt: skip


def write_video(path: Path, frames: Any, *, fps: float = 8) -> Path:
    writer = VideoWriter(path, fps=fps)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", draw_video(0, (48, 64), num_frames=9).frames)


@pytest.fixture
def video_predictor(tmp_path: Path) -> Predictor:
    fixture = load_fixture("tiny_video")
    cfg = fixture_config(fixture)
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.VIDEO.WINDOW, cfg.TEST.VIDEO.OVERLAP = 48, 4, 2
    torch.save({"model": build_fixture_model(fixture).state_dict()}, tmp_path / "weights.pth")
    return Predictor(cfg, tmp_path / "weights.pth")


def test_predictor_video_by_windows_gives_every_frame_in_order(video_predictor: Predictor) -> None:
    frames = list(draw_video(0, (48, 64), num_frames=9).frames)
    read = 0

    def count() -> Iterator[np.ndarray]:
        nonlocal read
        for frame in frames:
            read += 1
            yield frame

    found = video_predictor.video(count())
    first_frame, first = next(found)
    assert read == 5  # the window, and one ahead
    results = [(first_frame, first), *found]
    assert all(np.array_equal(frame, expected) for (frame, _), expected in zip(results, frames, strict=True))
    for _, result in results:
        instances = result["instances"]
        assert instances.pred_masks.shape[1:] == (48, 64)
        assert instances.pred_masks.flatten(1).any(1).all()
        assert len(set(instances.track_ids.tolist())) == len(instances)
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)


def test_predictor_video_agrees_with_the_clip(video_predictor: Predictor) -> None:
    frames = list(draw_video(1, (48, 64), num_frames=9).frames)
    whole = video_predictor.predict_clip(iter(frames))
    assert {masks.shape for masks in whole["pred_masks"]} == {(9, 48, 64)}
    for index, (_, result) in enumerate(video_predictor.video(frames)):
        of_clip = {masks[index].numpy().tobytes() for masks in whole["pred_masks"]}
        assert {mask.numpy().tobytes() for mask in result["instances"].pred_masks} <= of_clip


def test_predictor_video_score_threshold_and_wrong_frames(video_predictor: Predictor) -> None:
    frames = list(draw_video(1, (48, 64), num_frames=3).frames)
    assert all(len(result["instances"]) == 0 for _, result in video_predictor.video(frames, score_threshold=1.0))
    with pytest.raises(InputError, match="frames of one size"):
        list(video_predictor.video([frames[0], frames[0][:10]]))
    with pytest.raises(InputError, match="found none"):
        list(video_predictor.video([]))


def run_demo(*arguments: str | Path) -> int:
    options = ["--config-file", QUICKSTART, "--random-weights", *map(str, arguments)]
    return predict_main([*options, "--opts", *map(str, TINY)])


def test_demo_video_panoptic_with_masks(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_metadata()
    out = tmp_path / "out"
    arguments = ("--video-input", clip, "--output", out, "--task", "panoptic", "--confidence-threshold", "0.0")
    assert run_demo(*arguments, "--save-masks") == 0
    assert sorted(path.name for path in out.iterdir()) == ["clip_masks", "clip_panoptic.mp4"]
    written = VideoSource(out / "clip_panoptic.mp4")
    assert (written.fps, len(list(written))) == (8, 9)
    assert "clip: 9 frames, " in capsys.readouterr().out
    stems = sorted(path.name for path in (out / "clip_masks").glob("*_panoptic.json"))
    assert stems == [f"{index:06d}_panoptic.json" for index in range(9)]
    for path in sorted((out / "clip_masks").glob("*_panoptic.json")):
        described = json.loads(path.read_text())
        pixels = np.asarray(Image.open(path.with_name(described["file_name"]))).astype(int)
        ids = pixels[..., 0] + 256 * pixels[..., 1]
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in described["segments_info"]}


def test_demo_video_to_a_named_file_stops_where_asked(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "annotated.avi"
    code = run_demo("--video-input", clip, "--output", target, "--task", "semantic", "--max-frames", "2")
    assert code == 0
    assert [path.name for path in target.parent.iterdir()] == ["annotated.avi"]
    assert len(list(VideoSource(target))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video-input", "CLIP"], "--output is needed"),
        (["--video-input", "CLIP", "--output", "OUT", "--max-frames", "0"], "--max-frames"),
        (["--video-input", "CLIP", "--output", "CLIP"], "is the video that is to be read"),
        (["--video-input", "CLIP", "FOLDER/*", "--output", "OUT.mp4"], "one file for 2 videos"),
        (["--video-input", "FOLDER/torn.mp4", "--output", "OUT"], "torn.mp4: not a video"),
        (["--webcam", "97", "--output", "OUT"], "camera 97: cannot be opened"),
    ],
)
def test_demo_video_wrong_use_is_named(
    arguments: list[str], message: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.mp4").write_bytes(b"torn")
    places = {"CLIP": str(clip), "FOLDER": str(tmp_path), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert run_demo(*arguments, "--task", "semantic") == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


class LeftHalfPredictor:
    """Finds one instance, whose number it is given, in the left half of each frame."""

    metadata = Metadata("halves", thing_classes=["thing"])

    def video(self, frames: Any, *, score_threshold: float) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        for frame in frames:
            mask = torch.zeros(1, *frame.shape[:2], dtype=torch.bool)
            mask[:, :, : frame.shape[1] // 2] = True
            instances = Instances(
                mask.shape[1:],
                scores=torch.tensor([0.9]),
                pred_classes=torch.tensor([0]),
                pred_masks=mask,
                pred_boxes=Boxes(masks_to_boxes_xyxy(mask)),
                track_ids=torch.tensor([4]),
            )
            yield frame, {"instances": instances}


def test_videos_of_a_folder_are_mirrored_and_a_broken_one_is_named(clip: Path, tmp_path: Path) -> None:
    below = tmp_path / "in" / "may"
    below.mkdir(parents=True)
    (below / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "in" / "torn.mp4").write_bytes(b"torn")
    out = tmp_path / "out"
    videos = find_videos([str(tmp_path / "in")], output=str(out))
    assert [video.name for video in videos] == ["may/a", "torn"]
    with pytest.raises(InputError, match=r"1 of 2 videos: .*torn\.mp4: not a video"):
        predict_videos(LeftHalfPredictor(), videos, output=str(out), options=VideoOptions(HALF, save_masks=True))
    assert len(list(VideoSource(out / "may" / "a_instance.mp4"))) == 9
    (record,) = json.loads((out / "may" / "a_masks" / "000008_instances.json").read_text())
    assert record["track_id"] == 4


def test_video_that_ends_early_is_named(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = VideoSource.__iter__
    monkeypatch.setattr(VideoSource, "__iter__", lambda self: iter(list(full(self))[:5]))
    with pytest.raises(InputError, match=r"clip\.mp4: damaged, only 5 of 9 frames"):
        predict_videos(LeftHalfPredictor(), [NamedFile(clip, "clip")], output=str(tmp_path), options=VideoOptions(HALF))
    monkeypatch.undo()
    assert len(list(VideoSource(tmp_path / "clip_instance.mp4"))) == 5


def test_video_that_is_interrupted_keeps_what_is_done_and_ends_all(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: VideoSource) -> Iterator[np.ndarray]:
        yield from [np.zeros((48, 64, 3), np.uint8)] * 3
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoSource, "__iter__", interrupted)
    videos = [NamedFile(clip, "first"), NamedFile(clip, "second")]
    with pytest.raises(KeyboardInterrupt):
        predict_videos(LeftHalfPredictor(), videos, output=str(tmp_path), options=VideoOptions(HALF))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["first_instance.mp4"]
    assert len(list(VideoSource(tmp_path / "first_instance.mp4"))) == 3


class FakeCamera:
    """Gives the same frame until the user has enough."""

    name, fps, num_frames = "camera 0", 30.0, None

    def __init__(self, index: int) -> None:
        self.num_read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for _ in range(15):
            yield np.zeros((48, 64, 3), np.uint8)
        raise KeyboardInterrupt


def test_camera_is_recorded_until_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_video, "VideoSource", FakeCamera)
    predict_camera(LeftHalfPredictor(), 0, output=str(tmp_path), options=VideoOptions(HALF))
    recorded = VideoSource(tmp_path / "webcam_instance.mp4")
    assert len(list(recorded)) == 15
    assert 1 <= recorded.fps <= 30


def test_camera_without_a_screen_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_window(*_: Any) -> None:
        raise predict_video.cv2.error("no GUI")

    monkeypatch.setattr(predict_video, "VideoSource", FakeCamera)
    monkeypatch.setattr(predict_video.cv2, "imshow", no_window)
    with pytest.raises(InputError, match="--output FILE records instead"):
        predict_camera(LeftHalfPredictor(), 0, output=None, options=VideoOptions(HALF))


def test_camera_window_ends_with_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keys = iter([-1, -1, ord("q")])
    monkeypatch.setattr(predict_video, "VideoSource", FakeCamera)
    monkeypatch.setattr(predict_video.cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(predict_video.cv2, "waitKey", lambda _: next(keys))
    predict_camera(LeftHalfPredictor(), 0, output=None, options=VideoOptions(HALF))
    assert "camera 0: 3 frames" in capsys.readouterr().out


def test_draw_instances_colour_stays_with_the_track() -> None:
    image = np.full((600, 900, 3), 128, np.uint8)
    masks = torch.zeros(2, 600, 900, dtype=torch.bool)
    masks[0, 100:500, 50:400] = True
    masks[1, 100:500, 500:850] = True

    def picture(scores: list[float], classes: list[int], tracks: list[int]) -> np.ndarray:
        fields = {"pred_masks": masks, "scores": torch.tensor(scores), "pred_classes": torch.tensor(classes)}
        return draw_instances(image, Instances((600, 900), track_ids=torch.tensor(tracks), **fields))

    first, second = picture([0.9, 0.8], [0, 0], [3, 7]), picture([0.7, 0.8], [1, 0], [3, 7])
    for x in (200, 700):
        assert np.array_equal(first[450, x], second[450, x])
    assert not np.array_equal(first[450, 200], first[450, 700])
