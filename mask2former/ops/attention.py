"""Attention of a few queries to many tokens, with one boolean mask for all heads, on the CPU for inference.

torch's fused attention multiplies 32 queries with 512 tokens at a time, too little for its matrix product; here a block
of tokens meets all queries while it is in the cache, and what no query of a group sees is skipped.
Letters: B batch, Q queries, S tokens, M heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mask2former.ops import native

_CHANNEL_MULTIPLE = 32  # two registers of the widest instruction set
_MIN_TOKENS = 64  # below, torch's attention is as fast


def is_attention_faster(query: Tensor, key: Tensor, num_heads: int) -> bool:
    """Return whether ``masked_attention`` is faster than torch for queries (B, Q, M D) and keys (B, S, M D)."""
    if not native.is_eager_cpu_inference(query) or query.dtype not in native.MAP_DTYPES or key.dtype != query.dtype:
        return False
    if query.shape[-1] // num_heads % _CHANNEL_MULTIPLE or key.shape[1] < _MIN_TOKENS or not query.numel():
        return False
    return native.cpu_library() is not None


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None = None, *, num_heads: int
) -> Tensor:
    """Compute softmax attention: queries (B, Q, M D), keys and values (B, S, M D) -> (B, Q, M D) float32.

    Only where ``is_attention_faster``. Scores and sums are float32, whatever the type of the arguments is.

    Args:
        query: projected queries, the channels of each head side by side.
        key, value: projected tokens, likewise.
        attend_mask: (B or 1, 1, Q, S) bool, True where a query sees a token; NaN for a query that sees none.
        num_heads: M.

    Raises:
        ValueError: a shape, dtype or device is another.
        MemoryError: there is none for the kernel's working space.
    """
    _check_arguments(query, key, value, attend_mask, num_heads=num_heads)
    library = native.cpu_library()
    assert library is not None
    num_batch, num_queries, width = query.shape
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    channels = width // num_heads
    seen = None if attend_mask is None else attend_mask.expand(num_batch, 1, num_queries, key.shape[1]).contiguous()
    output = torch.empty_like(query, dtype=torch.float32)
    status = library.m2f_attention(
        native.MAP_DTYPES[query.dtype],
        *(query.data_ptr(), key.data_ptr(), value.data_ptr(), None if seen is None else seen.data_ptr()),
        *(output.data_ptr(), channels**-0.5),
        *(num_batch, num_heads, channels, num_queries, key.shape[1]),
        torch.get_num_threads(),
    )
    native.check_status(status)
    return output


def _check_arguments(query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None, *, num_heads: int) -> None:
    multiple = num_heads * _CHANNEL_MULTIPLE
    is_served = query.ndim == 3 and query.dtype in native.MAP_DTYPES and query.is_cpu and type(query) is Tensor
    if num_heads < 1 or not is_served or query.shape[2] % multiple or not query.numel():
        found = f"{tuple(query.shape)} of {query.dtype} on {query.device}"
        raise ValueError(
            f"query must be (B, Q, {num_heads} D) of float32 or bfloat16 on the CPU, D a multiple of "
            f"{_CHANNEL_MULTIPLE}, got {found}"
        )
    num_batch, num_queries, width = query.shape
    for name, tokens in (("key", key), ("value", value)):
        expected = (num_batch, key.shape[1], width) if key.ndim == 3 and key.shape[1] else (num_batch, "S", width)
        _check_tensor(name, tokens, shapes=[expected], dtype=query.dtype)
    if attend_mask is not None:
        shapes = [(num, 1, num_queries, key.shape[1]) for num in sorted({num_batch, 1}, reverse=True)]
        _check_tensor("attend_mask", attend_mask, shapes=shapes, dtype=torch.bool)


def _check_tensor(name: str, tensor: Tensor, *, shapes: Sequence[tuple[int | str, ...]], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) not in shapes or tensor.dtype != dtype or not tensor.is_cpu:
        expected = " or ".join(str(shape) for shape in shapes)
        found = f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name} must be {expected} of {dtype} on the CPU, got {found}")
