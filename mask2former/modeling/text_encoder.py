"""The text branch of OneFormer, for training alone: a small CLIP text transformer, trained from scratch.

Letters: B batch, N texts of an image, S tokens of a text, C channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import DatasetError
from mask2former.modeling.layers import MultiheadAttention

_HEAD_CHANNELS = 64
_QUICK_GELU = 1.702  # CLIP's approximation of GELU: x sigmoid(1.702 x)


class TextBlock(nn.Module):
    """Causal self-attention and feed-forward network, each after its norm and beside a residual: (N, S, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = MultiheadAttention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(OrderedDict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width)))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, attend_mask: Tensor) -> Tensor:
        x = self.ln_1(tokens)
        tokens = tokens + self.attn(x, x, x, attend_mask)
        hidden = self.mlp["c_fc"](self.ln_2(tokens))
        return tokens + self.mlp["c_proj"](hidden * torch.sigmoid(_QUICK_GELU * hidden))


class TextEncoder(nn.Module):
    """Map token ids (N, S) to one feature a text, (N, C): that of the last token, the end of the text."""

    def __init__(self, *, context_length: int, width: int, num_layers: int, vocab_size: int) -> None:
        super().__init__()
        self.context_length = context_length
        blocks = nn.ModuleList(TextBlock(width, max(1, width // _HEAD_CHANNELS)) for _ in range(num_layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.ln_final = nn.LayerNorm(width)
        self._initialise(width, num_layers)

    @torch.no_grad()
    def _initialise(self, width: int, num_layers: int) -> None:
        """Draw initial values as CLIP does."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        to_residual = width**-0.5 * (2 * num_layers) ** -0.5
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=to_residual)
            nn.init.normal_(block.mlp["c_fc"].weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp["c_proj"].weight, std=to_residual)

    def forward(self, texts: Tensor) -> Tensor:
        length = texts.shape[-1]
        tokens = self.token_embedding(texts) + self.positional_embedding[:length]
        is_before = torch.ones(length, length, dtype=torch.bool, device=texts.device).tril()[None, None]
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]
            tokens = block(tokens, is_before)
        # Parity: the end of a text has the largest id; behind it zeros follow (test_losses_match_in_the_mean).
        ends = texts.argmax(dim=-1)
        return self.ln_final(tokens[torch.arange(len(tokens), device=tokens.device), ends])


def encode_distinct(encoder: nn.Module, texts: Tensor) -> Tensor:
    """Return the features (B, N, C) of texts (B, N, S), each distinct text encoded once.

    Most texts of an image are the same filler, and the objects of an image share classes.
    """
    distinct, which = torch.unique(texts.flatten(0, 1), dim=0, return_inverse=True)
    # Behind the longest text there are zeros alone, which a causal encoder need not see.
    length = int(distinct.argmax(dim=-1).max()) + 1
    return F.embedding(which, encoder(distinct[:, :length])).unflatten(0, texts.shape[:2])


def text_queries(
    texts: Sequence[Tensor],
    *,
    encoder: TextEncoder,
    projector: nn.Module,
    contexts: nn.Embedding | None,
    num_texts: int,
) -> Tensor:
    """Return text queries (B, Q, C) of the token ids (N, S) of each image's texts, N = ``num_texts``.

    ``contexts`` are learned queries that follow those of the texts.

    Raises:
        DatasetError: the ids do not fit the model.
    """
    ids = stack_texts(
        [torch.as_tensor(text) for text in texts],
        num_texts=num_texts,
        context_length=encoder.context_length,
        vocab_size=encoder.token_embedding.num_embeddings,
    ).to(encoder.positional_embedding.device)
    described: Tensor = projector(encode_distinct(encoder, ids))
    if contexts is None:
        return described
    return torch.cat((described, contexts.weight.to(described.dtype).expand(len(ids), -1, -1)), 1)


def stack_texts(batch: list[Tensor], *, num_texts: int, context_length: int, vocab_size: int) -> Tensor:
    """Return the token ids (B, N, S) int64 of the texts of several images.

    Raises:
        DatasetError: an image has another number of texts, or ids beyond the vocabulary.
    """
    for index, texts in enumerate(batch):
        if texts.shape != (num_texts, context_length):
            expected, found = (num_texts, context_length), tuple(texts.shape)
            raise DatasetError(f"sample {index} of the batch: expected 'text' ids {expected}, found shape {found}")
        if texts.numel() and not 0 <= int(texts.min()) <= int(texts.max()) < vocab_size:
            raise DatasetError(f"sample {index} of the batch: expected 'text' ids in 0..{vocab_size - 1}")
    return torch.stack(batch).long()
