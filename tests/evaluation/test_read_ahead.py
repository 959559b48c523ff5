"""Reading ahead of what is asked for."""

from __future__ import annotations

import threading

import pytest

from mask2former.errors import DatasetError
from mask2former.evaluation.panoptic_ground_truth import ReadAhead


@pytest.mark.parametrize("order", [range(12), range(5, 12), (3, 1, 2, 9, 9, 0), (11,), ()])
def test_read_ahead_gives_each_item_in_any_order(order: list[int]) -> None:
    items = ReadAhead(lambda position: 10 * position, 12, num_ahead=3)
    assert [items[position] for position in order] == [10 * position for position in order]


def test_read_ahead_reads_what_comes_next_once_and_before_it_is_asked_for() -> None:
    reads: list[int] = []
    is_read = threading.Event()

    def read(position: int) -> int:
        reads.append(position)
        if position == 2:
            is_read.set()
        return position

    items = ReadAhead(read, 4, num_ahead=2)
    assert items[0] == 0
    assert is_read.wait(timeout=60)
    assert [items[position] for position in (1, 2, 3)] == [1, 2, 3]
    assert sorted(reads) == [0, 1, 2, 3]


def test_read_ahead_raises_where_the_item_is_asked_for() -> None:
    def read(position: int) -> int:
        if position == 1:
            raise DatasetError("second")
        return position

    items = ReadAhead(read, 3)
    assert items[0] == 0
    with pytest.raises(DatasetError, match="second"):
        items[1]
    assert items[2] == 2
