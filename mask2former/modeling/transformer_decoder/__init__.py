"""Transformer decoders: from pixel-decoder maps to class and mask predictions of the queries."""

from mask2former.modeling.transformer_decoder.contrastive_decoder import (
    ContrastiveMultiScaleMaskedTransformerDecoder,
)
from mask2former.modeling.transformer_decoder.masked_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.standard_decoder import StandardTransformerDecoder

__all__ = [
    "ContrastiveMultiScaleMaskedTransformerDecoder",
    "MultiScaleMaskedTransformerDecoder",
    "StandardTransformerDecoder",
]
