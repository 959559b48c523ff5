"""Weights of the backbone alone, loaded before those of the whole model."""

from __future__ import annotations

import logging

from torch import nn

from mask2former.checkpoint import LoadReport, load_state, load_state_dict
from mask2former.checkpoint.loading import find_weights
from mask2former.config import CfgNode
from mask2former.errors import CheckpointError, ConfigError
from mask2former.modeling.backbone import TimmBackbone

logger = logging.getLogger(__name__)


def load_backbone_weights(cfg: CfgNode, model: nn.Module) -> LoadReport | None:
    """Read the file ``cfg.MODEL.TIMM.WEIGHTS`` into the model's timm backbone and logs what matched.

    Without a file it does nothing.

    Raises:
        ConfigError: the model has no timm backbone.
        CheckpointError: the file cannot be read safely, or holds weights of another network.
    """
    path = cfg.MODEL.TIMM.WEIGHTS
    if not path:
        return None
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, TimmBackbone):
        raise ConfigError(
            f"MODEL.TIMM.WEIGHTS: expected MODEL.BACKBONE.NAME build_timm_backbone, found {cfg.MODEL.BACKBONE.NAME}"
        )
    weights = find_weights(load_state(path))
    try:
        adapted = backbone.adapt_weights(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    report = load_state_dict(backbone, adapted, source=str(path))
    logger.log(logging.INFO if report.is_complete else logging.WARNING, "%s", report.format())
    return report
