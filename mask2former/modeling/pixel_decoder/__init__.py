"""Pixel decoders: from backbone maps to mask features and multi-scale maps."""

from mask2former.modeling.pixel_decoder.fpn import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["BasePixelDecoder", "MSDeformAttnPixelDecoder", "TransformerEncoderPixelDecoder"]
