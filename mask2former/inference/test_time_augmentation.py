"""Test-time augmentation: average a model's results over resized and mirrored copies of an image.

Semantic results are averaged as published. Panoptic and instance results come from the mean of matched queries
(``modeling.query_merging``). One copy is made and predicted at a time.

Letters: B batch, Q queries, K classes, C channels, H W output size, h w size of an image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.config import CfgNode
from mask2former.data.transforms import HFlipTransform, ResizeShortestEdge, ResizeTransform
from mask2former.errors import ConfigError, InputError
from mask2former.files.channels import read_channels
from mask2former.files.images import FULL_BITS, read_image
from mask2former.modeling import MaskFormer, QueryPrediction
from mask2former.modeling.interfaces import PostProcessing
from mask2former.modeling.postprocess import InferenceOptions, MaskGeometry
from mask2former.modeling.query_merging import QueryMean


class ImageCopy(NamedTuple):
    """A sample with another ``image`` (C, h, w), and whether it is mirrored left to right."""

    sample: dict[str, Any]
    is_mirrored: bool


@dataclass(frozen=True)
class CopyMaker:
    """Makes the copies of an image: one for each shortest edge in pixels, and a mirrored one of each."""

    min_sizes: tuple[int, ...]
    max_size: int
    flip: bool
    image_format: str
    image_bits: int = FULL_BITS
    num_channels: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CopyMaker:
        """Return the copies of TEST.AUG.

        Raises:
            ConfigError: there is no size, or one below 1 pixel.
        """
        aug = cfg.TEST.AUG
        sizes = tuple(aug.MIN_SIZES)
        if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ConfigError(f"TEST.AUG.MIN_SIZES: expected at least one size, from 1 pixel on, found {list(sizes)}")
        if aug.MAX_SIZE < 1:
            raise ConfigError(f"TEST.AUG.MAX_SIZE: expected at least 1 pixel, found {aug.MAX_SIZE}")
        form = (cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_BITS, cfg.INPUT.CHANNELS)
        return cls(sizes, int(aug.MAX_SIZE), bool(aug.FLIP), *form)

    def __len__(self) -> int:
        return len(self.min_sizes) * (2 if self.flip else 1)

    def describe(self) -> str:
        """Return a line for the log that describes the copies."""
        mirrored = ", each mirrored too" if self.flip else ""
        return f"{len(self)} copies of each image: shortest edges {', '.join(map(str, self.min_sizes))}{mirrored}"

    def copies(self, sample: Mapping[str, Any]) -> Iterator[ImageCopy]:
        """Yield the copies; the one nearest to the sample's own size comes first, not mirrored.

        A sample holds ``image`` (C, h, w) or its ``file_name``, and optionally the output size ``height`` and
        ``width``, by default the image's.

        Raises:
            InputError: the sample is a clip, or malformed.
        """
        complete = self._complete(sample)
        array = np.ascontiguousarray(complete["image"].detach().cpu().numpy().transpose(1, 2, 0))  # (h, w, C)
        size = (int(array.shape[0]), int(array.shape[1]))
        # Parity: the image was resized for the test before, and is resized again.
        sizes = [ResizeShortestEdge.output_size(size, length, self.max_size) for length in self.min_sizes]
        for new_size in sorted(sizes, key=lambda new_size: abs(new_size[0] - size[0]) + abs(new_size[1] - size[1])):
            resized = ResizeTransform(*size, *new_size).apply_image(array)
            yield ImageCopy({**complete, "image": _to_tensor(resized)}, is_mirrored=False)
            if self.flip:
                mirrored = HFlipTransform(new_size[1]).apply_image(resized)
                yield ImageCopy({**complete, "image": _to_tensor(mirrored)}, is_mirrored=True)

    def _complete(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        complete = dict(sample)
        if "image" not in complete:
            if "file_name" not in complete:
                raise InputError(f"a sample needs 'image' or 'file_name', found keys {sorted(complete)}")
            name = complete["file_name"]
            if self.num_channels:
                complete["image"] = _to_tensor(read_channels(name, self.num_channels))
            else:
                complete["image"] = _to_tensor(read_image(name, self.image_format, bits=self.image_bits))
        image = complete["image"]
        if not isinstance(image, Tensor) or image.ndim != 3:
            found = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"test-time augmentation takes images (C, H, W): found {found}")
        complete.setdefault("height", int(image.shape[1]))
        complete.setdefault("width", int(image.shape[2]))
        return complete


class SemanticSegmentorWithTTA(nn.Module):
    """Test-time augmentation of any model that returns ``sem_seg``.

    Takes a list of samples and returns a list of ``sem_seg``.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """TEST.AUG describes the copies; the weights of ``model`` are shared.

        Raises:
            ConfigError: values of TEST.AUG are wrong.
        """
        super().__init__()
        self.copy_maker = CopyMaker.from_config(cfg)
        self.wants_labels = bool(cfg.TEST.SEMANTIC_LABELS)
        self.model = _unwrap(model)
        self.training = self.model.training  # train() would wake parts that are frozen in evaluation mode

    @torch.no_grad()
    def forward(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of each sample (see ``CopyMaker.copies``) at its output size.

        Raises:
            ConfigError: the model returns no ``sem_seg``.
            InputError: a sample is a clip, or malformed.
        """
        assert not self.model.training, "test-time augmentation of a model in training mode"
        return [self.infer(sample) for sample in batch]

    def infer(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``sem_seg`` of one sample: the mean over the copies (K, H, W), or the labels of its largest values."""
        mean = _Mean()
        for copy in self.copy_maker.copies(sample):
            with _scores_of_classes(self.model):
                results = self.model([copy.sample])[0]
            if "sem_seg" not in results:
                raise ConfigError(
                    f"TEST.AUG.ENABLED: {type(self.model).__name__} returns {sorted(results) or 'nothing'} but no "
                    "'sem_seg' to average; MODEL.MASK_FORMER.TEST.SEMANTIC_ON True returns it"
                )
            mean.add(results["sem_seg"].flip(-1) if copy.is_mirrored else results["sem_seg"])
        return {"sem_seg": mean.value.argmax(0).int() if self.wants_labels else mean.value}


class MaskFormerWithTTA(SemanticSegmentorWithTTA):
    """Test-time augmentation of MaskFormer and Mask2Former, for every task of MODEL.MASK_FORMER.TEST."""

    model: MaskFormer

    def infer(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``sem_seg``, ``panoptic_seg`` and ``instances`` of one sample, as the model does."""
        model = self.model
        merged = _MergedResults(model.inference, model.thing_ids, model.postprocess)
        for copy in self.copy_maker.copies(sample):
            images, geometries = model.pad([copy.sample])
            prediction = model.predict(images)[-1]
            with torch.autocast(model.device.type, enabled=False):
                merged.add(prediction, geometries[0], is_mirrored=copy.is_mirrored)
        with torch.autocast(model.device.type, enabled=False):
            return merged.results()


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> SemanticSegmentorWithTTA:
    """Return the model with the augmentation of TEST.AUG, for all its tasks.

    Raises:
        ConfigError: values of TEST.AUG are wrong.
    """
    inner = _unwrap(model)
    has_queries = isinstance(inner, MaskFormer) and (inner.inference.panoptic or inner.inference.instance)
    return (MaskFormerWithTTA if has_queries else SemanticSegmentorWithTTA)(cfg, inner)


class _Mean:
    """Running mean of maps, updated by steps towards each new value, so that equal maps stay bit-equal."""

    def __init__(self) -> None:
        self.value = torch.empty(0)
        self.count = 0

    def add(self, value: Tensor) -> None:
        self.count += 1
        self.value = value if self.count == 1 else self.value.lerp_(value, 1 / self.count)


class _MergedResults:
    """The results of every task from the predictions of all copies of one image."""

    def __init__(self, options: InferenceOptions, thing_ids: Set[int] | None, postprocess: PostProcessing) -> None:
        self._thing_ids = thing_ids
        self._postprocess = postprocess
        # The maps of a class are resized as they are where the model infers its tasks together.
        resize_first = options.resize_before_inference or options.panoptic or options.instance
        self._semantic = replace(
            options, panoptic=False, instance=False, semantic_labels=False, resize_before_inference=resize_first
        )
        self._wants_labels = options.semantic_labels
        self._others = replace(options, semantic=False)
        self._sem_seg = _Mean()
        self._queries: QueryMean | None = None

    def add(self, prediction: QueryPrediction, geometry: MaskGeometry, *, is_mirrored: bool) -> None:
        """Add the prediction of one copy, a batch of one image."""
        class_logits = prediction.class_logits[0]  # (Q, K + 1)
        mask_logits = prediction.mask_logits()[0].squeeze(1)  # (B, Q, T, h, w) -> (Q, h, w)
        if self._semantic.semantic:
            maps = self._postprocess(class_logits, mask_logits, geometry=geometry, options=self._semantic)["sem_seg"]
            self._sem_seg.add(maps.flip(-1) if is_mirrored else maps)
        if self._queries is None:
            assert not is_mirrored, "masks are merged in the frame of the first copy"
            self._queries = QueryMean(class_logits, mask_logits, geometry=geometry)
        else:
            self._queries.add(class_logits, mask_logits, geometry=geometry, is_mirrored=is_mirrored)

    def results(self) -> dict[str, Any]:
        assert self._queries is not None, "there is at least one copy"
        results = self._postprocess(
            *self._queries.result(),
            geometry=self._queries.geometry,
            options=self._others,
            thing_ids=self._thing_ids,
        )
        if not self._semantic.semantic:
            return dict(results)
        mean = self._sem_seg.value
        return {"sem_seg": mean.argmax(0).int() if self._wants_labels else mean, **results}


@contextlib.contextmanager
def _scores_of_classes(model: Any) -> Iterator[None]:
    """Make the model return scores, which can be averaged, even if it is set to return labels."""
    inference = getattr(model, "inference", None)
    if not isinstance(inference, InferenceOptions):
        yield
        return
    model.inference = replace(inference, semantic_labels=False)
    try:
        yield
    finally:
        model.inference = inference


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _to_tensor(image: np.ndarray) -> Tensor:
    """Map the image (h, w, C) to its own contiguous tensor (C, h, w)."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C", copy=True))
