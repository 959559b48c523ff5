"""One target under atheris in a process of its own: `python -m tests.faults.fuzz.worker TARGET FOLDER [OPTION …]`.

The options are libFuzzer's. One file of each kind of fault is kept; a crash or hang of native code ends the process.
"""

from __future__ import annotations

import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import atheris
import torch

MAX_SECONDS = 2.0
MAX_BYTES = 1 << 30
_PACKAGE = "/mask2former/"
_DULL_SHARE = 0.2  # of inputs that libFuzzer mutates itself, by what it learned of comparisons


def main(name: str, folder: Path, options: list[str]) -> None:
    """Runs until the options say that it is enough; does not return."""
    with atheris.instrument_imports(include=["mask2former"]):
        from mask2former.errors import InputError
        from tests.faults.fuzz.targets import TARGETS
    target = TARGETS[name]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    path = scratch / target.file_name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
        path.write_bytes(seed)
        target.read(path)  # what is begun with is right
    kinds: set[str] = set()

    def try_one(data: bytes) -> None:
        path.write_bytes(data)
        begin = time.process_time()
        kind = ""
        try:
            target.read(path)
        except InputError as error:
            kind = "" if 0 < len(str(error)) < 8200 and "\0" not in str(error) else "message too long, or with NUL"
        except Exception as error:
            kind = _kind_of(error)
        if time.process_time() - begin > MAX_SECONDS:
            kind = f"{kind} {MAX_SECONDS} s passed"
        if kind and kind not in kinds:
            kinds.add(kind)
            (folder / f"fault-{len(kinds)}").write_bytes(data)
            print(f"FAULT {folder / f'fault-{len(kinds)}'}: {kind}", flush=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        choices = random.Random(seed)
        if choices.random() < _DULL_SHARE:
            return atheris.Mutate(data, max_size)
        changed = target.mutate(data, choices)
        return changed if len(changed) <= max_size else data

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
    arguments = [sys.argv[0], "-rss_limit_mb=0", "-max_len=100000", "-timeout=30", f"-artifact_prefix={folder}/"]
    atheris.Setup([*arguments, "-print_final_stats=1", *options, str(corpus)], try_one, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _kind_of(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in frame.filename]
    where = f"{frames[-1].filename.rpartition(_PACKAGE)[2]}:{frames[-1].lineno}" if frames else "the target"
    return f"{type(error).__name__} in {where}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
