"""The order of images: endless shuffled streams for training, shards for inference.

A training stream is a function of the seed alone. Processes take turns in it (process r of W takes the positions r, r +
W, …), so W processes together see what one would, and a position is all that is needed to resume.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mask2former import distributed
from mask2former.data.catalog import DatasetDict, annotated_objects

# First words of the seeds, so that shuffling, repeating and augmenting draw from unrelated streams.
_SHUFFLE_STREAM, _REPEAT_STREAM, _SAMPLE_STREAM = 1, 2, 3


class Draw(NamedTuple):
    """Image ``image_index`` of a data set, drawn at ``position`` of the stream of all processes together."""

    position: int
    image_index: int


def sample_generator(seed: int, position: int) -> np.random.Generator:
    """Return the random generator of the sample at ``position``."""
    return np.random.default_rng([_SAMPLE_STREAM, seed, position])


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank and the number of processes; (0, 1) without torch.distributed."""
    return distributed.get_rank(), distributed.get_world_size()


class InfiniteSampler(ABC):
    """An endless stream of epochs, shared by ``world_size`` processes."""

    def __init__(self, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, found {rank}")
        self.seed, self.rank, self.world_size = seed, rank, world_size

    @abstractmethod
    def epoch_length(self, epoch: int) -> int:
        """Return the number of draws in an epoch."""

    @abstractmethod
    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Return the image indices (epoch_length,) of an epoch, in order."""

    def __iter__(self) -> Iterator[Draw]:
        return self.draws()

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """Yield the draws of this process, without the first ``start``; earlier epochs are not replayed."""
        position = self.rank + start * self.world_size
        epoch_start = 0
        for epoch in itertools.count():
            epoch_end = epoch_start + self.epoch_length(epoch)
            if position < epoch_end:
                indices = self.epoch_indices(epoch)
                while position < epoch_end:
                    yield Draw(position, int(indices[position - epoch_start]))
                    position += self.world_size
            epoch_start = epoch_end


class TrainingSampler(InfiniteSampler):
    """Every image once an epoch, in a new order each time (``shuffle``)."""

    def __init__(
        self, num_samples: int, *, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        if num_samples < 1:
            raise ValueError(f"a training sampler needs at least one sample, found {num_samples}")
        self.num_samples, self.shuffle = num_samples, shuffle

    def epoch_length(self, epoch: int) -> int:
        return self.num_samples

    def epoch_indices(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_samples)
        return np.random.default_rng([_SHUFFLE_STREAM, self.seed, epoch]).permutation(self.num_samples)


class RepeatFactorTrainingSampler(InfiniteSampler):
    """Repeats images of rare classes: each comes on average ``repeat_factors[i]`` times an epoch.

    The fractional part is rounded at random anew each epoch (LVIS, Gupta et al., 2019, appendix).
    """

    def __init__(
        self, repeat_factors: Sequence[float] | np.ndarray, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        self.repeat_factors = np.asarray(repeat_factors, dtype=np.float64)
        if self.repeat_factors.size == 0 or self.repeat_factors.min() < 1:
            raise ValueError("repeat factors must be at least one number, each from 1 on")

    def epoch_length(self, epoch: int) -> int:
        return int(self._repeats(epoch).sum())

    def epoch_indices(self, epoch: int) -> np.ndarray:
        indices = np.repeat(np.arange(len(self.repeat_factors)), self._repeats(epoch))
        return np.random.default_rng([_SHUFFLE_STREAM, self.seed, epoch]).permutation(indices)

    def _repeats(self, epoch: int) -> np.ndarray:
        whole = np.floor(self.repeat_factors)
        chance = np.random.default_rng([_REPEAT_STREAM, self.seed, epoch]).random(len(whole))
        return (whole + (chance < self.repeat_factors - whole)).astype(np.int64)


def repeat_factors_from_category_frequency(
    dataset_dicts: Sequence[DatasetDict], threshold: float, *, sqrt: bool = True
) -> np.ndarray:
    """Return the repeat factor (N,) of each image, the largest of its classes' max(1, sqrt(threshold / frequency)).

    ``frequency`` is the share of images with the class. Without ``sqrt`` the ratio itself is taken.
    """
    classes_of = [classes_in(record) for record in dataset_dicts]
    num_images_with = Counter(itertools.chain.from_iterable(classes_of))
    factor_of = {}
    for category, count in num_images_with.items():
        ratio = threshold / (count / len(dataset_dicts))
        factor_of[category] = max(1.0, ratio**0.5 if sqrt else ratio)
    return np.array([max((factor_of[c] for c in classes), default=1.0) for classes in classes_of])


def classes_in(record: DatasetDict) -> set[int]:
    """Return the contiguous ids of the classes annotated in an image or video, as instances or segments."""
    return {entry["category_id"] for entry in annotated_objects(record)}


class InferenceSampler:
    """Indices 0 … ``num_samples`` - 1, each in exactly one process, in contiguous shards of almost equal length."""

    def __init__(self, num_samples: int, *, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, found {rank}")
        shard, rest = divmod(num_samples, world_size)
        begin = rank * shard + min(rank, rest)
        self.indices = range(begin, begin + shard + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TrainingBatches:
    """Endless batches of draws, without the first ``start``.

    With ``group_of`` a batch holds images of one group only (landscape or portrait, say): a draw waits until its group
    has ``batch_size`` of them. Only indices are handled, so batches are skipped without reading images.
    """

    def __init__(
        self,
        sampler: InfiniteSampler,
        *,
        batch_size: int,
        group_of: Callable[[int], int] | None = None,
        start: int = 0,
    ) -> None:
        self.sampler, self.batch_size, self.group_of, self.start = sampler, batch_size, group_of, start

    def __iter__(self) -> Iterator[list[Draw]]:
        if self.group_of is None:
            draws = self.sampler.draws(self.start * self.batch_size)
            while True:
                yield list(itertools.islice(draws, self.batch_size))
        # What waits in the groups depends on every draw before, so all of them are replayed.
        yield from itertools.islice(self._grouped(self.group_of), self.start, None)

    def _grouped(self, group_of: Callable[[int], int]) -> Iterator[list[Draw]]:
        waiting: dict[int, list[Draw]] = {}
        for draw in self.sampler.draws():
            batch = waiting.setdefault(group_of(draw.image_index), [])
            batch.append(draw)
            if len(batch) == self.batch_size:
                yield list(batch)
                batch.clear()
