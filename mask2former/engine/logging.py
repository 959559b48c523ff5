"""The log: lines to the terminal (above a progress bar, where there is one) and to ``log.txt``; a run in words."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from mask2former import distributed
from mask2former.config import CfgNode, inference_node
from mask2former.engine import nonfinite
from mask2former.errors import ConfigError

_ROOT = "mask2former"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SHORT_FORMAT = "[%(asctime)s] %(message)s"
_TIME = "%m-%d %H:%M:%S"


class _TerminalHandler(logging.Handler):
    """Writes to stdout without breaking a progress bar on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # nobody looks any more; the file has the line
            pass
        except Exception:
            self.handleError(record)


class _FileHandler(logging.Handler):
    """Appends lines to a file; where the disk takes no more it says so once, and the run goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._is_failing = path, False
        self._file = io.FileIO(path, "a")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                print(f"warning: {self._path}: cannot be written: {error.strerror}", file=sys.stderr)
            self._is_failing = True
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()


def setup_logging(output_dir: str | Path | None = None, *, verbose: bool = False) -> None:
    """Send the package's log to the terminal, and to ``log.txt`` in the folder given; other processes only warn.

    May be called again: earlier handlers of this function are replaced.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    root = logging.getLogger(_ROOT)
    for handler in [h for h in root.handlers if getattr(h, "_is_ours", False)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = True
    terminal = _TerminalHandler()
    terminal.setFormatter(logging.Formatter(_FORMAT if verbose else _SHORT_FORMAT, _TIME))
    if not distributed.is_main():
        # Which images of this process were not finite is known here alone; all else the main process says.
        terminal.setLevel(logging.WARNING)
        terminal.addFilter(lambda record: record.name == nonfinite.__name__ or record.levelno >= logging.ERROR)
    _add(root, terminal)
    if output_dir is not None and distributed.is_main():
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            file = _FileHandler(Path(output_dir) / "log.txt")
        except OSError as error:
            raise ConfigError(f"OUTPUT_DIR {output_dir}: cannot be written to: {error.strerror}") from error
        file.setFormatter(logging.Formatter(_FORMAT, _TIME))
        _add(root, file)


def _add(root: logging.Logger, handler: logging.Handler) -> None:
    handler._is_ours = True  # type: ignore[attr-defined]
    root.addHandler(handler)


_PARTS = {
    "backbone": "backbone",
    "pixel decoder": "sem_seg_head.pixel_decoder",
    "predictor": "sem_seg_head.predictor",
}


def describe_model(cfg: CfgNode, model: nn.Module) -> str:
    """Return architecture, parts with their parameters, queries and classes."""
    modules = dict(model.named_modules())
    lines = [
        f"model: {cfg.MODEL.META_ARCHITECTURE} with {_describe_backbone(cfg)}, "
        f"{cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME}, {_describe_predictor(modules)}"
        f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes"
    ]
    lines += [f"  {title}: {_describe_size(modules[name])}" for title, name in _PARTS.items() if name in modules]
    lines.append(f"  in all: {_describe_size(model)}")
    return "\n".join(lines)


def describe_tasks(cfg: CfgNode) -> str:
    """Return the results that the model gives, with size and thresholds."""
    test = inference_node(cfg)
    tasks = [
        task
        for task, enabled in (
            ("panoptic", test.PANOPTIC_ON),
            ("instance", test.INSTANCE_ON),
            ("semantic", test.SEMANTIC_ON),
        )
        if enabled
    ]
    return (
        f"evaluation: {', '.join(tasks) or 'no task'}; shortest edge {cfg.INPUT.MIN_SIZE_TEST}, longest at most "
        f"{cfg.INPUT.MAX_SIZE_TEST}; object mask threshold {test.OBJECT_MASK_THRESHOLD}, overlap threshold "
        f"{test.OVERLAP_THRESHOLD}, {cfg.TEST.DETECTIONS_PER_IMAGE} detections an image; {cfg.MODEL.PRECISION}"
    )


def describe_schedule(cfg: CfgNode, *, world_size: int, precision: str, device: str) -> str:
    """Return batch, iterations and learning rate."""
    solver = cfg.SOLVER
    parts = f" in {solver.ACCUMULATION_STEPS} parts" if solver.ACCUMULATION_STEPS > 1 else ""
    processes = f"{world_size} processes" if world_size > 1 else "1 process"
    return (
        f"training: {solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images{parts} on {processes} ({device}, "
        f"{precision}); {solver.OPTIMIZER} with learning rate {solver.BASE_LR:g}, {solver.LR_SCHEDULER_NAME}"
    )


def count_parameters(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return the numbers of (all, trained) values."""
    total = trained = 0
    for parameter in parameters:
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    return total, trained


def describe_results(results: Mapping[str, Any]) -> str:
    """Return the main metrics by task in plain lines, ``panoptic_seg: PQ 52.13, SQ …``."""
    lines = []
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            continue
        if any(isinstance(value, Mapping) for value in metrics.values()):  # several datasets
            lines += [f"{task}:", *(f"  {line}" for line in describe_results(metrics).splitlines())]
            continue
        # One value a class would drown the rest, and is in metrics.json.
        shown = {name: value for name, value in metrics.items() if "-" not in name}
        lines.append(f"{task}: " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    return "\n".join(lines)


def _describe_backbone(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    return f"{name} (depth {cfg.MODEL.RESNETS.DEPTH})" if "resnet" in name else name


def _describe_predictor(modules: Mapping[str, nn.Module]) -> str:
    """Return what follows the pixel decoder; some heads bring their own, whatever decoder the config names."""
    predictor = modules.get(_PARTS["predictor"])
    num_queries = getattr(predictor, "num_queries", None)
    name = "" if predictor is None else type(predictor).__name__
    return f"{name}; " if num_queries is None else f"{name}; {num_queries} queries, "


def _describe_size(module: nn.Module) -> str:
    total, trained = count_parameters(module.parameters())
    frozen = f", {(total - trained) / 1e6:.2f} M of them frozen" if trained < total else ""
    return f"{total / 1e6:.2f} M parameters{frozen}"
