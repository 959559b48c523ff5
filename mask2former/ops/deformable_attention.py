"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3) as one torch operator.

`torch.compile` and `torch.export` see the opaque operator mask2former::ms_deform_attn, which has a backward operator.
Behind it: compiled kernels for CPU and CUDA where they are built, PyTorch everywhere else.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.deformable_attention_reference import reference_backward, reference_forward

Shapes = Sequence[tuple[int, int]] | Sequence[int] | Tensor

# DType in csrc/cpu/problem.h and csrc/cuda/ms_deform_attn.cu.
_CPU_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_CUDA_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_HALF_DTYPES = (torch.float16, torch.bfloat16)
_MAX_CUDA_LEVELS = 16  # kMaxLevels in csrc/cuda/ms_deform_attn.cu
_MAX_TOKENS = 2**30  # pixel indices are 32-bit


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """For each query and head the weighted sum of bilinear samples of all levels' maps.

    value: (B, S, M, D) float32, float64, bfloat16 or float16; the levels' pixels in row-major order, one level after
        the other.
    spatial_shapes: (height, width) of each level, best as Python ints: `[(h, w), …]` or flat; an (L, 2) integer tensor
        is copied to the host. Their areas sum to S.
    sampling_locations: (B, Q, M, L, P, 2) as (x, y), 0 to 1 from edge to edge of the level; outside the map is zero.
        float64 for a float64 value, else float32 (bfloat16 cannot place a point on a map wider than 128).
    attention_weights: (B, Q, M, L, P), dtype of the locations or half precision.
    Returns (B, Q, M * D) in the dtype of the value. Accumulates in the dtype of the locations.
    Raises ValueError for a wrong shape, dtype or device.
    """
    shapes = _flatten_shapes(spatial_shapes)
    weights = _promote_weights(attention_weights, sampling_locations)
    return torch.ops.mask2former.ms_deform_attn(value, shapes, sampling_locations, weights)


