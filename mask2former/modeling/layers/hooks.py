"""Who looks at a module's inputs and outputs, which then must neither be skipped nor written over."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module


def has_hooks(module: nn.Module) -> bool:
    """Whether forward hooks or a forward that somebody replaced see what passes through `module` or any below it."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in module.modules())
