"""Fine-tuning with the ``Trainer`` of transformers: the command behind tools/train_hf.py.

It takes the arguments of transformers' example for instance segmentation and all ``TrainingArguments``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers.trainer_utils import get_last_checkpoint

from mask2former.checkpoint.transformers_config import read_json_object
from mask2former.commands.cli import run_cli
from mask2former.data.own_data.dataset import TRAIN, VALID
from mask2former.data.own_data.datasets_library import class_ids_of, is_datasets_folder, load_splits
from mask2former.data.own_data.index import HELD_OUT_SHARE
from mask2former.data.transforms import AugmentationList, ColorAugSSD, RandomFlip
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.inference.model_source import import_modules
from mask2former.integrations.transformers.fine_tuning_data import FineTuningImages, FineTuningTrainer, collate
from mask2former.integrations.transformers.starting_model import StartRequest, load_start

_SPLIT_SEED = 0  # of images held out where there is no validation split: the same at every run
# As the example's own page still has it, and as the other commands here have it.
_RENAMED = {"evaluation_strategy": "eval_strategy", "output": "output_dir"}
_TRUE = ("true", "t", "yes", "y", "1")  # as their parser reads them
_MAX_SHOWN = 100  # letters of a value
_SETTLED = (  # of a model whose training has begun
    *("id2label", "num_queries", "hidden_dim", "feature_size", "mask_feature_size", "num_attention_heads"),
    *("dim_feedforward", "decoder_layers", "encoder_layers", "encoder_feedforward_dim", "enforce_input_projection"),
    *("model_type", "conv_dim", "mask_dim", "query_dec_layers", "text_encoder_n_ctx", "text_encoder_num_layers"),
)
_SETTLED_BACKBONE = ("model_type", "depths", "embed_dim", "num_heads", "window_size", "hidden_sizes", "layer_type")
_BEST = {"load_best_model_at_end": True, "metric_for_best_model": "map", "greater_is_better": True}


@dataclass
class FineTuningArguments:
    """What is learnt, and from where."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "where to start: a folder or hub name of transformers; or, with --config_file, weights that "
            "this project reads, of the model or its backbone: model_final.pth, zoo://coco/instance/r50"
        },
    )
    config_file: str | None = field(
        default=None, metadata={"help": "config of this project (yaml) for the weights, or for a model from scratch"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "config of transformers (folder or config.json): a model from scratch"}
    )
    dataset_name: str = field(
        default="",
        metadata={
            "help": "folder or hub name of a data set with the columns image, annotation and semantic_class_to_id; "
            "tools/convert_dataset.py makes one"
        },
    )
    do_reduce_labels: bool = field(
        default=False, metadata={"help": "class 0 is background and not learnt, the other ids move down by one"}
    )
    image_height: int = field(default=512, metadata={"help": "height to which images are resized"})
    image_width: int = field(default=512, metadata={"help": "width to which images are resized"})
    color_augmentation: bool = field(
        default=True, metadata={"help": "vary brightness, contrast, saturation and hue while training"}
    )
    train_batch_norms: bool | None = field(
        default=None,
        metadata={"help": "let the batch norms of a ResNet learn; by default those of a model from scratch alone"},
    )
    token: str | None = field(default=None, metadata={"help": "token for the hub"})
    cache_dir: str | None = field(default=None, metadata={"help": "where downloads are kept"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "refused: code of a hub is never executed; here for compatibility"}
    )
    verbose: bool = field(default=False, metadata={"help": "show tracebacks"})


