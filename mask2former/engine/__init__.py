"""Training and evaluation runs: the loop and its hooks, optimiser, schedule, precision, processes, logging."""

from mask2former.engine.evaluating import evaluate, evaluate_only
from mask2former.engine.hooks import HOOK_REGISTRY, WRITER_REGISTRY
from mask2former.engine.launch import launch
from mask2former.engine.metrics import ImageWriter, MetricWriter
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.schedule import build_lr_scheduler
from mask2former.engine.train import fit, train
from mask2former.engine.trainer import Hook, Trainer

__all__ = [
    "HOOK_REGISTRY",
    "WRITER_REGISTRY",
    "Hook",
    "ImageWriter",
    "MetricWriter",
    "Trainer",
    "build_lr_scheduler",
    "build_optimizer",
    "evaluate",
    "evaluate_only",
    "fit",
    "launch",
    "train",
]
