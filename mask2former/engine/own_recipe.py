"""The recipe that own data train with where no config is given: it follows from the task, and is named."""

from __future__ import annotations

from dataclasses import dataclass

from mask2former.checkpoint import resolve_address, zoo_models
from mask2former.data.own_data import detect_format
from mask2former.errors import CheckpointError, ConfigError

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
