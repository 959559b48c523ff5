"""Optimiser with the parameter groups of the published recipes, and gradient clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mask2former.config import CfgNode
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import Backbone

_NORM_MODULES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")  # of Swin: never decayed
_FUSED_DEVICES = ("cpu", "cuda")  # measured on a CPU: 7 ms a step fused, 28 ms looped, 43 ms foreach (12 M parameters)
_INFINITY = 1e5  # what stands for it in the gradients of OneFormer's published code

ClipGradients = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class GroupRules:
    """Rules for learning rate and weight decay by module and parameter; None: as for all others."""

    lr: float
    weight_decay: float
    backbone_multiplier: float = 1.0
    weight_decay_norm: float | None = None
    weight_decay_embed: float | None = None
    weight_decay_bias: float | None = None
    bias_lr_factor: float = 1.0
    layer_decay: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GroupRules:
        """Return the rules of ``cfg.SOLVER``."""
        solver = cfg.SOLVER
        return cls(
            lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            backbone_multiplier=solver.BACKBONE_MULTIPLIER,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            layer_decay=solver.LAYER_DECAY,
        )

    def resolve(self, module: nn.Module, module_name: str, parameter_name: str) -> tuple[float, float]:
        """(learning rate, weight decay) of one parameter."""
        lr, weight_decay = self.lr, self.weight_decay
        if "backbone" in module_name.split("."):
            lr *= self.backbone_multiplier
        if parameter_name in _POSITION_TABLES:
            weight_decay = 0.0
        elif isinstance(module, _NORM_MODULES) and self.weight_decay_norm is not None:
            weight_decay = self.weight_decay_norm
        elif isinstance(module, nn.Embedding) and self.weight_decay_embed is not None:
            weight_decay = self.weight_decay_embed
        if parameter_name == "bias":
            lr *= self.bias_lr_factor
            if self.weight_decay_bias is not None:
                weight_decay = self.weight_decay_bias
        return lr, weight_decay


def build_parameter_groups(model: nn.Module, rules: GroupRules) -> list[dict[str, Any]]:
    """Return one group for each (learning rate, weight decay), in the order of the model's parameters.

    Fewer groups than parameters matter: a fused optimiser launches once for each group.
    """
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    layer_factors, undecayed = _layer_factors(model, rules.layer_decay), _undecayed_parameters(model)
    for module, module_name, parameter_name, parameter in _iter_trained(model):
        name = f"{module_name}.{parameter_name}" if module_name else parameter_name
        lr, weight_decay = rules.resolve(module, module_name, parameter_name)
        key = lr * layer_factors.get(name, 1.0), 0.0 if name in undecayed else weight_decay
        groups.setdefault(key, []).append((name, parameter))
    return [{"params": named, "lr": lr, "weight_decay": decay} for (lr, decay), named in groups.items()]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser ``cfg.SOLVER.OPTIMIZER`` over all parameters that are trained.

    Raises:
        ConfigError: an unknown optimiser, a negative rate, or no parameter to train.
    """
    if cfg.SOLVER.BASE_LR < 0 or cfg.SOLVER.WEIGHT_DECAY < 0:
        raise ConfigError(
            f"SOLVER.BASE_LR and WEIGHT_DECAY must be 0 or more, found {cfg.SOLVER.BASE_LR}, {cfg.SOLVER.WEIGHT_DECAY}"
        )
    groups = build_parameter_groups(model, GroupRules.from_config(cfg))
    if not groups:
        raise ConfigError("the model has no parameter to train: everything is frozen")
    fused = all(p.device.type in _FUSED_DEVICES for group in groups for _, p in group["params"])
    if optimizer_name(cfg) == "ADAMW":
        if len(cfg.SOLVER.BETAS) != 2:
            raise ConfigError(f"SOLVER.BETAS: expected two numbers, found {list(cfg.SOLVER.BETAS)}")
        first, second = map(float, cfg.SOLVER.BETAS)  # torch takes no whole number beside another
        return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, betas=(first, second), fused=fused)
    momentum, nesterov = cfg.SOLVER.MOMENTUM, cfg.SOLVER.NESTEROV
    return torch.optim.SGD(groups, lr=cfg.SOLVER.BASE_LR, momentum=momentum, nesterov=nesterov, fused=fused)


