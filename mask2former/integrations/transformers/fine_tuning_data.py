"""Images for fine-tuning: rows of a data set of the library ``datasets`` as the model takes them.

Letters: N instances of an image, H W size of the images that are fed, h w size of the image in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mask2former.data.own_data.datasets_library import decode_annotation
from mask2former.data.transforms import AugmentationList
from mask2former.errors import DatasetError
from mask2former.structures import bitmasks_to_rles

INDEX, SIZE, TRUTH = "index", "size", "truth"  # of samples for evaluation, which the model is not given
_VOID = 0  # instance id of pixels that nothing is learnt of


class FineTuningImages(Dataset[dict[str, Any]]):
    """A split, each row augmented, then resized and normalised by the image processor.

    A sample has pixel_values (3, H, W), pixel_mask (H, W), mask_labels (N, H, W), class_labels (N,). ``with_truth``
    adds what COCO's average precision is measured by, at the size of the file: index, size (h, w), and truth, a list of
    instances with category_id and run-length code.
    """

    def __init__(
        self,
        split: Any,
        processor: Any,
        *,
        augmentation: AugmentationList | None = None,
        reduce_labels: bool = False,
        num_classes: int,
        with_truth: bool = False,
    ) -> None:
        self.split = split
        self.processor = processor
        self.augmentation = augmentation
        self.reduce_labels = reduce_labels
        self.num_classes = num_classes
        self.with_truth = with_truth

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raise DatasetError where the annotation is no RGB picture, has another size, or holds an unknown class."""
        row = self.split[int(index)]
        image = np.array(row["image"].convert("RGB"))  # a copy: torch wants to be able to write
        class_ids, instance_ids = decode_annotation(row["annotation"], f"row {index}")
        if class_ids.shape != image.shape[:2]:
            sizes = f"image has (height, width) = {image.shape[:2]}, its annotation {class_ids.shape}"
            raise DatasetError(f"row {index}: {sizes}")
        numbers, classes = self._number(class_ids, instance_ids, int(index))
        truth = _true_instances(numbers, classes) if self.with_truth else []
        size = class_ids.shape
        if self.augmentation is not None:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))  # of the worker, whose state a checkpoint keeps
            transform = self.augmentation.sample(rng, size)
            image, numbers = transform.apply_image(image), transform.apply_segmentation(numbers, fill=_VOID)
        sample = self._process(image, numbers, classes)
        return sample | ({INDEX: int(index), SIZE: size, TRUTH: truth} if self.with_truth else {})

    def _number(self, class_ids: np.ndarray, instance_ids: np.ndarray, index: int) -> tuple[np.ndarray, list[int]]:
        """A map (h, w) of the numbers 1, 2, … of the instances, 0 where there is none, and the class of each number."""
        span = int(instance_ids.max()) + 1
        keys = class_ids.astype(np.int32) * span + instance_ids
        found = np.flatnonzero(np.bincount(keys.reshape(-1)))  # sorting all pixels would take ten times as long
        classes = found // span - int(self.reduce_labels)
        if classes[-1] >= self.num_classes:
            hint = (
                "" if self.reduce_labels else "; where ids begin at 1 and 0 is background, --do_reduce_labels is needed"
            )
            raise DatasetError(
                f"row {index}: annotation: class ids (R): expected 0..{self.num_classes - 1 + self.reduce_labels}, as "
                f"semantic_class_to_id has them, found {found[-1] // span}{hint}"
            )
        is_kept = classes >= 0
        number_of = np.zeros(found[-1] + 1, dtype=np.int32)
        number_of[found] = np.where(is_kept, np.cumsum(is_kept), _VOID)
        numbers = number_of[keys]
        return numbers, classes[is_kept].tolist()

    def _process(self, image: np.ndarray, numbers: np.ndarray, classes: Sequence[int]) -> dict[str, Any]:
        features = self.processor(
            images=[image],
            segmentation_maps=[numbers],
            instance_id_to_semantic_id=dict(enumerate(classes, start=1)),
            ignore_index=_VOID,
            do_reduce_labels=False,  # done, for classes; theirs reduces ids of instances
            return_tensors="pt",
        )
        return {name: features[name][0] for name in ("pixel_values", "pixel_mask", "mask_labels", "class_labels")}


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch: images and their masks of padding stacked, the rest as lists; smaller images are padded."""
    height, width = (max(sample["pixel_values"].shape[axis] for sample in samples) for axis in (1, 2))
    batch: dict[str, Any] = {
        name: torch.stack([_pad(sample[name], height, width) for sample in samples])
        for name in ("pixel_values", "pixel_mask")
    }
    batch["mask_labels"] = [_pad(sample["mask_labels"], height, width) for sample in samples]
    batch["class_labels"] = [sample["class_labels"] for sample in samples]
    return batch | {name: [sample[name] for sample in samples] for name in (INDEX, SIZE, TRUTH) if name in samples[0]}


def _pad(tensor: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))


def _true_instances(numbers: np.ndarray, classes: Sequence[int]) -> list[dict[str, Any]]:
    masks = numbers[None] == np.arange(1, len(classes) + 1)[:, None, None]
    rles = bitmasks_to_rles(masks) if len(classes) else []
    return [
        {"id": i, "category_id": label, "segmentation": rle, "area": int(mask.sum()), "iscrowd": 0}
        for i, (label, rle, mask) in enumerate(zip(classes, rles, masks, strict=True), start=1)
    ]
