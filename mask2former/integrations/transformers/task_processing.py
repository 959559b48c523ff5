"""The processor of transformers' OneFormer: images, tasks, and the targets and texts of tasks.

It needs no tokeniser for tasks, and the package open_clip_torch for texts (``pip install 'mask2former[text]'``). With
``parity="published"`` images, texts, targets and results are those of the published model; ``"transformers"`` leaves
them to theirs, whose texts count objects of the images before, say "an panoptic photo", and whose masks hold
``ignore_index`` in the padding.

Letters: B batch, N texts, S tokens, M targets of an image, K classes, H W size of the padded images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.image_processing_base import BatchFeature

from mask2former.data.targets import build_instances
from mask2former.data.text import ClipTokenizer, describe_objects
from mask2former.data.unified_mapper import targets_of_task
from mask2former.errors import ConfigError, InputError
from mask2former.integrations.transformers.image_processing import OfTwoParities
from mask2former.integrations.transformers.published_results import Sizes, instance_results
from mask2former.structures.tasks import TASKS, parse_task, task_token_ids

_DIVISOR = 32  # images are padded to a multiple of it, as published


class OneFormerImageProcessor(OfTwoParities, transformers.OneFormerImageProcessor):
    """Their processor with all its arguments, and ``parity``: "published" (the default) or "transformers".

    ``metadata`` holds the classes, as theirs reads it from ``class_info_file``; ``num_text`` is the number of texts of
    an image: queries less learned contexts.
    """

    metadata: dict[str, Any] | None = None

    def encode_inputs(
        self,
        pixel_values_list: list[Any],
        task_inputs: list[str] | None = None,
        segmentation_maps: list[Any] | None = None,
        instance_id_to_semantic_id: Any = None,
        ignore_index: int | None = None,
        do_reduce_labels: bool = False,
        return_tensors: Any = None,
    ) -> BatchFeature:
        """``pixel_values`` (B, 3, H, W), ``pixel_mask`` (B, H, W); of maps ``mask_labels``, ``class_labels``, texts.

        Raises:
            ConfigError: maps are given, and the processor knows no classes or no number of texts.
            InputError: not one task for each image, or a task that does not exist.
        """
        if not self.is_exact:
            return super().encode_inputs(
                pixel_values_list,
                task_inputs,
                segmentation_maps,
                instance_id_to_semantic_id,
                ignore_index,
                do_reduce_labels,
                return_tensors,
            )
        images = [torch.as_tensor(image) for image in pixel_values_list]
        height, width = (-(-max(image.shape[axis] for image in images) // _DIVISOR) * _DIVISOR for axis in (1, 2))
        tasks = _one_for_each(task_inputs or TASKS[0], len(images))
        masks = [torch.ones(image.shape[1:], dtype=torch.int64) for image in images]
        encoded: dict[str, Any] = {
            "pixel_values": [_pad(image, height, width) for image in images],
            "pixel_mask": [_pad(mask, height, width) for mask in masks],
        }
        if return_tensors is not None:
            encoded = {name: torch.stack(tensors) for name, tensors in encoded.items()}
        if segmentation_maps is not None:
            mappings = instance_id_to_semantic_id
            listed = mappings if isinstance(mappings, list) else [mappings] * len(images)
            options = {"ignore_index": ignore_index, "do_reduce_labels": do_reduce_labels}
            targets = [
                self._targets(torch.as_tensor(ids), mapping, task, **options)
                for ids, mapping, task in zip(segmentation_maps, listed, tasks, strict=True)
            ]
            encoded["mask_labels"] = [_pad(target.gt_masks.float(), height, width) for target in targets]
            encoded["class_labels"] = [target.gt_classes for target in targets]
            encoded["text_inputs"] = [
                self.describe(target.gt_classes.tolist(), task) for target, task in zip(targets, tasks)
            ]
        encoded["task_inputs"] = [f"the task is {task}" for task in tasks]
        return BatchFeature(data=encoded)

    def describe(self, class_ids: Sequence[int], task: str) -> list[str]:
        """Return the texts of an image with objects of these classes.

        Raises:
            ConfigError: the processor knows no classes or no number of texts.
        """
        if self.num_text is None:
            raise ConfigError("num_text: missing; texts of an image are num_queries - text_encoder_n_ctx of the model")
        return describe_objects(
            class_ids, class_names=self._metadata()["class_names"], task=task, num_texts=self.num_text
        )

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        task_type: str = "instance",
        is_demo: bool = True,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sizes | None = None,
        return_coco_annotation: bool | None = False,
        *,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """As that of ``Mask2FormerImageProcessor``, of things alone where the processor knows which classes are.

        Without ``is_demo`` all instances are returned, whatever their score. ``task_type`` changes nothing: the
        published model keeps things in every task.
        """
        if not self.is_exact:
            return super().post_process_instance_segmentation(
                outputs,
                task_type,
                is_demo,
                threshold,
                mask_threshold,
                overlap_mask_area_threshold,
                target_sizes,
                return_coco_annotation,
            )
        return instance_results(
            outputs,
            threshold=threshold if is_demo else 0.0,
            mask_threshold=mask_threshold,
            target_sizes=target_sizes,
            pixel_mask=pixel_mask,
            as_runs=bool(return_coco_annotation),
            things=None if self.metadata is None else self.metadata["thing_ids"],
        )

    def _fused(self, label_ids: set[int] | None) -> set[int]:
        """Return those given, by default all classes that are no things."""
        if label_ids is not None or self.metadata is None:
            return super()._fused(label_ids)
        return set(range(len(self.metadata["class_names"]))) - set(self.metadata["thing_ids"])

    def _targets(self, ids: Tensor, mapping: Any, task: str, **options: Any) -> Any:
        ids = ids.reshape(ids.shape[-2:])
        masks, classes = self.convert_segmentation_map_to_binary_masks(ids, mapping, **options)
        segments = build_instances(classes.long(), masks > 0, keep_empty=False)
        return targets_of_task(segments, task, thing_ids=set(self._metadata()["thing_ids"]))

    def _metadata(self) -> dict[str, Any]:
        if self.metadata is None:
            raise ConfigError(
                "metadata: missing; targets need the classes: class_info_file and repo_path name a file of theirs, or "
                "metadata={'class_names': [...], 'thing_ids': [...]}"
            )
        return self.metadata


class OneFormerProcessor:
    """An image processor, and the token ids of tasks and texts, without a tokeniser of transformers."""

    def __init__(
        self,
        image_processor: OneFormerImageProcessor | None = None,
        *,
        max_seq_length: int = 77,
        task_seq_length: int = 77,
        vocabulary: str = "",
    ) -> None:
        """``vocabulary`` names CLIP's file; by default it comes with open_clip_torch, once texts are asked for."""
        self.image_processor = image_processor or OneFormerImageProcessor()
        self.max_seq_length, self.task_seq_length, self.vocabulary = max_seq_length, task_seq_length, vocabulary
        self._tokenizer: ClipTokenizer | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> OneFormerProcessor:
        """Return the processor of a folder that transformers or we saved, or of a repository of the hub.

        Raises:
            CheckpointError: a local folder that is not there.
        """
        own = {name: kwargs.pop(name) for name in ("max_seq_length", "task_seq_length", "vocabulary") if name in kwargs}
        return cls(OneFormerImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs), **own)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Write ``preprocessor_config.json``."""
        return self.image_processor.save_pretrained(save_directory, **kwargs)

    def __call__(
        self, images: Any, task_inputs: str | Sequence[str], segmentation_maps: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """``pixel_values``, ``pixel_mask``, ``task_inputs`` (B, S), and with maps labels and ``text_inputs`` (B, N, S).

        ``task_inputs``: a task, "panoptic", "instance" or "semantic", for each image, or one for all.

        Raises:
            ConfigError: texts are wanted, and there is no vocabulary.
            InputError: not one task for each image, or a task that does not exist.
        """
        is_single = not isinstance(images, (list, tuple))
        listed = [images] if is_single else list(images)
        tasks = _one_for_each(task_inputs, len(listed))
        if segmentation_maps is not None and is_single:
            segmentation_maps = [segmentation_maps]
        kwargs.setdefault("return_tensors", "pt")
        return self._encode(self.image_processor(listed, tasks, segmentation_maps, **kwargs), tasks)

    def encode_inputs(
        self, images: Sequence[Any], task_inputs: str | Sequence[str], segmentation_maps: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """As a call, of images that are resized and normalised already."""
        tasks = _one_for_each(task_inputs, len(images))
        kwargs.setdefault("return_tensors", "pt")
        return self._encode(self.image_processor.encode_inputs(list(images), tasks, segmentation_maps, **kwargs), tasks)

    def post_process_semantic_segmentation(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the image processor."""
        return self.image_processor.post_process_semantic_segmentation(*args, **kwargs)

    def post_process_instance_segmentation(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the image processor."""
        return self.image_processor.post_process_instance_segmentation(*args, **kwargs)

    def post_process_panoptic_segmentation(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the image processor."""
        return self.image_processor.post_process_panoptic_segmentation(*args, **kwargs)

    def _encode(self, features: BatchFeature, tasks: Sequence[str]) -> BatchFeature:
        features["task_inputs"] = torch.tensor([task_token_ids(task, length=self.task_seq_length) for task in tasks])
        if "text_inputs" in features:
            self._tokenizer = self._tokenizer or ClipTokenizer(self.vocabulary)
            texts = [self._tokenizer.encode_all(texts, length=self.max_seq_length) for texts in features["text_inputs"]]
            features["text_inputs"] = torch.stack(texts)
        return features


def _one_for_each(tasks: str | Sequence[str], num_images: int) -> list[str]:
    listed = [tasks] * num_images if isinstance(tasks, str) else list(tasks)
    if len(listed) != num_images:
        raise InputError(f"task_inputs: expected one for each of {num_images} images, found {len(listed)}")
    return [parse_task(task, source="task_inputs") for task in listed]


def _pad(tensor: Tensor, height: int, width: int) -> Tensor:
    return F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))
