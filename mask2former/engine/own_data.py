"""Training on own data (``--data``): recipe, schedule and classes follow from the data.

Where no config is given, the recipe follows from the task, and is named.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mask2former import distributed
from mask2former.checkpoint import resolve_address, zoo_models
from mask2former.config import CfgNode, inference_node, is_oneformer
from mask2former.data.own_data import (
    ClassChoice,
    DataClass,
    OwnDataset,
    convert_own_data,
    detect_format,
    format_named,
    format_own_histogram,
    hold_out,
    is_datasets_folder,
    is_zip,
    list_left_out,
    open_own_data,
    own_names,
    rare_ids_note,
    unpack_zip,
    write_index,
)
from mask2former.data.own_data.dataset import COCO_INSTANCES, COCO_PANOPTIC, TRAIN
from mask2former.data.presets import preset_of
from mask2former.engine.batch_probe import largest_batch
from mask2former.engine.channels import settle_channels
from mask2former.engine.logging import setup_logging
from mask2former.engine.run import run_folder
from mask2former.errors import CheckpointError, ConfigError
from mask2former.modeling.criterion import GLOBAL
from mask2former.structures.tasks import ALL_TASKS

logger = logging.getLogger(__name__)

AUTO = "auto"
INDEX_FOLDER = "data"  # below OUTPUT_DIR
_CONFIGS_OF = {
    "semantic": "configs/ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
    "instance": "configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "panoptic": "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
}
_TEST_KEYS = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}
# Of MODEL.MASK_FORMER, where published numbers need not be met: what is unknown trains nothing, and losses do not
# depend on the number of processes.
_TRAINING = {"IGNORE_REGIONS": True, "LOSS_NORM": GLOBAL}
_NUM_EVALUATIONS, _NUM_CHECKPOINTS = 5, 2


@dataclass(frozen=True)
class OwnDataRequest:
    """What the command line says: ``reference`` is the config before its overrides, which set the keys ``overridden``.

    ``batch`` is images a step, ``AUTO`` as many as fit,
    None what the config says. ``notes`` say what was chosen before.
    """

    path: str
    reference: CfgNode
    overridden: frozenset[str] = frozenset()
    choice: ClassChoice = field(default_factory=ClassChoice)
    batch: int | str | None = None
    notes: tuple[str, ...] = ()


def prepare_own_data(cfg: CfgNode, request: OwnDataRequest, *, eval_only: bool = False) -> CfgNode:
    """As ``resolve_own_data``, done by the main process for all of them; begins the log.

    Raises:
        InputError: what ``resolve_own_data`` raises.
    """
    with run_folder(cfg):  # the index is written there
        setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
        return distributed.on_main(lambda: resolve_own_data(cfg, request, eval_only=eval_only))


def resolve_own_data(cfg: CfgNode, request: OwnDataRequest, *, eval_only: bool = False) -> CfgNode:
    """A copy of ``cfg`` that trains and evaluates on the data; says what they hold and writes their index.

    With ``eval_only`` the schedule stays as it is.

    Raises:
        DatasetError: the data cannot be read or are wrong.
        ConfigError: the config is for another task than the data.
    """
    preset = preset_of(cfg)
    request = _unpacked(request, cfg.OUTPUT_DIR, preset.target)
    task = _richest_task(request.path) if preset.tasks else preset.target
    _check_task(task, request.path)
    opened = open_own_data(request.path, request.choice, task=task)
    dataset, classes, ignored = opened.dataset, opened.classes, opened.ignored
    notes = [*request.notes, list_left_out(opened.left_out, Path(cfg.OUTPUT_DIR)), *opened.notes]
    notes += [hold_out(dataset), rare_ids_note(dataset, classes)]
    histogram = format_own_histogram(dataset, classes, ignored=ignored)
    logger.info("--data %s is %s: %s", request.path, format_named(dataset.format).title, histogram)
    for note in filter(None, notes):
        logger.info("--data: %s", note)
    resolved = cfg.clone()
    resolved.defrost()
    _set_data(resolved, request, dataset, classes, ignored=ignored, task=task)
    files = [image.file for image in dataset.parts[TRAIN]]
    resolved = settle_channels(resolved, files, is_known=_knows_channels(request, eval_only=eval_only), detect=True)
    if not eval_only:
        _set_batch(resolved, request)
        logger.info("%s", scale_schedule(resolved, request, num_images=len(dataset.parts[TRAIN])))
    write_index(dataset, classes, Path(resolved.DATASETS.OWN.INDEX))
    resolved.freeze()
    return resolved


def _unpacked(request: OwnDataRequest, output_dir: str, task: str) -> OwnDataRequest:
    """The request for the same data unpacked: out of a zip file, or from the library ``datasets`` to files of COCO."""
    if is_zip(request.path):
        folder = Path(output_dir, INDEX_FOLDER, "unpacked")
        shutil.rmtree(folder, ignore_errors=True)
        request = replace(request, path=str(unpack_zip(request.path, folder)))
        logger.info("--data is a zip file: unpacked to %s", request.path)
    if not is_datasets_folder(request.path):
        return request
    kind = COCO_INSTANCES if task == "instance" else COCO_PANOPTIC
    folder = Path(output_dir, INDEX_FOLDER, kind)
    shutil.rmtree(folder, ignore_errors=True)
    written = convert_own_data(request.path, folder, target=kind, choice=ClassChoice(skip_bad=request.choice.skip_bad))
    logger.info("--data %s is of the library datasets: unpacked to %s as %s", request.path, folder, kind)
    for note in written.notes:
        logger.info("--data: %s", note)
    return replace(request, path=str(folder))


def _richest_task(path: str) -> str:
    """The task whose annotation tells most of those that the data have: OneFormer derives the others from it."""
    known = detect_format(path).tasks
    return next(task for task in ("panoptic", "instance", "semantic") if task in known)


def _check_task(task: str, path: str) -> None:
    data_format = detect_format(path, task=task)
    if task not in data_format.tasks:
        fitting = " or ".join(f"{_CONFIGS_OF[t]} ({t})" for t in data_format.tasks)
        raise ConfigError(
            f"{path} is {data_format.title}, from which {' and '.join(data_format.tasks)} segmentation is "
            f"learned; the config is for {task} segmentation (INPUT.DATASET_MAPPER_NAME). Configs that fit: {fitting}"
        )


def _knows_channels(request: OwnDataRequest, *, eval_only: bool) -> bool:
    """Whether the config has the statistics of the channels: of an earlier run, or as given."""
    return eval_only or bool(request.reference.INPUT.CHANNELS) or "MODEL.PIXEL_MEAN" in request.overridden


def _set_data(
    cfg: CfgNode,
    request: OwnDataRequest,
    dataset: OwnDataset,
    classes: Sequence[DataClass],
    *,
    ignored: frozenset[int],
    task: str,
) -> None:
    own = cfg.DATASETS.OWN
    # Absolute: the saved config is used from other folders too, and names follow from the path.
    own.PATH, own.INDEX = (
        os.path.abspath(os.path.expanduser(p)) for p in (request.path, Path(cfg.OUTPUT_DIR, INDEX_FOLDER))
    )
    own.FORMAT, own.TASK = format_named(dataset.format).index_form, task
    own.CLASSES = [[entry.id, entry.name, entry.is_thing] for entry in classes]
    own.IGNORED_IDS = sorted(ignored)
    for key, name in zip(("TRAIN", "TEST"), own_names(own.PATH, classes), strict=True):
        if key == "TRAIN" or "DATASETS.TEST" not in request.overridden:
            cfg.DATASETS[key] = type(cfg.DATASETS[key])([name])
    asked, key = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    if key in request.overridden and asked != len(classes):
        raise ConfigError(f"{key} is {asked}, but the data have {len(classes)} classes; leave it out with --data")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(classes)
    _set_results(cfg, request, classes, task)
    for key, value in _TRAINING.items():
        if f"MODEL.MASK_FORMER.{key}" not in request.overridden:
            cfg.MODEL.MASK_FORMER[key] = value


def _set_results(cfg: CfgNode, request: OwnDataRequest, classes: Sequence[DataClass], task: str) -> None:
    """The results that the data can be evaluated for, but for those that the command line decides."""
    possible = {"panoptic", "instance", "semantic"} if task == "panoptic" else {task}
    if not any(entry.is_thing for entry in classes):
        possible.discard("instance")
    test, section = inference_node(cfg), "MODEL.TEST" if is_oneformer(cfg) else "MODEL.MASK_FORMER.TEST"
    for result, key in _TEST_KEYS.items():
        if f"{section}.{key}" not in request.overridden:
            test[key] = result == task or (result in possible and test[key])
    if is_oneformer(cfg):  # each task is evaluated when the model is told it
        for name in ("PANOPTIC", "INSTANCE", "SEMANTIC"):
            cfg.DATASETS[f"TEST_{name}"] = type(cfg.DATASETS[f"TEST_{name}"])([""])
        if "MODEL.TEST.TASK" not in request.overridden:
            test.TASK = ALL_TASKS if task == "panoptic" else task


def _set_batch(cfg: CfgNode, request: OwnDataRequest) -> None:
    """The images a step that are asked for; says how many fit."""
    if request.batch == AUTO:
        cfg.SOLVER.IMS_PER_BATCH, reason = largest_batch(cfg, most=request.reference.SOLVER.IMS_PER_BATCH)
        logger.info("batch: %d images a step (--batch %s): %s", cfg.SOLVER.IMS_PER_BATCH, AUTO, reason)
    elif request.batch is not None:
        cfg.SOLVER.IMS_PER_BATCH = int(request.batch)


def scale_schedule(cfg: CfgNode, request: OwnDataRequest, *, num_images: int) -> str:
    """Fit rate and iterations in ``cfg`` to its batch and the number of images; returns the way there, in lines.

    The rate is that of the reference times the ratio of the batches. The iterations are those in which every image is
    seen ``DATASETS.OWN.EPOCHS`` times, but at least ``DATASETS.OWN.MIN_ITER`` and never more images than in the
    reference. Keys that the command line sets stay.
    """
    solver, reference, given = cfg.SOLVER, request.reference.SOLVER, request.overridden
    batch, reference_batch = solver.IMS_PER_BATCH, reference.IMS_PER_BATCH
    if batch < 1:
        raise ConfigError(f"SOLVER.IMS_PER_BATCH: expected at least 1, found {batch}")
    lines = [
        f"schedule: reference (config) {reference_batch} images a step, learning rate {reference.BASE_LR:g}, "
        f"{reference.MAX_ITER} iterations"
    ]
    if "SOLVER.BASE_LR" in given:
        lines.append(f"  learning rate {solver.BASE_LR:g}, as given")
    else:
        solver.BASE_LR = reference.BASE_LR * batch / reference_batch
        lines.append(f"  learning rate {reference.BASE_LR:g} x {batch} / {reference_batch} = {solver.BASE_LR:g}")
    if "SOLVER.MAX_ITER" in given:
        lines.append(f"  {solver.MAX_ITER} iterations of {batch} images, as given")
    else:
        solver.MAX_ITER, reason = _iterations(cfg, batch, reference.MAX_ITER * reference_batch, num_images)
        lines.append(f"  {reason}")
    if solver.MAX_ITER > 0:
        lines[-1] += f": every image about {solver.MAX_ITER * batch / num_images:.3g} times"
        _scale_periods(cfg, request)
    lines.append(
        f"  steps {list(solver.STEPS)}, warm-up {solver.WARMUP_ITERS}, evaluation every {cfg.TEST.EVAL_PERIOD} "
        f"(0: at the end), checkpoint every {solver.CHECKPOINT_PERIOD} iterations"
    )
    return "\n".join(lines)


def _iterations(cfg: CfgNode, batch: int, reference_samples: int, num_images: int) -> tuple[int, str]:
    own, epochs = cfg.DATASETS.OWN, cfg.SOLVER.MAX_EPOCHS
    if epochs:
        cfg.SOLVER.MAX_EPOCHS, iterations = 0, math.ceil(epochs * num_images / batch)
        return iterations, f"{epochs} epochs (SOLVER.MAX_EPOCHS) of {num_images} images / {batch} = {iterations}"
    by_epochs = math.ceil(own.EPOCHS * num_images / batch)
    most = math.ceil(reference_samples / batch)
    iterations = min(max(by_epochs, own.MIN_ITER), most)
    reason = f"{own.EPOCHS} epochs (DATASETS.OWN.EPOCHS) of {num_images} images / {batch} = {by_epochs} iterations"
    if iterations == most:
        return iterations, f"{reason}; used are {iterations}, as many images as in the reference"
    if iterations > by_epochs:
        return iterations, f"{reason}; used are {iterations} (DATASETS.OWN.MIN_ITER)"
    return iterations, reason


def _scale_periods(cfg: CfgNode, request: OwnDataRequest) -> None:
    """What the config says in iterations, in the same places of the schedule that is used."""
    solver, reference, given = cfg.SOLVER, request.reference.SOLVER, request.overridden
    scale = solver.MAX_ITER / reference.MAX_ITER
    if "SOLVER.STEPS" not in given:
        steps = [round(step * scale) for step in reference.STEPS if step < reference.MAX_ITER]
        solver.STEPS = type(solver.STEPS)(step for step in steps if step > 0)
    if "SOLVER.WARMUP_ITERS" not in given:
        solver.WARMUP_ITERS = min(reference.WARMUP_ITERS, solver.MAX_ITER // 10)
    if "SOLVER.CHECKPOINT_PERIOD" not in given:
        solver.CHECKPOINT_PERIOD = min(solver.CHECKPOINT_PERIOD, math.ceil(solver.MAX_ITER / _NUM_CHECKPOINTS))
    if "TEST.EVAL_PERIOD" not in given:
        cfg.TEST.EVAL_PERIOD = min(cfg.TEST.EVAL_PERIOD, math.ceil(solver.MAX_ITER / _NUM_EVALUATIONS))


DEFAULT_MODEL = "r50"
SMALL_MODEL = "r18"  # of the quickstart: no weights are published for it, and it needs none
_ZOO_OF = {"panoptic": "coco/panoptic/", "instance": "coco/instance/", "semantic": "ade20k/semantic/"}
_SMALL_CONFIG = "shapes/{task}-segmentation/maskformer2_R18_quickstart.yaml"


@dataclass(frozen=True)
class OwnRecipe:
    """config: a name below the published ones; weights: the model of the zoo to start from, empty for none."""

    config: str
    weights: str
    reason: str

    def check_weights(self) -> None:
        """Fetch the weights before anything else is done.

        Raises:
            CheckpointError: they cannot be had.
        """
        try:
            resolve_address(self.weights)
        except CheckpointError as error:
            raise CheckpointError(
                f"the weights to start from cannot be had: {error}; give others with --weights FILE, or train a small "
                f"model from random weights with --model {SMALL_MODEL}, or this one with MODEL.WEIGHTS ''"
            ) from error


def recipe_names(task: str) -> dict[str, str]:
    """What --model may be for a task, with the config of each."""
    prefix = _ZOO_OF[task]
    published = {
        name[len(prefix) :]: model.config
        for name, model in zoo_models().items()
        if name.startswith(prefix) and "/" not in name[len(prefix) :]
    }
    return {SMALL_MODEL: _SMALL_CONFIG.format(task=task), **published}


def choose_recipe(data: str, model: str | None = None) -> OwnRecipe:
    """The recipe for the data at a path. model: its name, of which an ending that only one has may be left out.

    Raises:
        DatasetError: no format fits the data.
        ConfigError: no recipe for their task has the name.
    """
    data_format = detect_format(data)
    task = data_format.tasks[0]
    names = recipe_names(task)
    wanted = (model or DEFAULT_MODEL).lower()
    near = [name for name in names if name.startswith(f"{wanted}-")]
    name = wanted if wanted in names else near[0] if len(near) == 1 else None
    if name is None:
        raise ConfigError(f"--model {model}: expected one of {', '.join(names)} for {task} segmentation")
    how = "as --model says" if model else "by default; --model chooses another"
    reason = f"{data_format.title} trains {task} segmentation: recipe {name} ({names[name]}), {how}"
    return OwnRecipe(names[name], "" if name == SMALL_MODEL else f"zoo://{_ZOO_OF[task]}{name}", reason)
