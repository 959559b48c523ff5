"""Find what belongs to weights: the file, its config, its class names, and the modules that define its parts.

A run folder, a zoo name and a folder of transformers each contain all of it, so nothing else has to be given.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former.checkpoint import find_zoo_model, resolve_address, zoo_models
from mask2former.checkpoint.addresses import BEST, FINAL, LAST
from mask2former.checkpoint.addresses import SCHEME as HUB
from mask2former.checkpoint.description import read_description
from mask2former.checkpoint.transformers_config import read_class_names, read_transformers_folder
from mask2former.config import CfgNode, configs_folder, get_cfg, locate_config
from mask2former.config.merging import merge_trees
from mask2former.config.yaml_reader import parse_config
from mask2former.data.catalog import register_classes, register_run_metadata
from mask2former.data.datasets import register_builtin_datasets
from mask2former.data.own_data import register_own_data
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.files.json_files import parse_json
from mask2former.runtime.exported_info import is_exported
from mask2former.structures import MetadataCatalog

_ZOO = "zoo://"
_CONFIG = "config.yaml"  # of a run folder
_PANOPTIC_THRESHOLDS = {"OBJECT_MASK_THRESHOLD": 0.8, "OVERLAP_THRESHOLD": 0.8}  # of the published configs

_logger = logging.getLogger(__name__)


def locate_weights(weights: str | os.PathLike[str]) -> str:
    """Return where weights are: a zoo name with its scheme, downloaded hub files, or the weights of a run folder.

    The published address of a model of the zoo is its name.

    Anything else is returned unchanged; no config lies beside a file that is still to be downloaded.

    Raises:
        CheckpointError: a run folder has no checkpoint, or a hub name is not available.
    """
    name = os.fspath(weights)
    path = Path(name).expanduser()
    if name.lower() in zoo_models() and not path.exists():
        return _ZOO + name
    if "://" in name and not name.lower().startswith(HUB):
        published = next((model.name for model in zoo_models().values() if model.checkpoint_url == name), None)
        return name if published is None else _ZOO + published
    found = resolve_address(name)
    if not path.is_dir() or (path / "config.json").is_file():
        return name if found == path else str(found)
    if found == path and (path / _CONFIG).is_file():
        raise CheckpointError(f"{weights}: a run folder without a checkpoint, found no {FINAL} in it")
    if (path / LAST).is_file() and found.name not in (FINAL, BEST):
        _logger.warning("%s: the run is not finished, its newest checkpoint %s is used", weights, found.name)
    return str(found)


def find_config(weights: str) -> CfgNode:
    """Return the config of a zoo model, of a folder of transformers, of the file beside a checkpoint, or inside it.

    Raises:
        ConfigError: there is none.
        CheckpointError: there is no such file or zoo name, or the config is of another model.
    """
    address, path = locate_weights(weights), Path(weights).expanduser()
    may_import = path.exists()  # what was downloaded does not say what runs here
    for read in _WAYS:
        cfg = read(address, may_import)
        if cfg is not None:
            return cfg
    if path.is_dir():
        raise ConfigError(
            f"{weights}: expected a folder of transformers, found no config.json in it; nor is it one of a run"
        )
    if "://" not in weights and not path.exists():
        raise CheckpointError(f"{weights}: found no such file; expected a checkpoint, a folder or {_ZOO}NAME")
    looked = " and ".join(str(candidate) for candidate in _beside(path))
    raise ConfigError(f"config: give the config of {weights}; none was found in it, nor as {looked}")


def find_config_file(checkpoint: Path) -> Path | None:
    """Return the config file beside a checkpoint: of the same name, or that of the run folder; None without one."""
    return next((path for path in _beside(checkpoint) if path.is_file()), None)


def read_config(name: str | os.PathLike[str], *, may_import: bool = True) -> CfgNode:
    """Return the config of a file or of a published name, after importing the modules in its IMPORTS.

    The class metadata stored in a run folder are registered, too. ``may_import``: whether to import those modules;
    otherwise they must have been imported already.

    Raises:
        ConfigError: the file, or a module that it names, cannot be read.
    """
    path = locate_config(name)
    tree = CfgNode.load_yaml_with_base(path)
    new = _new_modules(tree)
    if not may_import:
        _refuse_modules(new, f"{path}: was downloaded and")
    if new:
        _logger.warning("%s names modules of its own, which are imported: %s", path, ", ".join(new))
    import_modules(new, origin=f"{path}: IMPORTS")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    register_data(cfg, folder=Path(path).expanduser().parent)
    return cfg


def _new_modules(tree: Mapping[str, Any]) -> list[str]:
    modules = tree.get("IMPORTS", [])
    modules = modules if isinstance(modules, list) else []  # that another type is wrong, merging says
    return [str(module) for module in modules if str(module) not in sys.modules]


def _refuse_modules(new: Sequence[str], subject: str) -> None:
    if new:
        options = " ".join(f"--import {module}" for module in new)
        raise ConfigError(f"{subject} names modules; if you trust them, import them first: {options}")


def import_modules(names: Iterable[str], *, origin: str = "--import") -> None:
    """Import modules that register parts of models, data sets or config keys.

    Raises:
        ConfigError: a module is not found or fails.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{origin} {name}: {error}; modules are looked for on PYTHONPATH") from error
        except InputError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{origin} {name}: {found} ({place.filename}, line {place.lineno})") from error


