"""Backbones of the timm library by name: its feature pyramids, and its plain vision transformers.

Plain ones get a simple feature pyramid: four scales from their one map (Li et al. 2022, ViTDet).

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mask2former.errors import CheckpointError, ConfigError
from mask2former.modeling.backbone.backbone import Backbone
from mask2former.modeling.layers import Conv2d, LayerNorm2d
from mask2former.modeling.registry import BACKBONE_REGISTRY
from mask2former.structures import ShapeSpec

PYRAMID_STRIDES = (4, 8, 16, 32)


class SimpleFeaturePyramid(nn.Module):
    """Map (N, C, H / patch, W / patch) to maps (N, out_channels, h, w), one for each of ``strides``.

    Transposed convolutions or pooling by two bring the map near each stride. If the patch is no power of two (14), the
    maps have 3.5, 7, 14, 28 pixels a cell and are resampled so that each cell covers exactly ``stride`` pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, patch_size: int, strides: Sequence[int] = PYRAMID_STRIDES
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.patch_size = patch_size
        self.scales = nn.ModuleList()
        for stride in self.strides:
            layers, channels = _scaling_layers(in_channels, doublings=_num_doublings(patch_size, stride))
            self.scales.append(nn.Sequential(*layers, *_projection(channels, out_channels)))

    def forward(self, x: Tensor, *, size: tuple[int, int]) -> list[Tensor]:
        """Return maps of ceil(size / stride) cells.

        ``size`` (height, width) of the image is at most what ``x`` covers.
        """
        maps = []
        for stride, scale in zip(self.strides, self.scales, strict=True):
            feature = scale(x)
            cell = self.patch_size * 2.0 ** -_num_doublings(self.patch_size, stride)  # pixels that one value covers
            if cell != stride:
                # The factor is given, not the size, so that positions stay those of the image.
                feature = F.interpolate(
                    feature, scale_factor=cell / stride, mode="bilinear", recompute_scale_factor=False
                )
            maps.append(feature[..., : -(-size[0] // stride), : -(-size[1] // stride)])
        return maps


def _num_doublings(patch_size: int, stride: int) -> int:
    """Return how often to double the map (halve if negative) to come nearest to ``stride``."""
    candidates = range(-3, 5)
    return min(candidates, key=lambda doublings: abs(patch_size * 2.0**-doublings / stride - 1))


def _scaling_layers(channels: int, *, doublings: int) -> tuple[list[nn.Module], int]:
    """Return layers that double (or halve) the map that many times, and the number of channels they return."""
    layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
    for index in range(doublings):
        if index:
            layers += [LayerNorm2d(channels), nn.GELU()]
        halved = max(channels // 2, 1)
        layers.append(nn.ConvTranspose2d(channels, halved, kernel_size=2, stride=2))
        channels = halved
    return layers, channels


def _projection(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        Conv2d(in_channels, out_channels, 1, bias=False, norm=LayerNorm2d(out_channels)),
        Conv2d(out_channels, out_channels, 3, padding=1, bias=False, norm=LayerNorm2d(out_channels)),
    ]


_NAMES_OF_STRIDES = {stride: f"res{index}" for index, stride in enumerate(PYRAMID_STRIDES, start=2)}
_FREEZE_ALL = -1


class TimmBackbone(Backbone):
    """A network of timm without its classifier; features "res2" to "res5" at strides 4, 8, 16, 32.

    Args:
        network: what ``create_timm_network`` returns.
        out_indices: choice among timm's maps; by default the last one of each stride.
        freeze_at: number of layers without gradient, the stem being the first; -1 freezes the whole network.
        freeze_batch_norm: keep the loaded statistics of batch norms.

    Raises:
        ConfigError: the network does not support an option.
    """

    size_divisibility = PYRAMID_STRIDES[-1]

    def __init__(
        self,
        network: nn.Module,
        *,
        out_features: Sequence[str] = tuple(_NAMES_OF_STRIDES.values()),
        out_indices: Sequence[int] = (),
        freeze_at: int = 0,
        freeze_batch_norm: bool = True,
        use_checkpoint: bool = False,
    ) -> None:
        levels = describe_levels(network)
        super().__init__(self._features_of(levels, out_indices), out_features=out_features)
        self.network = network
        if use_checkpoint:
            network.set_grad_checkpointing(True)  # type: ignore[operator]
        self._indices = self._prune(self._wanted_indices(levels, out_indices))
        self._freeze_batch_norm = freeze_batch_norm
        self._frozen_parameters = _freeze(network, freeze_at)
        self.train()  # a new module is in training mode without having been put there

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = dict(zip(self._indices, self._maps(_pad(x, self.size_divisibility)), strict=True))
        features = {}
        for name in self.out_features:
            stride = int(self._features[name].stride or 0)
            features[name] = maps[name][..., : -(-x.shape[-2] // stride), : -(-x.shape[-1] // stride)]
        return features

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode as every module does, but keep frozen layers and batch norms in evaluation mode."""
        super().train(mode)
        for name, module in self.network.named_modules():
            is_frozen_norm = self._freeze_batch_norm and isinstance(module, _BatchNorm)
            if is_frozen_norm or self._is_frozen(name, module):
                module.training = False
        return self

    def parameter_layers(self) -> dict[str, int]:
        return {f"network.{name}": layer for name, layer in _parameter_layers(self.network).items()}

    def undecayed_parameters(self) -> set[str]:
        listed = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()  # type: ignore[operator]
        return {f"network.{name}" for name in listed}

    def adapt_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of timm, or of authors whose files timm can read, under our names.

        Position embeddings of another size are resampled.

        Raises:
            CheckpointError: timm cannot read them.
        """
        convert = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        if convert is not None and not _fits(weights, self.network.state_dict()):
            try:
                weights = convert(dict(weights), self.network)
            except Exception as error:  # timm's converters raise whatever foreign names lead them to
                raise CheckpointError(f"not weights of {type(self.network).__name__}: {error!r}") from error
        return {f"network.{name}": tensor for name, tensor in weights.items()}

    def _features_of(self, levels: Sequence[ShapeSpec], out_indices: Sequence[int]) -> dict[str, ShapeSpec]:
        return {name: levels[index] for name, index in _choose_indices(levels, out_indices).items()}

    def _wanted_indices(self, levels: Sequence[ShapeSpec], out_indices: Sequence[int]) -> dict[str, int]:
        """Return the index among timm's maps by name, ascending, as the network returns them."""
        chosen = _choose_indices(levels, out_indices)
        return {name: chosen[name] for name in sorted(self.out_features, key=lambda name: chosen[name])}

    def _prune(self, indices: dict[str, int], *, keep_norm: bool = False) -> dict[str, int]:
        """Remove layers that no requested map needs, so that every parameter gets a gradient."""
        if not hasattr(self.network, "prune_intermediate_layers"):
            return indices
        kept = self.network.prune_intermediate_layers(list(indices.values()), prune_norm=not keep_norm)  # type: ignore[operator]
        return dict(zip(indices, kept, strict=True))

    def _maps(self, x: Tensor, *, norm: bool = False) -> list[Tensor]:
        return self.network.forward_intermediates(  # type: ignore[operator]
            x, indices=list(self._indices.values()), norm=norm, output_fmt="NCHW", intermediates_only=True
        )

    def _is_frozen(self, name: str, module: nn.Module) -> bool:
        """Return whether a module of the network has parameters, all of them frozen."""
        prefix = f"{name}." if name else ""
        names = [f"{prefix}{parameter}" for parameter, _ in module.named_parameters()]
        return bool(names) and self._frozen_parameters.issuperset(names)


class TimmPlainTransformer(TimmBackbone):
    """A plain vision transformer of timm (ViT, DINOv2, DINOv3) with a simple feature pyramid on its last map.

    Each feature has ``pyramid_channels``. The pyramid is never frozen. The first layer is the patch embedding with
    position embedding and tokens; each block is another.
    """

    def __init__(self, network: nn.Module, *, pyramid_channels: int = 256, **options: Any) -> None:
        self._pyramid_channels = pyramid_channels
        super().__init__(network, **options)
        last = describe_levels(network)[-1]
        self._patch_size = int(last.stride or 0)
        self.pyramid = SimpleFeaturePyramid(
            int(last.channels or 0),
            pyramid_channels,
            patch_size=self._patch_size,
            strides=[int(self._features[name].stride or 0) for name in self.out_features],
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        padded = _pad(_pad(x, self.size_divisibility), self._patch_size)
        maps = self.pyramid(self._maps(padded, norm=True)[-1], size=(int(x.shape[-2]), int(x.shape[-1])))
        return dict(zip(self.out_features, maps, strict=True))

    def _features_of(self, levels: Sequence[ShapeSpec], out_indices: Sequence[int]) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._pyramid_channels, stride=stride)
            for stride, name in _NAMES_OF_STRIDES.items()
        }

    def _wanted_indices(self, levels: Sequence[ShapeSpec], out_indices: Sequence[int]) -> dict[str, int]:
        if len(out_indices) > 1 or any(not -len(levels) <= index < len(levels) for index in out_indices):
            raise ConfigError(
                f"MODEL.TIMM.OUT_INDICES: the pyramid of a plain transformer takes one of its {len(levels)} maps; "
                f"found {list(out_indices)}"
            )
        return {"last": range(len(levels))[out_indices[0] if out_indices else -1]}

    def _prune(self, indices: dict[str, int], *, keep_norm: bool = True) -> dict[str, int]:
        return super()._prune(indices, keep_norm=keep_norm)


def is_plain(network: nn.Module) -> bool:
    """Return whether all maps of a network of timm have one stride."""
    return len({level.stride for level in describe_levels(network)}) == 1


def describe_levels(network: nn.Module) -> list[ShapeSpec]:
    """Return channels and stride of each map that the network can return."""
    info = getattr(network, "feature_info", None)
    if info is None or not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"MODEL.TIMM.NAME: timm's {type(network).__name__} does not return feature maps")
    entries = getattr(info, "info", info)
    return [ShapeSpec(channels=int(entry["num_chs"]), stride=int(entry["reduction"])) for entry in entries]


def _choose_indices(levels: Sequence[ShapeSpec], wanted: Sequence[int]) -> dict[str, int]:
    """Return the index of the map of each feature name: the last one of its stride, among those allowed."""
    num_levels = len(levels)
    for index in wanted:
        if not -num_levels <= index < num_levels:
            raise ConfigError(f"MODEL.TIMM.OUT_INDICES: the network has {num_levels} maps; found {list(wanted)}")
    candidates = [index % num_levels for index in wanted] if wanted else range(num_levels)
    chosen: dict[str, int] = {}
    for index in candidates:
        name = _NAMES_OF_STRIDES.get(levels[index].stride or 0)
        if wanted and (name is None or name in chosen):
            strides = [level.stride for level in levels]
            raise ConfigError(
                f"MODEL.TIMM.OUT_INDICES: expected maps of different strides out of {list(_NAMES_OF_STRIDES)}, "
                f"found {list(wanted)} of maps at strides {strides}"
            )
        if name is not None:
            chosen[name] = index
    return chosen


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Pad with zeros at bottom and right, up to multiples."""
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple))


def _freeze(network: nn.Module, freeze_at: int) -> frozenset[str]:
    """Freeze the first ``freeze_at`` layers, all for -1; return the names of their parameters."""
    if not freeze_at:
        return frozenset()
    layers = {} if freeze_at == _FREEZE_ALL else _parameter_layers(network)
    frozen = []
    for name, parameter in network.named_parameters():
        if freeze_at == _FREEZE_ALL or layers[name] < freeze_at:
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozenset(frozen)


def _parameter_layers(network: nn.Module) -> dict[str, int]:
    from timm.models import group_parameters

    if not hasattr(network, "group_matcher"):
        raise ConfigError(
            f"timm does not say which layers {type(network).__name__} has: "
            "expected MODEL.TIMM.FREEZE_AT 0 or -1 and SOLVER.LAYER_DECAY 1.0"
        )
    return dict(group_parameters(network, network.group_matcher(coarse=False), reverse=True))  # type: ignore[operator]


def _fits(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return all(name in weights and weights[name].shape == tensor.shape for name, tensor in own.items())


def create_timm_network(
    name: str, *, in_channels: int = 3, pretrained: bool = False, drop_path_rate: float = 0.0
) -> nn.Module:
    """Return the network ``name`` of timm without classifier, for inputs of any size if it allows that.

    Raises:
        ConfigError: timm has no such network, or ``pretrained`` weights are not available.
    """
    import timm  # here: it takes a second, and most models do without

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f", such as {', '.join(near)}" if near else ""
        raise ConfigError(f"MODEL.TIMM.NAME: expected a network of timm{hint}; found {name!r}")
    with torch.device("meta"):
        known = inspect.signature(type(timm.create_model(name)).__init__).parameters
    options: dict[str, Any] = {"num_classes": 0, "in_chans": in_channels}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    for option, value in (("dynamic_img_size", True), ("strict_img_size", False)):
        if option in known:
            options[option] = value
    try:
        network = timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise ConfigError(
            f"MODEL.TIMM.PRETRAINED: no weights of {name!r} ({error}); give a file of them as MODEL.TIMM.WEIGHTS"
        ) from error
    if getattr(getattr(network, "patch_embed", None), "strict_img_size", False):
        raise ConfigError(f"MODEL.TIMM.NAME: expected a network for images of any size, {name!r} takes one size only")
    return network


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """Return the network MODEL.TIMM.NAME; MODEL.TIMM.WEIGHTS are loaded into it when the run starts."""
    options = cfg.MODEL.TIMM
    network = create_timm_network(
        options.NAME,
        in_channels=input_shape.channels or 3,
        pretrained=options.PRETRAINED,
        drop_path_rate=options.DROP_PATH_RATE,
    )
    common = {
        "out_features": options.OUT_FEATURES,
        "out_indices": options.OUT_INDICES,
        "freeze_at": options.FREEZE_AT,
        "freeze_batch_norm": options.FREEZE_BN,
        "use_checkpoint": options.USE_CHECKPOINT,
    }
    if is_plain(network):
        return TimmPlainTransformer(network, pyramid_channels=options.PYRAMID_CHANNELS, **common)
    return TimmBackbone(network, **common)
