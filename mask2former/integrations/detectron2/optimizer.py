"""The optimiser of the published recipes for the trainers of detectron2, which know no norm over a whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mask2former.engine.optimizer import build_gradient_clipping
from mask2former.engine.optimizer import build_optimizer as build_ours


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Return our optimiser of SOLVER, which clips gradients as SOLVER.CLIP_GRADIENTS says before each step.

    Raises:
        ConfigError: a value of SOLVER is wrong.
    """
    optimizer = build_ours(cfg, model)
    clip_gradients = build_gradient_clipping(cfg)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: Any) -> None:
        clip_gradients(parameters)

    optimizer.register_step_pre_hook(clip)
    # The scaler of mixed precision leaves unscaling to fused optimisers, whose step begins after the clipping.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
