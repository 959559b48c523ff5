"""What all commands have in common: help, the words of their options, typos, and where KEY VALUE pairs may stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mask2former
from mask2former.commands.arguments import CommandParser, parse_arguments, split_pairs
from mask2former.commands.cli import main, run_cli
from mask2former.commands.table import COMMANDS, Command, register_command, subcommands_of
from mask2former.config import get_cfg, locate_config
from mask2former.errors import ConfigError

OURS = [command for command in COMMANDS if not command.extra]
HELPS = [(command.name,) for command in OURS]
HELPS += [(command.name, name) for command in OURS for name in subcommands_of(command)]


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], *, option: str = "--help-all") -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, option])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(words, capsys)
    assert shown.startswith(f"usage: mask2former {' '.join(words)} ")
    assert "show tracebacks and more of the log" in shown
    assert "--import MODULE" in shown


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_fits_a_screen_and_names_every_option(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    short, long = help_of(words, capsys, option="--help"), help_of(words, capsys)
    assert len(short.splitlines()) <= 40
    assert short.splitlines()[0] == long.splitlines()[0]
    assert set(re.findall(r"(?m)^  (?:-\w.*?, )?(--[\w-]+)", long)) <= set(re.findall(r"--[\w-]+", short))


def test_commands_of_a_model_share_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"--config-file FILE", "--import MODULE", "--opts [KEY VALUE ...]", "--weights WEIGHTS", "--device DEVICE"}
    of_model = {"train", "evaluate", "predict", "analyze", "benchmark", "visualize"}
    for command in OURS:
        shown = " ".join(help_of((command.name,), capsys).split())
        if command.name in of_model:
            assert {option for option in shared if option not in shown} == set(), command.name
            assert "checkpoint, run folder, zoo://NAME, or folder of transformers" in shown
        if "--config-file" in shown:
            assert "Python module to import first" in shown


def test_list_of_commands_is_instant_and_fits_a_screen() -> None:
    code = "import sys; from mask2former.commands.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 24
    assert all(command.name in done.stdout and command.summary in done.stdout for command in COMMANDS)


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mask2former {mask2former.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "mask2former", "--version"], capture_output=True, text=True, check=True
    )
    assert mask2former.__version__ in done.stdout


def test_names_of_commands_are_told_apart() -> None:
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    assert len(set(names)) == len(names)
    assert all(isinstance(command, Command) and command.summary[-1] != "." for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--reume"], "no such option: --reume; did you mean --resume?"),
        (["predict", "--confidence-treshold=0.3"], "did you mean --confidence-threshold?"),
        (["benchmark", "--tsak", "eval"], "did you mean --task?"),
        (["prepare", "shapes", "--sise", "32"], "did you mean --size?"),
        (["analize"], "no such command: analize; did you mean analyze?"),
        (["prepare"], "a data set is needed: shapes, coco-semantic"),
        (["prepare", "cityscape"], "unexpected argument: cityscape"),
        (["convert", "a.pth"], "expected OUTPUT once"),
        (["convert", "a.pth", "b.pth", "--output", "c.pth"], "expected OUTPUT once"),
        (["predict", "--random-weights", "a.jpg"], "--config-file or --weights is needed"),
        (["predict", "a.jpg", "b.mp4"], "images and videos"),
        (["predict", "a.jpg", "--webcam"], "expected one of FILE or --input"),
        (["train"], "--config-file or --weights is needed"),
    ],
)
def test_wrong_usage_exits_with_two_and_says_what_is_meant(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def parse(*arguments: str) -> tuple[list[str], list[str]]:
    parser = CommandParser()
    parser.add_argument("files", nargs="*")
    parser.add_argument("--output")
    parser.add_argument("--task", nargs="+")
    parser.add_config_options()
    args = parse_arguments(parser, arguments)
    return args.opts, [*args.files, *(args.task or [])]


@pytest.mark.parametrize(
    ("arguments", "pairs", "others"),
    [
        (["a.jpg", "MODEL.DEVICE", "cpu", "b.jpg"], ["MODEL.DEVICE", "cpu"], ["a.jpg", "b.jpg"]),
        (["--opts", "SEED", "1", "SOLVER.BASE_LR", "-1.0"], ["SEED", "1", "SOLVER.BASE_LR", "-1.0"], []),
        (["--task", "panoptic", "SEED", "3", "--output", "x"], ["SEED", "3"], ["panoptic"]),
        (
            ["SEED", "1", "--task", "semantic", "INPUT.FORMAT", "RGB"],
            ["SEED", "1", "INPUT.FORMAT", "RGB"],
            ["semantic"],
        ),
        (["PHOTO.JPG", "INPUT", "SEED", "1"], ["SEED", "1"], ["PHOTO.JPG", "INPUT"]),
        (["MYOWN.KEY", "2", "a.png"], ["MYOWN.KEY", "2"], ["a.png"]),
        (["SEED", "--task", "panoptic"], ["SEED"], ["panoptic"]),
    ],
)
def test_pairs_may_stand_anywhere(arguments: list[str], pairs: list[str], others: list[str]) -> None:
    assert parse(*arguments) == (pairs, others)


def test_value_of_an_option_is_no_key() -> None:
    parser = CommandParser()
    parser.add_config_options()
    assert split_pairs(["--import", "SEED", "SEED", "1"], parser) == (["SEED", "1"], ["--import", "SEED"])


def test_published_configs_are_found_by_name_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
    monkeypatch.chdir(tmp_path)
    for given in (name, f"configs/{name}"):
        cfg = get_cfg()
        cfg.merge_from_file(given)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("SEED: 7")
    assert locate_config(name) == name
    with pytest.raises(ValueError, match=r"did you mean coco/.*/maskformer2_R50_bs16_50ep\.yaml"):
        get_cfg().merge_from_file("maskformer2_R50_bs16_50eq.yaml")


def test_name_of_a_command_is_given_once() -> None:
    with pytest.raises(ConfigError, match=r"command 'train' is that of mask2former\.commands\.train"):
        register_command("train", module="extras.train", summary="train otherwise")


def test_module_of_an_unknown_command_is_imported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tidy", "--import", "no_such_extras"]) == 1
    assert "--import no_such_extras: No module named" in capsys.readouterr().err
    (tmp_path / "tidy_extras.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["tidy", "--import=tidy_extras"])
    assert "no such command: tidy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("alloc_cpu.cpp: can't allocate memory: you tried to allocate 8 bytes. Error 12"), "8 bytes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "Tried to allocate 2.50 GiB"),
        (Exception("OpenCV: (-4:Insufficient memory) Failed to allocate 99 bytes in f"), "Failed to allocate 99 bytes"),
        (MemoryError("Unable to allocate 192. GiB\nfor an array"), "Unable to allocate 192. GiB"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_missing_memory_is_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise error

    assert run_cli(run) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: not enough memory")
    assert message in printed
    assert printed.count("\n") == 1


def test_unexpected_errors_keep_their_traceback() -> None:
    def run() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_cli(run)
