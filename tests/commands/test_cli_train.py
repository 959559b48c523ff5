"""The command line: exit codes, subcommands, and whole runs on a tiny data set."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.commands import cli
from mask2former.commands.cli import main, run_cli, train_main
from mask2former.errors import ConfigError, NonFiniteError

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
TINY = """
    MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8
    MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 6 DATALOADER.NUM_WORKERS 0
    INPUT.IMAGE_SIZE 32 INPUT.MIN_SIZE_TEST 64 SOLVER.AMP.ENABLED False SOLVER.CHECKPOINT_PERIOD 2 SOLVER.LOG_PERIOD 2
    SOLVER.WARMUP_ITERS 0 MODEL.MASK_FORMER.DROPOUT 0.1 TEST.BEST_METRIC panoptic_seg/PQ
""".split()


@pytest.fixture(scope="module")
def data_root(draw_shapes: Callable[..., Path]) -> Path:
    return draw_shapes(num_train=6)


@pytest.fixture
def arguments(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line of a run in a folder, with further options."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))

    def build(output: Path, *options: Any, flags: tuple[str, ...] = ()) -> list[str]:
        overrides = [*TINY, "OUTPUT_DIR", str(output), *(str(option) for option in options)]
        return ["--config-file", str(CONFIG), *flags, *overrides]

    return build


def run_script(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools/train_net.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.json").read_text().splitlines()]


def assert_same_weights(actual: Path, expected: Path) -> None:
    states = [load_state(directory / "model_final.pth") for directory in (actual, expected)]
    for name, tensor in states[1]["model"].items():
        assert torch.equal(states[0]["model"][name], tensor), name
    losses = [
        [{k: v for k, v in line.items() if "loss" in k or k == "iteration"} for line in read_metrics(directory)]
        for directory in (actual, expected)
    ]
    assert losses[0] == losses[1]


def test_train_writes_model_metrics_and_results_then_resumes_to_equal_bits(
    tmp_path: Path, arguments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    assert train_main(arguments(unbroken)) == 0
    printed = capsys.readouterr().out
    for part in ("8 queries, 13 classes", "backbone: ", "ms_deform_attn: ", "6 images, 13 classes", "panoptic_seg: PQ"):
        assert part in printed
    last = read_metrics(unbroken)[-1]
    assert last["iteration"] == 5
    assert {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"} <= set(last)
    assert load_state(unbroken / "model_best.pth")["iteration"] == 5
    # What a run killed in its sixth step leaves; and the data come from worker processes this time.
    assert train_main(arguments(resumed)) == 0
    (resumed / "model_final.pth").unlink()
    (resumed / "last_checkpoint").write_text("model_0000003.pth")
    assert train_main(arguments(resumed, "DATALOADER.NUM_WORKERS", 1, flags=("--resume",))) == 0
    assert_same_weights(resumed, unbroken)


def test_augmented_evaluation_adds_results_at_the_end_and_alone(
    tmp_path: Path, arguments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    aug = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "[32, 45]", "TEST.EXPECTED_RESULTS")
    expected = "[['sem_seg_TTA', 'mIoU', 50.0, 50.0]]"  # which evaluations between steps cannot meet
    options = ("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1)
    assert train_main(arguments(tmp_path, *options, *aug, expected)) == 0
    between, last = (line for line in read_metrics(tmp_path) if "sem_seg/mIoU" in line)
    assert {"panoptic_seg_TTA/PQ", "segm_TTA/AP", "sem_seg_TTA/mIoU"} <= last.keys() - between.keys()
    assert (tmp_path / "inference_TTA" / "shapes_panoptic_val").is_dir()
    capsys.readouterr()
    options = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", *aug)
    assert train_main(arguments(tmp_path, *options, expected, flags=("--eval-only",))) == 0
    printed = capsys.readouterr().out
    assert "4 copies of each image: shortest edges 32, 45, each mirrored too" in printed
    assert f"sem_seg_TTA: mIoU {last['sem_seg_TTA/mIoU']:.3f}" in printed
    wrong = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "[]")
    assert train_main(arguments(tmp_path / "wrong", *wrong)) == 1
    assert "error: TEST.AUG.MIN_SIZES: expected at least one size" in capsys.readouterr().err
    assert not (tmp_path / "wrong" / "metrics.json").exists()


def test_eval_only_repeats_the_results_of_training(
    tmp_path: Path, arguments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_main(arguments(tmp_path, "SOLVER.MAX_ITER", 1)) == 0
    results = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("panoptic_seg:", "sem_seg:"))]
    metrics = (tmp_path / "metrics.json").read_bytes()
    for flags, options in (
        (("--eval-only",), ("MODEL.WEIGHTS", tmp_path / "model_final.pth")),
        (("--eval-only", "--resume"), ()),
    ):
        assert train_main(arguments(tmp_path, *options, flags=flags)) == 0
        printed = capsys.readouterr().out
        assert "model_final.pth: " in printed
        assert [line for line in printed.splitlines() if line.startswith(("panoptic_seg:", "sem_seg:"))] == results
    assert (tmp_path / "metrics.json").read_bytes() == metrics


def test_unexpected_results_exit_with_one(tmp_path: Path, arguments: Any) -> None:
    # In a process of its own: nothing has registered data sets there before evaluation asks for them.
    options = arguments(
        tmp_path, "TEST.EXPECTED_RESULTS", "[['panoptic_seg', 'PQ', 99.0, 0.5]]", flags=("--eval-only",)
    )
    done = run_script(*options)
    assert done.returncode == 1, done.stderr
    assert "panoptic_seg/PQ: expected 99.0" in done.stderr
    assert "panoptic_seg: PQ" in done.stdout


@pytest.mark.slow
def test_killed_training_resumes_to_equal_bits(tmp_path: Path, arguments: Any, data_root: Path) -> None:
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    options = ("SOLVER.MAX_ITER", 40, "DATALOADER.NUM_WORKERS", 1)
    command = [sys.executable, str(REPOSITORY / "tools/train_net.py"), *arguments(killed, *options)]
    process = subprocess.Popen(command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "model_0000009.pth").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model_final.pth").exists()
    assert train_main(arguments(killed, *options, flags=("--resume",))) == 0
    assert train_main(arguments(unbroken, *options)) == 0
    assert_same_weights(killed, unbroken)


def test_train_net_script_reports_wrong_key_in_one_line(tmp_path: Path, arguments: Any) -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "tools/train_net.py"),
        *arguments(tmp_path / "out", "SOLVER.BASE_RL", 1),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "SOLVER.BASE_RL" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SEED"], "'SEED' has no value"),
        (["SOLVER.NO_SUCH_KEY", "1"], "SOLVER.NO_SUCH_KEY"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN"),
        (["MODEL.WEIGHTS", "zoo://coco/panoptic/r51"], "no such model in the zoo"),
        (["SOLVER.LR_SCHEDULER_NAME", "Step"], "SOLVER.LR_SCHEDULER_NAME"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"], "CLIP_TYPE"),
    ],
)
def test_wrong_options_exit_with_one(
    tmp_path: Path, arguments: Any, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert train_main(arguments(tmp_path, *options)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-gpus", "0"), "--num-gpus"),
        (("--num-machines", "2"), "--dist-url"),
        (("--num-gpus", "2", "--machine-rank", "1"), "--machine-rank"),
    ],
)
def test_impossible_processes_exit_with_one(
    tmp_path: Path, arguments: Any, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert train_main(arguments(tmp_path, flags=flags)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--no-such-option"], ["--config-file"]])
def test_wrong_usage_exits_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (train_main, lambda arguments: main(["train", *arguments])):
        with pytest.raises(SystemExit) as stopped:
            command(argv)
        assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_command_without_or_with_unknown_subcommand_exits_with_two() -> None:
    for argv in ([], ["fly"]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2


@pytest.mark.parametrize("command", ["train", "predict", "prepare-shapes"])
def test_subcommands_explain_themselves(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--verbose" in capsys.readouterr().out


def test_prepare_shapes_command_draws_the_data_set(tmp_path: Path) -> None:
    options = ["--num-train", "2", "--num-val", "1", "--no-videos", "--size", "32", "--num-workers", "1"]
    assert main(["prepare-shapes", "--output", str(tmp_path / "shapes"), *options]) == 0
    assert (tmp_path / "shapes/annotations/panoptic_train.json").exists()


def _fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ConfigError("wrong key"), 1, "error: wrong key\n"),
        (NonFiniteError("loss is nan"), 1, "error: loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_cli_maps_errors_to_exit_codes(
    error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(lambda: _fail(error)) == code
    assert capsys.readouterr().err == printed


def test_run_cli_returns_codes_and_passes_bugs_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(lambda: None) == 0
    assert run_cli(lambda: 3) == 3
    with pytest.raises(TypeError, match="a bug"):
        run_cli(lambda: _fail(TypeError("a bug")))
    assert run_cli(lambda: _fail(ConfigError("wrong key")), verbose=True) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("door", "command"),
    [
        ("tools/train_net.py", "train_main(['--config-file', 'c'])"),
        ("demo/demo.py", "predict_main(['--config-file', 'c', '--input', 'i', '--output', 'o'])"),
    ],
)
def test_door_sets_how_idle_threads_wait_before_torch_is_imported(door: str, command: str) -> None:
    # OpenMP reads its environment when it is loaded.
    code = f"""
