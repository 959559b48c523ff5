"""The configs of transformers' Mask2Former and OneFormer, and the configs of ours that they stand for."""

from __future__ import annotations

import logging
from typing import Any

import transformers

from mask2former.checkpoint.transformers_config import config_from_transformers
from mask2former.config import CfgNode, get_cfg
from mask2former.errors import ConfigError

_logger = logging.getLogger(__name__)

# What their model would do and ours does not: key, below backbone_config where it has a dot, and the only value built.
_FIXED = {
    "activation_function": "relu",
    "norm": "GN",
    "strides": [4, 8, 16, 32],
    "backbone_config.hidden_act": {"swin": "gelu", "maskformer-swin": "gelu", "dinat": "gelu", "resnet": "relu"},
    "backbone_config.use_absolute_embeddings": False,
    "backbone_config.out_features": ["stage1", "stage2", "stage3", "stage4"],
}


class OfOneModel:
    """The part of a config that both have: its model alone is read, and it can be turned into one of ours."""

    model_type: str

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As theirs, but the config of another model is refused, not read with a warning.

        Raises:
            ConfigError: ``model_type`` is another.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ConfigError(f"config.json: model_type: expected {cls.model_type!r}, found {kind!r}")
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_cfg(self) -> CfgNode:
        """Return the config of ours for the same model, on the CPU.

        Raises:
            CheckpointError: a backbone that is not built here.
            ConfigError: an option that is not built here; the message names it.
        """
        return config_to_cfg(self)


class Mask2FormerConfig(OfOneModel, transformers.Mask2FormerConfig):
    """Their config with all its keys; ``to_cfg`` is the same model as a config of ours.

    One key more: ``train_batch_norms`` (default False) makes those of a ResNet learn, as a backbone that was not
    pretrained needs it. Their model ignores it, since its batch norms always learn.
    """

    train_batch_norms: bool = False


class OneFormerConfig(OfOneModel, transformers.OneFormerConfig):
    """Their config with all its keys; ``to_cfg`` is the same model as a config of ours.

    ``is_training`` builds the text branch. ``train_batch_norms``: as of ``Mask2FormerConfig``.
    """

    train_batch_norms: bool = False


def config_to_cfg(config: Any) -> CfgNode:
    """Return the config of ours for a config of theirs; see ``OfOneModel.to_cfg``."""
    content = config.to_dict()
    _refuse_unknown_options(content)
    content["id2label"] = dict.fromkeys(range(config.num_labels), "")
    content.pop("encoder_feedforward_dim", None)  # no key of ours: the model hands it to the pixel decoder
    values = config_from_transformers(content, source=type(config).__name__)
    values["MODEL.DEVICE"] = "cpu"
    values["MODEL.BACKBONE.FREEZE_AT"] = 0  # whoever fine-tunes there freezes by hand
    if isinstance(config, transformers.Mask2FormerConfig):
        values["MODEL.MASK_FORMER.DROPOUT"] = float(config.dropout)
        if config.dropout:
            _logger.warning("dropout %s acts in the pixel decoder; the transformer decoder has none", config.dropout)
    if getattr(config, "train_batch_norms", False) and content["backbone_config"]["model_type"] == "resnet":
        values["MODEL.RESNETS.NORM"] = "BN"
    cfg = get_cfg()
    for key, value in values.items():
        cfg.merge_from_list([key, value])
    return cfg


def _refuse_unknown_options(content: dict[str, Any]) -> None:
    backbone = content.get("backbone_config") or {}
    for key, expected in _FIXED.items():
        name = key.rpartition(".")[2]
        node = backbone if "." in key else content
        if isinstance(expected, dict):
            expected = expected.get(backbone.get("model_type"))
        found = node.get(name, expected)
        found = list(found) if isinstance(found, tuple) else found
        if expected is not None and found is not None and found != expected:
            raise ConfigError(f"{key}: expected {expected!r}, the only one that is built here; found {found!r}")
