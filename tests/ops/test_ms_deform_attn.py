"""The operator against published values, its native kernels against the reference, and its contract with torch."""

from __future__ import annotations

import functools
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mask2former.ops import kernel_status, ms_deform_attn, ms_deform_attn_reference, native

REFERENCE = Path(__file__).parents[1] / "data/reference/ops.npz"
OPERATOR = torch.ops.mask2former.ms_deform_attn.default
ODD_SHAPES = ((5, 7), (3, 1), (1, 2))


def make_inputs(
    shapes=ODD_SHAPES, *, batch=2, heads=2, channels=8, queries=7, points=3, dtype=torch.float64, requires_grad=False
) -> tuple[Tensor, list[int], Tensor, Tensor]:
    """value, flat shapes, locations (a good part of them outside), weights"""
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(batch, tokens, heads, channels, dtype=exact).to(dtype)
    locations = torch.rand(batch, queries, heads, levels, points, 2, dtype=exact) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, levels, points, dtype=exact)
    for tensor in (value, locations, weights):
        tensor.requires_grad_(requires_grad)
    return value, [size for shape in shapes for size in shape], locations, weights


def gradients(function, inputs: tuple, grad_output: Tensor) -> list[Tensor]:
    """output, then the gradients of value, locations and weights"""
    value, shapes, *rest = inputs
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, *rest)]
    output = function(leaves[0], shapes, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(output))]


