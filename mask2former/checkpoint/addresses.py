"""What MODEL.WEIGHTS may name besides a file: models of the zoo, detectron2's catalog, the hub, http addresses."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mask2former.checkpoint.folders import TRANSFORMERS_FILES, WEIGHTS_SUFFIXES, find_weights_file
from mask2former.checkpoint.hub import fetch_from_hub, parse_hub_name
from mask2former.errors import CheckpointError
from mask2former.files.addresses import download

_SCHEME = re.compile(r"^([a-z0-9+]{2,})://(.*)$", re.IGNORECASE | re.DOTALL)  # one letter would be a Windows drive
_DETECTRON2_CATALOG = "https://dl.fbaipublicfiles.com/detectron2/"
_SWIN_RELEASE = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
_FORMS = "a file, a folder of a run or of transformers, zoo://NAME, hf://OWNER/NAME, http(s)://… or detectron2://…"

# Files that published configs name without a folder: where weights come from that can be given in their place.
_PRETRAINED_BACKBONES = {
    "R-101.pkl": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    **{
        f"{name}.pkl": f"{_SWIN_RELEASE}{name}.pth"
        for name in (
            "swin_tiny_patch4_window7_224",
            "swin_small_patch4_window7_224",
            "swin_base_patch4_window12_384",
            "swin_base_patch4_window12_384_22k",
            "swin_large_patch4_window12_384_22k",
        )
    },
}


@dataclass(frozen=True)
class ZooModel:
    """A published model: ``name`` such as coco/panoptic/r50, its config below ``configs/``, its address and metrics."""

    name: str
    dataset: str
    task: str
    backbone: str
    schedule: str
    metrics: dict[str, float]
    model_id: str
    config: str
    checkpoint_url: str


@functools.cache
def zoo_models() -> dict[str, ZooModel]:
    """Return the published models by name."""
    text = resources.files(__package__).joinpath("model_zoo.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)
    return {entry["name"]: ZooModel(**entry) for entry in entries}


def find_zoo_model(name: str) -> ZooModel:
    """Return the model of a name; case is ignored, and a unique beginning is enough.

    Raises:
        CheckpointError: no such name, or several begin so; the message lists them.
    """
    models, wanted = zoo_models(), name.strip("/").lower()
    if wanted in models:
        return models[wanted]
    beginning = [known for known in models if wanted and known.startswith(f"{wanted}-")]
    if len(beginning) == 1:
        return models[beginning[0]]
    near = beginning or [known for known in models if wanted and known.startswith(f"{wanted}/")]
    near = near or difflib.get_close_matches(wanted, models, n=5, cutoff=0.5) or list(models)
    raise CheckpointError(f"zoo://{name}: no such model in the zoo; there are for instance {', '.join(near[:12])}")


def resolve_address(address: str | Path) -> Path:
    """Return a local file or folder for an address: downloaded, found in a run folder, or unchanged.

    A name for which there is no file is one of the zoo (DATASET/TASK/BACKBONE) or of the hub (OWNER/NAME[@REVISION]).

    Raises:
        CheckpointError: an unknown name or kind of address, or the download fails.
    """
    found = _SCHEME.match(str(address))
    if found is not None:
        return _resolve_scheme(str(address), found[1].lower(), found[2])
    path = Path(address).expanduser()
    if os.path.isdir(path):
        weights = find_weights_file(path)
        return path if weights is None or weights.name in TRANSFORMERS_FILES else weights
    if os.path.lexists(path):
        return path
    if str(address).lower() in zoo_models():
        return _resolve_scheme(str(address), "zoo", str(address))
    name = parse_hub_name(str(address))
    # A folder that is there makes the name a path with a slip in it, which no hub has to hear of.
    if name is None or name.file is not None or path.suffix in WEIGHTS_SUFFIXES or os.path.isdir(path.parent):
        return path
    try:
        return resolve_address(fetch_from_hub(name))
    except CheckpointError as error:
        raise CheckpointError(f"{address}: no such file or folder here; {error}") from error


def _resolve_scheme(address: str, scheme: str, rest: str) -> Path:
    if scheme in ("http", "https"):
        return download(address, error=CheckpointError)
    if scheme == "zoo":
        return download(find_zoo_model(rest).checkpoint_url, error=CheckpointError)
    if scheme == "detectron2":
        return download(_DETECTRON2_CATALOG + rest.lstrip("/"), error=CheckpointError)
    if scheme == "hf":
        name = parse_hub_name(rest)
        if name is None:
            raise CheckpointError(f"{address}: expected hf://OWNER/NAME, with /FILE or @REVISION where wanted")
        return resolve_address(fetch_from_hub(name))
    raise CheckpointError(f"{address}: addresses of the kind {scheme}:// are not read; expected {_FORMS}")


def suggest_source(path: Path) -> str:
    """For a missing file of a published name: where it or its weights can be had; empty for others."""
    model = next((m for m in zoo_models().values() if m.checkpoint_url.endswith(f"/{path.name}")), None)
    if model is not None:
        return f"; this is a published model, give MODEL.WEIGHTS zoo://{model.name} to download it"
    if path.name in _PRETRAINED_BACKBONES:
        address = _PRETRAINED_BACKBONES[path.name]
        return f"; a pretrained backbone, give MODEL.WEIGHTS {address} to download the same weights"
    return ""
