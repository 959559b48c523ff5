"""Norms, and the sums of a feature pyramid and of residual blocks, computed in place, for inference on the CPU.

A map of 1/4 of an image has 50 MB; each further one costs the time in which the system clears as much memory, several
times that of the computation. Letters: N batch, C channels, G groups, P pixels, H W size, h w size of a smaller map.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.ops import native

_CHANNEL_MULTIPLE = 16  # a register of the widest instruction set


def is_map_written_over(x: Tensor) -> bool:
    """Return whether the functions below compute in place on x (N, C, H, W); otherwise they leave it unchanged."""
    if not native.is_eager_cpu_inference(x) or x.dtype not in native.MAP_DTYPES or not x.numel():
        return False
    if x.ndim != 4 or x.shape[1] % _CHANNEL_MULTIPLE or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return native.cpu_library() is not None


def group_norm_relu_(x: Tensor, *, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    """Apply group norm with ``weight`` and ``bias`` (C,), then ReLU if wanted, to x (N, C, H, W), in place.

    Raises:
        MemoryError: there is none for the kernel's working space.
    """
    library = _require_map(x)
    num, channels = x.shape[:2]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups must divide the {channels} channels, got {num_groups}")
    for name, factor in (("weight", weight), ("bias", bias)):
        native.check_tensor(name, factor, (channels,))
    pixels, threads, kind = x.shape[2] * x.shape[3], torch.get_num_threads(), native.MAP_DTYPES[x.dtype]
    block = library.m2f_map_moment_pixels()
    moments = torch.empty((num, -(-pixels // block), num_groups, 2), dtype=torch.float64, device=x.device)
    place = (num, pixels, channels)
    status = library.m2f_map_moments(kind, x.data_ptr(), moments.data_ptr(), *place, num_groups, threads)
    mean, var = _merge_moments(moments, pixels=pixels, block=block, width=channels // num_groups)  # (N, G)
    factors = torch.rsqrt(var + eps)
    scale = weight.double() * factors.repeat_interleave(channels // num_groups, dim=1)  # (N, C)
    shift = bias.double() - scale * mean.repeat_interleave(channels // num_groups, dim=1)
    scale, shift = scale.float(), shift.float()
    status |= library.m2f_map_affine(kind, x.data_ptr(), scale.data_ptr(), shift.data_ptr(), int(relu), *place, threads)
    native.check_status(status)
    return x


def add_resized(x: Tensor, above: Tensor) -> Tensor:
    """Return x (N, C, H, W) plus ``above`` (N, C, h, w) resized to it, bilinear without aligned corners.

    Raises:
        MemoryError: there is none for the kernel's working space.
    """
    if (
        above.ndim != 4
        or above.shape[:2] != x.shape[:2]
        or not above.numel()
        or above.device != x.device
        or not above.is_floating_point()
    ):
        raise ValueError(f"above must be {tuple(x.shape[:2])} + (h, w) on {x.device}, got {tuple(above.shape)}")
    if not is_map_written_over(x):
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        # A copy even where the layout is right: the stride of a single image's batch would mislead `interpolate`.
        # Not in half precision where x alone has it: the sum is then rounded once.
        above = above.to(memory_format=layout, copy=True)
        return F.interpolate(above, size=x.shape[-2:], mode="bilinear", align_corners=False).add_(x)
    library = native.cpu_library()
    assert library is not None
    num, channels, height, width = x.shape
    above = above.to(x.dtype).contiguous(memory_format=torch.channels_last)
    sizes = (num, height, width, channels, above.shape[2], above.shape[3])
    native.check_status(
        library.m2f_map_add_resized(
            native.MAP_DTYPES[x.dtype], x.data_ptr(), above.data_ptr(), *sizes, torch.get_num_threads()
        )
    )
    return x


def add_product_relu_(x: Tensor, factor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Add the 1 x 1 convolution of ``factor`` (N, I, H, W) to x (N, O, H, W), then apply ReLU, in place.

    All arguments are float32: ``weight`` (O, I), ``bias`` (O,).

    Raises:
        MemoryError: there is none for the kernel's working space.
    """
    library = _require_map(x)
    num, channels, height, width = x.shape
    within = factor.shape[1] if factor.ndim == 4 else 0
    native.check_tensor("x", x, x.shape, dtype=torch.float32)
    native.check_tensor("factor", factor, (num, within, height, width), dtype=torch.float32)
    native.check_tensor("weight", weight, (channels, within), dtype=torch.float32)
    native.check_tensor("bias", bias, (channels,), dtype=torch.float32)
    rows = x.permute(0, 2, 3, 1).view(-1, channels)  # (NHW, O), the same memory
    rows.addmm_(factor.permute(0, 2, 3, 1).reshape(len(rows), -1), weight.T)
    shift = bias.expand(num, -1).contiguous()
    place = (num, height * width, channels, torch.get_num_threads())
    scale = torch.ones_like(shift)
    native.check_status(
        library.m2f_map_affine(native.MAP_DTYPES[x.dtype], x.data_ptr(), scale.data_ptr(), shift.data_ptr(), 1, *place)
    )
    return x


