"""3x3 convolution of channels_last maps on the CPU by Winograd's minimal filtering (arXiv:1509.09308).

F(4x4, 3x3): a quarter of the direct convolution's multiplications, in 36 matrix products between two transforms (see
csrc/cpu/winograd.h). It is about 2e-6 of the largest output away from float64, torch's convolution 0.7 to 1.7e-6;
the gradient of the weight 1 to 2e-6 and 0.3 to 1.3e-6.
Letters: N batch, C channels (I in, O out), H W height and width, S tiles of 4 x 4 pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from mask2former.ops import native

_TILE = 4  # kTile in csrc/cpu/winograd.h, whose kP and kQ are the next two
_P, _Q = 0.75, 1.5
_NUM_PRODUCTS = 36
_CHANNEL_MULTIPLE = 16  # a register of the widest instruction set
# Tiles transformed at a time: fewer make the products slow, more leave the caches; measured at 64 to 512 channels.
_STRIP_TILES = 320
# Beyond 32 MiB malloc returns a buffer to the system after each use, and touching it anew costs more than it saves.
_STRIP_BYTES = 28 * 2**20
# Below these the direct convolution is as fast (see benchmarks/convolution.py).
_MIN_CHANNELS = 64
_MIN_TILES = 48
# In training the weight is transformed at each call, and its gradient back: both the multiplications of each of the 36
# products, I O S, and the tiles for its I O values have to be enough.
_MIN_MULTIPLICATIONS_TRAINED = 1 << 22
_MAX_WEIGHTS_PER_TILE_TRAINED = 1024


class WinogradWeight:
    """Keeps the transform of the weight used last, of four times its size. Copies and pickles of it are empty.

    It compares the weight's values, 0.4 ms per million, so that whatever changes them is noticed: version counters miss
    what goes through ``.data``, and tensors of inference mode have none.
    """

    def __init__(self) -> None:
        self._entry: tuple[Tensor, Tensor] | None = None  # replaced as a whole: threads may share a model

    def get(self, weight: Tensor) -> Tensor:
        """Return the transform (36, I, O) of a float32 weight (O, I, 3, 3)."""
        bits = weight.detach().view(torch.int32)  # as integers NaN equals itself
        entry = self._entry
        if entry is None or not torch.equal(entry[0], bits):
            entry = self._entry = (bits.clone(), transform_weight(weight.detach()))
        return entry[1]

    def __reduce__(self) -> tuple[type[WinogradWeight], tuple[()]]:
        return WinogradWeight, ()


def is_winograd_faster(x: Tensor, weight: Tensor) -> bool:
    """Return whether ``conv3x3`` is faster than the direct convolution for x (N, I, H, W) and weight (O, I, 3, 3).

    Never where a gradient or a graph of the operators may be wanted: it is no operator that torch could see.
    """
    return native.is_eager_cpu_inference(x) and _is_served(x, weight, min_tiles=_MIN_TILES)


def is_trained_winograd_faster(x: Tensor, weight: Tensor) -> bool:
    """Return whether ``trained_conv3x3``, whose gradients torch sees, is faster than the direct convolution."""
    if not native.is_eager_cpu(x) or not torch.is_grad_enabled() or x.ndim != 4 or weight.ndim != 4:
        return False
    num_weights = max(weight.shape[0] * weight.shape[1], 1)
    needed = (_MIN_MULTIPLICATIONS_TRAINED / num_weights, num_weights / _MAX_WEIGHTS_PER_TILE_TRAINED)
    return _is_served(x, weight, min_tiles=max(_MIN_TILES, *needed))


def _is_served(x: Tensor, weight: Tensor, *, min_tiles: float) -> bool:
    if torch.is_autocast_enabled("cpu") or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or not weight.is_cpu or not x.numel():
        return False
    channels = weight.shape[:2]
    if min(channels) < _MIN_CHANNELS or any(number % _CHANNEL_MULTIPLE for number in channels):
        return False
    if _num_tiles(x) < min_tiles or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return native.cpu_library() is not None


def conv3x3(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    kept: WinogradWeight | None = None,
) -> Tensor:
    """Compute a convolution of stride 1 and padding 1, times ``scale`` plus ``shift`` (O,), then ReLU if wanted.

    Args:
        x: (N, I, H, W).
        weight: (O, I, 3, 3).
        scale: (O,), or None.
        shift: (O,), or None.
        relu: whether ReLU follows.
        kept: where the weight's transform is kept between calls.

    Returns:
        (N, O, H, W).
    """
    for name, factor in (("scale", scale), ("shift", shift)):
        if factor is not None and (factor.shape != weight.shape[:1] or factor.device != weight.device):
            expected = f"({len(weight)},) on {weight.device}"
            raise ValueError(f"{name} must be {expected}, got {tuple(factor.shape)} on {factor.device}")
    if is_winograd_faster(x, weight):
        transformed = transform_weight(weight) if kept is None else kept.get(weight)
        scale = x.new_ones(weight.shape[0]) if scale is None else scale
        shift = x.new_zeros(weight.shape[0]) if shift is None else shift
        return _winograd_conv3x3(x, transformed, scale=scale, shift=shift, relu=relu)
    if scale is not None:
        weight = weight * scale[:, None, None, None]
    output = F.conv2d(x, weight, shift, padding=1)
    return F.relu(output) if relu else output


def trained_conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """Compute a convolution of stride 1 and padding 1 with gradients: (N, I, H, W) -> (N, O, H, W).

    Only where ``is_trained_winograd_faster``: all passes together take 40 to 80 % of the direct convolution's time. The
    gradient of x is itself such a convolution.
    """
    if not native.is_eager_cpu(x) or not _is_served(x, weight, min_tiles=1):
        return F.conv2d(x, weight, padding=1)
    return _TrainedConvolution.apply(x, weight)


class _TrainedConvolution(torch.autograd.Function):
    """Both passes run without gradients, where ``conv3x3`` is the fast one."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv3x3(x, weight)

    @staticmethod
    @custom_bwd(device_type="cpu")  # an autocast around the backward pass is none of the forward's
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # Hooks on saved tensors may bring x back in another layout.
        x, grad = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, grad))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = conv3x3(grad, weight.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight).copy_(_weight_gradient(x, grad))
        return grad_x, grad_weight


