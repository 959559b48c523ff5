"""Errors for what a user gave: one clear line, no traceback at the command line."""

from __future__ import annotations

import re
from typing import Any

_MAX_MESSAGE = 8000  # letters; files can hold names and values of any length
# Control characters, which terminals obey, marks that turn text around, and halves of letters, which cannot be written.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Something given from outside (path, option, file content) is wrong; the message says what and where.

    What a message quotes may come from a hostile file: it is printable and of bounded length.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*(_printable(part) if isinstance(part, str) else part for part in parts))


class UsageError(InputError):
    """A command line lacks something, or says two things that exclude each other."""


class ConfigError(InputError):
    """A configuration file, key or value is wrong."""


class DatasetError(InputError):
    """A data set, image or annotation is missing or wrong."""


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable, unsafe or belongs to another model."""


class NonFiniteError(RuntimeError):
    """A loss, cost or gradient became infinite or not a number."""


def _printable(message: str) -> str:
    message = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], message)
    half = _MAX_MESSAGE // 2 - 1
    return message if len(message) <= _MAX_MESSAGE else f"{message[:half]}…{message[-half:]}"
