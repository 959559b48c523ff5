"""Small blocks: the multi-layer perceptron of DETR's heads, and stochastic depth."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them: (..., input_dim) -> (..., output_dim).

    State-dict names: layers.0.weight, layers.0.bias, layers.1.weight, ...
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DropPath(StochasticDepth):
    """Drops a residual branch of each sample with probability ``p`` in training, and scales the rest by 1 / (1 - p).

    Huang et al. 2016; one decision for each sample.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p, mode="row")