def add_layer_norm_(x: Tensor, y: Tensor, *, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Write the layer norm of x + y, with ``weight`` and ``bias`` (C,), over x (B, Q, C) float32.

    x may be a view of some tokens. Only without gradients.

    Raises:
        MemoryError: there is none for the kernel's working space.
    """
    if x.ndim != 3 or y.shape != x.shape or y.device != x.device or not x.is_floating_point():
        raise ValueError(f"x and y must be (B, Q, C) on one device, got {tuple(x.shape)} and {tuple(y.shape)}")
    library = native.cpu_library() if native.is_eager_cpu_inference(x) and x.numel() else None
    is_dense = x.stride()[1:] == (x.shape[2], 1) and (len(x) == 1 or x.stride(0) >= x[0].numel())
    types = (x.dtype, weight.dtype, bias.dtype)
    if library is None or not is_dense or x.shape[2] % _CHANNEL_MULTIPLE or set(types) != {torch.float32}:
        return x.copy_(F.layer_norm(x + y, x.shape[2:], weight, bias, eps))
    for name, factor in (("weight", weight), ("bias", bias)):
        native.check_tensor(name, factor, x.shape[2:], dtype=torch.float32)
    y, weight, bias = (
        (y if y.dtype in native.MAP_DTYPES else y.float()).contiguous(),
        weight.contiguous(),
        bias.contiguous(),
    )
    places = (x.data_ptr(), y.data_ptr(), weight.data_ptr(), bias.data_ptr())
    sizes = (*x.shape, x.stride(0))
    native.check_status(library.m2f_add_norm(native.MAP_DTYPES[y.dtype], *places, eps, *sizes, torch.get_num_threads()))
    return x


def multiply_maps(embed: Tensor, maps: Tensor) -> Tensor:
    """Return embeddings (..., Q, C) times maps (..., C, S) as (..., Q, S); leading dimensions broadcast."""
    # Who traces is asked first: a test of sizes there would bind the batch.
    if native.is_eager_cpu_inference(maps) and maps.shape[:-2].numel() == 1:
        # Several matrices in bfloat16 are first copied where channels lie side by side, one matrix is not: a quarter
        # of the time.
        leading = torch.broadcast_shapes(embed.shape[:-2], maps.shape[:-2])
        return (embed.flatten(0, -2) @ maps.flatten(0, -2)).view(*leading, embed.shape[-2], maps.shape[-1])
    return embed @ maps


def _require_map(x: Tensor) -> ctypes.CDLL:
    library = native.cpu_library() if x.ndim == 4 and is_map_written_over(x) else None
    if library is None:
        raise ValueError(
            f"x must be a map that is written over (see is_map_written_over), got {tuple(x.shape)} of {x.dtype} with "
            f"strides {x.stride()}"
        )
    return library


def _merge_moments(moments: Tensor, *, pixels: int, block: int, width: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance (N, G) of each group over all pixels, from those of blocks (N, blocks, G, 2)."""
    counts = moments.new_full((moments.shape[1], 1), block)
    counts[-1] = pixels - block * (len(counts) - 1)
    means, spreads = moments.unbind(-1)  # (N, blocks, G)
    mean = (counts * means).sum(1, keepdim=True) / pixels  # (N, 1, G)
    spread = spreads + counts * width * (means - mean).square()
    return mean.squeeze(1), spread.sum(1) / (pixels * width)
