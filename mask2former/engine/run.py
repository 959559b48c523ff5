"""Beginning a run: log, configuration of this number of processes, seed, numerics, and the checkpoint to go on from."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mask2former import distributed
from mask2former.checkpoint.description import describe
from mask2former.config import CfgNode
from mask2former.data.catalog import RUN_METADATA_FILE, format_run_metadata
from mask2former.engine.checkpoint_folder import CheckpointFolder
from mask2former.engine.logging import setup_logging
from mask2former.engine.metrics import METRICS_FILE, set_aside
from mask2former.engine.resuming import check_changes
from mask2former.engine.scaling import describe_scaling, scale_to_world_size
from mask2former.engine.training_state import draw_seed, seed_everything, set_determinism
from mask2former.files.atomic import locked_folder, remove_temporaries, write_text_atomic
from mask2former.modeling.execution import set_float32_precision

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that has begun. ``checkpoint`` is the file to resume from and its content; None starts anew."""

    cfg: CfgNode
    folder: CheckpointFolder
    checkpoint: tuple[Path, dict[str, Any]] | None

    @property
    def start_iter(self) -> int:
        """The first iteration."""
        return 0 if self.checkpoint is None else int(self.checkpoint[1]["iteration"]) + 1

    @property
    def first_batch(self) -> int:
        """Where in the order of samples to begin: the images seen count, should the batch have another size."""
        images = 0 if self.checkpoint is None else int(self.checkpoint[1].get("images_seen", 0))
        return images // self.cfg.SOLVER.IMS_PER_BATCH


def begin_run(cfg: CfgNode, *, resume: bool) -> Run:
    """Return a run with the resolved configuration, and with ``resume`` the newest readable checkpoint of its folder.

    Raises:
        ConfigError: the batch does not divide among the processes, the folder cannot be written to, or a value
            differs from that of the checkpoint and cannot take effect.
    """
    begin_process(cfg)
    folder = CheckpointFolder(cfg.OUTPUT_DIR, max_to_keep=cfg.SOLVER.MAX_TO_KEEP)
    scaled = scale_to_world_size(cfg, distributed.get_world_size())
    if message := describe_scaling(cfg, scaled):
        logger.info("%s", message)
    checkpoint = _find_checkpoint(folder) if resume else None
    scaled = scaled.clone()
    scaled.defrost()
    if scaled.SEED < 0:
        drawn = checkpoint[1].get("seed") if checkpoint is not None else None
        scaled.SEED = distributed.broadcast(draw_seed() if drawn is None else int(drawn))
        logger.info("SEED is negative: %s %d", "drawn at random:" if drawn is None else "resumed:", scaled.SEED)
    scaled.freeze()
    if checkpoint is not None:
        check_changes(scaled, checkpoint[1], source=checkpoint[0])
    set_determinism(scaled.DETERMINISTIC, benchmark=scaled.CUDNN_BENCHMARK)
    seed_everything(scaled.SEED)
    return Run(scaled, folder, checkpoint)


def begin_process(cfg: CfgNode) -> None:
    """Log and numerics of a run that trains or evaluates.

    Raises:
        ConfigError: OUTPUT_DIR cannot be written to, or FLOAT32_PRECISION is unknown.
    """
    from mask2former import __version__
    from mask2former.ops import kernel_status

    setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
    python, threads = sys.version.split()[0], torch.get_num_threads()
    logger.info("mask2former %s, torch %s, Python %s, %d threads", __version__, torch.__version__, python, threads)
    logger.info("%s", kernel_status())
    set_float32_precision(cfg.FLOAT32_PRECISION)


@contextlib.contextmanager
def run_folder(cfg: CfgNode) -> Iterator[None]:
    """Hold the output folder, by the main process, so that no other run writes there.

    Raises:
        ConfigError: another one does, or nothing can be written there.
    """
    with contextlib.ExitStack() as held:
        distributed.on_main(lambda: held.enter_context(locked_folder(cfg.OUTPUT_DIR)))
        yield


def begin_files(run: Run) -> None:
    """Once nothing can be wrong with the inputs any more: what an earlier run left is set aside, not overwritten.

    Raises:
        InputError: a file cannot be written.
    """
    distributed.on_main(lambda: _begin_files(run))


def _begin_files(run: Run) -> None:
    remove_temporaries(run.folder.directory)
    if run.checkpoint is None:
        run.folder.begin_run()
        set_aside(run.folder.directory / METRICS_FILE)
    config, metadata = run.cfg.dump(), format_run_metadata([*run.cfg.DATASETS.TEST, *run.cfg.DATASETS.TRAIN])
    write_text_atomic(config, run.folder.directory / "config.yaml")
    write_text_atomic(metadata, run.folder.directory / RUN_METADATA_FILE)
    run.folder.description = describe(config, metadata)
    logger.info("configuration written to %s", run.folder.directory / "config.yaml")


def _find_checkpoint(folder: CheckpointFolder) -> tuple[Path, Any] | None:
    """Return the checkpoint that the main process chooses, so that a damaged file cannot divide the processes."""
    newest = folder.load_newest() if distributed.is_main() else None
    if distributed.get_world_size() > 1:
        path = distributed.broadcast(None if newest is None else newest[0])
        if path is not None and newest is None:
            from mask2former.checkpoint import load_state

            newest = path, load_state(path)
    if newest is None:
        logger.info("--resume: no checkpoint in %s, the run starts from the beginning", folder.directory)
    return newest
