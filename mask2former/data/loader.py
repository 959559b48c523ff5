"""Batches for training and inference, each a ``list[dict]``.

Every sample is a function of (seed, position in the stream of all processes): the number of workers, their speed and
the iteration at which training was resumed do not change it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import cv2
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mask2former import distributed
from mask2former.config import CfgNode, build_from_config
from mask2former.data.catalog import (
    DatasetDict,
    name_of,
)
from mask2former.data.clip_mapper import ClipMapper
from mask2former.data.mapper import DatasetMapper
from mask2former.data.presets import MapperPreset, lookup_mapper, preset_of
from mask2former.data.samplers import (
    Draw,
    InferenceSampler,
    InfiniteSampler,
    RepeatFactorTrainingSampler,
    TrainingBatches,
    TrainingSampler,
    rank_and_world_size,
    repeat_factors_from_category_frequency,
    sample_generator,
)
from mask2former.data.training_sets import load_data_set, load_train_sets
from mask2former.data.transport import DatasetFromList, PackedBatch, pack, unpack
from mask2former.data.unified_mapper import UnifiedMapper
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.files.images import read_image_size

_WORKER_DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ((?:is killed by signal: [^.]*|exited unexpectedly))"
)

logger = logging.getLogger(__name__)


class RandomMapper(Protocol):
    """Maps a dataset dict to a sample; all random numbers come from the generator."""

    def __call__(self, dataset_dict: DatasetDict, rng: np.random.Generator, /) -> Any: ...


class PlainMapper(Protocol):
    """Maps a dataset dict to a sample, with random numbers of its own or none."""

    def __call__(self, dataset_dict: DatasetDict, /) -> Any: ...


Mapper = RandomMapper | PlainMapper


class _Failure:
    """Wrong input found in a worker, sent to the process that reports it."""

    def __init__(self, error: InputError) -> None:
        self.error_class, self.message = type(error), str(error)


class MappedDataset(Dataset):
    """Maps the image of a draw with the random generator of its position.

    A mapper takes (dataset dict, generator); one that takes only the dict is called with that.
    """

    def __init__(self, dataset: DatasetFromList, mapper: Mapper, *, seed: int) -> None:
        self.dataset, self.mapper, self.seed = dataset, mapper, seed
        self.takes_generator = _takes_two_arguments(mapper)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw | int) -> Any:
        position, index = (draw, draw) if isinstance(draw, int) else draw
        record = self.dataset[index]
        try:
            if self.takes_generator:
                return cast(RandomMapper, self.mapper)(record, sample_generator(self.seed, position))
            return cast(PlainMapper, self.mapper)(record)
        except InputError as error:
            return _Failure(error)
        except Exception as error:
            raise RuntimeError(f"mapping {name_of(record)} failed: {error}") from error


class TrainLoader:
    """Endless batches of this process, from iteration ``start_iter`` on.

    ``seed`` is the seed in use, even if the config leaves it open; ``batch_size`` is that of this process.
    """

    def __init__(
        self,
        dataset: MappedDataset,
        sampler: InfiniteSampler,
        *,
        batch_size: int,
        num_workers: int = 0,
        group_of: Callable[[int], int] | None = None,
        start_iter: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.seed, self.batch_size, self.num_samples = dataset.seed, batch_size, len(dataset)
        batches = TrainingBatches(sampler, batch_size=batch_size, group_of=group_of, start=start_iter)
        self._loader = _data_loader(dataset, batches, num_workers, pin_memory=pin_memory)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return _checked_batches(self._loader)


class TestLoader:
    """The images of this process, once each, in order."""

    __test__ = False  # not a test, whatever pytest makes of the name

    def __init__(
        self,
        dataset: MappedDataset,
        sampler: InferenceSampler,
        *,
        batch_size: int,
        num_workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.num_samples = len(sampler)
        batches = BatchSampler(sampler, batch_size, drop_last=False)
        self._loader = _data_loader(dataset, batches, num_workers, pin_memory=pin_memory)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return _checked_batches(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


def build_train_loader(
    cfg: CfgNode, *, mapper: Mapper | None = None, start_iter: int = 0, seed: int | None = None
) -> TrainLoader:
    """Return batches of ``SOLVER.IMS_PER_BATCH`` images of ``DATASETS.TRAIN``, over all processes.

    Args:
        cfg: the config.
        mapper: by default that of ``INPUT.DATASET_MAPPER_NAME``.
        start_iter: number of batches to skip, without reading them.
        seed: None takes ``SEED`` or, if that is negative, a random one that all processes share; pass the loader's
            ``seed`` to resume it.

    Raises:
        ConfigError: a value cannot be used.
        DatasetError: a data set is missing or wrong.
    """
    rank, world_size = rank_and_world_size()
    batch_size = _batch_size_per_process(cfg.SOLVER.IMS_PER_BATCH, world_size)
    seed = _resolve_seed(cfg.SEED) if seed is None else seed
    data_sets = load_train_sets(cfg)
    dataset_dicts = list(itertools.chain.from_iterable(data_sets))
    mapper = build_mapper(cfg) if mapper is None else mapper
    if rank == 0:
        logger.info("Augmentations: %s", getattr(mapper, "augmentations", mapper))
    sampler = _build_sampler(cfg, data_sets, seed=seed, rank=rank, world_size=world_size)
    dataset = DatasetFromList(dataset_dicts)
    group_of = functools.cache(functools.partial(_orientation, dataset))
    return TrainLoader(
        MappedDataset(dataset, mapper, seed=seed),
        sampler,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_of=group_of if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        start_iter=start_iter,
        pin_memory=_feeds_gpu(cfg),
    )


def build_mapper(cfg: CfgNode) -> Mapper:
    """Return the training mapper that ``INPUT.DATASET_MAPPER_NAME`` names.

    Raises:
        ConfigError: there is none of this name, or a value of ``INPUT`` is wrong.
    """
    mapper = lookup_mapper(cfg)
    if not isinstance(mapper, MapperPreset):
        return build_from_config(mapper, cfg)
    preset = preset_of(cfg)
    if preset.clips:
        return ClipMapper.from_config(cfg)
    return UnifiedMapper.from_config(cfg) if preset.tasks else DatasetMapper.from_config(cfg)


def build_test_loader(
    cfg: CfgNode, dataset_name: str, *, mapper: Mapper | None = None, batch_size: int = 1
) -> TestLoader:
    """Return the images of ``dataset_name``, each in exactly one process.

    Raises:
        ConfigError: a value cannot be used.
        DatasetError: the data set is missing or wrong.
    """
    rank, world_size = rank_and_world_size()
    dataset = DatasetFromList(load_data_set(dataset_name))
    mapper = DatasetMapper.from_config(cfg, is_train=False) if mapper is None else mapper
    return TestLoader(
        MappedDataset(dataset, mapper, seed=0),
        InferenceSampler(len(dataset), rank=rank, world_size=world_size),
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=_feeds_gpu(cfg),
    )


def _batch_size_per_process(total: int, world_size: int) -> int:
    if total < 1 or total % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH must be a positive multiple of the number of processes, {world_size}, found {total}"
        )
    return total // world_size


def _resolve_seed(configured: int) -> int:
    if configured >= 0:
        return configured
    return int(distributed.broadcast(int(np.random.SeedSequence().generate_state(1)[0])))


def _build_sampler(
    cfg: CfgNode, data_sets: Sequence[Sequence[DatasetDict]], *, seed: int, rank: int, world_size: int
) -> InfiniteSampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in ("TrainingSampler", "RepeatFactorTrainingSampler"):
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN must be TrainingSampler or RepeatFactorTrainingSampler, found {name!r}"
        )
    num_samples = sum(map(len, data_sets))
    if name == "TrainingSampler" and not cfg.DATASETS.DATASET_RATIO:
        return TrainingSampler(num_samples, seed=seed, rank=rank, world_size=world_size)
    factors = np.ones(num_samples)
    if name == "RepeatFactorTrainingSampler":
        factors = repeat_factors_from_category_frequency(
            list(itertools.chain.from_iterable(data_sets)),
            cfg.DATALOADER.REPEAT_THRESHOLD,
            sqrt=cfg.DATALOADER.REPEAT_SQRT,
        )
    if cfg.DATASETS.DATASET_RATIO:
        factors = factors * _factors_from_ratio(cfg, [len(dicts) for dicts in data_sets])
    return RepeatFactorTrainingSampler(factors, seed=seed, rank=rank, world_size=world_size)


def _factors_from_ratio(cfg: CfgNode, sizes: Sequence[int]) -> np.ndarray:
    """Return the repeat factors that divide the draws among the data sets as ``DATASETS.DATASET_RATIO`` says."""
    ratio = cfg.DATASETS.DATASET_RATIO
    if len(ratio) != len(sizes) or not all(isinstance(part, int | float) and 0 < part < np.inf for part in ratio):
        raise ConfigError(
            f"DATASETS.DATASET_RATIO must hold a positive number for each of the {len(sizes)} data sets of "
            f"DATASETS.TRAIN, found {list(ratio)}"
        )
    factors = np.repeat(np.array(ratio) / np.maximum(sizes, 1), sizes)
    return factors / factors.min()


def _orientation(dataset: DatasetFromList, index: int) -> int:
    """Return 0 for a landscape image, 1 for others; a file is opened only if the dict has no size."""
    record = dataset[index]
    if "height" in record and "width" in record:
        height, width = record["height"], record["width"]
    else:
        height, width = read_image_size(name_of(record))
    return 0 if width > height else 1


def _takes_two_arguments(mapper: Mapper) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(mapper).parameters.values()
    return sum(p.kind in kinds for p in parameters) >= 2


def _feeds_gpu(cfg: CfgNode) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def _data_loader(dataset: MappedDataset, batches: Any, num_workers: int, *, pin_memory: bool) -> DataLoader:
    if num_workers < 0:
        raise ConfigError(f"DATALOADER.NUM_WORKERS must be 0 or more, found {num_workers}")
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=pack if num_workers > 0 else _as_is,
        # A thread moves the block of a batch to where the GPU can fetch it by itself.
        pin_memory=pin_memory and num_workers > 0,
        worker_init_fn=_init_worker,
        # Forked workers share the data set's buffer; they never touch a GPU.
        multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
    )


def _as_is(samples: list[Any]) -> list[Any]:
    return samples


def _init_worker(worker_id: int) -> None:
    # One thread each: the workers are the parallelism, and idle threads would fight training for cores.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # not 1: that waits for threads which a fork leaves behind


@contextlib.contextmanager
def named_worker_failures() -> Iterator[None]:
    """Turn the death of a data worker into an error of one line.

    torch reports it by a signal, in the middle of whatever the main process does.

    Raises:
        DatasetError: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        found = _WORKER_DIED.search(str(error))
        if found is None:
            raise
        raise DatasetError(
            f"data worker (process {found[1]}) {found[2].strip()}: memory, or shared memory (/dev/shm), may be short; "
            "try fewer DATALOADER.NUM_WORKERS"
        ) from error


def _checked_batches(loader: DataLoader) -> Iterator[list[dict[str, Any]]]:
    batches = iter(loader)
    try:
        with named_worker_failures():
            for received in batches:
                batch = unpack(received) if isinstance(received, PackedBatch) else received
                for sample in batch:
                    if isinstance(sample, _Failure):
                        raise sample.error_class(sample.message)
                yield batch
    except Exception:
        # The traceback keeps the iterator alive, and left to the garbage collector its workers end late.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
        raise
