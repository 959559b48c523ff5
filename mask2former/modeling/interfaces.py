"""Protocols of the exchangeable parts of the model.

Letters: L prediction layers, B batch, T frames, Q queries, N targets of an image, M targets of all images, K classes, C
channels, P points, H W size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.postprocess import InferenceOptions
from mask2former.modeling.prediction import QueryPrediction
from mask2former.structures import ShapeSpec

# Of each image `labels` (N,) in 0..K-1, `masks` (N, [T,] H, W) bool and, if pixels train nothing, `ignored` (T, H, W).
Targets = Sequence[dict[str, Tensor]]


class Backbone(Protocol):
    """Makes maps of several strides of images."""

    size_divisibility: int

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, 3, H, W) -> maps (N, C, h, w) by name."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map by name."""


class SegmentationHead(Protocol):
    """Predicts from the maps of a backbone."""

    num_classes: int

    def predict(self, features: dict[str, Tensor]) -> Sequence[Any]:
        """Maps (B, [T,] C, h, w) by name -> one prediction a layer, the final one last."""


class QueryHead(SegmentationHead, Protocol):
    """One whose predictions are of queries; its halves may be called apart, and the frames of a clip join between."""

    predictor: TransformerDecoder

    def encode(self, features: dict[str, Tensor]) -> tuple[Any, Tensor]:
        """Maps (N, C, h, w) by name -> what queries look at, and mask features (N, C, H, W)."""


class PixelHead(SegmentationHead, Protocol):
    """One whose predictions are class logits (B, K, h, w) of pixels, ``common_stride`` smaller than the image."""

    common_stride: int

    def losses(self, predictions: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Unweighted scalars by name of logits (B, K, h, w) against class ids (B, H, W)."""


class PixelDecoder(Protocol):
    """Brings the maps of a backbone to one width and computes mask features from them."""

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Return mask features (N, C, H, W), the encoder's map or None, and the maps that queries attend to.

        ``features`` are the backbone's maps (N, C, h, w) by name.
        """


class TransformerDecoder(Protocol):
    """Turns queries into predictions."""

    num_queries: int

    def __call__(self, inputs: Any, mask_features: Tensor, *, num_frames: int = 1) -> list[QueryPrediction]:
        """Return one prediction per layer.

        ``inputs`` are the maps that queries attend to, tensors (BT, C, h, w); ``mask_features`` (BT, C, H, W).
        """


class Matcher(Protocol):
    """Assigns a query to every target."""

    def __call__(self, predictions: Sequence[QueryPrediction], targets: Targets) -> Tensor:
        """Return the query of each target in each layer: (L, M) int64 on the host, -1 for a target without one."""


class Criterion(Protocol):
    """Compares predictions with targets. It is a module of the model, so that its buffers move with it."""

    def __call__(self, predictions: Sequence[QueryPrediction], targets: Targets) -> dict[str, Tensor]:
        """Return unweighted scalars by name; those of earlier layers have the suffixes ``_0``, …"""

    def weight(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each loss times its weight; their sum is differentiated."""


@dataclass(frozen=True)
class Matched:
    """What a loss is computed from: predictions beside the targets they were matched with.

    ``table`` (L, M) is the query of each target, negative without one. ``point_logits`` and ``point_labels`` (L, M, T,
    P) are the masks of these queries and of their targets at the same points. ``num_masks`` is the mean over processes.
    ``point_weights`` (L, M, T, P): 0 at points that train nothing, else 1; None: all train.
    """

    predictions: Sequence[QueryPrediction]
    targets: Targets
    table: Tensor
    point_logits: Tensor
    point_labels: Tensor
    num_masks: Tensor
    point_weights: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Return means (L,) over matched masks of values (L, M, T), summed over frames."""
        is_matched = (self.table >= 0).to(values.dtype)
        return (values.sum(-1) * is_matched).sum(1) / self.num_masks


class Loss(Protocol):
    """One term of the criterion."""

    def __call__(self, matched: Matched) -> Tensor:
        """Return the unweighted loss of each layer, (L,)."""


class PostProcessing(Protocol):
    """Turns the predictions for an image into results."""

    def __call__(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        *,
        geometry: MaskGeometry,
        options: InferenceOptions,
        thing_ids: Set[int] | None = None,
    ) -> Mapping[str, Any]:
        """Return ``sem_seg``, ``panoptic_seg`` and ``instances``, those that ``options`` asks for.

        ``class_logits`` (Q, K + 1), ``mask_logits`` (Q, h, w).
        """
