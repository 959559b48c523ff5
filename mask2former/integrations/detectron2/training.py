"""Training on the engine of detectron2: its trainer, loaders and checkpointer, with the parts of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.utils import comm

from mask2former import add_maskformer2_config
from mask2former.commands.cli import run_cli
from mask2former.config import add_maskformer2_video_config
from mask2former.evaluation import build_evaluator
from mask2former.inference.test_time_augmentation import with_test_time_augmentation
from mask2former.integrations.detectron2.data import DatasetMapper
from mask2former.integrations.detectron2.models import build_optimizer


class Trainer(DefaultTrainer):
    """Detectron2's trainer with the mappers, the parameter groups and the evaluators of this model family."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Return the loader of ``DATASETS.TRAIN`` with the mapper of this package."""
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return the loader of a data set with the mapper of this package."""
        return build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, is_train=False))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser with the parameter groups of the recipes."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Return the schedule of DeepLab, which knows WarmupPolyLR too."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return the evaluators of this package for a data set."""
        return build_evaluator(cfg, dataset_name, Path(cfg.OUTPUT_DIR) / "inference" / dataset_name)

    @classmethod
    def test_with_augmentation(cls, cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
        """Return results with test-time augmentation, by task with ``_TTA``."""
        results = cls.test(cfg, with_test_time_augmentation(cfg, model.eval()))
        return {f"{task}_TTA": metrics for task, metrics in results.items()}


def setup(args: Any) -> CfgNode:
    """Return the frozen configuration of the command line; logs and files go to its OUTPUT_DIR."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)  # registers the models too
    add_maskformer2_video_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: Any) -> Any:
    """Train in one process, or evaluate with --eval-only, and return the results."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_augmentation(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def train_main(argv: Sequence[str] | None = None) -> int:
    """``tools/train_net_detectron2.py``; returns the exit code."""
    args = default_argument_parser().parse_args(argv)
    places = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    return run_cli(lambda: launch(main, *places, args=(args,)))
