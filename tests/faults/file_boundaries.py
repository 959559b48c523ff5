"""Kills a tiny training at every change of a file in its folder, by ckpt-chaos, which knows nothing of how we write.

python -m tests.faults.file_boundaries [POINTS]; with ``--digest FOLDER``, prints what a run ended with.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mask2former.checkpoint import load_state

_TRAIN = [sys.executable, "-m", "tests.engine.stub_training"]
_OPTIONS = ["OUTPUT_DIR", "{out}", "SOLVER.MAX_ITER", "8"]


def crash_everywhere(work: Path, points: int) -> subprocess.CompletedProcess[str]:
    """Runs ckpt-chaos: a fault-free run, then one killed at each of so many file events, and resumed."""
    options = {
        "--work": str(work),
        "--checkpoint-glob": "{out}/model_*.pth",
        "--step-regex": r"resumed from .*: next iteration (\d+)",
        "--result-cmd": shlex.join([sys.executable, "-m", "tests.faults.file_boundaries", "--digest", "{out}"]),
        "--resume-cmd": shlex.join([*_TRAIN, "--resume", *_OPTIONS]),
        # Between a checkpoint and its entry in the index, work is lost and done again with the same result.
        "--fail-on": "HARD_FAIL,SILENT_DIVERGENCE",
        "--max-points": str(points),
    }
    # It puts the folder that it lies in before all others: from a copy, no other package hides Python's own modules.
    found = importlib.util.find_spec("ckpt_chaos")
    assert found is not None, "needs the extra [chaos]"
    assert found.origin is not None
    package, root = work.with_name(f"{work.name}-package"), Path(__file__).parents[2]
    shutil.copytree(Path(found.origin).parent, package / "ckpt_chaos", dirs_exist_ok=True)
    command = [sys.executable, "-m", "ckpt_chaos", "run", *(part for pair in options.items() for part in pair)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(root)])}
    command += ["--", *_TRAIN, *_OPTIONS]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def digest(content: Any) -> str:
    """A number that stands for all tensors and values but the config, which names the folder."""
    if isinstance(content, dict):
        content = [(str(key), digest(value)) for key, value in content.items() if key != "config"]
    elif isinstance(content, list | tuple):
        content = [digest(value) for value in content]
    elif isinstance(content, torch.Tensor):
        content = (content.dtype, content.numpy().tobytes())
    return hashlib.sha256(repr(content).encode()).hexdigest()


def main(arguments: list[str]) -> int:
    """As the command line says; 1 where a killed run did not come back as it was."""
    if arguments[:1] == ["--digest"]:
        print(digest(load_state(Path(arguments[1]) / "model_final.pth")))
        return 0
    with tempfile.TemporaryDirectory(prefix="file-boundaries-") as work:
        done = crash_everywhere(Path(work, "runs"), int(arguments[0]) if arguments else 1000)
    print(done.stdout + done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
