"""Stochastic depth (Huang et al. 2016), one decision for each sample."""

from torchvision.ops import StochasticDepth


class DropPath(StochasticDepth):
    """Drops a residual branch of each sample with probability `p` in training, and scales the rest by 1 / (1 - p)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p, mode="row")
