"""Converts weights between families: to a file of ours or the published layout, or to a folder of transformers.

To verify, the model of the source and that of the output are run on one image. Masked attention is a step function: a
query attends to a pixel where its mask logit is not negative. In float32 a logit next to zero may fall on either side
by the order of summation alone, and what follows then moves by 1e-5 to 1e-2. So the verdict is that of float64, and
the differing attention-mask bits are counted; float32 is shown beside it, as it is and with the bits of the one model
given to the other.

Letters: B batch, Q queries, S tokens of a level, M heads.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mask2former.checkpoint import load_state_dict, resolve_address
from mask2former.checkpoint.conversion import read_converted, write_ours, write_transformers
from mask2former.checkpoint.description import describe, read_description
from mask2former.checkpoint.families import DERIVED
from mask2former.checkpoint.transformers_config import read_transformers_folder
from mask2former.commands.arguments import CommandParser
from mask2former.commands.setup import set_up
from mask2former.config import CfgNode
from mask2former.data.catalog import format_run_metadata
from mask2former.errors import CheckpointError, ConfigError, UsageError
from mask2former.files.atomic import write_text_atomic
from mask2former.inference.model_source import find_config_file, locate_weights
from mask2former.modeling import OneFormer, build_model
from mask2former.structures import MetadataCatalog
from mask2former.structures.tasks import TASKS, task_token_ids

TOLERANCE = 1e-4  # of the largest logit
# Of a decoder layer: ours, that of their Mask2Former, that of their OneFormer.
_MASK_ARGUMENTS = ("attend_mask", "encoder_attention_mask", "attention_mask")
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
    expected, actual = (run_model(model, image.double()) for model in models)
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
    expected, actual = (run_model(model, image) for model in models)
    flipped = expected.count_flipped(actual)
    line = f"{flipped} of {expected.count_bits()}, largest difference {expected.difference(actual):.1e}"
    if not flipped:
        return line
    forced = run_model(models[1], image, attended=expected.attended)
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
def run_model(model: nn.Module, image: Tensor, *, task: str = TASKS[0], attended: Sequence[Tensor] = ()) -> Outputs:
    """Return what a model of ``load_model`` says of a normalised image (B, 3, H, W), computed in the type of the image.

    ``task``: which OneFormer is told. ``attended``: where its decoder layers attend, (B, Q, S) bool each, instead of
    where they would.
    """
    model = model.to(image.dtype)
    seen: list[Tensor] = []

    def exchange(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next(name for name in _MASK_ARGUMENTS if name in kwargs)
        own = kwargs[name]
        num_batch = len(image)
        as_attended = own[:, 0] if name == "attend_mask" else ~own.unflatten(0, (num_batch, -1))[:, 0]  # (B, Q, S)
        # Whoever may attend nowhere attends everywhere, which some models settle only within the layer.
        as_attended = as_attended | ~as_attended.any(-1, keepdim=True)
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
        logits = _logits(model, image, task=task)
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


def _logits(model: Any, image: Tensor, *, task: str) -> Mapping[str, Tensor]:
    if isinstance(model, _BackboneAlone):
        return model(image)
    if isinstance(model, OneFormer):
        inputs, mask_features = model.encode_pixels(image)
        (*_, prediction), _ = model.decode_task(inputs, mask_features, model.task_ids([task] * len(image)))
        return {"class logits": prediction.class_logits, "mask logits": prediction.mask_logits()[:, :, 0]}
    if hasattr(model, "sem_seg_head"):
        outputs = model.sem_seg_head(model.backbone(image))
        return {"class logits": outputs["pred_logits"], "mask logits": outputs["pred_masks"]}
    options = {}
    if model.config.model_type == "oneformer":
        ids = task_token_ids(task, length=model.config.task_seq_len)
        options["task_inputs"] = torch.tensor([ids] * len(image))
    outputs = model(pixel_values=image, **options)
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
        import transformers
    except ImportError as error:
        raise CheckpointError(f"--verify of {folder}: needs the package transformers: {error}") from error
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    their_classes: dict[str, Any] = {
        "maskformer": transformers.MaskFormerForInstanceSegmentation,
        "oneformer": transformers.OneFormerForUniversalSegmentation,
    }
    their_class = their_classes.get(kind, transformers.Mask2FormerForUniversalSegmentation)
    return their_class.from_pretrained(folder, local_files_only=True)


DESCRIPTION = (
    "Convert weights. SOURCE is a checkpoint of this project, a published .pkl or .pth of any age, ImageNet weights of "
    "torchvision, timm, Swin Transformer or detectron2, a folder of transformers, or an address such as "
    "zoo://coco/panoptic/r50. OUTPUT is a .pth, .pkl or .safetensors file with the published names, or a folder (a "
    "name without ending), which transformers reads."
)
_DESCRIBED = (".pth", ".pt", ".safetensors")  # a .pkl is as the published ones
_FILE_ENDINGS = (".pth", ".pt", ".pkl", ".safetensors")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="file, folder or address")
    endings = ", ".join(_FILE_ENDINGS)
    parser.add_argument("target", nargs="?", metavar="OUTPUT", help=f"file in {endings}, or a folder")
    parser.add_output_option("the same as OUTPUT")
    parser.add_config_options(needs="nothing beside SOURCE tells the model and the output or --verify ask for it")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where --verify runs (%(default)s)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run both models on one image and show the largest difference of logits, in float64 (and in float32)",
    )
    parser.add_argument(
        "--swap-channels", action="store_true", help="make weights for RGB images ones for BGR images, or the reverse"
    )


def run(args: argparse.Namespace) -> None:
    """Convert as the command line says.

    Raises:
        CheckpointError: the source cannot be read, does not fit the output, or the outputs differ under --verify.
        ConfigError: a config is needed and missing, or holds what the output's model does not have.
    """
    if (args.target is None) == (args.output is None):
        raise UsageError("expected OUTPUT once, after SOURCE or as --output")
    args.weights = locate_weights(args.source)
    source, output = resolve_address(args.weights), Path(args.target or args.output).expanduser()
    is_file = output.suffix in _FILE_ENDINGS
    if not is_file and output.is_file():
        raise CheckpointError(f"{output}: expected a name in {', '.join(_FILE_ENDINGS)}, or a folder for transformers")
    if output.resolve() == source.resolve():
        raise CheckpointError(f"{output}: OUTPUT is SOURCE itself, expected another name")
    if args.verify and args.swap_channels:
        raise CheckpointError("--verify: with --swap-channels the models are meant to differ")
    cfg = _find_config(args, source) if args.verify or not is_file else None
    description = _describe(args, source) if output.suffix in _DESCRIBED else {}

    converted = read_converted(source, swap_channels=args.swap_channels)
    assert converted.family is not None
    print(f"{args.source}: {converted.family.name}, {len(converted.tensors)} tensors")
    left_out = [name for name in converted.dropped if not re.search(DERIVED, name)]
    for title, names in (("left out", left_out), ("kept under their names", list(converted.unknown))):
        if names:
            print(f"  {len(names)} {title}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    if is_file:
        write_ours(converted.tensors, output, description=description)
        _write_config(args, source, output)
    else:
        write_transformers(converted.tensors, output, cfg=cfg, **_classes(cfg))
    print(f"{output}: written" + (", with its config inside" if description else ""))
    if args.verify:
        verify_conversion(cfg, source, output)


def _find_config(args: argparse.Namespace, source: Path) -> CfgNode:
    """Return the model's config, of the file given or of the source.

    Raises:
        ConfigError: nothing tells it.
    """
    if not _is_config_known(args, source):
        raise ConfigError("--config-file: needed to know the model, since nothing in or beside SOURCE tells it")
    cfg = set_up(args).cfg.clone()
    cfg.defrost()
    return cfg


def _is_config_known(args: argparse.Namespace, source: Path) -> bool:
    is_named = args.config_file or args.weights.startswith("zoo://") or (source / "config.json").is_file()
    return bool(is_named or find_config_file(source) or read_description(source))


def _describe(args: argparse.Namespace, source: Path) -> dict[str, str]:
    """Return what the output says of itself: the config that is known, for images as its weights want them."""
    if not _is_config_known(args, source):
        return {}
    try:
        found = set_up(args)
    except ConfigError as error:  # nothing that the weights need
        print(f"  without a config inside: {error}")
        return {}
    cfg = found.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", found.reference.MODEL.DEVICE
    if args.swap_channels:
        cfg.INPUT.FORMAT = "BGR" if cfg.INPUT.FORMAT == "RGB" else "RGB"
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_MEAN[::-1], cfg.MODEL.PIXEL_STD[::-1]
    return describe(cfg.dump(), format_run_metadata([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]))


def _write_config(args: argparse.Namespace, source: Path, output: Path) -> None:
    """Beside weights that come with transformers' config: the same as a config file of ours."""
    if args.config_file or not (source / "config.json").is_file():
        return
    tree: dict[str, Any] = {}
    for key, value in read_transformers_folder(source).items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path = output.with_suffix(".yaml")
    write_text_atomic(yaml.safe_dump(tree, default_flow_style=None), path)
    print(f"{path}: written, the config of these weights; the data sets are yours to name")


def _classes(cfg: Any) -> dict[str, Any]:
    """Return names of the classes and which are things, where the first data set of the config has as the model."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        metadata = MetadataCatalog.get(name)
        things = metadata.get("thing_dataset_id_to_contiguous_id")
        for key in ("stuff_classes", "thing_classes"):
            classes = metadata.get(key)
            if classes is not None and len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
                return {"class_names": list(classes), "thing_ids": None if things is None else sorted(things.values())}
    return {}
