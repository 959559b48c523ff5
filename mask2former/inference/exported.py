"""Exported files as models: from a list of dictionaries to a list of results, as the meta-architectures do.

Letters: B batch, T frames, Q queries, N instances, K classes, H W size of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mask2former.config import CfgNode, build_from_config, inference_node
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.meta_arch.inputs import is_clip
from mask2former.modeling.postprocess import infer_clip
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import META_ARCH_REGISTRY
from mask2former.runtime.exported_info import (
    RAW,
    RAW_OUTPUTS,
    RAW_PIXEL_OUTPUTS,
    ExportedInfo,
    is_exported,
    read_info,
)
from mask2former.runtime.sessions import Session, open_session
from mask2former.structures import Boxes, Instances
from mask2former.structures.tasks import TASKS, parse_tasks

_TORCH_FORMATS = ("torch-export", "aoti")
_FIELDS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}


class ExportedModel(nn.Module):
    """A file as a model in evaluation mode; thresholds are the config's, as long as the file holds raw outputs."""

    pixel_mean: Tensor

    def __init__(self, cfg: CfgNode, info: ExportedInfo) -> None:
        """``cfg`` says what results are wanted.

        Raises:
            ConfigError: a library that runs the file is missing, or the file does not hold the results that are wanted.
            CheckpointError: the file cannot be loaded.
        """
        super().__init__()
        self.info = info
        self.session: Session = _open(info, cfg.MODEL.DEVICE)
        self.is_bgr = takes_bgr(cfg)
        self.results_of: Any = _build_results(cfg, info)
        self.takes_clips = bool(self.results_of.takes_clips)
        self.takes_task = bool(info.image.get("takes_task"))
        self.size_divisibility = 1  # only images of one size form a batch: what is padded lies in the file
        self.register_buffer("pixel_mean", torch.zeros(3), persistent=False)
        if info.outputs != RAW:
            _check_tasks(cfg, info)

    def forward(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of each sample; samples are those of ``MaskFormer.forward`` in inference.

        Raises:
            InputError: a sample has another size than the file takes, or is a clip where it takes images.
        """
        results: dict[int, dict[str, Any]] = {}
        groups: dict[Any, list[int]] = {}
        for place, sample in enumerate(batch):
            if is_clip(sample) != self.takes_clips:
                expected, found = ("a clip", "an image") if self.takes_clips else ("images", "a clip")
                raise InputError(f"{self.info.path}: takes {expected}, found {found}")
            tasks = parse_tasks(sample.get("task", self.results_of.task)) if self.takes_task else ()
            groups.setdefault((place, tasks) if self.takes_clips else (_sizes(sample), tasks), []).append(place)
        for (_, tasks), places in groups.items():
            results.update(zip(places, self._infer([batch[place] for place in places], tasks), strict=True))
        return [results[place] for place in range(len(batch))]

    def describe(self) -> str:
        """Return what the file is, in one line."""
        info = self.info
        return f"exported model {info.path}: {info.format}, {info.precision}, {info.outputs} outputs"

    def outputs(self, samples: Sequence[dict[str, Any]], *, task: str | None = None) -> dict[str, np.ndarray]:
        """Return the file's outputs by name for images of one size, or for one clip; OneFormer's for a task."""
        inputs = {"images": self.images_of(samples)}
        if self.info.image["takes_output_size"]:
            inputs["output_size"] = np.array(_sizes(samples[0])[1], dtype=np.int64)
        if task is not None:
            inputs["task"] = np.full(len(samples), TASKS.index(task), dtype=np.int64)
        return self.session.run(inputs)

    def images_of(self, samples: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the file's input for images of one size (B, H, W, 3), or for the frames of one clip."""
        frames = list(samples[0]["image"]) if self.takes_clips else [sample["image"] for sample in samples]
        return self._to_input(torch.stack(frames))

    def _infer(self, samples: Sequence[dict[str, Any]], tasks: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the results of samples of one size and, of OneFormer, of the same tasks."""
        if not tasks:
            return self._results(self.outputs(samples), samples, options=None)
        merged: list[dict[str, Any]] = [{} for _ in samples]
        for task in tasks:
            options = self.results_of.options_of(task, tasks)
            if options is None:
                continue
            results = self._results(self.outputs(samples, task=task), samples, options=options)
            for result, found in zip(merged, results, strict=True):
                own = {_FIELDS[task]} if len(tasks) > 1 else found.keys()
                result.update({field: found[field] for field in own & found.keys()})
        return merged

    def _results(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[dict[str, Any]], *, options: Any
    ) -> list[dict[str, Any]]:
        if self.info.outputs != RAW:
            return [finished_results(outputs, place) for place in range(len(samples))]
        prediction = prediction_of({name: torch.from_numpy(values) for name, values in outputs.items()})
        size, output = _sizes(samples[0])
        divisor = self.info.image["size_divisibility"]
        padded = (-(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor)
        geometry = MaskGeometry(padded, size, output)
        if self.takes_clips:
            return [infer_clip(prediction, geometry=geometry)]
        chosen = {} if options is None else {"options": options}
        return self.results_of.results(prediction, [geometry] * len(samples), **chosen)

    def _to_input(self, images: Tensor) -> np.ndarray:
        """Map images (B, 3, H, W) in the model's channel order to (B, H, W, 3) RGB of the file's type."""
        fixed, size = self.info.image["size"], list(images.shape[-2:])
        least = self.info.image["least_size"]
        if (fixed is not None and size != fixed) or (self.info.format in _TORCH_FORMATS and min(size) < least):
            expected = f"images of {fixed[0]} x {fixed[1]}" if fixed else f"sides of at least {least}"
            raise InputError(f"{self.info.path}: takes {expected}, found {size[0]} x {size[1]}")
        rgb = images.flip(1) if self.is_bgr else images
        wanted = getattr(torch, self.info.image["dtype"])
        if wanted == torch.uint8 and images.dtype != torch.uint8:
            raise InputError(f"{self.info.path}: takes uint8 images, found {images.dtype}; export with --input float32")
        return rgb.permute(0, 2, 3, 1).to(wanted).contiguous().cpu().numpy()


class TorchSession:
    """A file of torch.export or AOTInductor."""

    def __init__(self, info: ExportedInfo, device: str) -> None:
        import mask2former.ops  # noqa: F401  registers the operators of the graph

        self._device = torch.device(device)
        try:
            if info.format == "aoti":
                from torch._inductor import aoti_load_package

                self._call: Any = aoti_load_package(str(info.path))
            else:
                self._call = torch.export.load(info.path).module().to(self._device)
        except Exception as error:  # of many types, for files that are damaged or of another version
            raise CheckpointError(f"{info.path}: torch {torch.__version__} cannot load it: {error}") from error
        self._names = info.content["image"]["output_names"]

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all outputs by name."""
        arguments = {
            name: torch.from_numpy(values).to("cpu" if name == "output_size" else self._device)
            for name, values in inputs.items()
        }
        return {name: value.cpu().numpy() for name, value in zip(self._names, self._call(**arguments), strict=True)}


def takes_bgr(cfg: CfgNode) -> bool:
    """Return whether a model takes its images as BGR."""
    return bool(cfg.INPUT.FORMAT == "BGR" and not cfg.INPUT.CHANNELS)


def load_exported(cfg: CfgNode) -> ExportedModel | None:
    """Return the model of an exported file that MODEL.WEIGHTS names; None if it names none.

    Raises:
        ConfigError: what runs the file is not installed, or the file does not hold what the config asks for.
        CheckpointError: the file cannot be used.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights or not is_exported(weights):
        return None
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError(f"TEST.AUG.ENABLED: test-time augmentation needs the model itself, found the file {weights}")
    return ExportedModel(cfg, read_info(weights)).eval()


def prediction_of(outputs: Mapping[str, Tensor]) -> Any:
    """Return the prediction that a meta-architecture makes its results of, from raw outputs by name."""
    if RAW_PIXEL_OUTPUTS[0] in outputs:
        return outputs[RAW_PIXEL_OUTPUTS[0]]
    return QueryPrediction.from_logits(*(outputs[name] for name in RAW_OUTPUTS))


def finished_results(outputs: Mapping[str, np.ndarray], place: int) -> dict[str, Any]:
    """Return one image's results, in the form of the meta-architectures, from finished outputs of a batch."""
    results: dict[str, Any] = {}
    if "panoptic_ids" in outputs:
        classes, scores = outputs["segment_classes"][place].tolist(), outputs["segment_scores"][place].tolist()
        segments = [
            {"id": number, "category_id": label, "score": score}
            for number, (label, score) in enumerate(zip(classes, scores), start=1)
            if label >= 0
        ]
        results["panoptic_seg"] = torch.from_numpy(outputs["panoptic_ids"][place]), segments
    if "instance_masks" in outputs:
        kept = outputs["instance_classes"][place] >= 0
        scores, labels, masks, boxes = (
            torch.from_numpy(outputs[f"instance_{name}"][place][kept])
            for name in ("scores", "classes", "masks", "boxes")
        )
        size = (masks.shape[1], masks.shape[2])
        results["instances"] = Instances(
            size, scores=scores, pred_classes=labels.long(), pred_masks=masks.bool(), pred_boxes=Boxes(boxes)
        )
    if "semantic_labels" in outputs:
        results["sem_seg"] = torch.from_numpy(outputs["semantic_labels"][place])
    return results


def _sizes(sample: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of a sample's image or frames, and that of its results."""
    image = sample["image"][0] if is_clip(sample) else sample["image"]
    height, width = image.shape[-2:]
    return (height, width), (int(sample.get("height", height)), int(sample.get("width", width)))


def _open(info: ExportedInfo, device: str) -> Session:
    if info.format in _TORCH_FORMATS:
        return TorchSession(info, device)
    return open_session(info, num_threads=torch.get_num_threads())


def _check_tasks(cfg: CfgNode, info: ExportedInfo) -> None:
    test = inference_node(cfg)
    wanted = {"panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON, "semantic": test.SEMANTIC_ON}
    missing = [task for task, is_wanted in wanted.items() if is_wanted and task not in info.tasks]
    if missing:
        raise ConfigError(f"{info.path}: holds finished results of {', '.join(info.tasks)}, not {', '.join(missing)}")
    if test.SEMANTIC_ON and not cfg.TEST.SEMANTIC_LABELS:
        raise ConfigError(f"{info.path}: holds labels; scores of classes need a file of raw outputs (--outputs raw)")


def _build_results(cfg: CfgNode, info: ExportedInfo) -> nn.Module:
    """Return the meta-architecture without backbone and head: what makes results of predictions, by the config."""
    base = META_ARCH_REGISTRY.lookup(cfg.MODEL.META_ARCHITECTURE)
    backbone = SimpleNamespace(size_divisibility=info.image["size_divisibility"])
    head = SimpleNamespace(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, common_stride=cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE
    )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.IS_TRAIN = False  # of OneFormer: nothing is described here
    shell = type(base.__name__, (base,), {"build_parts": classmethod(lambda _, __: (backbone, head))})
    return build_from_config(shell, cfg).eval()
