"""What is wrong with the files of a data set: collected, so that one error lists all of it, or left out and listed.

``Faults`` collects what is wrong with one file. Its error is raised at once, or, within ``gathered_faults``, after the
reader went through all other files without the faulty entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from mask2former.errors import DatasetError, InputError
from mask2former.files.inputs import PathLike

NUM_FAULTS_SHOWN = 20


class Report(NamedTuple):
    """The message of an error, and one line for each of its faults, which names the file."""

    message: str
    lines: tuple[str, ...]


_reports: ContextVar[list[Report] | None] = ContextVar("reports", default=None)


class Faults:
    """The faults of a file, reported in one error: the first twenty, and how many there are."""

    def __init__(self, source: PathLike, *, error: type[InputError] = DatasetError) -> None:
        self.source = source
        self._error = error
        self._faults: list[str] = []
        self._is_lasting = False

    @property
    def count(self) -> int:
        """How many faults there are."""
        return len(self._faults)

    def add(self, fault: str | Exception, *, is_lasting: bool = False) -> None:
        """Add a fault: the entry, what was expected and what was found.

        ``is_lasting``: leaving the entry out does not mend it, as with the table of classes.
        """
        self._faults.append(str(fault))
        self._is_lasting |= is_lasting

    def refuse(self) -> None:
        """Raise the error that lists the faults, if there are any; in ``gathered_faults`` note those not lasting."""
        if not self._faults:
            return
        lines = [f"{self.source}: {fault}" for fault in self._faults]
        head = [] if len(lines) == 1 else [f"{self.source}: {len(lines)} faults"]
        message = "\n  ".join([*head, *first_of(self._faults)]) if head else lines[0]
        if self._is_lasting:
            raise self._error(message)
        note_faults([Report(message, tuple(lines))], error=self._error)


def note_faults(reports: Sequence[Report], *, error: type[InputError] = DatasetError) -> None:
    """Raise one error of all reports, if there are any; in ``gathered_faults`` or ``collected_reports`` keep them."""
    gathered = _reports.get()
    if gathered is not None:
        gathered += reports
    elif reports:
        raise _joined(reports, error)


def note_headed_faults(problems: Sequence[str], headline: str) -> None:
    """As ``note_faults``, of problems that one headline explains."""
    if problems:
        message = f"{headline}: " + "; ".join(first_of(problems))
        note_faults([Report(message, tuple(f"{headline}: {problem}" for problem in problems))])


def first_of(lines: Sequence[str]) -> list[str]:
    """The first twenty lines, and one that says how many more there are."""
    more = len(lines) - NUM_FAULTS_SHOWN
    return [*lines[:NUM_FAULTS_SHOWN], *([f"and {more} more"] if more > 0 else [])]


@contextmanager
def collected_reports() -> Iterator[list[Report]]:
    """Within it, faults are added to the list that it yields, and nothing is raised for them."""
    reports: list[Report] = []
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


@contextmanager
def gathered_faults(*, leave_out: bool = False) -> Iterator[list[str]]:
    """Within it, readers go on without what is faulty; at its end one error lists all faults of all files.

    With ``leave_out`` nothing is raised, and the list that it yields has a line for each fault in the end. Within
    another one, that one decides.

    Raises:
        DatasetError: there are faults, or what is raised within, together with the faults found before.
    """
    left_out: list[str] = []
    if _reports.get() is not None:
        yield left_out
        return
    with collected_reports() as reports:
        try:
            yield left_out
        except DatasetError as error:
            if not reports:
                raise
            last = Report(str(error), (str(error),))
            raise _joined([last, *reports] if leave_out else [*reports, last], type(error)) from error
    if reports and not leave_out:
        raise _joined(reports, DatasetError)
    left_out += [line for report in reports for line in report.lines]


def _joined(reports: Sequence[Report], error: type[InputError]) -> InputError:
    return error("\n  ".join(first_of([report.message for report in reports])))
