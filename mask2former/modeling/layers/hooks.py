"""Who looks at a module's inputs and outputs, which then must neither be skipped nor written over."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks or a forward that somebody replaced see what passes through `module` or any below it."""
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS):
        return True
    return any("forward" in vars(m) or any(getattr(m, name) for name in _HOOKS) for m in module.modules())
