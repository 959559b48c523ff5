"""The kernels compiled with the sanitizers of GCC: no access beyond an array, no undefined operation, no race."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mask2former.ops import build
from tests.ops import sanitized_library as plugin

HERE = Path(__file__).parent
KERNEL_TESTS = [
    str(HERE / f"test_{name}.py")
    for name in "attention convolution maps mask_strip mask_winners ms_deform_attn ms_deform_attn_fused panoptic_maps "
    "point_sampling".split()
]
_PNG_IDS = """
import ctypes, sys, threading
import numpy as np
library = ctypes.CDLL(sys.argv[1])
library.m2f_png_ids.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
rows, ids = np.zeros({bytes}, np.uint8), np.zeros(20_000, np.int32)
def read():
    for _ in range(20):
        library.m2f_png_ids(rows.ctypes.data, 100, 200, ids.ctypes.data)
threads = [threading.Thread(target=read) for _ in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
"""


@dataclass(frozen=True)
class Sanitizer:
    """Flags of the compiler, libraries that come before all others, and a program that it must stop."""

    flags: tuple[str, ...]
    preloaded: tuple[str, ...]
    environment: dict[str, str]
    wrong_program: str
    report: str


SANITIZERS = {
    "address and undefined behaviour": Sanitizer(
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ("libasan.so", "libubsan.so", "libstdc++.so.6"),
        {"ASAN_OPTIONS": "detect_leaks=0"},  # Python leaves to the end of the process what it allocated
        _PNG_IDS.format(bytes=1000),
        "heap-buffer-overflow",
    ),
    "thread": Sanitizer(
        ("-fsanitize=thread",),
        ("libtsan.so",),
        {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1", plugin.OWN_THREADS: "1"},
        _PNG_IDS.format(bytes=100 * 601),
        "data race",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SANITIZERS)
def test_kernels_are_clean_under_a_sanitizer(name: str, tmp_path: Path) -> None:
    sanitizer = SANITIZERS[name]
    preloaded = " ".join(_find(library) for library in sanitizer.preloaded)
    library = build.build_cpu(tmp_path, flags=["-O1", "-g1", "-fno-omit-frame-pointer", *sanitizer.flags])
    environment = {**os.environ, **sanitizer.environment, "LD_PRELOAD": preloaded, plugin.FOLDER: str(tmp_path)}

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr)[-6000:]

    code, output = run("-c", sanitizer.wrong_program, str(library))
    assert code, "it finds nothing at all"
    assert sanitizer.report in output
    selection = ["-m", "not slow and not gpu", "-k", "not fork"]  # forked processes are followed by neither
    code, output = run("-m", "pytest", "-q", "-p", "tests.ops.sanitized_library", *selection, *KERNEL_TESTS)
    assert code == 0, output
    assert " passed" in output


def _find(library: str) -> str:
    """The path of one of the compiler's libraries."""
    try:
        command = [*build.find_cxx(), f"-print-file-name={library}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except (build.BuildError, OSError) as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    if not os.path.isabs(found):
        pytest.skip(f"the compiler has no {library}")
    return os.path.realpath(found)