def in_float64(inputs: tuple) -> tuple:
    return tuple(item.double() if isinstance(item, Tensor) else item for item in inputs)


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within tolerance of each tensor's largest magnitude."""
    for name, a, b in zip(("output", "value", "locations", "weights"), found, expected, strict=True):
        assert a.shape == b.shape, name
        scale = b.abs().max().clamp(min=1e-3) if b.numel() else 1
        assert ((a.double() - b.double()).abs() <= tolerance * scale).all(), name


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(3))
def test_ms_deform_attn_equals_published_values(case: int, implementation: str) -> None:
    with np.load(REFERENCE) as archive:
        fixture = {key.partition("/")[2]: archive[key] for key in archive if key.startswith(f"ms_deform_attn_{case}/")}
    tensors = {key: torch.from_numpy(array) for key, array in fixture.items()}
    names = ("value", "spatial_shapes", "sampling_locations", "attention_weights")
    found = gradients(ms_deform_attn, tuple(tensors[name] for name in names), tensors["grad_output"])
    expected = ("output", "grad_value", "grad_sampling_locations", "grad_attention_weights")
    for tensor, name in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("channels", [1, 3, 8, 13, 16, 24, 32, 40, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ms_deform_attn_equals_float64_reference(channels: int, dtype: torch.dtype, implementation: str) -> None:
    inputs = make_inputs(channels=channels, dtype=dtype)
    grad_output = torch.randn(2, 7, 2 * channels).to(dtype)
    found = gradients(ms_deform_attn, inputs, grad_output)
    assert found[0].dtype == found[1].dtype == dtype
    assert found[2].dtype == found[3].dtype == inputs[2].dtype
    expected = gradients(ms_deform_attn_reference, in_float64(inputs), grad_output.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    assert_all_close(found, expected, tolerance)


@pytest.mark.parametrize(
    "case",
    [
        {"shapes": ((1, 1),), "points": 1, "heads": 1, "batch": 1},
        {"shapes": ((9, 4), (5, 5), (3, 2), (2, 1), (1, 1)), "points": 4},
        {"shapes": ((17, 33),), "heads": 3, "queries": 133, "points": 5},
        {"queries": 0},
        {"batch": 0},
        {"points": 0},
        {"heads": 5, "queries": 1},
    ],
    ids=str,
)
def test_ms_deform_attn_takes_any_size(case: dict, implementation: str) -> None:
    inputs = make_inputs(**case)
    grad_output = torch.randn(inputs[2].shape[0], inputs[2].shape[1], inputs[0].shape[2] * inputs[0].shape[3])
    found = gradients(ms_deform_attn, inputs, grad_output)
    assert_all_close(found, gradients(ms_deform_attn_reference, inputs, grad_output), 1e-12)


def test_ms_deform_attn_ignores_points_outside(implementation: str) -> None:
    value, shapes, locations, weights = make_inputs(dtype=torch.float32)
    far = torch.tensor([-1e30, -7.0, -0.6, 2.5, 1e6, 1e30])
    locations[..., 0] = far[torch.arange(locations[..., 0].numel()) % len(far)].view_as(locations[..., 0])
    found = gradients(OPERATOR, (value, shapes, locations, weights), torch.ones(2, 7, 16))
    assert all((tensor == 0).all() for tensor in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_ms_deform_attn_passes_on_what_is_not_finite(bad: float, implementation: str) -> None:
    value, shapes, locations, weights = make_inputs(dtype=torch.float32)
    expected = ms_deform_attn(value, shapes, locations, weights)
    locations[1, 3, 1, 2, 0, 0] = bad
    output = ms_deform_attn(value, shapes, locations, weights)
    is_hit = torch.zeros(2, 7, 16, dtype=torch.bool)
    is_hit[1, 3, 8:] = True  # the second head of that query, and nothing else
    assert output[is_hit].isnan().all()
    assert torch.equal(output[~is_hit], expected[~is_hit])


def test_ms_deform_attn_takes_strided_inputs(implementation: str) -> None:
    value, shapes, locations, weights = make_inputs()
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (value, locations, weights)]
    assert not any(tensor.is_contiguous() for tensor in strided)
    grad_output = torch.randn(7, 2, 16, dtype=torch.float64).transpose(0, 1)
    found = gradients(ms_deform_attn, (strided[0], shapes, *strided[1:]), grad_output)
    expected = gradients(ms_deform_attn, (value, shapes, locations, weights), grad_output.contiguous())
    assert_all_close(found, expected, 0)


def test_ms_deform_attn_batch_equals_single_items(implementation: str) -> None:
    value, shapes, locations, weights = make_inputs(batch=3)
    whole = ms_deform_attn(value, shapes, locations, weights)
    parts = [ms_deform_attn(value[i : i + 1], shapes, locations[i : i + 1], weights[i : i + 1]) for i in range(3)]
    assert torch.equal(whole, torch.cat(parts))


def test_ms_deform_attn_takes_shapes_in_any_form() -> None:
    value, shapes, locations, weights = make_inputs()
    expected = ms_deform_attn(value, shapes, locations, weights)
    for form in (ODD_SHAPES, [list(shape) for shape in ODD_SHAPES], torch.tensor(ODD_SHAPES)):
        assert torch.equal(ms_deform_attn(value, form, locations, weights), expected)


def test_ms_deform_attn_takes_half_precision_weights() -> None:
    value, shapes, locations, weights = make_inputs(dtype=torch.bfloat16)
    found = ms_deform_attn(value, shapes, locations, weights.bfloat16())
    assert torch.equal(found, ms_deform_attn(value, shapes, locations, weights.bfloat16().float()))


# --- threads and processes ----------------------------------------------------------------------------------------


def _large_inputs() -> tuple[Tensor, ...]:
    """gradient of the output, value, shapes, locations, weights: enough work for several threads"""
    inputs = make_inputs(((24, 31), (12, 15)), heads=4, channels=16, queries=301, points=4, dtype=torch.float32)
    return torch.randn(2, 301, 64), *inputs


def _run_operators(grad_output: Tensor, *inputs) -> list[Tensor]:
    return [OPERATOR(*inputs), *torch.ops.mask2former.ms_deform_attn_backward(grad_output, *inputs)]


@pytest.mark.parametrize("use_gomp", [True, False], ids=["torch's threads", "own threads"])
def test_ms_deform_attn_is_the_same_on_any_number_of_threads(use_gomp: bool, cpu_library) -> None:
    inputs, before = _large_inputs(), torch.get_num_threads()
    cpu_library.m2f_use_gomp_parallel(native._torch_gomp_parallel() if use_gomp else None)
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(_run_operators(*inputs))
    finally:
        torch.set_num_threads(before)
        cpu_library.m2f_use_gomp_parallel(native._torch_gomp_parallel())
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def _report_from_child(connection, inputs: tuple) -> None:
    with torch.no_grad():
        connection.send([tensor.numpy() for tensor in _run_operators(*inputs)])
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ms_deform_attn_works_in_a_forked_child(cpu_library) -> None:
    inputs, before = _large_inputs(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = _run_operators(*inputs)  # the parent's threads exist when it forks
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_report_from_child, args=(sender, inputs), daemon=True)
        child.start()
        assert receiver.poll(60), "the forked child hangs"
        found = receiver.recv()
        child.join(10)
    finally:
        torch.set_num_threads(before)
    for array, tensor in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


# --- contract with torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ms_deform_attn_passes_opcheck(dtype: torch.dtype) -> None:
    results = torch.library.opcheck(OPERATOR, make_inputs(channels=3, dtype=dtype, requires_grad=True))
    assert set(results.values()) == {"SUCCESS"}


def test_ms_deform_attn_passes_gradcheck(implementation: str) -> None:
    value, shapes, locations, weights = make_inputs(
        ((3, 4), (2, 1)), batch=1, channels=3, queries=3, points=2, requires_grad=True
    )
    call = functools.partial(lambda v, p, w: ms_deform_attn(v, shapes, p, w))
    assert torch.autograd.gradcheck(call, (value, locations, weights))


class Attention(nn.Module):
    """Takes the level's size from its input, as a model does."""

    def forward(self, feature: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        value = feature.flatten(2).transpose(1, 2).unflatten(-1, (2, -1))  # (B, H * W, M, D)
        return ms_deform_attn(value * 2, [feature.shape[-2:]], locations, weights).sin()


def _attention_inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 8, height, width), torch.rand(2, 6, 2, 1, 3, 2), torch.rand(2, 6, 2, 1, 3)


@pytest.mark.parametrize("dynamic", [False, True])
def test_ms_deform_attn_compiles_without_graph_break(dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Attention(), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((5, 6), (7, 3)):
        inputs = [tensor.requires_grad_() for tensor in _attention_inputs(*size)]
        found, expected = compiled(*inputs), Attention()(*inputs)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(output.sum(), inputs) for output in (found, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
def test_ms_deform_attn_compiles_with_inductor() -> None:
    torch._dynamo.reset()
    inputs = _attention_inputs(5, 6)
    torch.testing.assert_close(torch.compile(Attention(), fullgraph=True)(*inputs), Attention()(*inputs))


def test_ms_deform_attn_exports_with_dynamic_size() -> None:
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    program = torch.export.export(
        Attention(),
        _attention_inputs(5, 6),
        dynamic_shapes={"feature": {2: height, 3: width}, "locations": None, "weights": None},
    )
    assert OPERATOR in [node.target for node in program.graph.nodes]
    inputs = _attention_inputs(9, 4)
    torch.testing.assert_close(program.module()(*inputs), Attention()(*inputs))


def test_ms_deform_attn_runs_on_meta_tensors() -> None:
    value, shapes, locations, weights = make_inputs(requires_grad=True)
    output = ms_deform_attn(value.to("meta"), shapes, locations.to("meta"), weights.to("meta"))
    assert output.shape == (2, 7, 16)
    assert output.device.type == "meta"


def test_ms_deform_attn_works_under_autocast() -> None:
    layer, (_, shapes, locations, weights) = nn.Linear(16, 16), make_inputs(dtype=torch.float32)
    tokens = torch.randn(2, sum(h * w for h, w in ODD_SHAPES), 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = layer(tokens).unflatten(-1, (2, 8))
        output = ms_deform_attn(value, shapes, locations.requires_grad_(), weights)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert locations.grad is not None
    assert locations.grad.dtype == torch.float32


# --- wrong arguments ----------------------------------------------------------------------------------------------


def _changed(position: int, change) -> tuple:
    inputs = list(make_inputs(dtype=torch.float32))
    inputs[position] = change(inputs[position])
    return tuple(inputs)


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda v: v.flatten(2), r"value must have shape \(B, S, M, D\), got \(2, 40, 16\)"),
        (0, lambda v: v[:, 1:], r"value has 39 tokens, but spatial_shapes .* have 40 pixels"),
        (0, lambda v: v.long(), r"value must be float32, .*, got torch.int64"),
        (0, lambda v: v.double(), r"sampling_locations must be torch.float64 .*, got torch.float32"),
        (0, lambda v: v.to("meta"), r"sampling_locations must be on the device of value \(meta\), got cpu"),
        (1, lambda s: s[:-1], r"spatial_shapes must hold \(height, width\) of each level"),
        (1, lambda s: [], r"spatial_shapes must hold \(height, width\) of each level"),
        (1, lambda s: [-5, -7, *s[2:]], r"spatial_shapes must be positive"),
        (1, lambda s: torch.tensor(s).float(), r"spatial_shapes must hold integers, got a tensor of torch.float32"),
        (2, lambda p: p[..., 0], r"sampling_locations must have shape \(2, Q, 2, 3, P, 2\), got \(2, 7, 2, 3, 3\)"),
        (2, lambda p: p[:1], r"sampling_locations must have shape \(2, Q, 2, 3, P, 2\), got \(1, 7"),
        (2, lambda p: p[:, :, :, :2], r"sampling_locations must have shape"),
        (2, lambda p: p.bfloat16(), r"sampling_locations must be torch.float32 .*, got torch.bfloat16"),
        (3, lambda w: w[:, :6], r"attention_weights must have shape \(2, 7, 2, 3, 3\), got \(2, 6, 2, 3, 3\)"),
        (3, lambda w: w.double(), r"attention_weights must be torch.float32 .*, got torch.float64"),
    ],
)
def test_ms_deform_attn_names_the_wrong_argument(function, position: int, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*_changed(position, change))


def test_ms_deform_attn_backward_names_a_wrong_gradient() -> None:
    with pytest.raises(ValueError, match=r"grad_output must be \(2, 7, 16\)"):
        torch.ops.mask2former.ms_deform_attn_backward(torch.randn(2, 7, 15), *make_inputs(dtype=torch.float32))


# --- CUDA ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 8, 16, 32, 40, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ms_deform_attn_cuda_equals_float64_reference(channels: int, dtype: torch.dtype) -> None:
    with torch.cuda.device(0):
        assert native.cuda_library() is not None, kernel_status()
    inputs = make_inputs(((24, 31), (12, 15), (5, 4)), channels=channels, queries=133, points=4, dtype=dtype)
    grad_output = torch.randn(2, 133, 2 * channels).to(dtype)
    on_gpu = tuple(item.cuda() if isinstance(item, Tensor) else item for item in inputs)
    found = [tensor.cpu() for tensor in gradients(ms_deform_attn, on_gpu, grad_output.cuda())]
    expected = gradients(ms_deform_attn_reference, in_float64(inputs), grad_output.double())
    assert_all_close(found, expected, {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype])
