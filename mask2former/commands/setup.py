"""Setting up a command, once for all of them: own modules, the config, its overrides, the data sets.

The modules of --import are imported first and may register config keys. Then the config is read: that of --config-file,
or else that of the weights. Keys and values of the command line come last. How the process is tuned has been settled
before, since that must precede the import of torch.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

from mask2former.config import CfgNode
from mask2former.config.merging import MergeError, format_faults
from mask2former.errors import ConfigError, UsageError
from mask2former.inference.model_source import (
    check_device,
    find_config,
    import_modules,
    locate_weights,
    read_config,
    register_data,
)

_WEIGHTS, _OUTPUT = "MODEL.WEIGHTS", "OUTPUT_DIR"


class Setup(NamedTuple):
    """cfg: the frozen config; reference: what it was before the command line; given: the keys that it sets."""

    cfg: CfgNode
    reference: CfgNode
    given: frozenset[str]


def set_up(args: argparse.Namespace, *, run_folder: str | None = None) -> Setup:
    """Return what the common options say. run_folder: where a config may lie too, that of a run that is resumed.

    Raises:
        UsageError: nothing tells the config.
        ConfigError: a module, file, key or value is wrong.
        CheckpointError: the weights do not exist.
    """
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_modules(args.modules)
    given = list(args.opts)
    weights = getattr(args, "weights", None)
    if weights is not None:
        given += [_WEIGHTS, locate_weights(weights)]
    if getattr(args, "device", None) is not None:
        given += ["MODEL.DEVICE", args.device]
    faults: list[str] = []
    try:
        reference = _find_config(args, weights or option_of(args, _WEIGHTS), run_folder)
    except MergeError as error:
        faults, reference = error.faults, error.merged
    cfg = reference.clone()
    cfg.IMPORTS = list(dict.fromkeys([*cfg.IMPORTS, *args.modules]))
    try:
        cfg.merge_from_list(given)
    except MergeError as error:
        faults, cfg = [*faults, *error.faults], error.merged
    if faults:
        raise ConfigError(format_faults([*faults, *_find_faults(cfg)]))
    if args.verbose:
        cfg.VERBOSE = True
    cfg.freeze()
    check_device(cfg)
    register_data(cfg)
    return Setup(cfg, reference, frozenset(given[::2]))


def _find_faults(cfg: CfgNode) -> list[str]:
    """Return what else is wrong with a config whose keys are wrong already, so that one message says it all."""
    from mask2former.engine.building import find_training_faults  # not for every command that finds no fault
    from mask2former.modeling.meta_arch.assembly import find_model_faults

    return [*find_model_faults(cfg), *find_training_faults(cfg)]


def option_of(args: argparse.Namespace, key: str) -> str:
    """Return the value that the KEY VALUE pairs give a key, the last that counts; empty without one."""
    values = [value for name, value in zip(args.opts[::2], args.opts[1::2], strict=False) if name == key]
    return values[-1] if values else ""


def _find_config(args: argparse.Namespace, weights: str, run_folder: str | None) -> CfgNode:
    if args.config_file:
        return read_config(args.config_file)
    if weights:
        return find_config(weights)
    kept = Path(run_folder or "") / "config.yaml"
    if run_folder and kept.is_file():
        return read_config(kept)
    raise UsageError("--config-file or --weights is needed: nothing else tells the model")