def main(argv: Sequence[str] | None = None) -> int:
    """``tools/train_hf.py``; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return run_cli(lambda: fine_tune(*parse_arguments(given)), verbose="--verbose" in given)


def parse_arguments(argv: Sequence[str]) -> tuple[FineTuningArguments, transformers.TrainingArguments]:
    """Return the arguments of a command line, or of the one json file that it names.

    With --do_train and --do_eval the model is evaluated and saved each epoch, and the best by mAP kept, unless told
    otherwise.

    Raises:
        ConfigError: arguments that are missing, refused or contradict each other.
    """
    kinds = (FineTuningArguments, transformers.TrainingArguments)
    parser: Any = transformers.HfArgumentParser(kinds, prog="mask2former fine-tune-hf")
    try:
        if len(argv) == 1 and argv[0].endswith(".json"):
            content = _read_json(Path(argv[0]))
            parsed = parser.parse_dict({**_defaults(content), **content})
        else:
            options = _without_shared(_split_options(argv))
            parser.set_defaults(**_defaults(_values(options)))
            parsed = parser.parse_args_into_dataclasses(options)
    except (ValueError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    arguments, training = parsed
    _check(arguments, training)
    training.remove_unused_columns = False  # rows are read by our data set
    training.label_names = ["mask_labels", "class_labels"]
    return arguments, training


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object of arguments, found {type(content).__name__}")
    return {str(_RENAMED.get(name, name)): value for name, value in content.items()}


def _split_options(argv: Sequence[str]) -> list[str]:
    """Return a command line with --option=value in two parts, and options by their present names."""
    parts = [part for item in argv for part in (item.split("=", 1) if item.startswith("--") else [item])]
    return [f"--{_RENAMED.get(part[2:], part[2:])}" if part.startswith("--") else part for part in parts]


def _without_shared(options: Sequence[str]) -> list[str]:
    """Do what the options say that all commands have, --import and --device, and return the others.

    Raises:
        ConfigError: a module is not found or fails, or the device is neither cpu nor cuda.
    """
    rest, left = list[str](), list(options)
    while left:
        option = left.pop(0)
        if option not in ("--import", "--device") or not left:
            rest.append(option)
        elif option == "--import":
            import_modules([left.pop(0)])
        else:
            device = left.pop(0)
            if device not in ("cpu", "cuda"):
                raise ConfigError(f"--device: expected cpu or cuda (CUDA_VISIBLE_DEVICES says which), found {device!r}")
            rest += ["--use_cpu", str(device == "cpu")]
    return rest


def _values(options: Sequence[str]) -> dict[str, Any]:
    """Return the value of each option of a command line, True where none follows it."""
    followers = [*options[1:], "--"]
    return {
        option[2:]: True if value.startswith("--") else value
        for option, value in zip(options, followers, strict=True)
        if option.startswith("--")
    }


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of ``TrainingArguments`` has another default here, given the values of options."""
    strategy = given.get("eval_strategy", "epoch")
    values: dict[str, Any] = {"save_strategy": "epoch", "save_total_limit": 2, "logging_steps": 20}
    is_on = all(str(given.get(name, False)).lower() in _TRUE for name in ("do_train", "do_eval"))
    if is_on and strategy != "no":  # what is evaluated is saved, or none is the best
        values |= {"eval_strategy": strategy, "save_strategy": strategy, **_BEST}
    return values


def _check(arguments: FineTuningArguments, training: transformers.TrainingArguments) -> None:
    if arguments.trust_remote_code:
        raise ConfigError("--trust_remote_code: code of a hub is never executed here; leave it out")
    if not arguments.dataset_name:
        raise ConfigError("--dataset_name: missing; a folder that tools/convert_dataset.py wrote, or a name of the hub")
    if not (training.do_train or training.do_eval):
        raise ConfigError("--do_train, --do_eval: expected at least one of them")
    if min(arguments.image_height, arguments.image_width) < 32:
        raise ConfigError("--image_height, --image_width: expected at least 32")


def fine_tune(arguments: FineTuningArguments, training: transformers.TrainingArguments) -> dict[str, float]:
    """Train and evaluate as asked for; ``training.output_dir`` then holds a folder that transformers loads.

    Returns the metrics of the last evaluation.

    Raises:
        InputError: model, data or checkpoint are missing or wrong.
    """
    transformers.set_seed(training.seed)  # before weights are drawn
    splits = _load_splits(arguments, training)
    label2id = _labels(splits, arguments)
    start = StartRequest(
        arguments.model_name_or_path, arguments.config_file, arguments.config_name, arguments.train_batch_norms
    )
    size = {"height": arguments.image_height, "width": arguments.image_width}
    hub = {"token": arguments.token, "cache_dir": arguments.cache_dir}
    model, processor = load_start(start, label2id=label2id, size=size, hub=hub)
    # For whoever prepares labels with it later.
    getattr(processor, "image_processor", processor).do_reduce_labels = arguments.do_reduce_labels
    checkpoint = _checkpoint(training) if training.do_train else None
    if checkpoint is not None:
        _check_same_model(Path(checkpoint), model.config)
    trainer = _build_trainer(arguments, training, splits, model, processor)
    if training.do_train:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
        _record(trainer, "train", result.metrics)
    metrics: dict[str, float] = {}
    if training.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="test")
        _record(trainer, "test", metrics)
    if training.push_to_hub:
        trainer.push_to_hub(tags=["image-segmentation", "instance-segmentation"])
    return metrics


