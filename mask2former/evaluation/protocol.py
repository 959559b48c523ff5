"""The evaluator protocol: process each batch of images, then return metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mask2former.errors import DatasetError
from mask2former.structures.metadata import Metadata

ModelInputs = Sequence[Mapping[str, Any]]
ModelOutputs = Sequence[Mapping[str, Any]]
Results = dict[str, dict[str, float]]


def metadata_field(metadata: Metadata, key: str, evaluator: str) -> Any:
    """Return a metadata value that an evaluator needs.

    Raises:
        DatasetError: it is missing or None.
    """
    value = metadata.get(key)
    if value is None:
        known = sorted(metadata.as_dict())
        raise DatasetError(f"{evaluator}: data set {metadata.name!r} has no metadata {key!r}, it has {known}")
    return value


class DatasetEvaluator:
    """Accumulates over the images of one data set: ``reset``, ``process`` for each batch, ``evaluate``."""

    def reset(self) -> None:
        """Forget all images."""

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Add a batch: the inputs and the outputs of the model, one dict an image each."""
        raise NotImplementedError

    def evaluate(self) -> Results | None:
        """Return metrics by task, ``{"panoptic_seg": {"PQ": 52.1, …}}``, in percent; None off the main process.

        A metric without anything to measure (no object of that size, …) is NaN.
        """
        raise NotImplementedError


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators that see the same images."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self.evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self.evaluators:
            evaluator.reset()

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        for evaluator in self.evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Results | None:
        """Return the results of all evaluators.

        Raises:
            ValueError: two evaluators return the same task.
        """
        merged: Results = {}
        # Every evaluator gathers from all processes, so each must be asked everywhere.
        answers = [evaluator.evaluate() for evaluator in self.evaluators]
        if self.evaluators and all(answer is None for answer in answers):
            return None
        for answer in answers:
            for task, metrics in (answer or {}).items():
                if task in merged:
                    raise ValueError(f"two evaluators give results for task {task!r}")
                merged[task] = metrics
        return merged
