"""Conv2d by Winograd's filtering: the same outputs, whatever follows the convolution, and no trace of it elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling import prepare_for_inference
from mask2former.modeling.fast import accelerate
from mask2former.modeling.fast import convolution as conv_module
from mask2former.modeling.layers import Conv2d, FrozenBatchNorm2d
from mask2former.ops import build, native


@pytest.fixture(autouse=True)
def _library() -> None:
    if native.cpu_library() is None:
        pytest.skip(f"the CPU library is not built: python -m {build.__name__}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs that went the fast way."""
    seen: list[Tensor] = []

    def watched(x: Tensor, *args, **kwargs) -> Tensor:
        seen.append(x)
        return conv3x3(x, *args, **kwargs)

    conv3x3 = conv_module.conv3x3
    monkeypatch.setattr(conv_module, "conv3x3", watched)
    return seen


def make_convolution(**options) -> Conv2d:
    return accelerate(Conv2d(64, 64, 3, **{"padding": 1, **options}))


def make_map() -> Tensor:
    return torch.randn(2, 64, 21, 30).relu().contiguous(memory_format=torch.channels_last)


def frozen_norm() -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(64)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def outputs_both_ways(convolution: Conv2d, x: Tensor, calls: list[Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        fast, is_fast = convolution(x), len(calls) == 1
        direct = convolution(x.contiguous())
    assert is_fast
    assert len(calls) == 1
    return fast, direct


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, F.relu_, F.relu, F.gelu])
@pytest.mark.parametrize("norm", [lambda: None, frozen_norm, lambda: nn.GroupNorm(32, 64)])
def test_conv2d_gives_the_same_by_either_way(norm, activation, bias: bool, calls: list[Tensor]) -> None:
    convolution = make_convolution(bias=bias, norm=norm(), activation=activation)
    fast, direct = outputs_both_ways(convolution, make_map(), calls)
    torch.testing.assert_close(fast, direct, rtol=1e-5, atol=1e-5)


def test_conv2d_with_gradients_stays_with_torch(calls: list[Tensor]) -> None:
    convolution = make_convolution(norm=frozen_norm(), activation=F.relu_)
    x = make_map().requires_grad_()
    convolution(x).sum().backward()
    assert calls == []
    assert x.grad is not None
    assert convolution.weight.grad is not None


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 0}, {"padding": 2, "dilation": 2}, {"groups": 2}])
def test_conv2d_of_another_geometry_stays_with_torch(options: dict[str, int], calls: list[Tensor]) -> None:
    convolution = make_convolution(**options)
    with torch.no_grad():
        convolution(make_map())
    assert calls == []


def test_conv2d_notices_an_optimiser_step_and_loaded_weights(calls: list[Tensor]) -> None:
    convolution, other = (make_convolution(norm=frozen_norm()) for _ in range(2))
    x = make_map()
    outputs_both_ways(convolution, x, calls)
    optimizer = torch.optim.AdamW(convolution.parameters(), lr=0.1)
    convolution(x).square().mean().backward()
    optimizer.step()
    calls.clear()
    torch.testing.assert_close(*outputs_both_ways(convolution, x, calls), rtol=1e-5, atol=1e-5)
    convolution.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(convolution(x), other(x))
        prepare_for_inference(convolution.eval())
        torch.testing.assert_close(convolution(x), other(x), rtol=1e-5, atol=1e-5)


def test_conv2d_copies_and_states_know_nothing_of_it(calls: list[Tensor]) -> None:
    convolution = make_convolution()
    x, names = make_map(), list(convolution.state_dict())
    outputs_both_ways(convolution, x, calls)
    assert list(convolution.state_dict()) == names == ["weight", "bias"]
    twin = copy.deepcopy(convolution)
    with torch.no_grad():
        twin.weight.mul_(3)
        twin.bias.mul_(3)
        torch.testing.assert_close(twin(x), 3 * convolution(x), rtol=1e-5, atol=1e-5)


def test_conv2d_in_bfloat16_stays_with_torch(calls: list[Tensor]) -> None:
    convolution = make_convolution()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert convolution(make_map()).dtype == torch.bfloat16
    assert calls == []


def test_conv2d_compiles_and_exports_as_a_convolution(calls: list[Tensor]) -> None:
    convolution = make_convolution().eval()
    with torch.no_grad():
        program = torch.export.export(convolution, (make_map(),))
    assert calls == []
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
