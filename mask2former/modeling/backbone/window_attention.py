"""Self-attention within shifted windows, with relative position bias (Swin Transformer, section 3.2).

A shifted map is rolled, so that windows at its bottom and right hold tokens that were not neighbours; those must not
attend to each other. Only four patterns of such pairs exist, whatever the size of the map: inside (none), bottom,
right and corner. Windows are therefore kept in the order of their pattern, and each pattern needs one (S, S) mask.

Letters: B batch, H W height and width (multiples of the window side w), C channels, M heads, D channels of a head,
G windows of all images, S = w * w tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MASKED = -100.0  # Parity: the published model adds this, not minus infinity (test_swin_matches_reference)
NUM_PATTERNS = 4


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut (B, H, W, C) into windows (G, S, C), a row of windows after the other, images within a row."""
    B, H, W, C = x.shape
    w = window_size
    windows = x.view(B, H // w, w, W // w, w, C).permute(1, 0, 3, 2, 4, 5)  # (H/w, B, W/w, w, w, C)
    return windows.reshape(-1, w * w, C)


def merge_windows(windows: Tensor, window_size: int, *, size: tuple[int, int], batch_size: int) -> Tensor:
    """Put windows (G, S, C) back together to (B, H, W, C); the inverse of ``partition_windows``."""
    (H, W), w = size, window_size
    C = windows.shape[-1]
    grid = windows.view(H // w, batch_size, W // w, w, w, C).permute(1, 0, 3, 2, 4, 5)  # (B, H/w, w, W/w, w, C)
    return grid.reshape(batch_size, H, W, C)


def partition_shifted_windows(x: Tensor, window_size: int) -> tuple[Tensor, list[int]]:
    """Cut a map (B, H, W, C), rolled by half a window, into windows (G, S, C) in the order of their patterns.

    Also return the number of windows with each pattern: inside, bottom, right, corner.
    """
    B, H, W, _ = x.shape
    w = window_size
    x = x.roll((-(w // 2), -(w // 2)), dims=(1, 2))
    # Rows of windows come first, so the last row of each part lies at its end.
    left, right = partition_windows(x[:, :, : W - w], w), partition_windows(x[:, :, W - w :], w)
    rows, columns = H // w - 1, W // w - 1
    return torch.cat((left, right)), [rows * B * columns, B * columns, rows * B, B]


def masks_of_windows(masks: Tensor, window_size: int, *, size: tuple[int, int], batch_size: int) -> Tensor:
    """Return the mask (G, 1, S, S) of each window of a rolled map, in the order of ``partition_windows``."""
    (H, W), w = size, window_size
    rows = torch.arange(H // w, device=masks.device) == H // w - 1
    columns = torch.arange(W // w, device=masks.device) == W // w - 1
    patterns = rows.long()[:, None, None] + 2 * columns.long()  # (H/w, 1, W/w), in the order of the masks
    return masks[patterns.expand(-1, batch_size, -1).reshape(-1)]


def merge_shifted_windows(windows: Tensor, window_size: int, *, size: tuple[int, int], batch_size: int) -> Tensor:
    """Put windows (G, S, C) back together and roll back; the inverse of ``partition_shifted_windows``."""
    (H, W), w = size, window_size
    num_left = H // w * batch_size * (W // w - 1)
    left, right = windows[:num_left], windows[num_left:]
    x = torch.cat(
        (
            merge_windows(left, w, size=(H, W - w), batch_size=batch_size),
            merge_windows(right, w, size=(H, w), batch_size=batch_size),
        ),
        dim=2,
    )
    return x.roll((w // 2, w // 2), dims=(1, 2))


def shift_masks(window_size: int) -> Tensor:
    """Return what is added to attention logits under each pattern of a shifted map: (4, 1, S, S) of 0 and -100."""
    wrapped = torch.arange(window_size) >= window_size - window_size // 2  # came from the other side of the map
    rows = wrapped[:, None].expand(-1, window_size).flatten().long()  # (S,)
    columns = wrapped[None, :].expand(window_size, -1).flatten().long()
    regions = torch.stack((torch.zeros_like(rows), rows, columns, 2 * rows + columns))  # (4, S)
    apart = regions[:, None, :, None] != regions[:, None, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, _MASKED)


def relative_position_index(window_size: int) -> Tensor:
    """Return the row of the bias table for the offset of each pair of tokens; (S, S) int64."""
    side = torch.arange(window_size)
    y, x = side.repeat_interleave(window_size), side.repeat(window_size)  # (S,)
    dy, dx = (axis[:, None] - axis[None, :] + window_size - 1 for axis in (y, x))
    return dy * (2 * window_size - 1) + dx


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window: (G, S, C) -> (G, S, C)."""

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        *,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """Return the bias of each pair of tokens; (1, M, S, S)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]

    def forward(self, windows: Tensor, *, masks: Tensor | None = None, counts: Sequence[int] = ()) -> Tensor:
        """Attend everywhere within a window or, given ``masks`` (4, 1, S, S), where they allow it.

        ``counts`` is the number of windows under each mask, in their order; without it there is a mask for each window.
        """
        G, S, C = windows.shape
        qkv = self.qkv(windows).view(G, S, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (3, G, M, S, D)
        bias = self.position_bias().to(qkv.dtype)
        if masks is None:
            out = self._attend(qkv, bias)
        elif not counts:
            out = self._attend(qkv, bias + masks.to(qkv.dtype))
        else:
            biases = bias + masks.to(qkv.dtype)  # (4, M, S, S)
            groups = zip(qkv.split(list(counts), dim=1), biases)
            out = torch.cat([self._attend(group, mask[None]) for group, mask in groups if group.shape[1]])
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(G, S, C)))  # from (G, M, S, D)

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv.unbind(0)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=self.attn_drop if self.training else 0.0, scale=self.scale
        )
