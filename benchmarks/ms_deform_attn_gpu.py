"""Multi-scale deformable attention on a GPU: error, time beside a straightforward port, share of the bandwidth bound.

Each call is timed alone, out of a CUDA graph and with cold caches, between events on the device. The bound is the time
to read all inputs and write all results once, at the bandwidth that a copy reaches on the same device.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.comparison import largest_difference, require_at_most
from benchmarks.ms_deform_attn_errors import LIMITS, errors_of_gradients
from benchmarks.simple_deform_attn import compile_simple, simple_backward, simple_forward
from mask2former.ops import ms_deform_attn_fused
from mask2former.ops.deformable_attention_reference import reference_backward, reference_forward

_FLUSH_BYTES = 2**28  # several times the last-level cache of any GPU
_COPY_BYTES = 2**30


class Case(NamedTuple):
    """What both forms of the operator take, equal to the last bit they can hold."""

    value: Tensor  # (B, S, M, D)
    shapes: list[int]
    centres: Tensor  # (Q, 2)
    offsets: Tensor  # (B, Q, M, L, P, 2), in the dtype of value, as are logits and grad_output
    logits: Tensor  # (B, Q, M, L, P)
    locations: Tensor  # float32, as are weights
    weights: Tensor
    grad_output: Tensor  # (B, Q, M * D)


def make_case(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Case:
    """Offsets and logits around each query's own place that lead to about these locations and weights."""
    grids = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in shapes]
    centres = torch.cat(grids).to(value.device)
    sizes = torch.tensor([(w, h) for h, w in shapes], device=value.device)[:, None]  # (L, 1, 2)
    around = centres[:, None, None, None]
    offsets = ((locations - around) * sizes).to(value.dtype)
    logits = weights.log().to(value.dtype)
    exact = logits.float().flatten(3).softmax(-1).view(weights.shape)
    grad_output = torch.randn(*locations.shape[:2], value.shape[2] * value.shape[3]).to(value)
    flat = [size for shape in shapes for size in shape]
    places = (
        around + offsets.to(locations.dtype) / sizes
    )  # in bfloat16 they would lie beside the places that kernels form
    return Case(value, flat, centres, offsets, logits, places, exact, grad_output)


def measure_on_gpu(case: Case, *, repeats: int) -> dict[str, Any]:
    """Errors, milliseconds, ratios to the port and shares of the bound, of both passes from either form of inputs.

    Raises:
        DifferenceError: an error is above LIMITS; nothing is timed then.
    """
    errors = errors_of(case)
    require_at_most(errors, dict.fromkeys(errors, LIMITS[case.value.dtype]))
    bandwidth = copy_bandwidth()
    results: dict[str, Any] = {"GB/s of a copy": bandwidth / 1e9, "errors": errors}
    simple = _simple_functions(case)
    for name, function in _functions(case).items():
        milliseconds = device_ms(function, repeats=repeats)
        results[name] = {"ms": milliseconds, "share of bound": bound_ms(case, name, bandwidth) / milliseconds}
        if name in simple:
            results[name]["port, ms"] = device_ms(simple[name], repeats=repeats)
            results[name]["ratio"] = results[name]["port, ms"] / milliseconds
    return results


def errors_of(case: Case) -> dict[str, float]:
    """Largest difference from float64, relative to the largest value, of outputs and gradients, from either form."""
    operators = torch.ops.mask2former
    given = case.value, case.shapes, case.locations, case.weights
    exact = case.value.double(), case.shapes, case.locations.double(), case.weights.double()
    output, expected = reference_forward(*exact), reference_backward(case.grad_output.double(), *exact)
    pairs = list(zip(case.shapes[::2], case.shapes[1::2], strict=True))
    grads = operators.ms_deform_attn_backward(case.grad_output, *given)
    errors = {"output": largest_difference(operators.ms_deform_attn(*given), output)}
    errors |= errors_of_gradients(grads, expected, locations=case.locations, shapes=pairs)
    around = case.shapes, case.centres, case.offsets, case.logits
    by_head = case.value.transpose(1, 2).contiguous().transpose(1, 2)
    expected = _through_offsets_and_logits(expected, case)
    for layout, value in (("heads together", by_head), ("heads apart", case.value)):
        found = operators.ms_deform_attn_fused(value, *around)
        grads = operators.ms_deform_attn_fused_backward(case.grad_output, value, *around)
        of_layout = {"output from offsets": largest_difference(found, output)}
        names = ("value, from offsets", "offsets", "logits")
        of_layout |= errors_of_gradients(grads, expected, locations=case.locations, shapes=pairs, names=names)
        errors |= {f"{name}, {layout}": error for name, error in of_layout.items()}
    return errors