def transform_weight(weight: Tensor) -> Tensor:
    """Return the transform (36, I, O) of a weight (O, I, 3, 3), which transformed tiles are multiplied with."""
    # A tensor made in inference mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        taps = weight.permute(2, 3, 1, 0).flatten(0, 1)  # (O, I, 3, 3) -> (9, I, O)
        return (_weight_matrix(weight) @ taps.flatten(1)).unflatten(1, taps.shape[1:])  # (36, 9) @ (9, IO)


def _weight_matrix(like: Tensor) -> Tensor:
    """Return the matrix (36, 9) that transforms the nine taps of a weight, with the type and device of ``like``."""
    norm_p, norm_q = 2 * _P**2 * (_P**2 - _Q**2), 2 * _Q**2 * (_Q**2 - _P**2)
    points = ((_P, norm_p), (-_P, norm_p), (_Q, norm_q), (-_Q, norm_q))
    rows = [(1 / (_P * _Q) ** 2, 0.0, 0.0), *((1 / n, p / n, p**2 / n) for p, n in points), (0.0, 0.0, 1.0)]
    matrix = torch.tensor(rows, dtype=torch.float64, device=like.device)  # (6, 3)
    return torch.kron(matrix, matrix).to(like.dtype)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (O, I, 3, 3) of the weight for x (N, I, H, W) and output gradient (N, O, H, W)."""
    in_channels, out_channels = x.shape[1], grad.shape[1]
    num_tiles = _num_tiles(x)
    strip = _strip_tiles(num_tiles, max(in_channels, out_channels))
    tiles, grad_tiles = _transformed_buffer(strip, in_channels), _transformed_buffer(strip, out_channels)
    total = x.new_zeros(_NUM_PRODUCTS, in_channels, out_channels)
    for first in range(0, num_tiles, strip):
        count = min(strip, num_tiles - first)
        _transform_tiles(x, tiles, first=first, count=count)
        _transform_tiles(grad, grad_tiles, first=first, count=count, is_gradient=True)
        total.baddbmm_(tiles[:, :count].transpose(1, 2), grad_tiles[:, :count])  # (36, I, S) @ (36, S, O)
    taps = _weight_matrix(total).T @ total.flatten(1)  # (9, 36) @ (36, IO)
    return taps.view(3, 3, in_channels, out_channels).permute(3, 2, 0, 1)


def _transform_tiles(maps: Tensor, transformed: Tensor, *, first: int, count: int, is_gradient: bool = False) -> None:
    """Write the transform of tiles [first, first + count) of maps (N, C, H, W), inputs or gradients, to (36, S, C)."""
    library = native.cpu_library()
    assert library is not None
    _, channels, height, width = maps.shape
    status = library.m2f_winograd_tiles(
        *(int(is_gradient), maps.data_ptr(), transformed.data_ptr(), transformed.stride(0)),
        *(height, width, channels, first, count, torch.get_num_threads()),
    )
    native.check_status(status)


def _winograd_conv3x3(x: Tensor, transformed: Tensor, *, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    library = native.cpu_library()
    assert library is not None
    num, _, height, width = x.shape
    in_channels, out_channels = transformed.shape[1:]
    size = (num, out_channels, height, width)
    output = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    scale, shift = scale.to(x.dtype).contiguous(), shift.to(x.dtype).contiguous()
    num_tiles = _num_tiles(x)
    strip = _strip_tiles(num_tiles, max(in_channels, out_channels))
    tiles, products = _transformed_buffer(strip, in_channels), _transformed_buffer(strip, out_channels)
    epilogue = (scale.data_ptr(), shift.data_ptr(), int(relu), output.data_ptr())
    threads, status = torch.get_num_threads(), 0
    for first in range(0, num_tiles, strip):
        count = min(strip, num_tiles - first)
        _transform_tiles(x, tiles, first=first, count=count)
        torch.bmm(tiles[:, :count], transformed, out=products[:, :count])  # (36, S, I) @ (36, I, O)
        status |= library.m2f_winograd_output(
            products.data_ptr(), products.stride(0), *epilogue, height, width, out_channels, first, count, threads
        )
    native.check_status(status)
    return output


def _transformed_buffer(num_tiles: int, channels: int) -> Tensor:
    """Return an uninitialised buffer (36, S, C).

    The 36 rows of a tile are written together; an odd number of cache lines lies between them, because at a distance of
    a power of two they would evict each other from the cache.
    """
    lines = num_tiles * channels // _CHANNEL_MULTIPLE
    buffer = torch.empty((_NUM_PRODUCTS, (lines | 1) * _CHANNEL_MULTIPLE), dtype=torch.float32, device="cpu")
    return buffer[:, : num_tiles * channels].unflatten(1, (num_tiles, channels))


def _num_tiles(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[-2] // _TILE) * -(-x.shape[-1] // _TILE)


def _strip_tiles(num_tiles: int, channels: int) -> int:
    """Return how many tiles to transform at a time: as many in each strip."""
    capacity = max(min(_STRIP_TILES, _STRIP_BYTES // (_NUM_PRODUCTS * 4 * channels)), 1)
    num_strips = -(-num_tiles // capacity)
    return -(-num_tiles // num_strips)
