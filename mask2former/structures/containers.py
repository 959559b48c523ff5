"""Containers of the model: instances of an image, a padded batch of images, the shape of a feature map."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


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


class ImageList:
    """Images (B, C, H, W) padded at right and bottom, with the sizes (height, width) they had before."""

    def __init__(self, tensor: torch.Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = list(image_sizes)

    @classmethod
    def from_tensors(
        cls, tensors: Sequence[torch.Tensor], size_divisibility: int = 0, *, pad_value: float = 0.0
    ) -> ImageList:
        """Pad images (C, h, w) to the largest height and width among them, rounded up to a multiple.

        Raises:
            ValueError: there is no image, or their channel counts differ.
        """
        if not tensors:
            raise ValueError("expected at least one image, found none")
        channels = {tensor.shape[0] for tensor in tensors}
        if len(channels) > 1:
            raise ValueError(f"images of one batch must have equal channel counts, found {sorted(channels)}")
        sizes = [(int(tensor.shape[-2]), int(tensor.shape[-1])) for tensor in tensors]
        multiple = max(size_divisibility, 1)
        height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
        padded = [
            F.pad(tensor, (0, width - w, 0, height - h), value=pad_value)
            for tensor, (h, w) in zip(tensors, sizes, strict=True)
        ]
        return cls(torch.stack(padded), sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the image ``index`` (C, h, w) without its padding."""
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.tensor.device

    def to(self, *args: object, **kwargs: object) -> ImageList:
        """Return the same batch after ``Tensor.to``."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)  # type: ignore[call-overload]


@dataclass(frozen=True)
class ShapeSpec:
    """Channels of a feature map, its stride to the image in pixels, and its size where that is fixed."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
