"""Compile the native kernels: ``python -m mask2former.ops.build`` in place, setup.py for an installation.

Uses the standard library only, so it runs without torch. Environment variables:
    CXX                      C++ compiler (default: the first of c++, g++, clang++)
    CUDACXX, CUDA_HOME       nvcc, or its toolkit (default: nvcc on PATH)
    MASK2FORMER_BUILD_CUDA   0 never builds the CUDA library, 1 fails without it (default: where nvcc is found)
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

SOURCE_DIR = Path(__file__).with_name("csrc")
LIBRARY_DIR = Path(__file__).with_name("lib")
CPU_LIBRARY = "libm2f_ops_cpu.so"
CUDA_LIBRARY = "libm2f_ops_cuda.so"
CUDA_SWITCH = "MASK2FORMER_BUILD_CUDA"

# No -ffast-math: NaN must stay NaN, and denormals as the rest of the process has them.
_CXX_FLAGS = shlex.split(
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -fno-math-errno -fno-trapping-math "
    "-Wall -Wextra -Wno-psabi"
)
# One object of the same source per instruction set (name, bytes of a vector register, flags); picked at run time.
_PORTABLE = ("portable", 16, "")
_X86_LEVELS = (
    _PORTABLE,
    ("avx2", 32, "-mavx2 -mfma"),
    ("avx512", 64, "-mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"),
)
# Compiled once, for any processor.
_ENTRY_POINTS = (
    "library",
    "ms_deform_attn",
    "winograd",
    "maps",
    "attention",
    "neighbourhood",
    "points",
    "panoptic",
    "parallel",
)
# Ampere, Hopper, Blackwell; the code of the last is also kept as PTX for what comes after.
_CUDA_ARCHITECTURES = ("80", "90", "100")


class BuildError(RuntimeError):
    """A compiler is missing or failed; the message holds what it printed."""


def build_cpu(target_dir: Path, *, flags: Sequence[str] = ()) -> Path:
    """Compile the CPU library into a folder and return its path. flags: of the compiler, after its own.

    Raises:
        BuildError: the compiler is missing or failed.
    """
    compiler = find_cxx()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    common = [*compiler, *_CXX_FLAGS, *(["-DM2F_X86"] if is_x86 else []), *flags]
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for name, vector_bytes, level in _X86_LEVELS if is_x86 else (_PORTABLE,):
            objects.append(str(Path(scratch) / f"{name}.o"))
            defines = [f"-DM2F_KERNELS={name}", f"-DM2F_VECTOR_BYTES={vector_bytes}"]
            _run([*common, *level.split(), *defines, "-c", str(SOURCE_DIR / "cpu/kernels.cpp"), "-o", objects[-1]])
        sources = [str(SOURCE_DIR / "cpu" / f"{name}.cpp") for name in _ENTRY_POINTS]
        library = Path(scratch) / CPU_LIBRARY
        _run([*common, *sources, *objects, "-shared", "-pthread", "-o", str(library)])
        return _move_into_place(library, target_dir)


def build_cuda(target_dir: Path) -> Path:
    """Compile the CUDA library into a folder and return its path.

    Raises:
        BuildError: the compiler is missing or failed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("nvcc not found (PATH, CUDACXX, CUDA_HOME)")
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / CUDA_LIBRARY
        # The static runtime depends on the driver alone, not on the version of CUDA that torch brings.
        flags = shlex.split("-O3 -std=c++17 -shared -cudart static --threads 0")
        host_flags = ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
        sources = [str(SOURCE_DIR / "cuda" / f"{name}.cu") for name in ("ms_deform_attn", "neighbourhood_attention")]
        _run([nvcc, *flags, *host_flags, *_cuda_targets(nvcc), *sources, "-o", str(library)])
        return _move_into_place(library, target_dir)


def build_available(target_dir: Path) -> bool:
    """Build what the machine has compilers for, print a line for each, and return whether the CPU library was built.

    Raises:
        BuildError: MASK2FORMER_BUILD_CUDA=1 asks for a CUDA library that cannot be built.
    """
    is_built = _build_and_report("CPU", build_cpu, target_dir)
    wanted = os.environ.get(CUDA_SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise BuildError(f"{CUDA_SWITCH} must be 0 or 1, got {wanted!r}")
    if wanted == "1":
        print(f"mask2former: CUDA kernels: {build_cuda(target_dir)}", flush=True)
    elif wanted == "" and find_nvcc() is not None:
        _build_and_report("CUDA", build_cuda, target_dir)
    return is_built


def find_cxx() -> list[str]:
    """Return the C++ compiler's command: $CXX (which may hold flags or a launcher) or the first known one on PATH."""
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C++ compiler found (CXX, c++, g++, clang++)")


def find_nvcc() -> str | None:
    """Return the path of nvcc, or None."""
    candidates = [os.environ.get("CUDACXX"), "nvcc"]
    candidates += [str(Path(home) / "bin/nvcc") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def _build_and_report(kind: str, build: Callable[[Path], Path], target_dir: Path) -> bool:
    try:
        print(f"mask2former: {kind} kernels: {build(target_dir)}", flush=True)
    except (BuildError, OSError) as error:
        print(f"mask2former: {kind} kernels not built, PyTorch will be used instead: {error}", flush=True)
        return False
    return True


def _cuda_targets(nvcc: str) -> list[str]:
    known = _run([nvcc, "--list-gpu-code"]).split()
    numbers = [number for number in _CUDA_ARCHITECTURES if f"sm_{number}" in known]
    if not numbers:
        raise BuildError(f"{nvcc} knows none of sm_{', sm_'.join(_CUDA_ARCHITECTURES)}")
    targets = [f"arch=compute_{number},code=sm_{number}" for number in numbers]
    targets.append(f"arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    return [argument for target in targets for argument in ("-gencode", target)]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    if warnings := done.stderr.strip():
        print(warnings, file=sys.stderr)
    return done.stdout


def _move_into_place(library: Path, target_dir: Path) -> Path:
    """Replace the library in one step, so that a process that has loaded the old one keeps it."""
    target_dir.mkdir(parents=True, exist_ok=True)
    target = target_dir / library.name
    partial = target.with_suffix(f".{os.getpid()}.partial")
    shutil.copy2(library, partial)
    os.replace(partial, target)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Build into the package; return 0 when the CPU library was built."""
    parser = argparse.ArgumentParser(prog="python -m mask2former.ops.build", description=__doc__.splitlines()[0])
    parser.parse_args(arguments)
    try:
        return 0 if build_available(LIBRARY_DIR) else 1
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