def register_data(cfg: CfgNode, *, folder: Path | None = None) -> None:
    """Register the built-in data sets, those of a run with --data, and the class metadata stored in ``folder``."""
    register_builtin_datasets()
    register_own_data(cfg)
    if folder is not None:
        register_run_metadata(folder)


def check_device(cfg: CfgNode) -> None:
    """Raise ConfigError for the device "meta", on which a model can be built but computes nothing."""
    if cfg.MODEL.DEVICE.partition(":")[0] == "meta":
        raise ConfigError(
            f"MODEL.DEVICE: expected a device that computes, such as cuda or cpu, found {cfg.MODEL.DEVICE}"
        )


def _of_zoo(address: str, may_import: bool) -> CfgNode | None:
    if not address.lower().startswith(_ZOO):
        return None
    return read_config(configs_folder() / find_zoo_model(address[len(_ZOO) :]).config)


def _of_transformers(address: str, may_import: bool) -> CfgNode | None:
    folder = Path(address).expanduser()
    if not (folder / "config.json").is_file():
        return None
    cfg = get_cfg()
    for key, value in read_transformers_folder(folder).items():
        cfg.merge_from_list([key, value])
    for key, value in _PANOPTIC_THRESHOLDS.items():
        cfg.MODEL.MASK_FORMER.TEST[key] = value
    name, classes = f"classes of {folder}", read_class_names(folder)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)  # the folder may have been written anew
    MetadataCatalog.get(name).set(stuff_classes=classes, thing_classes=classes)
    cfg.DATASETS.TEST = (name,)
    return cfg


def _of_content(address: str, may_import: bool) -> CfgNode | None:
    """The config inside a file of weights. Reading weights runs no code, so its modules are not imported for it."""
    description = read_description(address)
    if description is None:
        return None
    source = f"{address}, its config"
    tree = parse_config(description.config, source=source)
    _refuse_modules(_new_modules(tree), source)
    cfg = get_cfg()
    merge_trees(cfg, [(source, tree)])
    register_data(cfg)
    if description.metadata:
        content = parse_json(description.metadata, source=f"{address}, its metadata", error=CheckpointError)
        register_classes(content, source=f"{address}, its metadata")
    return cfg


def _of_neighbour(address: str, may_import: bool) -> CfgNode | None:
    found = find_config_file(Path(address).expanduser())
    return None if found is None else read_config(found, may_import=may_import)


def _of_exported(address: str, may_import: bool) -> CfgNode | None:
    return _of_content(address, may_import) if is_exported(address) else None


# Asked in this order: a file beside weights can be edited, so it counts before the config inside them; not so for an
# exported file, whose graph was made by the config inside.
_WAYS: tuple[Callable[[str, bool], CfgNode | None], ...] = (
    *(_of_zoo, _of_transformers, _of_exported, _of_neighbour, _of_content),
)


def _beside(path: Path) -> list[Path]:
    return [path.with_suffix(".yaml"), path.parent / _CONFIG]
