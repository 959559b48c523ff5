"""The segmentation head: pixel decoder, then transformer decoder. A clip's frames pass the pixel decoder one by one.

Letters: B batch, T frames, Q queries, K classes, C channels, H W size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import SEM_SEG_HEADS_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """From the maps of a backbone to class and mask predictions of every query."""

    def __init__(self, num_classes: int, *, pixel_decoder: Any, predictor: nn.Module) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: Any, pixel_decoder: Any, predictor: nn.Module) -> dict[str, Any]:
        """The class count is MODEL.SEM_SEG_HEAD.NUM_CLASSES; both decoders are given."""
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
        }

    def predict(self, features: dict[str, Tensor]) -> list[QueryPrediction]:
        """Maps (B, [T,] C, h, w) by name -> one prediction per layer, the final one last; no full mask is formed."""
        first = next(iter(features.values()))
        num_frames = first.shape[1] if first.ndim == 5 else 1
        if first.ndim == 5:
            features = {name: maps.flatten(0, 1) for name, maps in features.items()}  # (BT, C, h, w)
        mask_features, _, multi_scale_features = self.pixel_decoder.forward_features(features)
        return self.predictor(multi_scale_features, mask_features, num_frames=num_frames)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Maps (B, [T,] C, h, w) by name -> the published dictionary.

        `pred_logits` (B, Q, K + 1), `pred_masks` (B, Q, [T,] H, W) and, for the layers before, `aux_outputs` with both.
        """
        is_clip = next(iter(features.values())).ndim == 5
        *auxiliary, final = [_as_dict(prediction, is_clip=is_clip) for prediction in self.predict(features)]
        return {**final, "aux_outputs": auxiliary}


def _as_dict(prediction: QueryPrediction, *, is_clip: bool) -> dict[str, Tensor]:
    masks = prediction.mask_logits()  # (B, Q, T, H, W)
    return {"pred_logits": prediction.class_logits, "pred_masks": masks if is_clip else masks.squeeze(2)}
