"""The tasks of a model that is told which one to do: their names, their sentences, and the tokens of these.

OneFormer (Jain et al., CVPR 2023) reads a sentence such as "the task is panoptic" as CLIP's tokens. There are only
three, so that inference needs no tokeniser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mask2former.config.cfg_node import is_oneformer
from mask2former.errors import ConfigError

TASKS = ("panoptic", "instance", "semantic")
ALL_TASKS = "all"  # each task's own result, of one pass of the backbone

_START, _END = 49406, 49407
_THE_TASK_IS = (518, 10549, 533)
_NAME_TOKENS: Mapping[str, Sequence[int]] = MappingProxyType(
    {"panoptic": (1072, 24755), "instance": (34572,), "semantic": (29119, 1550)}
)


def parse_task(text: str, *, source: str = "task") -> str:
    """Return the name of a task that is given by its name or by its sentence, in any case.

    Raises:
        ConfigError: there is no such task; ``source`` is named as where the text comes from.
    """
    name = str(text).strip().lower().removeprefix("the task is ").strip()
    if name not in TASKS:
        raise ConfigError(f"{source}: expected one of {', '.join(TASKS)} or 'The task is panoptic', …; found {text!r}")
    return name


def parse_tasks(text: str, *, source: str = "task") -> tuple[str, ...]:
    """Return the names of all tasks for ``all``, else that of the one named.

    Raises:
        ConfigError: as ``parse_task``.
    """
    return TASKS if str(text).strip().lower() == ALL_TASKS else (parse_task(text, source=source),)


def task_sentence(name: str) -> str:
    """Return the sentence of a task, as the published mapper writes it."""
    return f"The task is {name}"


def task_token_ids(name: str, *, length: int = 77) -> list[int]:
    """Return the tokens of a task's sentence, start and end included, padded by zeros to ``length``.

    Raises:
        ConfigError: they are more than ``length``.
    """
    ids = [_START, *_THE_TASK_IS, *_NAME_TOKENS[name], _END]
    if len(ids) > length:
        raise ConfigError(f"INPUT.TASK_SEQ_LEN: expected at least {len(ids)} for the task {name}, found {length}")
    return [*ids, *[0] * (length - len(ids))]


def test_sets(cfg: Any) -> list[tuple[str, str]]:
    """Return the data sets that are evaluated, each with the task that the model is told, or none.

    Those of DATASETS.TEST are evaluated in the model's own task; OneFormer's TEST_PANOPTIC, … each in theirs, if
    MODEL.TEST.TASK is it or ``all``.
    """
    sets = [(name, "") for name in cfg.DATASETS.TEST]
    if is_oneformer(cfg):
        for task in parse_tasks(cfg.MODEL.TEST.TASK, source="MODEL.TEST.TASK"):
            sets += [(name, task) for name in cfg.DATASETS[f"TEST_{task.upper()}"] if name]
    return sets
