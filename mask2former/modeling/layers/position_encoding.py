"""Sinusoidal position encoding of images and clips (DETR, section A.4; the video model adds a term for time).

Letters: B batch, T frames, C channels, H W height and width, F features per axis.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

_EPSILON = 1e-6  # keeps the normalisation finite


def _encode_axis(
    length: int, num_features: int, *, temperature: float, scale: float | None, device: torch.device
) -> Tensor:
    """Encode positions 1 to length as interleaved sines and cosines; (length, num_features) float32."""
    positions = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    if scale is not None:
        positions = positions / (length + _EPSILON) * scale
    index = torch.arange(num_features, dtype=torch.float32, device=device)
    periods = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    angles = positions[:, None] / periods  # (length, F)
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)


def sine_position_encoding(
    size: tuple[int, ...],
    num_pos_feats: int,
    *,
    temperature: float = 10000.0,
    scale: float | None = 2 * math.pi,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the encoding of a map (H, W) as (2 F, H, W), or of a clip (T, H, W) as (T, 2 F, H, W).

    Values are float32 in [-2, 2]. The first F channels encode y and the last F x. In a clip of several frames, 2 F
    channels that encode time are added to all; one frame has none. ``scale`` is the angle of the last position; None:
    angles grow by one a position.
    """
    height, width = size[-2:]
    options = {"temperature": temperature, "scale": scale, "device": torch.device(device)}
    rows = _encode_axis(height, num_pos_feats, **options)  # type: ignore[arg-type]
    columns = _encode_axis(width, num_pos_feats, **options)  # type: ignore[arg-type]
    encoding = torch.cat(
        (rows.t()[:, :, None].expand(-1, -1, width), columns.t()[:, None, :].expand(-1, height, -1))
    )  # (2 F, H, W)
    if len(size) == 2:
        return encoding
    num_frames = size[0]
    if num_frames == 1:
        # At T = 1 the term is a constant that softmax cancels; without it image and clip are exactly equal.
        return encoding[None]
    frames = _encode_axis(num_frames, 2 * num_pos_feats, **options)  # type: ignore[arg-type]
    return encoding + frames[:, :, None, None]  # (T, 2 F, H, W)


class SizeCache:
    """Keeps the ``capacity`` tensors used last; they depend on sizes only.

    Copies and pickles of it are empty; tracing does not use it.
    """

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of ``key``, computed by ``compute`` at the first call: a constant without gradient."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return compute()  # a cached tensor would become a constant of the graph, or break it
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        # A tensor made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        self._entries[key] = value
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[type[SizeCache], tuple[int]]:
        return SizeCache, (self.capacity,)


class PositionEmbeddingSine(nn.Module):
    """The encoding for a feature map: (B, C, H, W) -> (1, 2 F, H, W), or (B, T, C, H, W) -> (1, T, 2 F, H, W).

    Only size, device and dtype of the input matter; the leading 1 broadcasts over the batch.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        *,
        temperature: float = 10000.0,
        normalize: bool = True,
        scale: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.scale = scale if normalize else None
        self._cache = SizeCache()

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:]) if x.dim() == 4 else (x.shape[1], *x.shape[3:])
        return self._cache.get((size, x.device, x.dtype), lambda: self._encode(size, x))

    def _encode(self, size: tuple[int, ...], x: Tensor) -> Tensor:
        encoding = sine_position_encoding(
            size, self.num_pos_feats, temperature=self.temperature, scale=self.scale, device=x.device
        )
        return encoding.to(x.dtype)[None]
