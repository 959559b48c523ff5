"""How a model is executed: MODEL.PRECISION, FLOAT32_PRECISION, MODEL.COMPILE.

Autocast chooses the dtype by operator. Always float32: locations and weights of deformable attention, every softmax,
statistics of norms, matching, losses and everything after the logits. FLOAT32_PRECISION admits TF32 on GPUs and
bfloat16 on some CPUs inside of float32 products.

``torch.compile`` makes one graph of the computation from pixels to logits. Methods are replaced on the model instance
and no module is wrapped, so state-dict names stay and weights can be loaded afterwards. Matching, losses and post-
processing, which depend on the content of images, are not compiled.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.errors import ConfigError

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


class CompiledStep:
    """A method that is compiled at its first call, and again for any size when other sizes come.

    Copies and pickles of it compile anew. Within another compilation or an export it is the method itself.
    """

    def __init__(self, method: Callable[..., Any], mode: str) -> None:
        self.method = method
        self.mode = mode
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.method(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(self.method, mode=self.mode)
        torch.compiler.cudagraph_mark_step_begin()
        outputs = self._compiled(*args, **kwargs)
        # The next run of a CUDA graph writes over the outputs of this one; training is through with them by then.
        return outputs if self.mode == "default" or torch.is_grad_enabled() else _copy_cuda(outputs, {})

    def __reduce__(self) -> tuple[type[CompiledStep], tuple[Callable[..., Any], str]]:
        return CompiledStep, (self.method, self.mode)


def compile_model(model: nn.Module, mode: str) -> nn.Module:
    """Compile the ``compiled_steps`` of a model in place and return the model; an empty ``mode`` changes nothing.

    Raises:
        ConfigError: an unknown mode, a model without such steps, or a machine without compiler.
    """
    if not mode:
        return model
    if mode not in COMPILE_MODES:
        raise ConfigError(f'MODEL.COMPILE: expected "" or one of {", ".join(COMPILE_MODES)}; found {mode!r}')
    steps = getattr(model, "compiled_steps", ())
    if not steps:
        raise ConfigError(f"MODEL.COMPILE: {type(model).__name__} names no compiled_steps; found {mode!r}, expected ''")
    check_compiler(next(model.parameters()).device)
    for name in steps:
        setattr(model, name, CompiledStep(getattr(model, name), mode))
    return model


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError if ``torch.compile`` has no compiler for ``device``."""
    advice = 'MODEL.COMPILE "" runs without'
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(f"MODEL.COMPILE: kernels for CUDA need the package triton, which is not there; {advice}")
        return
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(wanted.split()[0]) is None:
        raise ConfigError(
            f"MODEL.COMPILE: kernels for the CPU need a C++ compiler, found no {wanted} (CXX names another); {advice}"
        )


def _copy_cuda(value: Any, copies: dict[int, Tensor]) -> Any:
    """Return the same structure with copied tensors; a tensor that occurs twice is copied once."""
    if isinstance(value, Tensor):
        if value.is_cuda and id(value) not in copies:
            copies[id(value)] = value.clone()
        return copies.get(id(value), value)
    if isinstance(value, dict):
        return {name: _copy_cuda(item, copies) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_copy_cuda(item, copies) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


_DTYPES: Mapping[str, torch.dtype | None] = MappingProxyType(
    {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
PRECISIONS = tuple(_DTYPES)


def parse_precision(name: str, device: torch.device | None = None) -> torch.dtype | None:
    """Return the dtype that MODEL.PRECISION names; None is float32 throughout.

    Raises:
        ConfigError: an unknown name, or float16 on a ``device`` without kernels for it.
    """
    if name not in _DTYPES:
        raise ConfigError(f"MODEL.PRECISION: expected one of {', '.join(PRECISIONS)}; found {name!r}")
    if name == "float16" and device is not None and device.type != "cuda":
        raise ConfigError(f"MODEL.PRECISION: float16 is for CUDA, expected float32 or bfloat16 on a {device.type}")
    return _DTYPES[name]


_FLOAT32_NAMES = ("highest", "high", "medium")


def set_float32_precision(name: str) -> None:
    """Set the precision of float32 matrix products and convolutions in this process; "" keeps torch's default.

    "highest" also makes cuDNN convolve in float32; torch's default for it is TF32.

    Raises:
        ConfigError: an unknown name.
    """
    if not name:
        return
    if name not in _FLOAT32_NAMES:
        raise ConfigError(f"FLOAT32_PRECISION: expected {', '.join(_FLOAT32_NAMES)} or nothing, found {name!r}")
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
