"""Deformable attention from offsets and logits: one operator on CUDA, one kernel call on a CPU, equal to its steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.ops import ms_deform_attn_fused

ODD_SHAPES = ((5, 7), (3, 1), (1, 2))


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within tolerance of each tensor's largest magnitude."""
    for name, a, b in zip(("output", "value", "offsets", "logits"), found, expected, strict=True):
        assert a.shape == b.shape, name
        assert ((a.double() - b.double()).abs() <= tolerance * b.abs().max()).all(), name


def make_fused(shapes, *, heads=2, channels=8, points=3, queries=7, dtype=torch.float64):
    """value, shapes, and the other arguments by name"""
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = {
        "centres": torch.rand(queries, 2, dtype=exact),
        "offsets": (3 * torch.randn(2, queries, heads, levels, points, 2)).to(dtype),
        "logits": (3 * torch.randn(2, queries, heads, levels, points)).to(dtype),
    }
    return torch.randn(2, tokens, heads, channels).to(dtype), shapes, arguments


def gradients_fused(value: Tensor, shapes, arguments: dict[str, Tensor], grad_output: Tensor) -> list[Tensor]:
    """output, then the gradients of value, offsets and logits"""
    leaves = [t.detach().clone().requires_grad_() for t in (value, arguments["offsets"], arguments["logits"])]
    output = ms_deform_attn_fused(leaves[0], shapes, centres=arguments["centres"], offsets=leaves[1], logits=leaves[2])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ms_deform_attn_fused_operator_passes_opcheck(dtype: torch.dtype) -> None:
    value, shapes, arguments = make_fused(ODD_SHAPES, channels=3, dtype=dtype)
    inputs = value, [s for shape in shapes for s in shape], *arguments.values()
    for tensor in (inputs[0], *inputs[3:]):
        tensor.requires_grad_()
    operator = torch.ops.mask2former.ms_deform_attn_fused.default
    assert set(torch.library.opcheck(operator, inputs).values()) == {"SUCCESS"}


def test_ms_deform_attn_fused_operator_equals_its_steps() -> None:
    value, shapes, arguments = make_fused(ODD_SHAPES)
    grad_output = torch.randn(2, 7, 16, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (value, arguments["offsets"], arguments["logits"])]
    output = torch.ops.mask2former.ms_deform_attn_fused(
        leaves[0], [s for shape in shapes for s in shape], arguments["centres"], *leaves[1:]
    )
    found = [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
    assert_all_close(found, gradients_fused(value, shapes, arguments, grad_output), 1e-12)


def test_ms_deform_attn_fused_operator_refuses_mixed_dtypes() -> None:
    value, shapes, arguments = make_fused(((2, 3),), dtype=torch.float32)
    offsets = arguments["offsets"].bfloat16()
    with pytest.raises(ValueError, match="value, offsets and logits must have one dtype"):
        torch.ops.mask2former.ms_deform_attn_fused(value, shapes[0], arguments["centres"], offsets, arguments["logits"])


class CudaInName(torch.Tensor):
    """A tensor of the CPU that says it is on CUDA."""

    is_cuda = True


def test_ms_deform_attn_fused_is_one_operator_on_cuda() -> None:
    value, shapes, arguments = make_fused(ODD_SHAPES, dtype=torch.float32)
    grad_output = torch.randn(2, 7, 16)
    expected = gradients_fused(value, shapes, arguments, grad_output)
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if str(function).startswith("mask2former"):
                seen.append((str(function), args[0].transpose(1, 2).is_contiguous()))
            return function(*args, **(kwargs or {}))

    with Watch():
        found = gradients_fused(value.as_subclass(CudaInName), shapes, arguments, grad_output)
    assert seen == [("mask2former.ms_deform_attn_fused", True)]
    assert_all_close([tensor.as_subclass(torch.Tensor) for tensor in found], expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("heads", "channels", "levels", "points"), [(8, 32, 3, 4), (2, 5, 1, 3), (3, 1, 2, 1)])
def test_ms_deform_attn_fused_equals_its_steps(
    dtype: torch.dtype, heads: int, channels: int, levels: int, points: int
) -> None:
    torch.manual_seed(0)
    shapes = [(7, 9), (4, 5), (2, 3)][:levels]
    tokens, queries = sum(h * w for h, w in shapes), 37
    value = torch.randn(2, tokens, heads, channels).to(dtype)
    arguments = {
        "centres": torch.rand(queries, 2),
        "offsets": (3 * torch.randn(2, queries, heads, levels, points, 2)).to(dtype),
        "logits": (20 * torch.randn(2, queries, heads, levels, points)).to(dtype),
    }
    with torch.no_grad():
        at_once = ms_deform_attn_fused(value, shapes, **arguments)
    step_by_step = ms_deform_attn_fused(value.clone().requires_grad_(), shapes, **arguments)
    torch.testing.assert_close(at_once, step_by_step.detach())


def test_ms_deform_attn_fused_refuses_centres_of_other_queries() -> None:
    value, offsets = torch.randn(1, 6, 2, 4), torch.randn(1, 5, 2, 1, 3, 2)
    with torch.no_grad(), pytest.raises(ValueError, match=r"centres must have shape \(5, 2\), got \(6, 2\)"):
        ms_deform_attn_fused(value, [(2, 3)], centres=torch.rand(6, 2), offsets=offsets, logits=offsets[..., 0])


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 32, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ms_deform_attn_fused_cuda_equals_float64(channels: int, dtype: torch.dtype) -> None:
    value, shapes, arguments = make_fused(ODD_SHAPES, channels=channels, queries=133, dtype=dtype)
    grad_output = torch.randn(2, 133, 2 * channels).to(dtype)
    on_gpu = {name: tensor.cuda() for name, tensor in arguments.items()}
    found = [tensor.cpu() for tensor in gradients_fused(value.cuda(), shapes, on_gpu, grad_output.cuda())]
    exact = {name: tensor.double() for name, tensor in arguments.items()}
    expected = gradients_fused(value.double(), shapes, exact, grad_output.double())
    assert_all_close(found, expected, {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ms_deform_attn_cuda_is_deterministic_where_asked(dtype: torch.dtype) -> None:
    value, shapes, arguments = make_fused(((24, 31), (12, 15)), queries=2000, dtype=dtype)
    arguments = {name: tensor.cuda() for name, tensor in arguments.items()}
    grad_output = torch.randn(2, 2000, 16).to(dtype).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        results = [gradients_fused(value.cuda(), shapes, arguments, grad_output) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.gpu
def test_ms_deform_attn_cuda_runs_on_the_current_stream() -> None:
    value, shapes, arguments = make_fused(ODD_SHAPES, queries=37, dtype=torch.float32)
    arguments = {name: tensor.cuda() for name, tensor in arguments.items()}
    value, grad_output = value.cuda(), torch.randn(2, 37, 16).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = gradients_fused(value, shapes, arguments, grad_output)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # fails if a kernel goes to another stream, allocates or waits
        found = gradients_fused(value, shapes, arguments, grad_output)
    graph.replay()
    assert_all_close(found, expected, 1e-5)
