"""Unpickling that can build arrays, tensors and plain containers, and nothing else.

The published model zoos store weights as pickles of numpy arrays, converted backbones as pickles of tensors. A pickle
is a program: it may name any importable function and call it. Here every name outside a fixed list is refused before
it is imported.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch

from mask2former.errors import CheckpointError


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """How pickle protocols 0 to 2 spell bytes: text that is encoded on reading."""
    if encoding != "latin1":
        raise ValueError(f"bytes spelled in the encoding {encoding!r}, expected 'latin1'")
    return text.encode("latin1")


def _reconstruct_array(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled by its state; only numpy's own array class is built."""
    if subtype is not np.ndarray:
        raise ValueError(f"array of the class {subtype!r}")
    return np.ndarray(shape, np.dtype(dtype))


def _array_from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """How pickle protocol 5 spells an array."""
    if dtype.hasobject:
        raise ValueError("array of Python objects")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _scalar(dtype: np.dtype, buffer: Any = b"") -> Any:
    if dtype.hasobject:
        raise ValueError("scalar of Python objects")
    return np.frombuffer(buffer, dtype, count=1)[0]


def _load_storage(content: bytes) -> Any:
    """The bytes of a tensor in a pickle are a torch file of their own, which torch's safe reader reads."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, collections.OrderedDict())


def _rebuild_parameter(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return tensor


# numpy's constructors moved from numpy.core to numpy._core in version 2: files of both ages are in the world.
_NUMPY_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("multiarray", "_reconstruct"): _reconstruct_array,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _array_from_buffer,
}

_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("builtins", t.__name__): t for t in (set, frozenset, bytes, bytearray, complex)},
    **{("__builtin__", t.__name__): t for t in (set, frozenset, bytes, bytearray, complex)},
    **{
        (f"{package}.{module}", name): constructor
        for package in ("numpy.core", "numpy._core")
        for (module, name), constructor in _NUMPY_CONSTRUCTORS.items()
    },
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads pickles of arrays, tensors and containers.

    Raises:
        CheckpointError: the pickle names something else; the message names the file and what was refused.
    """

    def __init__(self, file: IO[bytes], *, source: str) -> None:
        super().__init__(file, encoding="latin1")
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle calls ``module.name``, if it is on the list."""
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise CheckpointError(
                f"{self._source}: refused, nothing was run: the file names {module}.{name}, and only arrays, "
                "tensors and plain containers are read from pickles"
            )
        return admitted

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to outside storage, which checkpoints of this format do not have."""
        raise CheckpointError(f"{self._source}: refused: refers to outside storage {pid!r}")
