"""The per-pixel baselines of MaskFormer (section 4.2): class logits of every pixel, without masks and matching.

Letters: B batch, Q queries, K classes, C channels, h w size at the common stride, H W size of the input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.interfaces import PixelDecoder, TransformerDecoder
from mask2former.modeling.losses import pixel_ce_loss
from mask2former.modeling.meta_arch.mask_former_head import encode_pixels
from mask2former.modeling.registry import SEM_SEG_HEADS_REGISTRY

_logger = logging.getLogger(__name__)


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """A pixel decoder and a classifier of its mask features."""

    def __init__(
        self, num_classes: int, *, pixel_decoder: PixelDecoder, predictor: Callable[..., Any], common_stride: int = 4
    ) -> None:
        """``common_stride`` is that of the mask features; ``predictor`` maps them to class logits."""
        super().__init__()
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.common_stride = common_stride

    @classmethod
    def from_config(cls, cfg: Any, pixel_decoder: PixelDecoder, predictor: Any) -> dict[str, Any]:
        """Return class count and stride of MODEL.SEM_SEG_HEAD, and the parts as they are given."""
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "common_stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
        }

    def predict(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Map backbone maps (B, C, h, w) by name to class logits (B, K, h, w) of each layer, the final ones last."""
        mask_features, _, _ = self.pixel_decoder.forward_features(features)
        return [self.predictor(mask_features)]

    def losses(self, predictions: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return unweighted ``loss_sem_seg`` of the last of the logits (B, K, h, w), and ``loss_sem_seg_0``, ….

        ``labels`` (B, H, W) are class ids, or IGNORED.
        """
        names = ["loss_sem_seg", *(f"loss_sem_seg_{layer}" for layer in range(len(predictions) - 1))]
        with torch.autocast(labels.device.type, enabled=False):
            return {
                name: pixel_ce_loss(self.enlarge(logits.float()), labels)
                for name, logits in zip(names, [predictions[-1], *predictions[:-1]], strict=True)
            }

    def enlarge(self, logits: Tensor) -> Tensor:
        """Resize logits (B, K, h, w) to (B, K, H, W), bilinearly."""
        size = (logits.shape[-2] * self.common_stride, logits.shape[-1] * self.common_stride)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map backbone maps (B, C, h, w) by name to the final class logits (B, K, H, W)."""
        return self.enlarge(self.predict(features)[-1])


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(PerPixelBaselineHead):
    """A pixel decoder, and a transformer decoder with one query per class, whose masks are the class logits."""

    def __init__(
        self,
        num_classes: int,
        *,
        pixel_decoder: PixelDecoder,
        predictor: TransformerDecoder,
        transformer_in_feature: str,
        common_stride: int = 4,
    ) -> None:
        """``transformer_in_feature`` names the map that queries attend to (see ``encode_pixels``)."""
        super().__init__(num_classes, pixel_decoder=pixel_decoder, predictor=predictor, common_stride=common_stride)
        self.transformer_in_feature = transformer_in_feature
        self.num_queries: int = predictor.num_queries
        if self.num_queries != num_classes:  # published models exist: results then have a channel for each query
            _logger.warning(
                "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is %d: %s has one query a class, and there are %d",
                self.num_queries,
                type(self).__name__,
                num_classes,
            )

    @classmethod
    def from_config(cls, cfg: Any, pixel_decoder: PixelDecoder, predictor: TransformerDecoder) -> dict[str, Any]:
        """Return the arguments of the simple head, and MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE."""
        arguments = super().from_config(cfg, pixel_decoder, predictor)
        return {**arguments, "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE}

    def predict(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Map backbone maps (B, C, h, w) by name to class logits (B, Q, h, w) of each layer, the final ones last.

        Raises:
            ConfigError: in training, there are fewer queries than classes.
        """
        if self.training and self.num_queries < self.num_classes:
            raise ConfigError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES: training {type(self).__name__} needs one query a class, "
                f"{self.num_classes}, found {self.num_queries}"
            )
        encoded = encode_pixels(features, pixel_decoder=self.pixel_decoder, in_feature=self.transformer_in_feature)
        predictions = self.predictor(*encoded)
        return [prediction.mask_logits().squeeze(2) for prediction in predictions]
