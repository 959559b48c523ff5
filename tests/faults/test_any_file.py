"""Whatever bytes a file of any form holds, its reader returns something sane or raises one of our errors, soon."""

from __future__ import annotations

import os
import pickle
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.data.own_data import read_class_names
from mask2former.errors import DatasetError, InputError
from tests.faults.fuzz.targets import TARGETS

_MAX_SECONDS = 2.0


@pytest.mark.parametrize("name", TARGETS)
def test_any_changed_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    seeds, path = target.seeds(), tmp_path / target.file_name
    for seed in seeds:
        path.write_bytes(seed)
        target.read(path)  # it is right as it is

    @given(number=st.integers(0, len(seeds) - 1), seed=st.integers(0, 2**32), depth=st.integers(1, 3))
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def read_changed(number: int, seed: int, depth: int) -> None:
        choices, content = random.Random(seed), seeds[number]
        for _ in range(depth):
            content = target.mutate(content, choices)
        path.write_bytes(content)
        message, begin = "refused", time.process_time()
        try:
            target.read(path)
        except InputError as error:
            message = str(error)
        assert message.encode()
        assert "\0" not in message
        assert len(message) < 8200
        assert time.process_time() - begin < _MAX_SECONDS

    read_changed()


@pytest.mark.parametrize("shift", [str, str.encode])
def test_messages_are_printable_and_bounded(shift: type) -> None:
    error = InputError(f"{'x' * 10**6} named a\0b\x1b[2J\ud800\u202e", shift("other"))
    assert len(str(error.args[0])) < 8200
    assert error.args[0].endswith(r"named a\x00b\x1b[2J\ud800\u202e")
    assert error.args[1] == shift("other")
    assert pickle.loads(pickle.dumps(error)).args == error.args
    assert str(InputError("two\n\tlines, größer ×")) == "two\n\tlines, größer ×"


def test_many_class_names_are_refused_soon(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\n".join(b"%d" % i for i in range(30_000)) + b"\n29998")
    begin = time.process_time()
    with pytest.raises(DatasetError, match=r"names.txt: '29998' occurs twice"):
        read_class_names(tmp_path / "names.txt")
    assert time.process_time() - begin < _MAX_SECONDS


def test_endless_numbers_are_no_ids_of_classes(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"9" * 5000 + b": cat\n")
    assert read_class_names(tmp_path / "names.txt").entries[0][0] is None


def test_class_names_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(DatasetError, match="expected a file, found a named pipe"):
        read_class_names(tmp_path / "names.txt")
