"""Disks that take no more, names that do not fit, Ctrl-C: one line, nothing half-written, the rest is done."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former.commands import cli
from mask2former.data.processes import _end_worker
from mask2former.engine.logging import setup_logging
from mask2former.engine.metrics import JsonWriter, TensorBoardWriter
from mask2former.errors import InputError
from tests.engine.stub_training import run_stub, stub_config


class FullFile(io.FileIO):
    """A file on a disk that took all it can."""

    def write(self, content: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "FileIO", FullFile)


def test_metrics_on_a_full_disk_are_one_error_with_the_path(tmp_path: Path, full_files: None) -> None:
    writer = JsonWriter(tmp_path / "metrics.json")
    with pytest.raises(InputError, match=r"metrics\.json: cannot be written: No space left"):
        writer.write(1, {"a": 1.0})
    writer.close()


def test_metrics_line_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JsonWriter(tmp_path / "metrics.json")
    writer.write(1, {"a": 1.0})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match="No space left"):
        writer.write(1, {"b": 1.0})
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 1, "a": 1.0}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_log_on_a_full_disk_is_one_line_and_the_run_goes_on(
    tmp_path: Path, full_files: None, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path)
    for number in range(3):
        logging.getLogger("mask2former.x").info("line %d", number)
    captured = capsys.readouterr()
    assert captured.err == f"warning: {tmp_path / 'log.txt'}: cannot be written: No space left on device\n"
    assert "line 2" in captured.out


def test_tensorboard_on_a_full_disk_is_one_line_and_no_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = threading.excepthook
    writer = TensorBoardWriter(tmp_path)
    real = builtins.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if "tfevents" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("io.open", refuse)
    for iteration in range(3):
        writer.write(iteration, {"a": 1.0})
    writer.close()
    second = TensorBoardWriter(tmp_path / "other")
    second.write(0, {"a": 1.0})
    second.close()
    assert "Traceback" not in capsys.readouterr().err
    assert caplog.text.count("TensorBoard's files cannot be written: No space left") >= 1
    assert threading.excepthook is before


def test_checkpoint_on_a_full_disk_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.save", fail)
    assert cli.run_cli(lambda: run_stub(stub_config(tmp_path))) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'model_0000003.pth'}: cannot be written: No space left on device\n"
    )
    assert not list(tmp_path.glob(".*"))


def test_visualize_draws_the_pictures_that_can_be_written(
    draw_shapes: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(draw_shapes()))
    (tmp_path / "out").mkdir()
    written: list[Path] = []

    def write(picture: Any, path: Path) -> None:
        if not written:
            written.append(path)
            raise InputError(f"{path}: cannot be written: File name too long")
        written.append(path)

    monkeypatch.setattr("mask2former.commands.visualize.write_picture", write)
    arguments = ["visualize", "--source", "annotation", "-n", "3", "--output", str(tmp_path / "out"), "--config-file"]
    config = Path(__file__).parents[2] / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
    assert cli.main([*arguments, str(config)]) == 1
    captured = capsys.readouterr()
    assert len(written) == 3
    assert "2 pictures" in captured.out
    assert captured.err.splitlines()[-1].startswith("error: 1 of 3 pictures could not be written: ")


def test_interrupt_while_a_command_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupt)
    assert cli.main(["train"]) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_worker_that_is_interrupted_ends_and_tidies_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr("mask2former.data.processes._SECONDS_TO_TIDY", 0.01)
    with pytest.raises(SystemExit):
        _end_worker(signal.SIGINT, None)
    assert ended.wait(5)
