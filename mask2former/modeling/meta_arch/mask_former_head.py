"""The segmentation head: pixel decoder, then transformer decoder. A clip's frames pass the pixel decoder one by one.

Letters: B batch, T frames, Q queries, K classes, C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.interfaces import PixelDecoder, TransformerDecoder
from mask2former.modeling.meta_arch.inputs import fold_frames
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import SEM_SEG_HEADS_REGISTRY

MULTI_SCALE, ENCODED, PIXELS = "multi_scale_pixel_decoder", "transformer_encoder", "pixel_embedding"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """From the maps of a backbone to class and mask predictions of every query."""

    def __init__(
        self,
        num_classes: int,
        *,
        pixel_decoder: PixelDecoder,
        predictor: TransformerDecoder,
        transformer_in_feature: str = MULTI_SCALE,
    ) -> None:
        """`transformer_in_feature` names what queries look at (see `encode_pixels`)."""
        super().__init__()
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: Any, pixel_decoder: PixelDecoder, predictor: TransformerDecoder) -> dict[str, Any]:
        """Class count and what queries look at come from the config; both decoders are given."""
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    def predict(self, features: dict[str, Tensor]) -> list[QueryPrediction]:
        """Maps (B, [T,] C, h, w) by name -> one prediction per layer, the final one last; no full mask is formed."""
        first = next(iter(features.values()))
        num_frames = first.shape[1] if first.ndim == 5 else 1
        if first.ndim == 5:
            features = {name: fold_frames(maps) for name, maps in features.items()}  # (BT, C, h, w)
        return self.predictor(*self.encode(features), num_frames=num_frames)

    def encode(self, features: dict[str, Tensor]) -> tuple[Any, Tensor]:
        """Maps (N, C, h, w) by name -> what queries look at, and mask features (N, C, H, W)."""
        return encode_pixels(features, pixel_decoder=self.pixel_decoder, in_feature=self.transformer_in_feature)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Maps (B, [T,] C, h, w) by name -> the published dictionary.

        `pred_logits` (B, Q, K + 1), `pred_masks` (B, Q, [T,] H, W) and, for the layers before, `aux_outputs` with both.
        """
        is_clip = next(iter(features.values())).ndim == 5
        *auxiliary, final = [_as_dict(prediction, is_clip=is_clip) for prediction in self.predict(features)]
        return {**final, "aux_outputs": auxiliary}


def encode_pixels(features: dict[str, Tensor], *, pixel_decoder: PixelDecoder, in_feature: str) -> tuple[Any, Tensor]:
    """Maps (N, C, h, w) by name -> what queries look at, and mask features (N, C, H, W).

    Queries look at `in_feature`: the pixel decoder's maps, its encoder's map, its mask features, or a backbone map.

    Raises:
        ConfigError: the pixel decoder has no encoder, and its map is asked for.
    """
    mask_features, encoded, multi_scale_features = pixel_decoder.forward_features(features)
    inputs = {**features, MULTI_SCALE: multi_scale_features, ENCODED: encoded, PIXELS: mask_features}[in_feature]
    if inputs is None:
        raise ConfigError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE: {type(pixel_decoder).__name__} has no {in_feature!r}"
        )
    return inputs, mask_features


def join_frames(parts: Sequence[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """What `encode_pixels` gave of the frames of a clip, part by part, as it would give it of all."""
    inputs, mask_features = zip(*parts, strict=True)
    if isinstance(inputs[0], Tensor):
        return torch.cat(inputs), torch.cat(mask_features)
    return [torch.cat(level) for level in zip(*inputs, strict=True)], torch.cat(mask_features)


def _as_dict(prediction: QueryPrediction, *, is_clip: bool) -> dict[str, Tensor]:
    masks = prediction.mask_logits()  # (B, Q, T, H, W)
    return {"pred_logits": prediction.class_logits, "pred_masks": masks if is_clip else masks.squeeze(2)}
