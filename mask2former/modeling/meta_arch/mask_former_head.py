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
    """Maps backbone features to class and mask predictions of every query."""

    def __init__(
        self,
        num_classes: int,
        *,
        pixel_decoder: PixelDecoder,
        predictor: TransformerDecoder,
        transformer_in_feature: str = MULTI_SCALE,
    ) -> None:
        """``transformer_in_feature`` names what queries attend to (see ``encode_pixels``)."""
        super().__init__()
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: Any, pixel_decoder: PixelDecoder, predictor: TransformerDecoder) -> dict[str, Any]:
        """Return the arguments of the config, and both decoders as they are given."""
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    def predict(self, features: dict[str, Tensor]) -> list[QueryPrediction]:
        """Return one prediction per layer, the final one last, of maps (B, [T,] C, h, w) by name.

        No full mask is computed.
        """
        first = next(iter(features.values()))
        num_frames = first.shape[1] if first.ndim == 5 else 1
        if first.ndim == 5:
            features = {name: fold_frames(maps) for name, maps in features.items()}  # (BT, C, h, w)
        return self.predictor(*self.encode(features), num_frames=num_frames)

    def encode(self, features: dict[str, Tensor]) -> tuple[Any, Tensor]:
        """Map backbone maps (N, C, h, w) by name to the maps that queries attend to, and mask features (N, C, H, W)."""
        return encode_pixels(features, pixel_decoder=self.pixel_decoder, in_feature=self.transformer_in_feature)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Map backbone maps (B, [T,] C, h, w) by name to the published dictionary.

        It holds ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, [T,] H, W) and, for the earlier layers,
        ``aux_outputs`` with both.
        """
        is_clip = next(iter(features.values())).ndim == 5
        *auxiliary, final = [_as_dict(prediction, is_clip=is_clip) for prediction in self.predict(features)]
        return {**final, "aux_outputs": auxiliary}


def encode_pixels(features: dict[str, Tensor], *, pixel_decoder: PixelDecoder, in_feature: str) -> tuple[Any, Tensor]:
    """Map backbone maps (N, C, h, w) by name to the maps that queries attend to, and mask features (N, C, H, W).

    Queries attend to ``in_feature``: the pixel decoder's maps, its encoder's map, its mask features, or a backbone map.

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
    """Return the results of ``encode_pixels`` for all frames of a clip, joined from those of its parts."""
    inputs, mask_features = zip(*parts, strict=True)
    if isinstance(inputs[0], Tensor):
        return torch.cat(inputs), torch.cat(mask_features)
    return [torch.cat(level) for level in zip(*inputs, strict=True)], torch.cat(mask_features)


def _as_dict(prediction: QueryPrediction, *, is_clip: bool) -> dict[str, Tensor]:
    masks = prediction.mask_logits()  # (B, Q, T, H, W)
    return {"pred_logits": prediction.class_logits, "pred_masks": masks if is_clip else masks.squeeze(2)}
