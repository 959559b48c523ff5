"""Normalisation layers by their names in configs, and batch norm with constant statistics.

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError

NormSpec = str | Callable[[int], nn.Module] | None

_GROUP_NORM_GROUPS = 32  # Wu and He 2018, the choice of every published recipe


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine terms are constants: (N, C, H, W) -> (N, C, H, W).

    All four are buffers (weight, bias, running_mean, running_var), so no optimizer touches them.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the layer as an affine map: factors (C,) and offsets (C,), float32 at least."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)  # half precision would spoil the root
        scale = self.weight.to(dtype) * torch.rsqrt(self.running_var.to(dtype) + self.eps)
        return scale, self.bias.to(dtype) - self.running_mean.to(dtype) * scale

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # Written out, autograd keeps the C factors and not the whole input for the backward pass.
        scale, shift = self.scale_and_shift()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # written by trainable batch norm; without meaning here
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def from_batch_norm(cls, norm: nn.modules.batchnorm._BatchNorm) -> FrozenBatchNorm2d:
        """Return a frozen layer with the current statistics and affine terms of ``norm``."""
        frozen = cls(norm.num_features, eps=norm.eps)
        frozen.to(device=norm.running_mean.device)  # type: ignore[union-attr]
        for name, buffer in frozen.named_buffers():
            source = getattr(norm, name)
            if source is not None:
                buffer.copy_(source.detach())
        return frozen


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over all processes; unlike torch's it also works on the CPU, through differentiable all-reduce."""

    def forward(self, x: Tensor) -> Tensor:
        shared = self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not shared or x.device.type != "cpu":
            return super().forward(x)
        return self._forward_shared(x)

    def _forward_shared(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        values = x.float()
        total = all_reduce(values.new_tensor(float(values.numel() // values.shape[1])))  # positions, of all processes
        mean = all_reduce(values.sum((0, 2, 3))) / total  # (C,)
        centred = values - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3))) / total  # (C,)
        self._track(mean.detach(), (var * total / (total - 1).clamp(min=1)).detach())
        scale = torch.rsqrt(var + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
        self.running_var.lerp_(var, momentum)  # type: ignore[union-attr]


class GroupNorm(nn.GroupNorm):
    """Group norm that accepts maps of 1 x 1, which torch's refuses: a single value becomes the bias.

    Half-precision maps keep their dtype, with sums and parameters in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over the last axis of (N, H, W, C)


def _group_norm(num_channels: int) -> nn.Module:
    if num_channels % _GROUP_NORM_GROUPS:
        raise ConfigError(f"GN: expected channels divisible by {_GROUP_NORM_GROUPS}, found {num_channels}")
    return GroupNorm(_GROUP_NORM_GROUPS, num_channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm2d,
}


NORM_NAMES = ("", *_NORMS)


def get_norm(norm: NormSpec, out_channels: int) -> nn.Module | None:
    """Return the norm layer that ``norm`` names.

    Names are "" (None), BN, SyncBN, FrozenBN, GN and LN; ``norm`` may also be a callable taking the channels.

    Raises:
        ConfigError: an unknown name, or channels that the groups of GN do not divide.
    """
    if not norm:
        return None
    if not isinstance(norm, str):
        return norm(out_channels)
    if norm not in _NORMS:
        raise ConfigError(f'norm: expected one of "", {", ".join(_NORMS)}; found {norm!r}')
    return _NORMS[norm](out_channels)


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in ``module`` (itself included) by its frozen form; return the result.

    One without running statistics is not replaced, because it has no constants.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module if module.running_mean is None else FrozenBatchNorm2d.from_batch_norm(module)
    for name, child in module.named_children():
        frozen = freeze_batch_norm(child)
        if frozen is not child:
            setattr(module, name, frozen)
    return module