def ms_deform_attn_around(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *, centres: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`ms_deform_attn` at places around each query's own, weighted by a softmax: what an encoder layer computes.

    value, spatial_shapes, result: as in `ms_deform_attn`.
    centres: (Q, 2) as (x, y), 0 to 1 from edge to edge of every level, float32 or float64.
    offsets: (B, Q, M, L, P, 2) in pixels of each level. logits: (B, Q, M, L, P) of a softmax over all points of a head.
    On a CPU without gradients neither locations nor weights are ever stored.
    """
    if not (torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.jit.is_tracing()):
        output = _forward_around_cpu(value, spatial_shapes, centres=centres, offsets=offsets, logits=logits)
        if output is not None:
            return output
    # Places and their weights have at least float32: bfloat16 cannot tell neighbouring pixels of a wide map apart.
    precise = torch.promote_types(offsets.dtype, torch.float32)
    pixels = torch.tensor([[1 / w, 1 / h] for h, w in spatial_shapes], dtype=precise, device=offsets.device)  # (L, 2)
    locations = torch.addcmul(centres.to(precise)[:, None, None, None], offsets.to(precise), pixels[:, None])
    weights = _softmax_over_few(logits.to(precise).flatten(3)).view(logits.shape)
    return ms_deform_attn(value, spatial_shapes, locations, weights)


def _softmax_over_few(x: Tensor) -> Tensor:
    if not x.is_cpu or torch.compiler.is_compiling():
        return x.softmax(-1)
    # The CPU kernel works along the last axis, which is short here; written out, this takes a fifth of its time.
    exponentials = (x - x.detach().amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same in plain PyTorch operators, for every device and exporter; arguments as in `ms_deform_attn`."""
    shapes = _flatten_shapes(spatial_shapes)
    weights = _promote_weights(attention_weights, sampling_locations)
    _check_arguments(value, shapes, sampling_locations, weights)
    return reference_forward(value, shapes, sampling_locations, weights)


def _flatten_shapes(spatial_shapes: Shapes) -> list[int]:
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.is_floating_point():
            raise ValueError(f"spatial_shapes must hold integers, got a tensor of {spatial_shapes.dtype}")
        return spatial_shapes.flatten().tolist()
    flat: list[Any] = []
    for item in spatial_shapes:
        if isinstance(item, (tuple, list)):
            flat.extend(item)
        else:
            flat.append(item)
    # Where torch.jit traces, sizes are tensors, which an operator does not take for integers.
    return [int(size) if isinstance(size, Tensor) else size for size in flat]


def _promote_weights(attention_weights: Tensor, sampling_locations: Tensor) -> Tensor:
    if attention_weights.dtype in _HALF_DTYPES and sampling_locations.dtype == torch.float32:
        return attention_weights.float()
    return attention_weights


def _check_arguments(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    _check_dtypes(value, sampling_locations, attention_weights)


def _check_shapes(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    if value.ndim != 4:
        raise ValueError(f"value must have shape (B, S, M, D), got {tuple(value.shape)}")
    if len(spatial_shapes) < 2 or len(spatial_shapes) % 2:
        raise ValueError(f"spatial_shapes must hold (height, width) of each level, got {list(spatial_shapes)}")
    heights, widths = spatial_shapes[0::2], spatial_shapes[1::2]
    if any(size < 1 for size in spatial_shapes):
        raise ValueError(f"spatial_shapes must be positive, got {list(spatial_shapes)}")
    batch, tokens, heads, _ = value.shape
    if (area := sum(h * w for h, w in zip(heights, widths, strict=True))) != tokens:
        raise ValueError(f"value has {tokens} tokens, but spatial_shapes {list(spatial_shapes)} have {area} pixels")
    found = tuple(sampling_locations.shape)
    if len(found) != 6 or found[0] != batch or found[2] != heads or found[3] != len(heights) or found[5] != 2:
        expected = f"({batch}, Q, {heads}, {len(heights)}, P, 2)"
        raise ValueError(f"sampling_locations must have shape {expected}, got {found}")
    if attention_weights.shape != found[:5]:
        raise ValueError(f"attention_weights must have shape {found[:5]}, got {tuple(attention_weights.shape)}")


def _check_dtypes(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64, *_HALF_DTYPES):
        raise ValueError(f"value must be float32, float64, bfloat16 or float16, got {value.dtype}")
    expected = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.dtype != expected:
            raise ValueError(f"{name} must be {expected} for a value of {value.dtype}, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on the device of value ({value.device}), got {tensor.device}")


def _check_grad_output(grad_output: Tensor, value: Tensor, sampling_locations: Tensor) -> None:
    batch, _, heads, channels = value.shape
    expected = (batch, sampling_locations.shape[1], heads * channels)
    if grad_output.shape != expected or grad_output.dtype != value.dtype or grad_output.device != value.device:
        raise ValueError(
            f"grad_output must be {expected} of {value.dtype} on {value.device}, "
            f"got {tuple(grad_output.shape)} of {grad_output.dtype} on {grad_output.device}"
        )


def _sizes(value: Tensor, sampling_locations: Tensor) -> tuple[int, ...]:
    """B, S, M, D, Q, L, P as the C functions take them."""
    _, queries, _, levels, points, _ = sampling_locations.shape
    return (*value.shape, queries, levels, points)


def _is_empty(output: Tensor, locations: Tensor) -> bool:
    """Whether there is nothing to compute; the kernels need something."""
    return output.numel() == 0 or locations.numel() == 0


def _shape_array(spatial_shapes: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(spatial_shapes))(*spatial_shapes)


def _forward_default(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    return reference_forward(value, spatial_shapes, sampling_locations, attention_weights)


def _backward_default(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    _check_grad_output(grad_output, value, sampling_locations)
    return reference_backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights)


def _forward_cpu(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    dtype, library = _CPU_DTYPES.get(value.dtype), native.cpu_library()
    if library is None or dtype is None or value.shape[1] > _MAX_TOKENS:
        return _forward_default(value, spatial_shapes, sampling_locations, attention_weights)
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    return _run_cpu_forward(library, value, spatial_shapes, sampling_locations, attention_weights, centres=None)


def _run_cpu_forward(
    library: ctypes.CDLL,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    centres: Tensor | None,
) -> Tensor:
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = value.new_empty(_output_shape(value, locations))
    if _is_empty(output, locations):
        return output.zero_()
    status = library.m2f_ms_deform_attn_forward(
        _CPU_DTYPES[value.dtype],
        value.data_ptr(),
        _shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        output.data_ptr(),
        *_sizes(value, locations),
        None if centres is None else centres.data_ptr(),
        torch.get_num_threads(),
    )
    _raise_if_out_of_memory(status)
    return output


def _backward_cpu(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, library = _CPU_DTYPES.get(value.dtype), native.cpu_library()
    if library is None or dtype is None or value.shape[1] > _MAX_TOKENS:
        return _backward_default(grad_output, value, spatial_shapes, sampling_locations, attention_weights)
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    _check_grad_output(grad_output, value, sampling_locations)
    value, locations, weights = value.contiguous(), sampling_locations.contiguous(), attention_weights.contiguous()
    grad_output = grad_output.contiguous()
    grads = torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)
    if _is_empty(grad_output, locations):
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    status = library.m2f_ms_deform_attn_backward(
        dtype,
        grad_output.data_ptr(),
        value.data_ptr(),
        _shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        *(grad.data_ptr() for grad in grads),
        *_sizes(value, locations),
        torch.get_num_threads(),
    )
    _raise_if_out_of_memory(status)
    return grads


def _forward_around_cpu(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *, centres: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor | None:
    """`ms_deform_attn_around` by the kernel that reads offsets and logits itself; None where it cannot serve."""
    tensors = (value, offsets, logits)
    if not (all(tensor.is_cpu and tensor.dtype == value.dtype for tensor in tensors) and value.dtype in _CPU_DTYPES):
        return None
    library = native.cpu_library()
    if library is None or value.shape[1] > _MAX_TOKENS or offsets.numel() == 0:
        return None
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    shapes = _flatten_shapes(spatial_shapes)
    _check_shapes(value, shapes, offsets, logits)
    if centres.shape != (offsets.shape[1], 2):
        raise ValueError(f"centres must have shape ({offsets.shape[1]}, 2), got {tuple(centres.shape)}")
    return _run_cpu_forward(library, value, shapes, offsets, logits, centres=centres.to(exact).contiguous())


def _raise_if_out_of_memory(status: int) -> None:
    if status:
        raise MemoryError("ms_deform_attn: not enough memory for the kernel's working space")


def _serves_cuda(value: Tensor, spatial_shapes: Sequence[int]) -> bool:
    """Whether the CUDA kernels take this case. Their atomics add in any order, so not in deterministic mode: there the
    reference runs, whose operators raise or warn as torch's setting says."""
    fits = len(spatial_shapes) <= 2 * _MAX_CUDA_LEVELS and value.shape[1] <= _MAX_TOKENS
    return value.dtype in _CUDA_DTYPES and fits and not torch.are_deterministic_algorithms_enabled()


def _forward_cuda(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    with torch.cuda.device(value.device):
        library = native.cuda_library() if _serves_cuda(value, spatial_shapes) else None
        if library is None:
            return _forward_default(value, spatial_shapes, sampling_locations, attention_weights)
        _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
        value, locations, weights = value.contiguous(), sampling_locations.contiguous(), attention_weights.contiguous()
        output = value.new_empty(_output_shape(value, locations))
        if _is_empty(output, locations):
            return output.zero_()
        status = library.m2f_cuda_ms_deform_attn_forward(
            _CUDA_DTYPES[value.dtype],
            value.data_ptr(),
            _shape_array(spatial_shapes),
            locations.data_ptr(),
            weights.data_ptr(),
            output.data_ptr(),
            *_sizes(value, locations),
            torch.cuda.current_stream().cuda_stream,
        )
        _raise_cuda_error(library, status)
        return output


def _backward_cuda(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device(value.device):
        library = native.cuda_library() if _serves_cuda(value, spatial_shapes) else None
        if library is None:
            return _backward_default(grad_output, value, spatial_shapes, sampling_locations, attention_weights)
        _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
        _check_grad_output(grad_output, value, sampling_locations)
        value, locations, weights = value.contiguous(), sampling_locations.contiguous(), attention_weights.contiguous()
        grad_output = grad_output.contiguous()
        # Atomic additions go to float32 whatever the value's dtype: half-precision sums of many small terms lose them.
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        if _is_empty(grad_output, locations):
            return grad_value.to(value.dtype), grad_locations.zero_(), grad_weights.zero_()
        status = library.m2f_cuda_ms_deform_attn_backward(
            _CUDA_DTYPES[value.dtype],
            grad_output.data_ptr(),
            value.data_ptr(),
            _shape_array(spatial_shapes),
            locations.data_ptr(),
            weights.data_ptr(),
            grad_value.data_ptr(),
            grad_locations.data_ptr(),
            grad_weights.data_ptr(),
            *_sizes(value, locations),
            torch.cuda.current_stream().cuda_stream,
        )
        _raise_cuda_error(library, status)
        return grad_value.to(value.dtype), grad_locations, grad_weights


def _raise_cuda_error(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise RuntimeError(f"ms_deform_attn: CUDA kernel launch failed: {library.m2f_cuda_error(status).decode()}")


def _output_shape(value: Tensor, sampling_locations: Tensor) -> tuple[int, int, int]:
    return value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]


def _forward_fake(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    return value.new_empty(_output_shape(value, sampling_locations))


def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


_INPUTS = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_OPERATORS = torch.library.Library("mask2former", "DEF")
_OPERATORS.define(f"ms_deform_attn({_INPUTS}) -> Tensor")
_OPERATORS.define(f"ms_deform_attn_backward(Tensor grad_output, {_INPUTS}) -> (Tensor, Tensor, Tensor)")
for _key, _forward_kernel, _backward_kernel in (
    ("CompositeExplicitAutograd", _forward_default, _backward_default),
    ("CPU", _forward_cpu, _backward_cpu),
    ("CUDA", _forward_cuda, _backward_cuda),
):
    _OPERATORS.impl("ms_deform_attn", _forward_kernel, _key)
    _OPERATORS.impl("ms_deform_attn_backward", _backward_kernel, _key)
torch.library.register_fake("mask2former::ms_deform_attn", _forward_fake, lib=_OPERATORS)
torch.library.register_fake("mask2former::ms_deform_attn_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd("mask2former::ms_deform_attn", _backward, setup_context=_setup_context, lib=_OPERATORS)
