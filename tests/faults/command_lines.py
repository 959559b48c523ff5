"""Commands run with something wrong in them: `python -m tests.faults.command_lines [--time SECONDS] [--seed N]`.

Each command runs in a fork of this process, in a folder of its own, with limits on time, memory and where it may
write. What is wrong with it is drawn from a seed: an option, a key of the config, a file of the data, a config file, a
checkpoint or a record of a run. A fault is a traceback, a crash, a hang, a file in the wrong place, or no message.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from mask2former.commands import cli
from tests.faults.command_trials import Trial, Workplace, draw_trial

MAX_SECONDS = 20.0  # of CPU
_MAX_WAIT = 120.0  # seconds on a busy machine
_MAX_BYTES = 3 << 30
_MAX_FORKS = 12  # of one command: workers of a loader
_MAX_MESSAGE = 20_000  # letters of the last line
_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r'File "[^"\n]*/(mask2former/[^"\n]+)", line (\d+)')
_LEFT = re.compile(r"\.(part|tmp)$|^\.")  # names of what is half written
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Verdict(NamedTuple):
    """How a command ended: its exit code or negative signal, what it printed, and what is wrong with that, if any."""

    code: int
    output: str
    fault: str


def try_command(trial: Trial, place: Path) -> Verdict:
    """Runs a command in a fork; ``place`` is the one folder that it may write to, ``place / "out"`` its output."""
    for name in ("out", "cwd/deep/down", "home", "tmp"):
        (place / name).mkdir(exist_ok=True, parents=True)
    before = _files_of(place / "in")
    output, strays = place.with_name(f"{place.name}.txt"), place.with_name(f"{place.name}.strays")
    for path in (output, strays):
        path.write_bytes(b"")
    pid = os.fork()
    if not pid:
        _run_child(trial, place, output=output, strays=strays)
    code, is_over = _wait(pid)
    text = output.read_text(errors="replace")
    fault = "no end" if is_over else _fault_of(code, text)
    stray = strays.read_text(errors="replace").strip()
    if not fault and stray:
        fault = f"writes elsewhere: {stray.splitlines()[0]}"
    if not fault and _files_of(place / "in") != before:
        fault = "its input was changed"
    if not fault and (left := list(_leftovers(place, trial))):
        fault = f"left behind: {left[0]}"
    return Verdict(code, text, fault)


def _fault_of(code: int, text: str) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if _TRACEBACK in text:
        return _kind_of(text)
    lines = text.strip().splitlines()
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code and not any("error: " in line for line in lines):
        return f"exit code {code} without a message"
    if code and max(map(len, lines)) > _MAX_MESSAGE:
        return f"a message of {max(map(len, lines))} letters"
    return ""


def _kind_of(text: str) -> str:
    """The last traceback's error and the last place in the package."""
    last = text[text.rindex(_TRACEBACK) :]
    frames = _FRAME.findall(last)
    where = ":".join(frames[-1]) if frames else "?"
    errors = [line for line in last.splitlines()[1:] if line and not line.startswith(" ")]
    return f"{errors[0].partition(':')[0] if errors else '?'} in {where}"


