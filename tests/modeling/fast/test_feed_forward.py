"""Feed-forward network in blocks and trained 3 x 3 convolution: values and gradients of the plain operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.modeling.fast import accelerate
from mask2former.modeling.fast.encoder import feed_forward
from mask2former.modeling.layers import Conv2d
from mask2former.ops import is_trained_winograd_faster


@pytest.mark.parametrize("num_tokens", [0, 1, 131, 2100])
def test_feed_forward_has_the_gradients_of_its_parts(num_tokens: int) -> None:
    first, second = nn.Linear(12, 20), nn.Linear(20, 12)
    x = torch.randn(2, num_tokens, 12, requires_grad=True)
    inputs = (x, *first.parameters(), *second.parameters())
    found, expected = feed_forward(x, first, second), second(F.relu(first(x)))
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    grads = torch.autograd.grad(found, inputs, grad)
    for one, other in zip(grads, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_feed_forward_serves_frozen_layers_other_types_and_half_precision() -> None:
    first, second = nn.Linear(12, 20), nn.Linear(20, 12)
    x = torch.randn(5, 12, requires_grad=True)
    first.requires_grad_(False)
    feed_forward(x, first, second).sum().backward()
    assert first.weight.grad is None
    assert second.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert feed_forward(x, first, second).dtype == torch.bfloat16
    assert feed_forward(x.detach().double(), first.double(), second.double()).dtype == torch.float64


def test_feed_forward_calls_layers_that_are_more_than_a_product() -> None:
    class Adapter(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    x, first, second = torch.randn(5, 12), nn.Linear(12, 20), nn.Linear(20, 12)
    adapter = Adapter(20, 12)
    adapter.load_state_dict(second.state_dict())
    torch.testing.assert_close(feed_forward(x, first, adapter), feed_forward(x, first, second) + 1)
    seen = []
    first.register_forward_hook(lambda *arguments: seen.append(arguments[-1].shape))
    feed_forward(x, first, second)
    assert seen == [(5, 20)]


@pytest.mark.usefixtures("many_tiles")
def test_trained_convolution_has_the_gradients_of_torchs() -> None:
    module = accelerate(Conv2d(64, 80, 3, padding=1, bias=False, norm=nn.GroupNorm(4, 80), activation=F.relu))
    x = torch.randn(2, 64, 21, 30).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert is_trained_winograd_faster(x, module.weight)
    inputs = (x, module.weight)
    found = module(x)
    expected = F.relu(module.norm(F.conv2d(x, module.weight, padding=1)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(found)
    grads = torch.autograd.grad(found, inputs, grad)
    for one, other in zip(grads, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("many_tiles")
def test_autocast_around_the_backward_pass_changes_no_gradient() -> None:
    module = accelerate(Conv2d(64, 64, 3, padding=1, bias=False))
    x = torch.randn(1, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    first, second = nn.Linear(64, 32), nn.Linear(32, 64)
    assert is_trained_winograd_faster(x, module.weight)

    def loss() -> torch.Tensor:
        return feed_forward(module(x).flatten(2).transpose(1, 2), first, second).square().sum()

    weights = (module.weight, first.weight, second.weight)
    expected = torch.autograd.grad(loss(), weights)
    outside = loss()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(outside, weights)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("many_tiles")
def test_trained_convolution_forms_only_gradients_that_are_wanted() -> None:
    module = accelerate(Conv2d(64, 64, 3, padding=1, bias=False))
    x = torch.randn(1, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    module(x).sum().backward()
    assert x.grad is None
    assert module.weight.grad is not None
    module.weight.requires_grad_(False)
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None


@pytest.fixture
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps count as large."""
    monkeypatch.setattr("mask2former.ops.convolution._MIN_TILES", 4)
    monkeypatch.setattr("mask2former.ops.convolution._MIN_MULTIPLICATIONS_TRAINED", 0)