import os, runpy, sys
runpy.run_path({door!r}, run_name="door")
assert "torch" not in sys.modules
from mask2former.commands import cli
cli.run_cli = lambda function, **_: print(os.environ["GOMP_SPINCOUNT"])
cli.{command}
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP", "OMP_WAIT"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "1000", done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc manages memory")
@pytest.mark.parametrize(("environment", "is_kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_commands_keep_freed_memory_unless_told_otherwise(environment: dict[str, str], is_kept: bool) -> None:
    # A piece of 64 MiB that is freed stays mapped, so that the next one has its address and costs no fault.
    code = """
import ctypes, resource
from mask2former.commands import cli
cli.tune_process()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    piece = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(piece, 1, 64 << 20)
    libc.free(piece)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults < 1000)
"""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC", "GLIBC", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(is_kept), done.stderr


@pytest.mark.parametrize(
    ("largest_piece", "expected"),
    [
        (1 << 40, [(-3, 1 << 28), (-1, 1 << 30)]),
        (1 << 25, [(-3, 1 << 28), (-3, 1 << 25), (-1, 1 << 30)]),  # as before glibc 2.35
        (0, [(-3, 1 << 28), (-3, 1 << 25)]),
    ],
)
def test_what_is_kept_follows_the_pieces_that_glibc_takes(largest_piece: int, expected: list[tuple[int, int]]) -> None:
    calls: list[tuple[int, int]] = []

    def mallopt(option: int, value: int) -> int:
        calls.append((option, value))
        return int(option == -1 or value <= largest_piece)

    cli._set_thresholds(mallopt)
    assert calls == expected
