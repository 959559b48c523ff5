"""Neighbourhood attention against published values and its definition, and its contract with torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.ops import neighbourhood_attention, neighbourhood_attention_reference
from tests.parity import load_fixture

OPERATOR = torch.ops.mask2former.neighbourhood_attention.default
Leaves = tuple[Tensor, Tensor, Tensor, Tensor]


def make_inputs(
    queries: tuple[int, int] = (5, 7),
    *,
    keys: tuple[int, int] | None = None,
    batch: int = 2,
    heads: int = 2,
    channels: int = 8,
    kernel_size: int = 3,
    dtype: torch.dtype = torch.float64,
) -> Leaves:
    """query, key, value, bias"""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = queries, keys or queries, keys or queries
    query, key, value = (torch.randn(batch, *size, heads, channels, dtype=exact).to(dtype) for size in sizes)
    return query, key, value, torch.randn(heads, 2 * kernel_size - 1, 2 * kernel_size - 1, dtype=exact)


def gradients(function: Any, inputs: Leaves, grad_output: Tensor, **options: Any) -> list[Tensor]:
    """output, then the gradients of query, key, value and bias"""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(output))]


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within tolerance of each tensor's largest magnitude."""
    for name, a, b in zip(("output", "query", "key", "value", "bias"), found, expected, strict=True):
        assert a.shape == b.shape, name
        scale = b.abs().max().clamp(min=1e-3) if b.numel() else 1
        assert ((a.double() - b.double()).abs() <= tolerance * scale).all(), name


