"""The graph that is exported: normalisation, padding, the model, and its logits or finished results.

Letters: B batch, T frames, Q queries, K classes, C channels, H W size of the image, h w size of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.export.finished import FinishedResults
from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.meta_arch import MaskFormer, OneFormer, SemanticSegmentor
from mask2former.modeling.prediction import QueryPrediction
from mask2former.runtime.exported_info import RAW_OUTPUTS, RAW_PIXEL_OUTPUTS
from mask2former.structures.tasks import TASKS

MAX_SIDE = 1 << 15  # of images and results


class PixelsToOutputs(nn.Module):
    """Maps images (B, H, W, 3) RGB, 0..255 as uint8 or float32, to the outputs of an exported file.

    Raw outputs of models with queries are ``class_logits`` (B, Q, K + 1) and ``mask_logits`` (B, Q, h, w) of the padded
    image; of other models ``class_maps`` (B, K, h, w). A video model takes the frames (T, H, W, 3) of one window, and
    its ``mask_logits`` are (1, Q, T, h, w). OneFormer also takes the task of each image, (B,) int64: 0 panoptic, 1
    instance, 2 semantic.
    """

    task_tokens: Tensor  # (3, S) of OneFormer

    def __init__(self, model: nn.Module, *, is_bgr: bool, finish: FinishedResults | None = None) -> None:
        """``is_bgr``: the model takes BGR; ``finish``: what makes results of logits."""
        super().__init__()
        if not isinstance(model, (MaskFormer, SemanticSegmentor)):
            raise ConfigError(
                "MODEL.META_ARCHITECTURE: expected MaskFormer, OneFormer or SemanticSegmentor to export, found "
                f"{type(model).__name__}"
            )
        self.model: Any = model
        self.is_bgr = is_bgr
        self.takes_task = isinstance(model, OneFormer)
        if isinstance(model, OneFormer):
            self.register_buffer("task_tokens", model.task_ids(TASKS), persistent=False)
        self.finish = finish

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs, in their order."""
        if self.finish is not None:
            return self.finish.output_names
        return RAW_OUTPUTS if isinstance(self.model, MaskFormer) else RAW_PIXEL_OUTPUTS

    @property
    def divisor(self) -> int:
        """Return what sides are padded to a multiple of."""
        return max(self.model.size_divisibility, 1)

    def forward(
        self, images: Tensor, output_size: Tensor | None = None, task: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the outputs; ``output_size`` (2,) int64 is the height and width of finished results."""
        padded = self.prepare(images)
        num_frames = images.shape[0] if self.model.takes_clips else None
        if task is None:
            prediction = self.model.predict(padded, num_frames=num_frames)[-1]
        else:
            inputs, mask_features = self.model.encode_pixels(padded)
            prediction = self.model.decode_task(inputs, mask_features, self.task_tokens[task])[0][-1]
        raw = raw_outputs(prediction, is_clip=num_frames is not None)
        if self.finish is None:
            return raw
        size = (images.shape[1], images.shape[2])
        geometry = MaskGeometry((padded.shape[2], padded.shape[3]), size, _target(output_size, size))
        return self.finish(*raw, geometry=geometry)

    def prepare(self, images: Tensor) -> Tensor:
        """Return normalised images (B, 3, H', W'), with zeros at the bottom and right until the model's sides fit."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        pixels = pixels.flip(1) if self.is_bgr else pixels
        pixels = (pixels - self.model.pixel_mean) / self.model.pixel_std
        height, width = pixels.shape[2], pixels.shape[3]
        # Of positive numbers: the quotient of a negative one is rounded to zero in ONNX.
        bottom, right = ((side + self.divisor - 1) // self.divisor * self.divisor - side for side in (height, width))
        return F.pad(pixels, (0, right, 0, bottom))


def raw_outputs(prediction: Any, *, is_clip: bool = False) -> tuple[Tensor, ...]:
    """Return the final prediction of a model as the raw outputs of its file."""
    if not isinstance(prediction, QueryPrediction):
        return (prediction.float(),)
    masks = prediction.mask_logits().float()  # (B, Q, T, h, w)
    return prediction.class_logits.float(), masks if is_clip else masks.squeeze(2)


def _target(output_size: Tensor | None, size: tuple[int, int]) -> tuple[int, int]:
    if output_size is None:
        return size
    height, width = output_size.tolist()
    for side in (height, width):
        torch._check(side >= 1)
        torch._check(side <= MAX_SIDE)
    return height, width
