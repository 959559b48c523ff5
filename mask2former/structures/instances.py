"""Instances of one image: fields of equal length that are selected together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch


class Instances:
    """Fields (``scores``, ``pred_classes``, ``gt_masks``, …) of the N instances of one image.

    A field is anything with a length that can be indexed. ``image_size`` is (height, width) in pixels.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self._image_size = (int(image_size[0]), int(image_size[1]))
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self._image_size

    def set(self, name: str, value: Any) -> None:
        """Set a field.

        Raises:
            ValueError: its length differs from that of the other fields.
        """
        if self._fields and len(value) != len(self):
            raise ValueError(f"field {name!r} has length {len(value)}, the instances have {len(self)}")
        self._fields[name] = value

    def get(self, name: str) -> Any:
        """Return the field ``name``.

        Raises:
            KeyError: there is none.
        """
        return self._fields[name]

    def has(self, name: str) -> bool:
        """Return whether there is a field ``name``."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove the field ``name``.

        Raises:
            KeyError: there is none.
        """
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return the fields by name; changing the dict changes the instances."""
        return self._fields

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            raise AttributeError(f"no field {name!r}, there are {sorted(fields)}")
        return fields[name]

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """Return a copy whose movable fields are moved to a device."""
        moved = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self._image_size, **moved)

    def __getitem__(self, item: int | slice | torch.Tensor) -> Instances:
        """Select instances by an index, slice, index tensor or boolean mask (N,)."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"instance {item} of {len(self)}")
            start = item % len(self)
            item = slice(start, start + 1)
        selected = {}
        for name, value in self._fields.items():
            if isinstance(item, torch.Tensor) and isinstance(value, (list, tuple)):
                indices = item.nonzero().flatten() if item.dtype == torch.bool else item
                selected[name] = type(value)(value[i] for i in indices.tolist())
            else:
                selected[name] = value[item]
        return Instances(self._image_size, **selected)

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("instances without a field have no length")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("iterate over the fields of the instances instead")

    @classmethod
    def cat(cls, instances: Sequence[Instances]) -> Instances:
        """Return one Instances of several for the same image, with equal fields.

        Raises:
            ValueError: the list is empty, or image sizes differ.
        """
        if not instances:
            raise ValueError("expected at least one part, found none")
        if len({part.image_size for part in instances}) > 1:
            raise ValueError(f"parts of one image must agree in size, found {[p.image_size for p in instances]}")
        merged: dict[str, Any] = {}
        for name in instances[0].get_fields():
            values = [part.get(name) for part in instances]
            if isinstance(values[0], torch.Tensor):
                merged[name] = torch.cat(values)
            elif isinstance(values[0], list):
                merged[name] = list(itertools.chain(*values))
            else:
                merged[name] = type(values[0]).cat(values)
        return cls(instances[0].image_size, **merged)

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        return f"Instances(num_instances={count}, image_size={self._image_size}, fields={sorted(self._fields)})"
