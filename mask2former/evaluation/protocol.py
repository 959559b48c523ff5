"""The evaluator protocol: process each batch of images, then return metrics; checks that evaluators share.

Packages that are optional are imported here, adapted to the installed numpy.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.files.inputs import PathLike
from mask2former.structures.metadata import Metadata

ModelInputs = Sequence[Mapping[str, Any]]
ModelOutputs = Sequence[Mapping[str, Any]]
Results = dict[str, dict[str, float]]


def metadata_path(metadata: Metadata, key: str, evaluator: str) -> PathLike:
    """Return the path of a file or folder that an evaluator needs of the metadata.

    Raises:
        DatasetError: it is missing, None or no path.
    """
    value = _metadata_value(metadata, key, evaluator)
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong_kind(metadata, key, evaluator, f"a path, found {value!r}")
    return value


def metadata_names(metadata: Metadata, key: str, evaluator: str) -> list[str]:
    """Return the class names that an evaluator needs of the metadata.

    Raises:
        DatasetError: they are missing, None or no list of text.
    """
    value = _metadata_value(metadata, key, evaluator)
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        raise _wrong_kind(metadata, key, evaluator, f"a list of names, found {value!r}")
    return list(value)


def metadata_ids(metadata: Metadata, key: str, evaluator: str) -> dict[int, int]:
    """Return the contiguous class ids, by those of the data set, that an evaluator needs of the metadata.

    Raises:
        DatasetError: they are missing, None or no mapping.
    """
    value = _metadata_value(metadata, key, evaluator)
    if not isinstance(value, Mapping):
        raise _wrong_kind(metadata, key, evaluator, f"a mapping of ids, found {value!r}")
    return dict(value)


def _metadata_value(metadata: Metadata, key: str, evaluator: str) -> object:
    value: object = metadata.get(key)
    if value is None:
        known = sorted(metadata.as_dict())
        raise DatasetError(f"{evaluator}: data set {metadata.name!r} has no metadata {key!r}, it has {known}")
    return value


def _wrong_kind(metadata: Metadata, key: str, evaluator: str, found: str) -> DatasetError:
    return DatasetError(f"{evaluator}: metadata {key!r} of data set {metadata.name!r}: expected {found}")


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


class RelabelledThings(DatasetEvaluator):
    """An evaluator whose data set numbers things otherwise than the model, which knows other classes, too."""

    def __init__(self, evaluator: DatasetEvaluator, labels: Sequence[int]) -> None:
        """``labels`` are the model's labels of the data set's classes, in their order."""
        self.evaluator = evaluator
        self._labels = torch.tensor(list(labels))

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Evaluate the instances of the data set's classes, under its labels."""
        self.evaluator.process(inputs, [self._relabelled(output) for output in outputs])

    def evaluate(self) -> Results | None:
        """Return the results of the evaluator."""
        return self.evaluator.evaluate()

    def _relabelled(self, output: Mapping[str, Any]) -> Mapping[str, Any]:
        instances = output.get("instances")
        if instances is None or not len(instances):
            return output
        is_same = instances.pred_classes.cpu()[:, None] == self._labels  # (N, K)
        kept = instances[is_same.any(1)]
        kept.set("pred_classes", is_same.int().argmax(1)[is_same.any(1)].to(instances.pred_classes.device))
        return {**output, "instances": kept}


# What older packages call and newer numpy no longer has.
_REMOVED_FROM_NUMPY = {"in1d": np.isin, "float": float}


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, found without importing it."""
    return importlib.util.find_spec(package) is not None


def import_optional(module: str, *, extra: str) -> ModuleType:
    """Import a module that ``pip install mask2former[extra]`` installs; its ``np`` gets the names numpy has dropped.

    Raises:
        ConfigError: the module, or something that it needs, is not installed.
    """
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this evaluation needs {module.split('.')[0]} ({error}): pip install 'mask2former[{extra}]'"
        ) from error
    if getattr(imported, "np", None) is np:
        imported.np = _CompleteNumpy("numpy")  # type: ignore[attr-defined]
    return imported


class _CompleteNumpy(ModuleType):
    """numpy with its dropped names, for one module only; numpy itself is not changed."""

    def __getattr__(self, name: str) -> Any:
        if name in _REMOVED_FROM_NUMPY and name not in np.__dict__:
            return _REMOVED_FROM_NUMPY[name]
        return getattr(np, name)


def check_each_once(predicted: Sequence[Any], expected: Collection[Any], *, kind: str, source: PathLike) -> None:
    """Require one prediction for each image, or video, of a data set.

    Args:
        predicted: ids that were predicted.
        expected: ids of the data set.
        kind: what the ids are of, in errors: "image" or "video".
        source: where the data set is from, in errors.

    Raises:
        InputError: one was predicted twice, or not at all.
    """
    seen = set(predicted)
    if len(seen) < len(predicted):
        twice = next(given for given in seen if predicted.count(given) > 1)
        raise InputError(f"{kind} id {twice!r} of {source} was predicted twice")
    missing = [given for given in expected if given not in seen]
    if missing:
        raise InputError(
            f"no prediction for {len(missing)} of the {len(expected)} {kind}s of {source}: "
            f"{kind} ids {missing[:5]}{' …' if len(missing) > 5 else ''}"
        )