def _through_offsets_and_logits(gradients: Sequence[Tensor], case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offsets and logits where those of value, locations and weights are given."""
    of_value, of_locations, of_weights = gradients
    sizes = torch.tensor(case.shapes, device=of_value.device).view(-1, 1, 2).flip(-1)  # (L, 1, 2): width, height
    weights = case.weights.double()
    mean = (of_weights * weights).sum((-2, -1), keepdim=True)
    return of_value, of_locations / sizes, weights * (of_weights - mean)


def bound_ms(case: Case, name: str, bandwidth: float) -> float:
    """Time to move what a pass must read and write once."""
    sources = [case.offsets, case.logits] if "from offsets" in name else [case.locations, case.weights]
    read = [case.value, case.grad_output, *sources]  # the gradient is as the output
    written = [case.value, *sources] if name.startswith("backward") else []
    return sum(tensor.nbytes for tensor in (*read, *written)) / bandwidth * 1e3


def _functions(case: Case) -> dict[str, Callable[[], Any]]:
    operators = torch.ops.mask2former
    value, shapes, centres, offsets, logits, locations, weights, grad_output = case
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    by_head = value.transpose(1, 2).contiguous().transpose(1, 2)
    arguments = {"centres": centres, "offsets": offsets, "logits": logits}
    around = shapes, centres, offsets, logits
    backward, backward_around = operators.ms_deform_attn_backward, operators.ms_deform_attn_fused_backward
    return {
        "forward from locations": lambda: operators.ms_deform_attn(value, shapes, locations, weights),
        "backward from locations": lambda: backward(grad_output, value, shapes, locations, weights),
        "forward from offsets": lambda: ms_deform_attn_fused(value, pairs, **arguments),
        "backward from offsets": lambda: backward_around(grad_output, by_head, *around),
        "forward from offsets, heads apart": lambda: operators.ms_deform_attn_fused(value, *around),
        "forward from offsets, heads together": lambda: operators.ms_deform_attn_fused(by_head, *around),
        "backward from offsets, heads apart": lambda: backward_around(grad_output, value, *around),
    }


def _simple_functions(case: Case) -> dict[str, Callable[[], Any]]:
    """The port; from offsets, with PyTorch's softmax and arithmetic before it, as it is commonly used."""
    library, value = compile_simple(), case.value
    shapes = torch.tensor(case.shapes, device=value.device).view(-1, 2)
    sizes = shapes.flip(-1)[:, None].float()
    around = case.centres[:, None, None, None]

    def stream() -> int:
        return torch.cuda.current_stream().cuda_stream if value.is_cuda else 0

    def forward() -> Tensor:
        return simple_forward(library, value, shapes, case.locations, case.weights, stream=stream())

    def forward_from_offsets() -> Tensor:
        locations = around + case.offsets / sizes
        weights = case.logits.float().flatten(3).softmax(-1).view(case.weights.shape)
        return simple_forward(library, value, shapes, locations, weights, stream=stream())

    def backward() -> Any:
        inputs = case.grad_output, value, shapes, case.locations, case.weights
        return simple_backward(library, *inputs, stream=stream())

    return {
        "forward from locations": forward,
        "backward from locations": backward,
        "forward from offsets": forward_from_offsets,
        "backward from offsets": backward,
    }


def device_ms(function: Callable[[], Any], *, repeats: int) -> float:
    """Median time of a call on the device, its inputs in none of the caches."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    times = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / (device_ms(lambda: target.copy_(source), repeats=10) * 1e-3)


def print_results(results: dict[str, Any]) -> None:
    """A line for each error and each pass."""
    print(f"  a copy reaches {results['GB/s of a copy']:.0f} GB/s; largest differences from float64:")
    for name, error in results["errors"].items():
        print(f"    {name:45} {error:.1e}")
    for name, figures in results.items():
        if isinstance(figures, dict) and "ms" in figures:
            port = f"   port {figures['port, ms']:8.4f} ms {figures['ratio']:6.1f} x" if "ratio" in figures else ""
            print(f"  {name:38} {figures['ms']:8.4f} ms, {figures['share of bound']:4.0%} of the bound{port}")