def _load_splits(arguments: FineTuningArguments, training: transformers.TrainingArguments) -> dict[str, Any]:
    name, folder = arguments.dataset_name, Path(arguments.dataset_name).expanduser()
    if folder.exists() and not is_datasets_folder(folder):
        raise DatasetError(
            f"{name}: no data set of the library datasets; python tools/convert_dataset.py {name} OUTPUT makes one of "
            "COCO, labelme and PNG masks"
        )
    if not folder.exists() and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise DatasetError(f"{name}: no such folder")
    options = {key: getattr(arguments, key) for key in ("token", "cache_dir") if getattr(arguments, key) is not None}
    splits = load_splits(folder if folder.exists() else name, **options)
    if training.do_eval and VALID not in splits:
        if len(splits[TRAIN]) < 2:
            raise DatasetError(
                f"{name}: --do_eval: no validation split, and a single row, of which none can be held out"
            )
        halves = splits[TRAIN].train_test_split(test_size=HELD_OUT_SHARE, seed=_SPLIT_SEED)
        splits = {TRAIN: halves["train"], VALID: halves["test"]}
        if training.should_log:
            print(f"{name}: no validation split: {len(splits[VALID])} rows are held out of training for it")
    if training.do_train and TRAIN not in splits:
        raise DatasetError(f"{name}: --do_train: no split called train")
    return splits


def _labels(splits: Mapping[str, Any], arguments: FineTuningArguments) -> dict[str, int]:
    """Return names and ids of the classes that are learnt."""
    table = class_ids_of(splits, arguments.dataset_name)
    if arguments.do_reduce_labels:
        table = {name: class_id - 1 for name, class_id in table.items() if class_id != 0}
    ids = sorted(table.values())
    if ids != list(range(len(ids))) or not ids:
        hint = (
            "" if arguments.do_reduce_labels else " (--do_reduce_labels leaves out class 0 and moves the others down)"
        )
        raise DatasetError(
            f"{arguments.dataset_name}: semantic_class_to_id: expected ids without gaps from "
            f"{int(arguments.do_reduce_labels)} on{hint}, found {table}"
        )
    return table


def _build_trainer(
    arguments: FineTuningArguments,
    training: transformers.TrainingArguments,
    splits: Mapping[str, Any],
    model: Any,
    processor: Any,
) -> FineTuningTrainer:
    augmentations: list[Any] = [RandomFlip()]
    if arguments.color_augmentation:
        augmentations.append(ColorAugSSD("RGB"))
    common = {"num_classes": model.config.num_labels, "reduce_labels": arguments.do_reduce_labels}
    images: Callable[..., FineTuningImages] = FineTuningImages
    train = (
        images(splits[TRAIN], processor, augmentation=AugmentationList(augmentations), **common)
        if TRAIN in splits
        else None
    )
    valid = images(splits[VALID], processor, with_truth=True, **common) if VALID in splits else None
    return FineTuningTrainer(
        model=model,
        args=training,
        train_dataset=train if training.do_train else None,
        eval_dataset=valid if training.do_eval else None,
        data_collator=collate,
        processing_class=processor,
    )


def _checkpoint(training: transformers.TrainingArguments) -> str | None:
    """Return the checkpoint to go on from: the one given, or the newest in the output folder."""
    given = training.resume_from_checkpoint
    is_given = given is not None and str(given).lower() not in ("true", "false")
    if is_given:
        if not (Path(given) / "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {given}: no checkpoint of a Trainer there")
        return str(given)
    found = get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
    if found is None and given is not None and str(given).lower() == "true":
        raise InputError(f"--resume_from_checkpoint: no checkpoint in {training.output_dir}")
    if found is not None and str(given).lower() != "false":
        if training.should_log:
            print(f"going on from {found}; another --output_dir begins anew")
        return str(found)
    return None


def _check_same_model(checkpoint: Path, config: Any) -> None:
    """Raise InputError where a checkpoint, which training would go on from, is of other classes or another model."""
    saved = read_json_object(checkpoint / "config.json")
    now = json.loads(json.dumps(config.to_dict(), default=str))  # as a file has it
    faults = [
        f"{key}: found {_shorten(now.get(key))}, was {_shorten(saved[key])}"
        for key in _SETTLED
        if key in saved and saved[key] != now.get(key)
    ]
    before = saved.get("backbone_config") or {}
    faults += [
        f"backbone_config.{key}: found {_shorten(value)}, was {_shorten(before[key])}"
        for key, value in now["backbone_config"].items()
        if key in _SETTLED_BACKBONE and key in before and before[key] != value
    ]
    if faults:
        raise InputError(
            f"{checkpoint}: of a run that this one cannot go on with ({'; '.join(faults)}); give another --output_dir, "
            "or --resume_from_checkpoint false to begin anew in this one"
        )


def _shorten(value: Any) -> str:
    text = ", ".join(map(str, value.values())) if isinstance(value, dict) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _record(trainer: FineTuningTrainer, name: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(name, metrics)
    trainer.save_metrics(name, metrics)