def attention_to_all(inputs: Leaves, *, kernel_size: int, dilation: int, scale: float) -> Tensor:
    """The definition: every key but those of the window is masked."""
    query, key, value, bias = inputs
    is_seen, entry = [], []
    for queries, keys in zip(query.shape[1:3], key.shape[1:3]):
        seen = torch.zeros(queries, keys, dtype=torch.bool)
        for t in range(queries):
            members = list(range(t % dilation, keys, dilation))
            first = min(max(t // dilation - kernel_size // 2, 0), len(members) - kernel_size)
            seen[t, members[first : first + kernel_size]] = True
        is_seen.append(seen)
        offset = torch.arange(keys) // dilation - torch.arange(queries)[:, None] // dilation
        entry.append((offset + kernel_size - 1).clamp(0, 2 * kernel_size - 2))
    logits = scale * torch.einsum("byxmd,bijmd->bmyxij", query, key)
    logits = logits + bias[:, entry[0][:, None, :, None], entry[1][None, :, None, :]]
    logits = logits.masked_fill(~(is_seen[0][:, None, :, None] & is_seen[1][None, :, None, :]), -torch.inf)
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    return torch.einsum("bmyxij,bijmd->byxmd", weights, value)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", range(5))
def test_neighbourhood_attention_equals_published_values(case: int, dtype: torch.dtype, implementation: str) -> None:
    fixture = load_fixture("oneformer/neighbourhood_attention")
    spec = fixture.json("cases_json")[case]

    def tensor(name: str) -> Tensor:
        array = fixture.tensor(f"case_{case}/{name}")
        return array if "rpb" in name else array.permute(0, 2, 3, 1, 4)  # (B, H, W, M, D)

    inputs = tuple(tensor(name).to(dtype) for name in ("q", "k", "v", "rpb"))
    options = {"kernel_size": spec["kernel"], "dilation": spec["dilation"], "scale": 1.0}
    found = gradients(neighbourhood_attention, inputs, tensor("grad_out"), **options)
    expected = [tensor(name) for name in ("out", "grad_q", "grad_k", "grad_v", "grad_rpb")]
    assert_all_close(found, expected, 1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize(
    ("queries", "keys", "kernel_size", "dilation"),
    [
        ((5, 7), None, 3, 1),
        ((3, 3), None, 3, 1),
        ((4, 9), (6, 9), 3, 2),
        ((2, 1), (11, 13), 5, 2),
        ((13, 12), None, 5, 2),
        ((9, 40), (21, 40), 7, 3),
        ((30, 31), None, 11, 1),
        ((1, 5), (1, 6), 1, 1),
        ((6, 4), None, 1, 3),
    ],
    ids=str,
)
def test_neighbourhood_attention_is_attention_to_all_but_masked(
    queries: tuple[int, int], keys: tuple[int, int] | None, kernel_size: int, dilation: int, implementation: str
) -> None:
    inputs = make_inputs(queries, keys=keys, kernel_size=kernel_size)
    options = {"kernel_size": kernel_size, "dilation": dilation, "scale": 0.6}
    grad_output = torch.randn_like(inputs[0])
    found = gradients(neighbourhood_attention, inputs, grad_output, **options)
    expected = gradients(lambda *leaves, **given: attention_to_all(leaves, **given), inputs, grad_output, **options)
    assert_all_close(found, expected, 1e-12)


@pytest.mark.parametrize("channels", [1, 3, 8, 13, 16, 32, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_neighbourhood_attention_equals_float64_reference(
    channels: int, dtype: torch.dtype, implementation: str
) -> None:
    inputs = make_inputs((9, 11), channels=channels, dtype=dtype)
    grad_output = torch.randn_like(inputs[0])
    options = {"kernel_size": 3, "dilation": 2, "scale": 0.5}
    found = gradients(neighbourhood_attention, inputs, grad_output, **options)
    assert [tensor.dtype for tensor in found] == [dtype] * 4 + [inputs[3].dtype]
    exact = tuple(tensor.double() for tensor in inputs)
    expected = gradients(neighbourhood_attention_reference, exact, grad_output.double(), **options)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert_all_close(found, expected, tolerance)


@pytest.mark.parametrize("case", [{"batch": 0}, {"heads": 0}, {"channels": 0}, {"queries": (0, 3), "keys": (3, 3)}])
def test_neighbourhood_attention_takes_nothing(case: dict[str, Any], implementation: str) -> None:
    inputs = make_inputs(**{"queries": (5, 7), **case})
    found = gradients(neighbourhood_attention, inputs, inputs[0], kernel_size=3, dilation=1, scale=1.0)
    assert [tensor.shape for tensor in found] == [inputs[0].shape, *(tensor.shape for tensor in inputs)]
    assert all((tensor == 0).all() for tensor in found)


def test_neighbourhood_attention_takes_strided_inputs(implementation: str) -> None:
    *maps, bias = make_inputs((6, 7), channels=5)
    together = torch.stack(maps, dim=3)  # as a linear layer for all three puts them out
    options = {"kernel_size": 3, "dilation": 2, "scale": 1.0}
    expected = gradients(neighbourhood_attention, (*maps, bias), maps[0], **options)
    for strided in (together.unbind(3), [tensor.transpose(1, 4).contiguous().transpose(1, 4) for tensor in maps]):
        assert not strided[0].is_contiguous()
        found = gradients(neighbourhood_attention, (*strided, bias.mT.contiguous().mT), maps[0].clone(), **options)
        assert_all_close(found, expected, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_neighbourhood_attention_passes_on_what_is_not_finite(bad: float, implementation: str) -> None:
    inputs = make_inputs((9, 9), dtype=torch.float32)
    options = {"kernel_size": 3, "dilation": 1, "scale": 1.0}
    expected = neighbourhood_attention(*inputs, **options)
    inputs[2][1, 4, 4, 1] = bad  # the value of a pixel that 3 x 3 windows hold
    output = neighbourhood_attention(*inputs, **options)
    is_hit = torch.zeros(output.shape, dtype=torch.bool)
    is_hit[1, 3:6, 3:6, 1] = True
    assert not output[is_hit].isfinite().any()
    assert torch.equal(output[~is_hit], expected[~is_hit])


def test_neighbourhood_attention_takes_large_logits(implementation: str) -> None:
    inputs = make_inputs((5, 6), dtype=torch.float32)
    options = {"kernel_size": 3, "dilation": 1, "scale": 1e4}
    exact = neighbourhood_attention_reference(*(tensor.double() for tensor in inputs), **options)
    torch.testing.assert_close(neighbourhood_attention(*inputs, **options).double(), exact, rtol=1e-2, atol=1e-3)


# --- contract with torch ------------------------------------------------------------------------------------------


def test_neighbourhood_attention_passes_gradcheck(implementation: str) -> None:
    inputs = tuple(t.requires_grad_() for t in make_inputs((2, 4), keys=(4, 5), batch=1, channels=3))
    assert torch.autograd.gradcheck(lambda *leaves: OPERATOR(*leaves, 3, 1, 0.7), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbourhood_attention_passes_opcheck(dtype: torch.dtype, implementation: str) -> None:
    inputs = tuple(t.requires_grad_() for t in make_inputs((6, 7), dtype=dtype))
    torch.library.opcheck(OPERATOR, (*inputs, 3, 2, 0.7))


def test_neighbourhood_attention_compiles_and_exports() -> None:
    class Attention(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return neighbourhood_attention(*inputs, kernel_size=3, dilation=2, scale=0.5).square()

    inputs = make_inputs((6, 7), dtype=torch.float32)
    expected = Attention()(*inputs)
    torch.testing.assert_close(torch.compile(Attention(), backend="aot_eager", fullgraph=True)(*inputs), expected)
    exported = torch.export.export(Attention(), inputs)
    assert [node.target for node in exported.graph.nodes if "neighbourhood" in str(node.target)] == [OPERATOR]
    torch.testing.assert_close(exported.module()(*inputs), expected)


def test_reference_exports_without_own_operators() -> None:
    class Attention(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return neighbourhood_attention_reference(*inputs, kernel_size=3, dilation=2, scale=0.5)

    inputs = make_inputs((6, 7), dtype=torch.float32)
    exported = torch.export.export(Attention(), inputs)
    assert "mask2former" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(*inputs), Attention()(*inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, "must be odd"),
        ({"dilation": 0}, "at least 1"),
        ({"dilation": 3}, "at least 9 rows and columns"),
        ({"query": torch.zeros(2, 5, 7, 16)}, r"\(B, h, w, M, D\)"),
        ({"query": torch.zeros(2, 6, 7, 2, 8)}, "those of the queries"),
        ({"query": torch.zeros(2, 5, 7, 2, 4)}, "agree in B, M and D"),
        ({"value": torch.zeros(2, 5, 8, 2, 8)}, r"\(B, H, W, M, D\)"),
        ({"bias": torch.zeros(2, 5, 4)}, r"bias must be \(2, 5, 5\)"),
        ({"bias": torch.zeros(2, 5, 5, dtype=torch.int32)}, "bias torch.float32"),
        ({"key": torch.zeros(2, 5, 7, 2, 8, dtype=torch.float64)}, "one floating dtype"),
        ({"key": torch.zeros(2, 5, 7, 2, 8, device="meta")}, "one device"),
    ],
    ids=str,
)
def test_neighbourhood_attention_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    names = ("query", "key", "value", "bias")
    arguments = dict(zip(names, make_inputs(dtype=torch.float32)), kernel_size=3, dilation=1, scale=1.0)
    for function in (neighbourhood_attention, neighbourhood_attention_reference):
        with pytest.raises(ValueError, match=message):
            function(**{**arguments, **change})
