"""Which image comes when: coverage, independence of the number of processes, resuming."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from mask2former.data.samplers import (
    Draw,
    InferenceSampler,
    InfiniteSampler,
    RepeatFactorTrainingSampler,
    TrainingBatches,
    TrainingSampler,
    repeat_factors_from_category_frequency,
    sample_generator,
)

FACTORS = [1.0, 2.5, 1.0, 3.0, 1.25]


def _take(iterable, count: int) -> list:  # type: ignore[no-untyped-def]
    return list(itertools.islice(iterable, count))


def _samplers(world_size: int = 1) -> list[list[InfiniteSampler]]:
    ranks = range(world_size)
    return [
        [TrainingSampler(7, seed=3, rank=r, world_size=world_size) for r in ranks],
        [RepeatFactorTrainingSampler(FACTORS, seed=3, rank=r, world_size=world_size) for r in ranks],
    ]


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("num_samples", [0, 1, 4, 5, 23])
def test_inference_sampler_covers_each_once(world_size: int, num_samples: int) -> None:
    shards = [InferenceSampler(num_samples, rank=r, world_size=world_size) for r in range(world_size)]
    assert list(itertools.chain(*shards)) == list(range(num_samples))
    lengths = [len(shard) for shard in shards]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("kind", [0, 1])
def test_training_sampler_processes_share_one_stream(world_size: int, kind: int) -> None:
    alone = _take(_samplers()[kind][0], 30)
    shares = [_take(sampler, 30) for sampler in _samplers(world_size)[kind]]
    together = list(itertools.chain(*zip(*shares, strict=True)))[:30]
    assert together == alone
    assert [draw.position for draw in alone] == list(range(30))


def test_training_sampler_epoch_holds_every_image_in_new_order() -> None:
    indices = [draw.image_index for draw in _take(TrainingSampler(50, seed=0), 150)]
    epochs = [indices[i : i + 50] for i in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert indices != [draw.image_index for draw in _take(TrainingSampler(50, seed=1), 150)]


def test_training_sampler_without_shuffling_keeps_order() -> None:
    draws = _take(TrainingSampler(3, seed=0, shuffle=False), 5)
    assert draws == [Draw(p, p % 3) for p in range(5)]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 40])
def test_training_sampler_starts_anywhere(kind: int, start: int) -> None:
    for sampler in _samplers(world_size=3)[kind]:
        assert _take(sampler.draws(start), 20) == _take(sampler, 20 + start)[start:]


def test_repeat_factor_sampler_repeats_on_average() -> None:
    sampler = RepeatFactorTrainingSampler(FACTORS, seed=0)
    num_epochs = 400
    counts = Counter(i for epoch in range(num_epochs) for i in sampler.epoch_indices(epoch).tolist())
    means = np.array([counts[i] / num_epochs for i in range(len(FACTORS))])
    assert np.allclose(means, FACTORS, atol=0.08)
    assert counts[0] == num_epochs
    assert counts[3] == 3 * num_epochs


def test_repeat_factors_follow_the_rarest_class() -> None:
    def record(*classes: int) -> dict:
        return {"annotations": [{"category_id": c} for c in classes]}

    dicts = [record(0), record(0, 0), record(0, 1), record()]
    # Class 0 is in 3 of 4 images, class 1 in 1 of 4.
    assert np.allclose(repeat_factors_from_category_frequency(dicts, 0.5), [1, 1, 2**0.5, 1])
    assert np.allclose(repeat_factors_from_category_frequency(dicts, 0.5, sqrt=False), [1, 1, 2, 1])
    assert np.allclose(repeat_factors_from_category_frequency(dicts, 0.0), 1)
    panoptic = [{"segments_info": d["annotations"]} for d in dicts]
    assert np.allclose(repeat_factors_from_category_frequency(panoptic, 0.5), [1, 1, 2**0.5, 1])


def test_sample_generator_is_a_function_of_seed_and_position() -> None:
    draws = {(s, p): sample_generator(s, p).random() for s in range(3) for p in range(50)}
    assert draws[1, 7] == sample_generator(1, 7).random()
    assert len(set(draws.values())) == len(draws)


def test_training_batches_without_groups() -> None:
    sampler = TrainingSampler(5, seed=0)
    batches = _take(TrainingBatches(sampler, batch_size=3), 6)
    assert list(itertools.chain(*batches)) == _take(sampler, 18)
    assert _take(TrainingBatches(sampler, batch_size=3, start=4), 2) == batches[4:]


def test_training_batches_hold_one_group_and_lose_nothing() -> None:
    sampler = TrainingSampler(11, seed=0)
    batches = TrainingBatches(sampler, batch_size=4, group_of=lambda index: index % 3 == 0)
    taken = _take(batches, 30)
    assert all(len({draw.image_index % 3 == 0 for draw in batch}) == 1 for batch in taken)
    positions = [draw.position for batch in taken for draw in batch]
    assert len(set(positions)) == 120
    assert len(set(range(max(positions))) - set(positions)) <= 2 * 4
    resumed = TrainingBatches(sampler, batch_size=4, group_of=lambda index: index % 3 == 0, start=17)
    assert _take(resumed, 13) == taken[17:]


@pytest.mark.parametrize(
    "build",
    [
        lambda: TrainingSampler(0, seed=0),
        lambda: TrainingSampler(3, seed=0, rank=2, world_size=2),
        lambda: InferenceSampler(3, rank=-1, world_size=2),
        lambda: RepeatFactorTrainingSampler([], seed=0),
        lambda: RepeatFactorTrainingSampler([0.5], seed=0),
    ],
)
def test_sampler_refuses_wrong_parameters(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"must|needs"):
        build()
