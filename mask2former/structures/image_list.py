"""A batch of images of different sizes in one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


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
