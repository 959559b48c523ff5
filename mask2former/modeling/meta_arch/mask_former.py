"""Mask2Former as one module: backbone, pixel decoder, transformer decoder, then losses or results.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022. Images and clips take the
same path: a clip's T frames are folded into the batch up to the pixel decoder.

Letters: B batch, T frames, Q queries, N targets, K classes, C channels, H W size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mask2former.config.registry import build_callable
from mask2former.modeling.interfaces import Backbone, Criterion, PostProcessing, QueryHead
from mask2former.modeling.meta_arch.assembly import build_criterion
from mask2former.modeling.meta_arch.inputs import count_frames, pad_targets
from mask2former.modeling.meta_arch.mask_former_head import join_frames
from mask2former.modeling.meta_arch.segmentation_model import SegmentationModel
from mask2former.modeling.postprocess import InferenceOptions, MaskGeometry, infer_clip, infer_image
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import META_ARCH_REGISTRY, POSTPROCESSING_REGISTRY
from mask2former.modeling.video_windows import (
    SettledFrames,
    WindowOptions,
    WindowStitcher,
    infer_window,
    join_settled,
    split_windows,
)
from mask2former.structures import MetadataCatalog
from mask2former.structures.tasks import test_sets

_logger = logging.getLogger(__name__)
_FRAMES_AT_ONCE = 8  # of a clip, in backbone and pixel decoder: the large maps of the others are gone by then
_OUTPUT_SIZE = (("height", -2), ("width", -1))


@META_ARCH_REGISTRY.register()
class MaskFormer(SegmentationModel):
    """The published meta-architecture: from a list of dictionaries to losses in training, else to a list of results."""

    sem_seg_head: QueryHead
    compiled_steps: ClassVar[Sequence[str]] = ("predict_pixels", "encode_frames", "decode_frames")

    def __init__(
        self,
        backbone: Backbone,
        *,
        sem_seg_head: QueryHead,
        criterion: Criterion,
        inference: InferenceOptions,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        thing_ids: Set[int] | None = None,
        inference_dtype: torch.dtype | None = None,
        windows: WindowOptions | None = None,
        postprocess: PostProcessing = infer_image,
    ) -> None:
        """``thing_ids``: contiguous ids of the thing classes; None: all.

        ``windows``: how clips are inferred; None: as a whole.
        ``postprocess``: makes the results of an image.
        A negative ``size_divisibility`` stands for the backbone's.
        """
        super().__init__(
            backbone,
            sem_seg_head=sem_seg_head,
            size_divisibility=size_divisibility,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            inference_dtype=inference_dtype,
        )
        self.criterion = criterion
        self.inference = inference
        self.postprocess = postprocess
        self.thing_ids = None if thing_ids is None else frozenset(thing_ids)
        self.windows = WindowOptions() if windows is None else windows

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Return the parts of the architecture figure: backbone, head of two decoders, criterion, inference options."""
        test = cfg.MODEL.MASK_FORMER.TEST
        return {
            **super().from_config(cfg),
            "criterion": build_criterion(cfg),
            "inference": InferenceOptions(
                semantic=test.SEMANTIC_ON,
                semantic_labels=cfg.TEST.SEMANTIC_LABELS,
                panoptic=test.PANOPTIC_ON,
                instance=test.INSTANCE_ON,
                object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
                overlap_threshold=test.OVERLAP_THRESHOLD,
                detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                score_threshold=cfg.TEST.SCORE_THRESHOLD,
                resize_before_inference=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            ),
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "postprocess": build_callable(POSTPROCESSING_REGISTRY.lookup(cfg.MODEL.MASK_FORMER.POSTPROCESSING), cfg),
            "windows": WindowOptions(cfg.TEST.VIDEO.WINDOW, cfg.TEST.VIDEO.OVERLAP),
            "thing_ids": find_things(
                [*cfg.DATASETS.TRAIN, *(name for name, _ in test_sets(cfg))], is_needed=test.PANOPTIC_ON
            ),
        }

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return weighted scalar losses in training, one dictionary of results per sample otherwise.

        Each sample holds ``image``, (C, H, W) or a clip's T frames, 0..255. In training it holds ``instances``:
        Instances with gt_classes (N,) and gt_masks (N, H, W), or a list of T of them for a clip. In inference
        ``height`` and ``width`` are the output size, by default that of the image. For clips longer than a window,
        ``pred_masks`` are MaskTracks.

        Raises:
            InputError: samples are malformed, or images and clips are mixed.
            NonFiniteError: matching met a value that is infinite or not a number.
        """
        num_frames = count_frames(batch)
        if num_frames is not None and not self.training:
            return [self._infer_clip(sample, num_frames=num_frames) for sample in batch]
        images, geometries = self.pad(batch)
        predictions = self.predict(images, num_frames=num_frames)
        if self.training:
            return self.losses(predictions, batch, size=geometries[0].padded)
        return self.results(predictions[-1], geometries)

    def losses(
        self, predictions: Sequence[QueryPrediction], batch: Sequence[dict[str, Any]], *, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return weighted losses of all prediction layers for the batch's instances, padded to ``size``."""
        targets = pad_targets(batch, size=size, num_classes=self.sem_seg_head.num_classes, device=self.device)
        return self.criterion.weight(self.criterion(predictions, targets))

    @torch.no_grad()
    def results(
        self,
        prediction: QueryPrediction,
        geometries: Sequence[MaskGeometry],
        *,
        options: InferenceOptions | None = None,
    ) -> list[dict[str, Any]]:
        """Return the results of each image at its output size; ``options``: by default those of the model."""
        with torch.autocast(self.device.type, enabled=False):
            mask_logits = prediction.mask_logits().squeeze(2)  # (B, Q, H, W)
            options = self.inference if options is None else options
            postprocess = partial(self.postprocess, options=options, thing_ids=self.thing_ids)
            return [
                dict(postprocess(classes, masks, geometry=geometry))
                for classes, masks, geometry in zip(prediction.class_logits, mask_logits, geometries, strict=True)
            ]

    @torch.no_grad()
    def track(
        self, frames: Iterable[Tensor], *, height: int | None = None, width: int | None = None
    ) -> Iterator[SettledFrames]:
        """Yield the instances of a video of any length, window by window, with lasting track ids.

        Args:
            frames: (C, h, w), 0..255, read as they are needed.
            height: of the output; by default that of the frames.
            width: likewise.
        """
        stitcher = WindowStitcher(self.windows.overlap)
        for window in split_windows(frames, self.windows):
            sample = {"image": window.frames, "height": height, "width": width}
            prediction, geometry = self._predict_clip(
                {key: value for key, value in sample.items() if value is not None}
            )
            with torch.autocast(self.device.type, enabled=False):
                instances = infer_window(prediction, geometry=geometry)
            del prediction  # frees the maps before the next window needs room
            yield stitcher.add(instances, start=window.start, is_last=window.is_last)

    @torch.no_grad()
    def _infer_clip(self, sample: dict[str, Any], *, num_frames: int) -> dict[str, Any]:
        if not self.windows.covers(num_frames):
            height, width = (int(sample.get(key, sample["image"][0].shape[axis])) for key, axis in _OUTPUT_SIZE)
            settled = self.track(sample["image"], height=height, width=width)
            return join_settled(settled, image_size=(height, width))
        prediction, geometry = self._predict_clip(sample)
        with torch.autocast(self.device.type, enabled=False):
            return infer_clip(prediction, geometry=geometry)

    def _predict_clip(self, sample: dict[str, Any]) -> tuple[QueryPrediction, MaskGeometry]:
        """Return the final prediction (B = 1) of a clip; backbone and pixel decoder take a few frames at a time."""
        images, (geometry,) = self.pad([sample])
        with self.inference_precision():
            parts = [self.encode_frames(part) for part in images.split(_FRAMES_AT_ONCE)]
            return self.decode_frames(*join_frames(parts))[-1], geometry

    def encode_frames(self, images: Tensor) -> tuple[Any, Tensor]:
        """Map frames (T, 3, H, W) of a clip to the maps that queries attend to, and mask features (T, C, h, w)."""
        return self.sem_seg_head.encode(self.features(images))

    def decode_frames(self, inputs: Any, mask_features: Tensor) -> list[QueryPrediction]:
        """Return predictions (B = 1) of the clip that all these frames form, the final one last."""
        return self.sem_seg_head.predictor(inputs, mask_features, num_frames=len(mask_features))


def find_things(dataset_names: Sequence[str], *, is_needed: bool = False) -> set[int] | None:
    """Return the thing ids of the first data set whose metadata have them; None if no one has.

    ``is_needed``: log a warning if no one has.
    """
    for name in dataset_names:
        things = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
        if things is not None:
            return set(things.values())
    if is_needed:
        names = ", ".join(dataset_names) or "none"
        _logger.warning("no metadata on things (data sets: %s): every class is treated as a thing", names)
    return None


@META_ARCH_REGISTRY.register()
class VideoMaskFormer(MaskFormer):
    """The published name of the same model in video configs; it is trained on clips."""

    takes_clips = True