def _run_child(trial: Trial, place: Path, *, output: Path, strays: Path) -> None:
    code = 70
    try:
        handle = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace") for number in (1, 2))
        os.chdir(place / "cwd" / "deep" / "down")
        os.environ.update(
            HOME=str(place / "home"), TMPDIR=str(place / "tmp"), XDG_CACHE_HOME=str(place / "home" / ".cache")
        )
        if trial.data_root is not None:
            os.environ["DETECTRON2_DATASETS"] = str(trial.data_root)
        tempfile.tempdir = None
        tqdm.set_lock(threading.RLock())  # the one that is inherited is held for ever, if it is held at the fork
        signal.alarm(int(_MAX_WAIT) + 5)
        _limit()
        _watch(place, os.open(strays, os.O_WRONLY | os.O_APPEND))
        code = cli.main(trial.arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MAX_BYTES, used + _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(MAX_SECONDS), int(MAX_SECONDS) + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(place: Path, strays: int) -> None:
    """Notes what is opened for writing, made, renamed or removed outside ``place``; nothing leaves the machine."""
    root, forks = os.path.realpath(place), 0

    def is_outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.path.realpath(os.fsdecode(path).split("\0")[0])
        return not f"{name}/".startswith((f"{root}/", "/dev/", "/proc/"))

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal forks
        if event == "open" and (not isinstance(values[2], int) or not values[2] & _WRITING):
            return
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            raise OSError("no network here")
        if event in ("os.fork", "subprocess.Popen"):
            forks += 1
            if forks > _MAX_FORKS:
                os.write(strays, b"processes without end\n")
                os._exit(71)
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"):
            for path in values[: 2 if event in ("os.rename", "os.symlink", "os.link") else 1]:
                if is_outside(path):
                    os.write(strays, f"{event} {os.fsdecode(path)!r}\n".encode("utf-8", "replace"))

    sys.addaudithook(hook)


def _wait(pid: int) -> tuple[int, bool]:
    """(exit code or negative signal, whether it had to be ended)."""
    deadline, pause = time.monotonic() + _MAX_WAIT, 0.002
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return code, -code in (signal.SIGXCPU, signal.SIGALRM) or usage.ru_utime + usage.ru_stime > MAX_SECONDS
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _files_of(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_size if path.is_file() else 0, status.st_mode)
    return found


def _leftovers(place: Path, trial: Trial) -> Iterator[str]:
    """Temporary files, and whatever lies in the working folder where no option can have named it."""
    for folder in ("tmp",) if trial.may_name_outputs else ("tmp", "cwd"):
        yield from (
            str(path.relative_to(place)) for path in (place / folder).rglob("*") if path.name not in ("deep", "down")
        )
    for path in (place / "out").rglob("*"):
        if _LEFT.search(path.name):
            yield str(path.relative_to(place))


def try_many(workplace: Workplace, seed: int, *, seconds: float, count: int, only: str = "") -> Counter[str]:
    """Draws and tries commands, and prints the first of each kind of fault; how often each kind came."""
    faults: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    deadline, number = time.monotonic() + seconds, 0
    with tqdm(total=count or None, desc="commands", unit="command", disable=None) as bar:
        while time.monotonic() < deadline and (not count or number < count):
            place = workplace.root / f"trial-{number}"
            place.mkdir()
            trial = draw_trial(workplace, place, f"{seed}-{number}", only=only)
            verdict = try_command(trial, place)
            codes[verdict.code] += 1
            if verdict.fault:
                faults[verdict.fault] += 1
                if faults[verdict.fault] == 1:
                    _show(f"{seed}-{number}", trial, verdict)
            shutil.rmtree(place, ignore_errors=True)
            for path in workplace.root.glob(f"{place.name}.*"):
                path.unlink()
            number += 1
            bar.update()
    print(f"{number} commands, exit codes {dict(sorted(codes.items()))}, {len(faults)} kinds of faults")
    return faults


def _show(name: str, trial: Trial, verdict: Verdict) -> None:
    end = "\n    ".join(line[:300] for line in verdict.output.strip().splitlines()[-6:])
    shown = " ".join(f"{argument!r:.60}" for argument in trial.arguments)
    tqdm.write(f"FAULT {verdict.fault}\n  {name}: {trial.change}\n  {shown:.900}\n    {end}", file=sys.stdout)
    sys.stdout.flush()


def main() -> int:
    """Tries commands as long as the command line says; 1 where there are faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="commands, however long they take")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
    parser.add_argument("--only", default="", metavar="KIND", help="option, key, data, config, weights, results")
    parser.add_argument("--trial", metavar="SEED-NUMBER", help="one again, with all that it prints")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no others
    root = Path(tempfile.mkdtemp(prefix="command-lines-"))
    try:
        workplace = Workplace.prepare(root)
        if args.trial:
            (root / "place").mkdir()
            trial = draw_trial(workplace, root / "place", args.trial, only=args.only)
            verdict = try_command(trial, root / "place")
            print(f"{trial.change}\n{trial.arguments}\n{verdict.output}\n{verdict.code} {verdict.fault}")
            return bool(verdict.fault)
        seconds = 1e9 if args.count else args.time
        faults = try_many(workplace, args.seed, seconds=seconds, count=args.count, only=args.only)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print("\n".join(f"{number:6d} {kind}" for kind, number in faults.most_common()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
