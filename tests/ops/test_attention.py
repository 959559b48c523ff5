"""The CPU's attention with a mask, beside torch's in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.layers import MultiheadAttention
from mask2former.ops import is_attention_faster, masked_attention

NUM_HEADS = 2


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def expected(query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None = None) -> Tensor:
    heads = [x.double().unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*heads, attn_mask=attend_mask).transpose(1, 2).flatten(2).float()


def random_tokens(num_queries: int, num_tokens: int, *, channels: int = 32, num_batch: int = 2) -> list[Tensor]:
    width = NUM_HEADS * channels
    return [torch.randn(num_batch, num, width) for num in (num_queries, num_tokens, num_tokens)]


def random_mask(num_queries: int, num_tokens: int, *, share: float, num_batch: int = 2) -> Tensor:
    mask = torch.rand(num_batch, 1, num_queries, num_tokens) < share
    mask[..., -1] |= ~mask.any(-1)
    return mask


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(
    ("num_queries", "num_tokens", "channels"), [(1, 64, 32), (7, 200, 32), (100, 131, 64), (130, 65, 96)]
)
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_attention_equals_torchs(num_queries: int, num_tokens: int, channels: int, share: float) -> None:
    tokens = random_tokens(num_queries, num_tokens, channels=channels)
    mask = random_mask(num_queries, num_tokens, share=share)
    assert is_attention_faster(tokens[0], tokens[1], NUM_HEADS)
    torch.testing.assert_close(masked_attention(*tokens, mask, num_heads=NUM_HEADS), expected(*tokens, mask))
    torch.testing.assert_close(masked_attention(*tokens, num_heads=NUM_HEADS), expected(*tokens))


@pytest.mark.usefixtures("instruction_set")
def test_attention_reads_bfloat16_and_sums_in_float32() -> None:
    tokens = [x.bfloat16() for x in random_tokens(20, 300)]
    mask = random_mask(20, 300, share=0.3)
    found = masked_attention(*tokens, mask, num_heads=NUM_HEADS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(*tokens, mask))


def test_attention_takes_scores_of_any_size() -> None:
    query, key, value = random_tokens(13, 400)
    key[:, 200:] *= 40  # the largest score comes late, and others are far below it
    # What rounding leaves of a score grows with it.
    found = masked_attention(query, key, value, num_heads=NUM_HEADS)
    torch.testing.assert_close(found, expected(query, key, value), rtol=1e-4, atol=1e-4)
    query, key = 1e3 * query.abs(), -key.abs()  # all far below zero
    found = masked_attention(query, key, value, num_heads=NUM_HEADS)
    torch.testing.assert_close(found, expected(query, key, value), rtol=1e-2, atol=1e-2)


def test_attention_shares_one_mask_among_images_and_takes_views() -> None:
    wide = torch.randn(2, 90, 3, NUM_HEADS * 32)
    key, value = wide[:, :, 0], wide[:, :, 2]
    query = torch.randn(1, 6, NUM_HEADS * 32).expand(2, -1, -1)
    mask = random_mask(6, 90, share=0.5, num_batch=1)
    found = masked_attention(query, key, value, mask, num_heads=NUM_HEADS)
    torch.testing.assert_close(found, expected(query, key, value, mask))


def test_attention_does_not_hide_nan() -> None:
    query, key, value = random_tokens(9, 100)
    query[0, 3] = torch.nan
    mask = random_mask(9, 100, share=0.5)
    found = masked_attention(query, key, value, mask, num_heads=NUM_HEADS)
    is_nan = torch.zeros(2, 9, dtype=torch.bool)
    is_nan[0, 3] = True
    assert torch.equal(found.isnan().all(-1), is_nan)
    assert torch.equal(found.isnan().any(-1), is_nan)
    mask[1, 0, 5] = False
    assert masked_attention(query, key, value, mask, num_heads=NUM_HEADS)[1, 5].isnan().all()


def test_attention_does_not_depend_on_the_number_of_threads() -> None:
    tokens, mask = random_tokens(100, 150, num_batch=1), random_mask(100, 150, share=0.5, num_batch=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(masked_attention(*tokens, mask, num_heads=NUM_HEADS))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module_attends_alike_with_and_without_gradients(dtype: torch.dtype) -> None:
    module = MultiheadAttention(64, NUM_HEADS).eval()
    query, key, value = random_tokens(10, 120)
    mask = random_mask(10, 120, share=0.4)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        fast = module(query, key, value, mask)
        with torch.enable_grad():
            slow = module(query, key, value, mask)
    assert fast.dtype == slow.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(fast, slow.detach(), rtol=tolerance, atol=tolerance)


def test_attention_is_left_to_torch_where_it_has_to_be() -> None:
    query, key, _ = random_tokens(4, 80)
    assert is_attention_faster(query, key, NUM_HEADS)
    assert not is_attention_faster(query, key[:, :20], NUM_HEADS)
    assert not is_attention_faster(query, key, num_heads=4)  # 16 channels
    assert not is_attention_faster(query.double(), key.double(), NUM_HEADS)
    assert not is_attention_faster(query[:0], key[:0], NUM_HEADS)
    with torch.enable_grad():
        assert not is_attention_faster(query, key, NUM_HEADS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": torch.zeros(2, 90, 64, dtype=torch.float64)}, "value must be .*float32.*float64"),
        ({"value": torch.zeros(2, 90, 64, dtype=torch.bfloat16)}, "value must be .*float32.*bfloat16"),
        ({"value": torch.zeros(2, 80, 64)}, r"value must be \(2, 90, 64\)"),
        ({"key": torch.zeros(1, 90, 64)}, r"key must be \(2, 90, 64\)"),
        ({"key": torch.zeros(90, 64)}, r"key must be \(2, 'S', 64\)"),
        ({"query": torch.zeros(7, 64)}, "query must be"),
        ({"query": torch.zeros(2, 7, 64, dtype=torch.float64)}, "query must be"),
        ({"attend_mask": torch.zeros(2, 1, 7, 90)}, "attend_mask must be .*bool.*float32"),
        ({"attend_mask": torch.ones(2, 1, 7, 90, dtype=torch.uint8)}, "attend_mask must be .*bool.*uint8"),
        *(
            ({"attend_mask": torch.ones(shape, dtype=torch.bool)}, "attend_mask must be .* or .*got")
            for shape in ((7, 90), (2, 1, 1, 90), (2, 2, 7, 90), (3, 1, 7, 90), (2, 1, 7, 89))
        ),
    ],
)
def test_attention_refuses_what_does_not_fit(changes: dict[str, Tensor], message: str) -> None:
    query, key, value = random_tokens(7, 90)
    arguments = {"query": query, "key": key, "value": value, "attend_mask": random_mask(7, 90, share=0.5), **changes}
    with pytest.raises(ValueError, match=message):
        masked_attention(**arguments, num_heads=NUM_HEADS)
