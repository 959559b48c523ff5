"""What benchmarks/ms_deform_attn.py does on a GPU, as a machine without one can tell."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mask2former.ops.deformable_attention_reference import reference_backward, reference_forward

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS.parent), *sys.path])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def port(compile_cuda_on_host: Callable[..., ctypes.CDLL], tmp_path: Path) -> ctypes.CDLL:
    return compile_cuda_on_host(BENCHMARKS / "simple_deform_attn.cu", tmp_path / "simple.so")


def make_case(load: Callable[[str], ModuleType], dtype: str):
    sizes = {"height": 64, "width": 96, "batch": 2, "heads": 2, "channels": 4, "points": 2}
    arguments = argparse.Namespace(**sizes, dtype=dtype, device="cpu")
    return load("ms_deform_attn_gpu").make_case(*load("ms_deform_attn").make_inputs(arguments))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_port_equals_float64_reference(load: Callable[[str], ModuleType], port: ctypes.CDLL, dtype: str) -> None:
    case, simple = make_case(load, dtype), load("simple_deform_attn")
    shapes = torch.tensor(case.shapes).view(-1, 2)
    inputs = case.value, shapes, case.locations, case.weights
    found = [
        simple.simple_forward(port, *inputs, stream=0),
        *simple.simple_backward(port, case.grad_output, *inputs, stream=0),
    ]
    exact = case.value.double(), case.shapes, case.locations.double(), case.weights.double()
    expected = [reference_forward(*exact), *reference_backward(case.grad_output.double(), *exact)]
    assert (found[0].double() - expected[0]).abs().max() <= 5e-3 * expected[0].abs().max()
    pairs = [(int(height), int(width)) for height, width in shapes]
    errors = load("ms_deform_attn_errors").errors_of_gradients(
        found[1:], expected[1:], locations=case.locations, shapes=pairs
    )
    assert max(errors.values()) <= 1e-5


def test_places_are_those_that_kernels_form_from_offsets(load: Callable[[str], ModuleType]) -> None:
    case = make_case(load, "bfloat16")
    sizes = torch.tensor(case.shapes).view(-1, 1, 2).flip(-1)
    formed = case.centres.double()[:, None, None, None] + case.offsets.double() / sizes
    assert (case.locations - formed).abs().max() < 1e-6
    is_between = load("ms_deform_attn_errors").is_between_pixels
    pairs = list(zip(case.shapes[::2], case.shapes[1::2], strict=True))
    assert 0.5 < is_between(case.locations, pairs).float().mean() < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpu_benchmark_reports_every_pass(
    load: Callable[[str], ModuleType], port: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, capsys, dtype: str
) -> None:
    gpu = load("ms_deform_attn_gpu")

    def call_once(function: Callable[[], object], *, repeats: int) -> float:
        function()
        return 1.0

    monkeypatch.setattr(gpu, "device_ms", call_once)
    monkeypatch.setattr(gpu, "compile_simple", lambda: port)
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda: 1e9)
    case = make_case(load, dtype)
    results = gpu.measure_on_gpu(case, repeats=1)
    assert all(error <= {"float32": 1e-5, "bfloat16": 1e-2}[dtype] for error in results["errors"].values())
    passes = {name: figures for name, figures in results.items() if isinstance(figures, dict) and "ms" in figures}
    assert len(passes) == 7
    assert {name for name, figures in passes.items() if "ratio" in figures} == {
        f"{direction} from {source}" for direction in ("forward", "backward") for source in ("locations", "offsets")
    }
    tokens, element = 126, case.value.element_size()
    moved = tokens * 2 * 2 * (4 + 4 + 3 * 2 * 3) * element  # value, output, offsets with logits; of 2 images and heads
    assert passes["forward from offsets"]["share of bound"] == pytest.approx(moved / 1e6)
    gpu.print_results(results)
    assert capsys.readouterr().out.count("of the bound") == 7
