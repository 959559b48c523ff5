"""Group norm and the pyramid's sum that write over their map: their values, and where they leave a map as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.ops import add_layer_norm_, add_product_relu_, add_resized, group_norm_relu_, is_map_written_over

SIZES = [(1, 16, 1, 1), (2, 32, 5, 13), (1, 48, 9, 8), (3, 64, 17, 4)]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make_map(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(size) + 2).to(dtype).contiguous(memory_format=torch.channels_last)


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.is_contiguous(memory_format=torch.channels_last)
    scale = expected.abs().max().clamp(min=1)
    assert ((found.double() - expected).abs().max() / scale) <= TOLERANCES[found.dtype]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_group_norm_equals_float64(size: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    x, weight, bias = make_map(size, dtype), torch.randn(size[1]), torch.randn(size[1])
    if size[2:] == (1, 1):  # torch refuses groups of one value, eight channels it takes
        groups = 2
    else:
        groups = size[1] // 4
    expected = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    found = group_norm_relu_(x, num_groups=groups, weight=weight, bias=bias, eps=1e-5, relu=relu)
    assert found is x
    assert_near(x, expected.relu() if relu else expected)


def test_group_norm_of_a_far_mean_loses_nothing() -> None:
    x = make_map((1, 32, 40, 30)) + 1000
    weight, bias = torch.ones(32), torch.zeros(32)
    expected = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
    found = group_norm_relu_(x, num_groups=4, weight=weight, bias=bias, eps=1e-5, relu=False)
    assert (found - expected).abs().max() <= 1e-4  # float32 holds the input itself to 6e-5


def test_group_norm_lets_nan_through() -> None:
    x = make_map((1, 16, 3, 3))
    x[0, 3, 1, 1] = torch.nan
    found = group_norm_relu_(x, num_groups=2, weight=torch.ones(16), bias=torch.zeros(16), eps=1e-5, relu=True)
    assert found[0, :8].isnan().all()
    assert found[0, 8:].isfinite().all()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("above_size", [(1, 1), (3, 2), (4, 9), (30, 20)])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_add_resized_equals_interpolation(
    size: tuple[int, ...], dtype: torch.dtype, above_size: tuple[int, int]
) -> None:
    x, above = make_map(size, dtype), make_map((*size[:2], *above_size), dtype)
    expected = x.double() + F.interpolate(above.double(), size=size[2:], mode="bilinear", align_corners=False)
    found = add_resized(x, above)
    assert found is x
    assert_near(x, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_add_resized_leaves_a_map_whose_gradient_is_wanted(layout: torch.memory_format) -> None:
    with torch.enable_grad():
        x = make_map((2, 16, 6, 8)).contiguous(memory_format=layout).requires_grad_()
        above = make_map((2, 16, 3, 4)).requires_grad_()
        found = add_resized(x, above)
        found.sum().backward()
    expected = x + F.interpolate(above, size=(6, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.detach(), expected)
    assert x.grad is not None
    assert above.grad is not None
    assert above.grad.sum() == pytest.approx(found.numel())


def test_maps_that_cannot_be_written_over() -> None:
    assert is_map_written_over(make_map((1, 16, 4, 4)))
    assert not is_map_written_over(make_map((1, 24, 4, 4)))
    assert not is_map_written_over(torch.randn(1, 16, 4, 4))
    assert not is_map_written_over(make_map((1, 16, 4, 4), torch.float64))
    assert not is_map_written_over(make_map((0, 16, 4, 4)))
    with torch.enable_grad():
        assert not is_map_written_over(make_map((1, 16, 4, 4)))


@pytest.mark.usefixtures("instruction_set")
@torch.no_grad()
def test_residual_sum_is_written_over_its_map() -> None:
    x, factor = (torch.randn(2, c, 9, 7).contiguous(memory_format=torch.channels_last) for c in (32, 5))
    weight, bias = torch.randn(32, 5), torch.randn(32)
    expected = F.relu(x.double() + F.conv2d(factor.double(), weight.double()[:, :, None, None], bias.double()))
    found = add_product_relu_(x, factor, weight, bias)
    assert found is x
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 80, 256])
@torch.no_grad()
def test_norm_of_a_sum_is_written_over_some_of_the_tokens(dtype: torch.dtype, channels: int) -> None:
    tokens, update = 3 * torch.randn(2, 200, channels) + 5, torch.randn(2, 131, channels).to(dtype)
    weight, bias = torch.randn(channels), torch.randn(channels)
    before, part = tokens.clone(), tokens[:, 10:141]
    expected = F.layer_norm(part.double() + update.double(), (channels,), weight.double(), bias.double(), 1e-5)
    found = add_layer_norm_(part, update, weight=weight, bias=bias, eps=1e-5)
    assert found.data_ptr() == part.data_ptr()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(tokens[:, :10], before[:, :10])
    assert torch.equal(tokens[:, 141:], before[:, 141:])


@pytest.mark.parametrize(("channels", "dtype"), [(7, torch.float32), (32, torch.float64)])
@torch.no_grad()
def test_norm_of_a_sum_of_any_width_and_type(channels: int, dtype: torch.dtype) -> None:
    tokens, update, weight, bias = (torch.randn(*size, channels, dtype=dtype) for size in ((1, 5), (1, 5), (), ()))
    expected = F.layer_norm(tokens + update, (channels,), weight, bias, 1e-5)
    torch.testing.assert_close(add_layer_norm_(tokens, update, weight=weight, bias=bias, eps=1e-5), expected)
