"""Commands with something wrong in them end with a message, in time, and write nowhere else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults import command_trials
from tests.faults.command_lines import try_command, try_many
from tests.faults.command_trials import LAYOUTS, Trial, Workplace, base_lines

SEED = 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has no others
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", "")  # which preparing sets
        yield Workplace.prepare(tmp_path_factory.mktemp("work"))
    torch.set_num_threads(num_threads)


def test_lines_that_trials_start_from_are_right(workplace: Workplace, tmp_path: Path) -> None:
    lines = [*base_lines(workplace, tmp_path, random.Random(SEED)), *_lines_of_named_data(workplace, tmp_path)]
    for number, line in enumerate(lines):
        place = tmp_path / str(number)
        (place / "in").mkdir(parents=True)
        verdict = try_command(Trial([argument.replace(str(tmp_path), str(place)) for argument in line], ""), place)
        assert (verdict.code, verdict.fault) == (0, ""), f"{line}\n{verdict.output}"


def _lines_of_named_data(workplace: Workplace, place: Path) -> list[list[str]]:
    return [command_trials.line_of_named_data(workplace, place, kind) for kind in command_trials.NAMED]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_that_trials_start_from_are_right(workplace: Workplace, tmp_path: Path, layout: str) -> None:
    for number, line in enumerate(command_trials.lines_of_data(workplace.root / "own" / layout, layout, workplace)):
        place = tmp_path / str(number)
        (place / "in").mkdir(parents=True)
        verdict = try_command(Trial([*line, "--output", str(place / "out/new")], ""), place)
        assert (verdict.code, verdict.fault) == (0, ""), verdict.output


@pytest.mark.parametrize("kind", command_trials.KINDS)
def test_wrong_commands_end_with_a_message(workplace: Workplace, kind: str) -> None:
    assert not try_many(workplace, SEED, seconds=1e9, count=5, only=kind)


@pytest.mark.slow
def test_many_wrong_commands_end_with_a_message(workplace: Workplace) -> None:
    assert not try_many(workplace, SEED + 1, seconds=1e9, count=600)


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("raise TypeError('a bug')", "TypeError in ?"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("open('../../../../outside', 'w')", "writes elsewhere"),
        ("open('left', 'w')", "left behind: cwd"),
        ("import sys; sys.exit(1)", "exit code 1 without a message"),
        ("open('../../../in/file', 'w').write('x')", "its input was changed"),
    ],
)
def test_faults_are_found(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, fault: str
) -> None:
    place = tmp_path / "place"
    (place / "in").mkdir(parents=True)
    monkeypatch.setattr("mask2former.commands.cli.main", lambda arguments: exec(arguments[0]) or 0)
    assert try_command(Trial([program], ""), place).fault.startswith(fault)
