"""Axis-aligned boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


class Boxes:
    """Boxes (N, 4) float32 as x0, y0, x1, y1 in pixels; x1 and y1 are exclusive."""

    def __init__(self, tensor: torch.Tensor | Sequence[Sequence[float]]) -> None:
        boxes_xyxy = torch.as_tensor(tensor, dtype=torch.float32)
        if boxes_xyxy.numel() == 0:
            boxes_xyxy = boxes_xyxy.reshape(-1, 4)
        if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
            raise ValueError(f"boxes must have shape (N, 4), found {tuple(boxes_xyxy.shape)}")
        self.tensor = boxes_xyxy

    def area(self) -> torch.Tensor:
        """Return areas (N,) in square pixels."""
        sides = (self.tensor[:, 2:] - self.tensor[:, :2]).clamp(min=0)
        return sides.prod(dim=1)

    def clip(self, size: tuple[int, int]) -> None:
        """Clip the boxes to an image of ``size`` (height, width), in place."""
        height, width = size
        limit = self.tensor.new_tensor([width, height, width, height])
        self.tensor = self.tensor.clamp(min=0).minimum(limit)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Return which boxes (N,) bool have both sides longer than ``threshold``."""
        return ((self.tensor[:, 2:] - self.tensor[:, :2]) > threshold).all(dim=1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply coordinates, in place."""
        self.tensor = self.tensor * self.tensor.new_tensor([scale_x, scale_y, scale_x, scale_y])

    def clone(self) -> Boxes:
        """Return a copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        """Return the same boxes on ``device``."""
        return Boxes(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        """Where the coordinates are."""
        return self.tensor.device

    @classmethod
    def cat(cls, boxes: Sequence[Boxes]) -> Boxes:
        """Return the boxes of all parts, in order; an empty list gives no boxes."""
        return cls(torch.cat([b.tensor for b in boxes]) if boxes else torch.empty(0, 4))

    def __getitem__(self, item: int | slice | torch.Tensor) -> Boxes:
        """Return the selected boxes; an integer keeps the first axis."""
        return Boxes(self.tensor[item].reshape(-1, 4))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor!r})"
