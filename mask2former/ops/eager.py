"""When kernels may be called directly: without gradients, on the CPU, and with nobody who has to see operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_eager_cpu(x: Tensor) -> bool:
    """Whether `x` is on the CPU and no graph of the operators may be wanted but autograd's."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x):  # by vmap: a batch that has no memory of its own
        return False
    return x.device.type == "cpu" and type(x) is Tensor and not is_in_torch_dispatch_mode()


def is_eager_cpu_inference(x: Tensor) -> bool:
    """The same where gradients cannot be wanted either."""
    return not torch.is_grad_enabled() and is_eager_cpu(x)