def optimizer_name(cfg: CfgNode) -> str:
    """Return ADAMW or SGD.

    Raises:
        ConfigError: ``cfg.SOLVER.OPTIMIZER`` is neither.
    """
    name = cfg.SOLVER.OPTIMIZER.upper()
    if name not in ("ADAMW", "SGD"):
        raise ConfigError(f"SOLVER.OPTIMIZER must be ADAMW or SGD, found {cfg.SOLVER.OPTIMIZER!r}")
    return name


def build_gradient_clipping(cfg: CfgNode) -> ClipGradients:
    """Return a function that clips the gradients of the given parameters in place and returns their total norm before.

    full_model: the norm over all parameters is at most CLIP_VALUE; norm: each parameter's; value: each element. With
    PARITY full_model bounds nothing, and replaces what is not finite.

    Raises:
        ConfigError: an unknown ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    limit, norm_type = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)
    apply = _CLIP_TYPES.get(clip.CLIP_TYPE)
    if apply is None:
        known = ", ".join(_CLIP_TYPES)
        raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be one of {known}, found {clip.CLIP_TYPE!r}")

    is_noop = clip.PARITY and clip.CLIP_TYPE == "full_model"

    def clip_gradients(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if clip.ENABLED and is_noop:
            # Parity: OneFormer's code uses up its iterator over the parameters here, before it clips.
            for gradient in gradients:
                gradient.nan_to_num_(nan=0.0, posinf=_INFINITY, neginf=-_INFINITY)
        total_norm = torch.nn.utils.get_total_norm(gradients, norm_type)
        if clip.ENABLED and gradients and not is_noop:
            apply(parameters, limit, norm_type, total_norm)
        return total_norm

    return clip_gradients


def _clip_full_model(parameters: Sequence[torch.Tensor], limit: float, norm_type: float, total: torch.Tensor) -> None:
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, total)


def _clip_each_norm(parameters: Sequence[torch.Tensor], limit: float, norm_type: float, total: torch.Tensor) -> None:
    for parameter in parameters:
        torch.nn.utils.clip_grad_norm_(parameter, limit, norm_type)


def _clip_each_value(parameters: Sequence[torch.Tensor], limit: float, norm_type: float, total: torch.Tensor) -> None:
    torch.nn.utils.clip_grad_value_(parameters, limit)


_CLIP_TYPES = {"full_model": _clip_full_model, "norm": _clip_each_norm, "value": _clip_each_value}


def _layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each backbone parameter; empty without decay.

    It is ``decay`` in the last layer, and once more ``decay`` in each layer before it (Bao et al. 2022, BEiT).
    """
    if decay == 1.0:
        return {}
    factors = {}
    for prefix, backbone in _backbones(model):
        layers = backbone.parameter_layers()
        num_layers = 1 + max(layers.values(), default=0)
        factors.update({prefix + name: decay ** (num_layers - layer) for name, layer in layers.items()})
    if not factors or not 0 < decay <= 1:
        raise ConfigError(
            "SOLVER.LAYER_DECAY: expected a factor above 0, at most 1, and a model whose backbone has layers; "
            f"found {decay} and {'no such backbone' if not factors else 'one'}"
        )
    return factors


def _undecayed_parameters(model: nn.Module) -> set[str]:
    return {prefix + name for prefix, backbone in _backbones(model) for name in backbone.undecayed_parameters()}


def _backbones(model: nn.Module) -> list[tuple[str, Backbone]]:
    """Return each backbone with the prefix of its parameters' names."""
    return [(f"{name}." if name else "", part) for name, part in model.named_modules() if isinstance(part, Backbone)]


def _iter_trained(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """(module, its name, parameter's name in it, parameter), each shared parameter once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, module_name, parameter_name, parameter
