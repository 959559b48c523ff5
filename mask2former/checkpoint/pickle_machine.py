"""The part of the pickle language that builds data, interpreted here: nothing is imported and nothing is called.

A pickle is a program, and Python's own reader runs it. This one knows containers and scalars; whatever else a pickle
names or calls is handed to methods that a subclass gives a meaning, and stands for itself otherwise. What results is
bounded in depth, in entries and in the memory of its tensors.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import IO, Any

import numpy as np
import torch

from mask2former.errors import CheckpointError

_MAX_STEPS = 4_000_000  # a published checkpoint takes some ten thousand
_MAX_PROTOCOL = 5
_MAX_INTEGER_BITS = 256  # those of random number generators have 128
_SCALARS = (str, bytes, int, float, bool, type(None))

_ARGUMENTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_WITHOUT_EFFECT = frozenset(("FRAME", "STOP"))


class Foreign:
    """What a pickle names or makes that is neither container nor scalar."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Unfinished(Foreign):
    """An object that gets its content later; where the pickle keeps it meanwhile."""

    __slots__ = ("places",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.places: list[int] = []


class PickleMachine:
    """Runs one pickle of a file of ``size`` bytes; afterwards the file stands behind it.

    Raises:
        ValueError, IndexError, KeyError, EOFError: the pickle is damaged, claims more than the file has, or is of a
            kind that no checkpoint needs.
    """

    def __init__(self, file: IO[bytes], *, size: int) -> None:
        self._file = _BoundedFile(file, size)
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks below each mark
        self._memo: dict[int, Any] = {}

    def name(self, module: str, name: str) -> Foreign:
        """Return the meaning of ``module.name`` in the pickle."""
        return Foreign(f"{module}.{name}")

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the result of a call that the pickle asks for."""
        return Foreign("a result")

    def build(self, target: Any, state: Any) -> Any:
        """Return what ``target`` is once it has the state that the pickle gives it."""
        return target

    def refer(self, reference: Any) -> Any:
        """Return the object outside of the pickle that a reference names."""
        return Foreign("something outside")

    def run(self) -> Any:
        """Return the object that the pickle describes."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(self._file)):  # type: ignore[arg-type]
            if step >= _MAX_STEPS:
                raise ValueError(f"more than {_MAX_STEPS} steps")
            self._do(opcode.name, argument)
        return self._stack.pop()

    def _do(self, code: str, argument: Any) -> None:
        stack = self._stack
        if code in _ARGUMENTS:
            if isinstance(argument, int) and argument.bit_length() > _MAX_INTEGER_BITS:
                raise ValueError(f"an integer of {argument.bit_length()} bits")
            stack.append(argument)
        elif code in _PUTS:
            self._keep(argument)
        elif code in _GETS:
            stack.append(self._memo[argument])
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            stack.append(tuple(self._pop_many(_TUPLES[code])))
        elif code == "PROTO":
            if argument > _MAX_PROTOCOL:
                raise ValueError(f"pickle protocol {argument}")
        elif code not in _WITHOUT_EFFECT:
            handler = _HANDLERS.get(code)
            if handler is None:
                raise ValueError(f"the instruction {code}, which data do not need")
            handler(self, argument)

    def _keep(self, place: int) -> None:
        value = self._stack[-1]
        if isinstance(value, Unfinished):
            value.places.append(place)
        self._memo[place] = value

    def _memoize(self, _: Any) -> None:
        self._keep(len(self._memo))

    def _mark(self, _: Any) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _pop_many(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("fewer objects than an instruction takes")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:  # a mark is what is left
            self._pop_to_mark()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _append(self, items: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise ValueError(f"items added to {type(target).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(to_pairs(items))
        elif not isinstance(target, Foreign):
            raise ValueError(f"entries added to {type(target).__name__}")

    def _add_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise ValueError(f"members added to {type(target).__name__}")
        target.update(check_keys(items))

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self.name(module, name))

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop_many(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self._stack.append(self.name(module, name))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop_many(2)
        if not isinstance(arguments, tuple | Foreign):
            raise ValueError(f"a call with {type(arguments).__name__} for arguments")
        self._stack.append(self.call(function, arguments))

    def _build(self, _: Any) -> None:
        target, state = self._pop_many(2)
        built = self.build(target, state)
        if isinstance(target, Unfinished):
            for place in target.places:
                if self._memo[place] is target:
                    self._memo[place] = built
        self._stack.append(built)

    def _refer(self, _: Any) -> None:
        self._stack.append(self.refer(self._stack.pop()))


def to_pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    """Return keys and values from a list of them in turn."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    return zip(check_keys(items[::2]), items[1::2], strict=True)


def check_keys(keys: Iterable[Any]) -> list[Any]:
    """Return the keys, which are scalars or tuples of scalars: hashing of others can take as long as the file wants."""
    listed = list(keys)
    for key in listed:
        parts = key if type(key) is tuple else (key,)
        if not all(isinstance(part, _SCALARS) for part in parts):
            raise ValueError(f"a key of the type {type(key).__name__}")
    return listed


class _BoundedFile:
    """A file whose reader never asks for more than it has, which would take memory before the end is seen."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        left = self._size - self._file.tell()
        if count > left:
            raise ValueError(f"an object of {count} bytes begins {left} bytes before the end")
        return self._file.read(count)


_HANDLERS: dict[str, Callable[[PickleMachine, Any], Any]] = {
    "MARK": PickleMachine._mark,
    "POP": PickleMachine._pop,
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": PickleMachine._dup,
    "MEMOIZE": PickleMachine._memoize,
    "APPEND": lambda machine, _: machine._append(machine._pop_many(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._pop_many(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine._pop_to_mark()),
    "LIST": lambda machine, _: machine._push(machine._pop_to_mark()),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_to_mark())),
    "DICT": lambda machine, _: machine._push(dict(to_pairs(machine._pop_to_mark()))),
    "FROZENSET": lambda machine, _: machine._push(frozenset(check_keys(machine._pop_to_mark()))),
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce,
    "BUILD": PickleMachine._build,
    "PERSID": lambda machine, argument: machine._push(machine.refer(argument)),
    "BINPERSID": PickleMachine._refer,
}

_MAX_DEPTH = 64
_MAX_ENTRIES = 10_000_000
_MAX_GROWTH = 16  # shared tensors count at each place that they have: of tied weights that is twice
_ALWAYS_ALLOWED_BYTES = 1 << 26


class DamagedError(CheckpointError):
    """The file is not as it was written."""


def check_content(content: Any, *, source: str, size: int) -> None:
    """Refuse what a file of ``size`` bytes cannot honestly hold.

    A few bytes can say that a list holds itself, or ten copies of a list that holds ten of another, and so on; whoever
    walks through it never ends.

    Raises:
        CheckpointError: the content is too deep, too large, or holds something that was never completed.
    """
    try:
        entries, num_bytes = _measure(content, {}, _MAX_DEPTH)
    except ValueError as error:
        raise CheckpointError(f"{source}: refused: {error}") from error
    if entries > _MAX_ENTRIES:
        raise CheckpointError(f"{source}: refused: more than {_MAX_ENTRIES} entries in a file of {size} bytes")
    if num_bytes > _MAX_GROWTH * size + _ALWAYS_ALLOWED_BYTES:
        raise CheckpointError(f"{source}: refused: its tensors would take {num_bytes} bytes, and the file has {size}")


def _measure(value: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return entries and bytes, those of shared containers at each place; ``known`` holds containers that are done."""
    if isinstance(value, torch.Tensor):
        return 1, value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return 1, value.nbytes
    if isinstance(value, Foreign):
        raise ValueError(f"it holds {value.name} as a value")
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return 1, 0
    if id(value) in known:
        return known[id(value)]
    if not depth:
        raise ValueError(f"its containers lie in each other more than {_MAX_DEPTH} deep")
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value
    measured = [_measure(part, known, depth - 1) for part in parts]
    known[id(value)] = 1 + sum(entries for entries, _ in measured), sum(num_bytes for _, num_bytes in measured)
    return known[id(value)]
