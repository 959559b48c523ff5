"""Images and masks for the Trainer of transformers, and the average precision that it evaluates.

Letters: N instances of an image, H W size of the images that are fed, h w size of the image in the file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset

from mask2former.data.own_data.datasets_library import decode_annotation
from mask2former.data.transforms import AugmentationList
from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.average_precision import AveragePrecision, PrecisionTally
from mask2former.evaluation.coco_matching import match_image
from mask2former.integrations.transformers.published_results import infer_instances
from mask2former.integrations.transformers.task_processing import OneFormerProcessor
from mask2former.structures import bitmasks_to_rles
from mask2former.structures.tasks import TASKS

INDEX, SIZE, TRUTH = "index", "size", "truth"  # of samples for evaluation, which the model is not given
_VOID = 0  # instance id of pixels that nothing is learnt of
_OF_IMAGES, _OF_TASKS = ("pixel_values", "pixel_mask", "mask_labels", "class_labels"), ("task_inputs", "text_inputs")


class FineTuningImages(Dataset[dict[str, Any]]):
    """A split, each row augmented, then resized and normalised by the image processor.

    A sample has pixel_values (3, H, W), pixel_mask (H, W), mask_labels (N, H, W), class_labels (N,); of OneFormer's
    processor also the token ids task_inputs (S,) and text_inputs (texts, S) of a task that is drawn, in evaluation
    always that of instances. ``with_truth``
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
        task = {"task_inputs": self._task()} if isinstance(self.processor, OneFormerProcessor) else {}
        features = self.processor(
            images=[image],
            segmentation_maps=[numbers],
            instance_id_to_semantic_id=dict(enumerate(classes, start=1)),
            ignore_index=_VOID,
            do_reduce_labels=False,  # done, for classes; theirs reduces ids of instances
            return_tensors="pt",
            **task,
        )
        return {name: features[name][0] for name in (*_OF_IMAGES, *_OF_TASKS) if name in features}

    def _task(self) -> str:
        return "instance" if self.with_truth else TASKS[int(torch.randint(len(TASKS), ()))]


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch: images and their masks of padding stacked, the rest as lists; smaller images are padded."""
    height, width = (max(sample["pixel_values"].shape[axis] for sample in samples) for axis in (1, 2))
    batch: dict[str, Any] = {
        name: torch.stack([_pad(sample[name], height, width) for sample in samples])
        for name in ("pixel_values", "pixel_mask")
    }
    batch["mask_labels"] = [_pad(sample["mask_labels"], height, width) for sample in samples]
    batch["class_labels"] = [sample["class_labels"] for sample in samples]
    batch |= {name: torch.stack([sample[name] for sample in samples]) for name in _OF_TASKS if name in samples[0]}
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


_MAX_REASON = 300  # letters
_METRICS = {"map": "AP", "map_50": "AP50", "map_75": "AP75"}
_METRICS |= {"map_small": "APs", "map_medium": "APm", "map_large": "APl"}


class FineTuningTrainer(transformers.Trainer):
    """Evaluates by the published protocol: the 100 best pairs of query and class of an image, at the file's size.

    Metrics, in 0..1: map (mean over IoU 0.5..0.95), map_50, map_75, map_small, map_medium, map_large, and
    map_CLASS for each class; those for which the split has no instance are left out.
    """

    _tally = PrecisionTally()

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository for --push_to_hub, before anything is trained.

        Raises:
            InputError: the hub cannot be reached, or refuses.
        """
        with _hub_failures("nothing was trained yet"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload model and card.

        Raises:
            InputError: the hub cannot be reached, or refuses.
        """
        with _hub_failures(f"the model is in {self.args.output_dir}"):
            return super().push_to_hub(*args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, None, None]:
        """Return the loss; instances are matched on the way."""
        indices, sizes, truths = (inputs.pop(name) for name in (INDEX, SIZE, TRUTH))
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        found = infer_instances(outputs, target_sizes=sizes, pixel_mask=inputs["pixel_mask"])
        for index, instances, truth in zip(indices, found, truths, strict=True):
            self._tally.add_image(index, match_image(truth, _encode(instances), iou_type="segm"))
        return loss.detach().mean(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Their loop, with the metrics added to those it returns."""
        self._tally = PrecisionTally()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        total = PrecisionTally()
        for tally in gather_object([self._tally]):
            total += tally
        names = {int(label): name for label, name in self.model.config.id2label.items()}
        metrics = summarize(total.average_precision(names), names)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


@contextlib.contextmanager
def _hub_failures(state: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the hub's client raises whatever the network leads it to
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        raise InputError(f"--push_to_hub: {reason}; {state}") from error


def summarize(precision: AveragePrecision, names: Mapping[int, str]) -> dict[str, float]:
    """Return metrics in 0..1 by name; without those that could not be measured, but for map itself."""
    values = {name: precision.summary[key] / 100 for name, key in _METRICS.items()}
    values |= {f"map_{names[label]}": value / 100 for label, value in precision.by_category.items()}
    measured = {name: round(value, 4) for name, value in values.items() if not math.isnan(value)}
    return {"map": 0.0} | measured


def _encode(instances: Any) -> list[dict[str, Any]]:
    rles = bitmasks_to_rles(instances.pred_masks) if len(instances) else []
    pairs = zip(instances.pred_classes.tolist(), instances.scores.double().tolist(), rles, strict=True)
    return [{"category_id": label, "score": score, "segmentation": rle} for label, score, rle in pairs]
