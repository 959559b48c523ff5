"""Prepare a model for inference only: do once what would be repeated for every image.

Batch norms are merged into the convolutions before them, Swin's position biases are computed, and with MODEL.PRECISION
bfloat16 or float16 weights are cast to the dtype to which autocast would cast them at each call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

from mask2former.modeling.backbone.window_attention import WindowAttention
from mask2former.modeling.fast.convolution import fold_norm
from mask2former.modeling.fast.layers import keep_position_bias
from mask2former.modeling.fast.twins import accelerate, is_unedited, plain_type
from mask2former.modeling.layers import Conv2d, MultiheadAttention

ModelT = TypeVar("ModelT", bound=nn.Module)

# What autocast casts of these, on CPUs and GPUs, is all that they hold themselves. Types are compared exactly: a
# subclass may do something else with its weights before it calls the operator.
_CAST_LAYERS = frozenset({Conv2d, MultiheadAttention, nn.Conv2d, nn.ConvTranspose2d, nn.Linear})
_KNOWN_PACKAGES = ("mask2former", "torch")


def prepare_for_inference(model: ModelT) -> ModelT:
    """Merge batch norms and cast weights in place, once instead of at each call, and return the model.

    On a CPU the model is also accelerated, if it was not built so. A second call changes nothing. Afterwards a model of
    ``build_model`` can be neither trained nor saved as a checkpoint: the state dict has other names and dtypes, and
    ``train()`` and ``load_weights`` raise an error, so load weights first. Results in half precision are bit-equal to
    those with merged norms alone; in float32 they are the same up to rounding. Modules of other packages, such as
    networks of timm, are not changed.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("prepare_for_inference: expected a model in evaluation mode, found one in training mode")
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        accelerate(model)
    modules = list(_known_modules(model))
    for module in modules:
        if plain_type(module) is Conv2d and is_unedited(Conv2d):
            fold_norm(module)  # type: ignore[arg-type]
        elif hasattr(module, "is_prepared"):
            module.is_prepared = True  # type: ignore[assignment]
    dtype = getattr(model, "inference_dtype", None)
    for module in modules:  # after merging, which is done in float32
        if type(module) is WindowAttention:
            keep_position_bias(module, dtype=dtype)
        elif plain_type(module) in _CAST_LAYERS and isinstance(dtype, torch.dtype):
            _cast_parameters(module, dtype)
    return model


def _known_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield ``module`` and all below it, except modules of other packages, which may read their weights in any way.

    Of a subclass of a meta-architecture from outside, the parts count as ours. Not yielded are the parts of
    a module that computes in float32 whatever the precision (``keeps_float32``).
    """
    if type(module).__module__.partition(".")[0] not in _KNOWN_PACKAGES and not hasattr(module, "is_prepared"):
        return
    yield module
    if getattr(module, "keeps_float32", False):
        return
    for child in module.children():
        yield from _known_modules(child)


def _cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the float32 parameters of the module itself to ``dtype``; autocast leaves others as they are, too."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dtype == torch.float32:
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
