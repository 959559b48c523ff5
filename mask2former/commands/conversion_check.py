"""Whether a conversion kept the model: that of the source and that of the output, run on one image.

Masked attention is a step function: a query attends to a pixel where its mask logit is not negative. In float32 a logit
next to zero may fall on either side by the order of summation alone, and what follows then moves by 1e-5 to 1e-2. So
the verdict is that of float64, and the differing attention-mask bits are counted; float32 is shown beside it, as it is
and with the bits of the one model given to the other.

Letters: B batch, Q queries, S tokens of a level, M heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.checkpoint import load_state_dict
from mask2former.checkpoint.conversion import read_converted
from mask2former.errors import CheckpointError
from mask2former.modeling import build_model

TOLERANCE = 1e-4  # of the largest logit
_SIZE = (96, 128)


@dataclass(frozen=True)
class Outputs:
    """Named logits, or features of a backbone alone, and where each decoder layer attends, (B, Q, S) bool."""

    logits: Mapping[str, Tensor]
    attended: Sequence[Tensor] = ()

    def difference(self, other: Outputs) -> float:
        """Return the largest difference of a logit, as a share of the largest of its kind here.

        NaN where one is NaN.
        """
        differences = [relative_difference(other.logits[name], logits) for name, logits in self.logits.items()]
        return math.nan if any(map(math.isnan, differences)) else max(differences)

    def count_bits(self) -> int:
        """Return attention-mask bits of all layers."""
        return sum(mask.numel() for mask in self.attended)

    def count_flipped(self, other: Outputs) -> int:
        """Return attention-mask bits that differ."""
        return sum(int((own != theirs).sum()) for own, theirs in zip(self.attended, other.attended, strict=True))


def verify_conversion(cfg: Any, source: Path, output: Path, *, image: Tensor | None = None) -> None:
    """Print how far the models of both places are apart on an image (B, 3, H, W), by default a small one of noise.

    Raises:
        CheckpointError: by more than TOLERANCE in float64.
    """
    if image is None:
        image = torch.randn(1, 3, *_SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = [load_model(cfg, place) for place in (source, output)]
    expected, actual = (run(model, image.double()) for model in models)
    for name, logits in expected.logits.items():
        difference = relative_difference(actual.logits[name], logits)
        print(f"  {name}: largest difference {difference:.1e} of the largest magnitude {float(logits.abs().max()):.3g}")
    if expected.attended:
        flipped = expected.count_flipped(actual)
        print(f"  in float64 {flipped} of {expected.count_bits()} attention-mask bits differ")
        print(f"  in float32 {_describe_float32(models, image.float())}")
    worst = expected.difference(actual)
    if not worst <= TOLERANCE:
        raise CheckpointError(f"{output}: differs from {source} by {worst:.1e}, expected at most {TOLERANCE:.0e}")


def _describe_float32(models: Sequence[nn.Module], image: Tensor) -> str:
    expected, actual = (run(model, image) for model in models)
    flipped = expected.count_flipped(actual)
    line = f"{flipped} of {expected.count_bits()}, largest difference {expected.difference(actual):.1e}"
    if not flipped:
        return line
    forced = run(models[1], image, attended=expected.attended)
    return f"{line}; with the same bits {expected.difference(forced):.1e}"


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest magnitude expected."""
    return float((actual - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)


def load_model(cfg: Any, place: Path) -> nn.Module:
    """Return the model that a file of ours or a folder of transformers holds, in evaluation mode.

    Raises:
        CheckpointError: the file lacks weights of the model, or the package transformers is missing.
    """
    if (place / "config.json").is_file():
        return _load_theirs(place).eval()
    torch.manual_seed(0)  # what the weights lack is the same in both models
    model: Any = build_model(cfg).eval()
    converted = read_converted(place)
    report = load_state_dict(model, converted.tensors, source=str(place))
    if _is_backbone_only(converted.tensors):
        return _BackboneAlone(model.backbone).eval()
    if not report.is_complete:
        raise CheckpointError(report.format())
    return model


@torch.no_grad()
def run(model: nn.Module, image: Tensor, *, attended: Sequence[Tensor] = ()) -> Outputs:
    """Return what a model of ``load_model`` says of a normalised image (B, 3, H, W), computed in the type of the image.

    attended: where its decoder layers attend, instead of where they would, (B, Q, S) bool each.
    """
    model = model.to(image.dtype)
    seen: list[Tensor] = []

    def exchange(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next(name for name in ("attend_mask", "encoder_attention_mask") if name in kwargs)
        own = kwargs[name]
        num_batch = len(image)
        as_attended = own[:, 0] if name == "attend_mask" else ~own.unflatten(0, (num_batch, -1))[:, 0]  # (B, Q, S)
        index = len(seen)
        seen.append(as_attended)
        if not attended:
            return None
        given = attended[index][:, None]  # (B, 1, Q, S)
        if name != "attend_mask":
            given = ~given.expand(-1, len(own) // num_batch, -1, -1).flatten(0, 1)  # (BM, Q, S)
        return args, {**kwargs, name: given}

    handles = [layer.register_forward_pre_hook(exchange, with_kwargs=True) for layer in _masked_layers(model)]
    try:
        logits = _logits(model, image)
    finally:
        for handle in handles:
            handle.remove()
    return Outputs(logits, seen)


def _masked_layers(model: Any) -> Iterable[nn.Module]:
    """Return the decoder layers that attend within masks, of ours or of transformers; MaskFormer's do not."""
    for path in (
        "sem_seg_head.predictor.transformer_cross_attention_layers",
        "model.transformer_module.decoder.layers",
    ):
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None and type(model).__name__ != "MaskFormerForInstanceSegmentation":
            return found
    return ()


def _logits(model: Any, image: Tensor) -> Mapping[str, Tensor]:
    if isinstance(model, _BackboneAlone):
        return model(image)
    if hasattr(model, "sem_seg_head"):
        outputs = model.sem_seg_head(model.backbone(image))
        return {"class logits": outputs["pred_logits"], "mask logits": outputs["pred_masks"]}
    outputs = model(pixel_values=image)
    return {"class logits": outputs.class_queries_logits, "mask logits": outputs.masks_queries_logits}


class _BackboneAlone(nn.Module):
    """Named features as what is compared."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(self.backbone(image))


def _is_backbone_only(tensors: Mapping[str, Tensor]) -> bool:
    return all(name.startswith("backbone.") for name in tensors)


def _load_theirs(folder: Path) -> nn.Module:
    try:
        from transformers import Mask2FormerForUniversalSegmentation, MaskFormerForInstanceSegmentation
    except ImportError as error:
        raise CheckpointError(f"--verify of {folder}: needs the package transformers: {error}") from error
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    their_class: Any = (
        MaskFormerForInstanceSegmentation if kind == "maskformer" else Mask2FormerForUniversalSegmentation
    )
    return their_class.from_pretrained(folder, local_files_only=True)
