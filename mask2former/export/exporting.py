"""From a model and its config to a file that is proven to agree with it."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mask2former import __version__
from mask2former.checkpoint.description import describe
from mask2former.config import CfgNode, inference_node
from mask2former.data.catalog import format_run_metadata
from mask2former.errors import ConfigError
from mask2former.export.finished import FinishedResults
from mask2former.export.formats import FORMATS, OPSET, move_files
from mask2former.export.graph import PixelsToOutputs
from mask2former.export.tracing import example_inputs, trace
from mask2former.export.verification import LIMITS, Limits, Verification
from mask2former.inference.exported import ExportedModel, takes_bgr
from mask2former.modeling.meta_arch import MaskFormer
from mask2former.runtime.exported_info import FINISHED, RAW, VERSION, ExportedInfo
from mask2former.structures import MetadataCatalog
from mask2former.structures.tasks import TASKS
from mask2former.visualization.overlays import class_name, color_of_class

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
_INPUT_TYPES = ("uint8", "float32")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """How a file is written.

    ``outputs``: "raw" or "finished". ``size``: (height, width) that the file takes; None: any. ``sampling``: what
    computes deformable attention (``lowering``); None: the format's own. ``input_type``: uint8 or float32 pixels.
    """

    format: str = "onnx"
    outputs: str = RAW
    size: tuple[int, int] | None = None
    sampling: str | None = None
    input_type: str = "uint8"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--format", self.format, FORMATS),
            ("--outputs", self.outputs, (RAW, FINISHED)),
            ("--input", self.input_type, _INPUT_TYPES),
        ):
            if value not in known:
                raise ConfigError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"--size: expected at least 1 pixel, found {self.size}")


def export_model(
    cfg: CfgNode,
    model: nn.Module,
    path: str | Path,
    *,
    options: ExportOptions,
    samples: Iterable[dict[str, Any]] | None,
    limits: Limits | None = None,
) -> Verification | None:
    """Write ``model``, built with ``accelerated=False``, as a file; return how it agrees with the model.

    Args:
        cfg: the model's config, which goes into the file with the classes of its data set.
        model: in evaluation mode.
        path: the file; its ending is the format's.
        options: see ``ExportOptions``.
        samples: what the file is verified with, as a test loader yields them; None: it is not verified.
        limits: how far it may differ; by default those of the precision.

    Raises:
        ConfigError: an option is wrong, the model cannot be exported, or a library is missing.
        InputError: the file does not agree with the model; it is then not written.
    """
    kind, path = FORMATS[options.format], Path(path).expanduser()
    if path.suffix.lower() != kind.suffix:
        raise ConfigError(f"--output {path}: a file of {options.format} ends in {kind.suffix}")
    graph = build_graph(cfg, model, outputs=options.outputs)
    takes_size = options.outputs == FINISHED
    sampling = options.sampling or kind.sampling
    inputs = example_inputs(graph, size=options.size, takes_size=takes_size)
    image_dtype = getattr(torch, options.input_type)
    program = trace(graph, inputs, size=options.size, image_dtype=image_dtype, sampling=sampling)
    content = _describe(cfg, graph, options, sampling=sampling)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        temporary = Path(folder) / path.name
        kind.write(program, temporary, graph.output_names)
        verification = None
        if samples is not None:
            verification = verify(cfg, graph, ExportedInfo(temporary, content), samples)
            verification.check(limits or LIMITS[cfg.MODEL.PRECISION], name=str(path))
            content["verification"] = verification.as_dict()
        kind.annotate(temporary, json.dumps(content, separators=(",", ":"), default=float))
        move_files(kind, temporary, path)
    return verification


def build_graph(cfg: CfgNode, model: nn.Module, *, outputs: str) -> PixelsToOutputs:
    """Return the graph of a model with raw or finished outputs.

    Raises:
        ConfigError: the model is not one that can be exported.
    """
    graph = PixelsToOutputs(model, is_bgr=takes_bgr(cfg))
    if graph.model.takes_clips:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {type(model).__name__} takes clips; only models of images are exported"
        )
    if outputs == RAW:
        return graph.eval()
    has_queries = isinstance(graph.model, MaskFormer)
    options = graph.model.inference
    graph.finish = FinishedResults(
        replace(options, things_only=True) if graph.takes_task else options,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        thing_ids=graph.model.thing_ids if has_queries else None,
        common_stride=None if has_queries else cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
    )
    return graph.eval()


@torch.no_grad()
def verify(cfg: CfgNode, graph: PixelsToOutputs, info: ExportedInfo, samples: Iterable[dict[str, Any]]) -> Verification:
    """Compare a file with the model that it was made from: logits, if the file holds them, and results."""
    exported, found = ExportedModel(_with_labels(cfg), info), Verification()
    raw = PixelsToOutputs(graph.model, is_bgr=takes_bgr(cfg))
    for index, sample in enumerate(tqdm(list(samples), desc="verify", unit="image", disable=None)):
        task = TASKS[index % len(TASKS)] if graph.takes_task else None
        if task is not None:
            sample = {**sample, "task": task}
        if info.outputs == RAW:
            images = torch.from_numpy(exported.images_of([sample]))
            options = {} if task is None else {"task": torch.tensor([TASKS.index(task)])}
            expected = dict(zip(raw.output_names, raw(images, **options), strict=True))
            found.add_logits(expected, exported.outputs([sample], task=task))
        found.add_results(graph.model([sample]), exported([sample]))
    return found


def _with_labels(cfg: CfgNode) -> CfgNode:
    changed = cfg.clone()
    changed.defrost()
    changed.TEST.SEMANTIC_LABELS = True
    return changed


def _describe(cfg: CfgNode, graph: PixelsToOutputs, options: ExportOptions, *, sampling: str) -> dict[str, Any]:
    """Return the metadata of a file, but for the numbers of its verification."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    stored = cfg.clone()
    stored.defrost()
    stored.MODEL.WEIGHTS = ""
    test = inference_node(cfg)
    return {
        "version": VERSION,
        "format": options.format,
        "outputs": options.outputs,
        "tasks": _tasks(cfg, graph),
        **_describe_classes(cfg, graph, names),
        "image": {
            "channels": len(cfg.MODEL.PIXEL_MEAN),
            "channel_order": "" if cfg.INPUT.CHANNELS else "RGB",
            "dtype": options.input_type,
            "size": None if options.size is None else list(options.size),
            "least_size": graph.divisor + 1,
            "size_divisibility": graph.divisor,
            "map_stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            "takes_output_size": options.outputs == FINISHED,
            "takes_clips": bool(graph.model.takes_clips),
            "takes_task": graph.takes_task,
            "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
            "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "model_channel_order": cfg.INPUT.FORMAT,
            "output_names": list(graph.output_names),
        },
        "thresholds": {
            "object_mask": test.OBJECT_MASK_THRESHOLD,
            "overlap": test.OVERLAP_THRESHOLD,
            "score": cfg.TEST.SCORE_THRESHOLD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "resize_before_inference": test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        },
        "precision": cfg.MODEL.PRECISION,
        "sampling": sampling,
        "versions": {**_versions(), "opset": OPSET, "python": platform.python_version()},
        "verification": None,
        "model": describe(stored.dump(), format_run_metadata(names)),
    }


def _tasks(cfg: CfgNode, graph: PixelsToOutputs) -> list[str]:
    test = inference_node(cfg)
    if not isinstance(graph.model, MaskFormer):
        return ["semantic"]
    flags = {"panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON, "semantic": test.SEMANTIC_ON}
    return [task for task, is_on in flags.items() if is_on]


def _describe_classes(cfg: CfgNode, graph: PixelsToOutputs, names: Sequence[str]) -> dict[str, Any]:
    """Return name, kind and colour of each class, by its contiguous id."""
    metadata = MetadataCatalog.get(names[0]) if names else None
    labels = range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    things = getattr(graph.model, "thing_ids", None)
    return {
        "classes": [class_name(metadata, label) for label in labels],
        "is_thing": [things is None or label in things for label in labels],
        "colors": [[int(part) for part in color_of_class(metadata, label)] for label in labels],
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "mask2former": __version__}
