"""Training and evaluation runs: the loop and its hooks, optimiser, schedule, precision, processes, logging."""

from mask2former.engine.launch import launch
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.schedule import build_lr_scheduler
from mask2former.engine.train import evaluate, evaluate_only, fit, train
from mask2former.engine.trainer import Hook, Trainer

__all__ = [
    "Hook",
    "Trainer",
    "build_lr_scheduler",
    "build_optimizer",
    "evaluate",
    "evaluate_only",
    "fit",
    "launch",
    "train",
]
