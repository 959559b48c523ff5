"""The mapper of OneFormer: a task is drawn for each training image, and its targets and texts are derived.

Segments of a panoptic annotation serve all three tasks. Instances do so too, as far as they go: as classes for the
semantic task, and without stuff for the panoptic one. A semantic annotation serves the semantic task alone.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import torch

from mask2former.config import CfgNode, query_node
from mask2former.data.catalog import DatasetDict, MetadataCatalog
from mask2former.data.mapper import DatasetMapper
from mask2former.data.targets import build_instances
from mask2former.data.text import ClipTokenizer, describe_objects
from mask2former.errors import ConfigError
from mask2former.structures import Instances
from mask2former.structures.tasks import task_sentence


class UnifiedMapper(DatasetMapper):
    """Adds to a training sample ``task``, its sentence, and ``text``, the token ids (N, S) of its texts."""

    def __init__(
        self,
        *args: Any,
        class_names: Sequence[str],
        thing_ids: Set[int],
        bounds: tuple[float, float],
        num_texts: int,
        max_length: int,
        tokenizer: ClipTokenizer,
        **options: Any,
    ) -> None:
        """Take the arguments of ``DatasetMapper``, and those of tasks and texts.

        ``bounds``: of a number in 0..1, below which the task is semantic, else instance, else panoptic.
        """
        super().__init__(*args, **options)
        self.class_names, self.thing_ids = tuple(class_names), frozenset(thing_ids)
        self.bounds, self.num_texts, self.max_length = bounds, num_texts, max_length
        self.tokenizer = tokenizer

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return what a config says of tasks and texts.

        Raises:
            ConfigError: the data sets tell no class names, or there is no vocabulary.
        """
        names = cfg.DATASETS.TRAIN
        metadata = MetadataCatalog.get(names[0]) if names else None
        classes = None if metadata is None else metadata.get("stuff_classes") or metadata.get("thing_classes")
        if not classes:
            raise ConfigError(f"DATASETS.TRAIN: OneFormer describes objects by class names, {list(names)} has none")
        things = metadata.get("thing_dataset_id_to_contiguous_id") if metadata is not None else None
        bounds = cfg.INPUT.TASK_PROB
        return {
            "class_names": classes,
            "thing_ids": set(range(len(classes))) if things is None else set(things.values()),
            "bounds": (bounds.SEMANTIC, bounds.INSTANCE),
            "num_texts": query_node(cfg).NUM_OBJECT_QUERIES - cfg.MODEL.TEXT_ENCODER.N_CTX,
            "max_length": cfg.INPUT.MAX_SEQ_LEN,
            "tokenizer": ClipTokenizer(cfg.INPUT.TEXT_VOCABULARY),
        }

    def __call__(self, dataset_dict: DatasetDict, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Map one image; all random numbers come from ``rng``, that of the task first.

        Raises:
            DatasetError: as that of ``DatasetMapper``.
        """
        if self.preset is None:
            return super().__call__(dataset_dict, rng)
        rng = np.random.default_rng() if rng is None else rng
        task, target = self._draw_task(rng), target_of(dataset_dict)
        if target == "semantic":
            task = "semantic"  # nothing tells the objects of a class apart
        sample = self.map_to_target(dataset_dict, target, rng)
        targets = targets_of_task(sample["instances"], task, thing_ids=self.thing_ids)
        sample["instances"], sample["task"] = targets, task_sentence(task)
        texts = describe_objects(
            targets.gt_classes.tolist(), class_names=self.class_names, task=task, num_texts=self.num_texts
        )
        sample["text"] = self.tokenizer.encode_all(texts, length=self.max_length)
        return sample

    def _draw_task(self, rng: np.random.Generator) -> str:
        number = rng.random()
        # Parity: the second bound is cumulative, whatever its key says (test_tasks_are_drawn_by_cumulative_bounds).
        return "semantic" if number < self.bounds[0] else "instance" if number < self.bounds[1] else "panoptic"


def target_of(record: DatasetDict) -> str:
    """Return which annotation of an image tells most: panoptic, instance or semantic."""
    if "pan_seg_file_name" in record and "segments_info" in record:
        return "panoptic"
    return "instance" if "annotations" in record else "semantic"


def targets_of_task(segments: Instances, task: str, *, thing_ids: Set[int]) -> Instances:
    """Return the targets of a task, of one target a segment; those without a pixel are left out."""
    classes, masks = segments.gt_classes, segments.gt_masks
    if task == "instance":
        is_thing = torch.tensor([int(label) in thing_ids for label in classes.tolist()], dtype=torch.bool)
        classes, masks = classes[is_thing], masks[is_thing]
    elif task == "semantic":
        shown = classes[masks.flatten(1).any(1)].tolist() if len(classes) else []
        distinct = list(dict.fromkeys(shown))  # in order of first appearance
        united = [masks[classes == label].any(0) for label in distinct]
        masks = torch.stack(united) if united else masks[:0]
        classes = torch.tensor(distinct, dtype=torch.int64)
    return build_instances(classes, masks, keep_empty=False)
