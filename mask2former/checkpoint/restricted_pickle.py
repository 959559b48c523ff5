"""Pickles of arrays, tensors and plain containers, as the published model zoos and converted backbones are stored.

Arrays are made from raw bytes by a table of element types, and what a pickle names besides is one of a few functions
here. Nothing gets a state of the pickle's choice.
"""

from __future__ import annotations

import collections
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch

from mask2former.checkpoint.pickle_machine import (
    Foreign,
    PickleMachine,
    Unfinished,
    check_content,
    check_keys,
    to_pairs,
)
from mask2former.checkpoint.torch_archive import load_torch
from mask2former.errors import CheckpointError

# Element types by the code that pickled dtypes have: kind and bytes.
_DTYPES = {
    code: np.dtype(code)
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
}
_BYTE_ORDERS: dict[str, Literal["<", ">", "="]] = {"<": "<", ">": ">", "=": "=", "|": "="}
_MAX_DIMENSIONS = 32
_MAX_SHOWN = 100  # letters of a name in a message
_TORCH_METADATA = {"_metadata"}  # what the state dict of a torch module says of its versions


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle file.

    Raises:
        CheckpointError: the pickle names something else; the message names the file and what was refused.
        Exception: whatever a damaged byte leads to.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        content = _ArrayPickle(file, size=size, source=str(path)).run()
    check_content(content, source=str(path), size=size)
    return content


class _ArrayPickle(PickleMachine):
    """Gives a meaning to the names of ``_ADMITTED`` and refuses all others."""

    def __init__(self, file: IO[bytes], *, size: int, source: str) -> None:
        super().__init__(file, size=size)
        self._source = source

    def name(self, module: str, name: str) -> Foreign:
        if (module, name) not in _ADMITTED:
            named = ascii(f"{module}.{name}")[1:-1][:_MAX_SHOWN]
            raise CheckpointError(
                f"{self._source}: refused, nothing was run: the file names {named}, and only arrays, "
                "tensors and plain containers are read from pickles"
            )
        return _Admitted(module, name)

    def call(self, function: Any, arguments: Any) -> Any:
        constructor = _ADMITTED[function.key] if isinstance(function, _Admitted) else None
        if constructor is None or not isinstance(arguments, tuple):
            raise ValueError("something is called that is no function")
        return constructor(*arguments)

    def build(self, target: Any, state: Any) -> Any:
        if isinstance(target, _DType | _Array):
            return target.with_state(state)
        if isinstance(target, collections.OrderedDict) and isinstance(state, dict) and state.keys() <= _TORCH_METADATA:
            return target
        what = target.name if isinstance(target, Foreign) else type(target).__name__
        raise CheckpointError(f"{self._source}: refused, nothing was run: the file gives {what} a state of its own")

    def refer(self, reference: Any) -> Any:
        raise CheckpointError(f"{self._source}: refused: refers to outside storage {ascii(reference)[:_MAX_SHOWN]}")


class _Admitted(Foreign):
    """A name of the table."""

    __slots__ = ("key",)

    def __init__(self, module: str, name: str) -> None:
        super().__init__(f"{module}.{name}")
        self.key = (module, name)


class _DType(Unfinished):
    """An element type; its state says no more than the order of bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, _align: Any = False, _copy: Any = False) -> None:
        super().__init__("numpy.dtype")
        if not isinstance(code, str):
            raise ValueError(f"an element type given by {type(code).__name__}")
        self.code, self.order = code.lstrip("<>=|"), code[0] if code[:1] in _BYTE_ORDERS else "="

    def with_state(self, state: Any) -> _DType:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise ValueError(f"an element type {self.code!r} with fields or parts")
        self.order = state[1]
        return self

    def to_numpy(self) -> np.dtype[Any]:
        if self.code not in _DTYPES or self.order not in _BYTE_ORDERS:
            raise ValueError(f"elements of the type {self.code[:_MAX_SHOWN]!a}, expected one of {', '.join(_DTYPES)}")
        return _DTYPES[self.code].newbyteorder(_BYTE_ORDERS[self.order])


class _Array(Unfinished):
    """An array that waits for its content; only numpy's own array class is built."""

    __slots__ = ()

    def __init__(self, subtype: Any, _shape: Any, _code: Any) -> None:
        super().__init__("numpy.ndarray")
        if not isinstance(subtype, _Admitted) or subtype.key != ("numpy", "ndarray"):
            raise ValueError("an array of another class than numpy.ndarray")

    def with_state(self, state: Any) -> np.ndarray:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("an array without shape, type and bytes")
        shape, dtype, is_fortran, content = state[-4:]
        return _array_from_buffer(content, dtype, shape, "F" if is_fortran else "C")


def _array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Return an array in the form of pickle protocol 5."""
    content = buffer.encode("latin1") if isinstance(buffer, str) else buffer  # Python 2's strings are bytes
    if not isinstance(dtype, _DType) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError("an array whose content is no bytes")
    element = dtype.to_numpy()
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or any(type(length) is not int or length < 0 for length in shape)
        or math.prod(shape) * element.itemsize != len(content)
    ):
        raise ValueError(
            f"an array of the shape {ascii(shape)[:_MAX_SHOWN]} and the type {dtype.code} of {len(content)} bytes"
        )
    return np.frombuffer(content, element).reshape(shape, order=order)


def _scalar(dtype: Any, buffer: Any = b"") -> Any:
    return _array_from_buffer(buffer, dtype, (), "C")[()]


def _encode_latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Return bytes, which pickle protocols 0 to 2 write as text to be encoded."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes spelled in the encoding {ascii(encoding)[:_MAX_SHOWN]}, expected 'latin1'")
    return text.encode("latin1")


def _to_bytes(*parts: Any) -> bytes:
    if not parts:
        return b""
    return _encode_latin1(*parts) if isinstance(parts[0], str) else memoryview(parts[0]).tobytes()


def _ordered(items: Any = ()) -> Any:
    pairs = list(items)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("an ordered mapping of something else than pairs")
    return collections.OrderedDict(to_pairs([part for pair in pairs for part in pair]))


def _complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _load_storage(content: Any) -> Any:
    """Return the storage of a tensor whose bytes are a torch file of their own."""
    return load_torch(io.BytesIO(content), source="a tensor", size=len(content))


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
        raise ValueError("a tensor without a storage")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, collections.OrderedDict())


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


# numpy's constructors moved from numpy.core to numpy._core in version 2: files of both ages are in the world.
_NUMPY_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("multiarray", "_reconstruct"): _Array,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _array_from_buffer,
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": lambda items=(): set(check_keys(items)),
    "frozenset": lambda items=(): frozenset(check_keys(items)),
    "bytes": _to_bytes,
    "bytearray": lambda *parts: bytearray(_to_bytes(*parts)),
    "complex": _complex,
}

_ADMITTED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("collections", "OrderedDict"): _ordered,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode_latin1,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{(module, name): function for module in ("builtins", "__builtin__") for name, function in _BUILTINS.items()},
    **{
        (f"{package}.{module}", name): constructor
        for package in ("numpy.core", "numpy._core")
        for (module, name), constructor in _NUMPY_CONSTRUCTORS.items()
    },
}
