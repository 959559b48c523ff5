"""What MODEL.WEIGHTS may name besides a file: folders, models of the zoo, detectron2's catalog, the hub, addresses.

A folder is one of transformers, of a run, or has one file of weights. The hub is reached through its client: its
cache, its offline mode, its revisions.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mask2former.errors import CheckpointError
from mask2former.files.addresses import download

FINAL, BEST = "model_final.pth", "model_best.pth"
LAST = "last_checkpoint"  # names the newest checkpoint of a run, as detectron2 writes it
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")
TRANSFORMERS_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
WHOLE_FILES = (*TRANSFORMERS_FILES[1:], FINAL, BEST)


def find_weights_file(folder: Path) -> Path | None:
    """Return the weights file of a folder.

    That is: the weights of transformers; the newer of a run's final and best weights; its newest checkpoint; or the
    only file.
    """
    for name in TRANSFORMERS_FILES:
        if (folder / name).is_file():
            return folder / name
    finished = [folder / name for name in (FINAL, BEST) if (folder / name).is_file()]
    if finished:
        return max(finished, key=os.path.getmtime)
    try:
        last = folder / Path((folder / LAST).read_text(encoding="utf-8").strip()).name
    except (OSError, ValueError):
        last = folder
    if last.is_file():
        return last
    others = [path for path in sorted(folder.glob("*")) if path.suffix in WEIGHTS_SUFFIXES and path.is_file()]
    return others[0] if len(others) == 1 else None


SCHEME = "hf://"
_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?P<file>/[^@]+)?(@(?P<revision>[^@\s]+))?", re.ASCII)
_SMALL_FILES = ("config.json", "preprocessor_config.json", "config.yaml", "metadata.json")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_INDEX = "model.safetensors.index.json"
_NEVER_IN_PART = (_INDEX, "model-*-of-*.safetensors")  # of the other files those in the cache will do


@dataclass(frozen=True)
class HubName:
    """``repository`` is OWNER/NAME; ``file`` one of its files, without it those that a model needs."""

    repository: str
    file: str | None = None
    revision: str | None = None


def parse_hub_name(name: str) -> HubName | None:
    """OWNER/NAME[/FILE][@REVISION] in its parts, or None where a name is none of the hub."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    file = found["file"]
    return HubName(found["repository"], None if file is None else file[1:], found["revision"])


def fetch_from_hub(name: HubName, *, options: Mapping[str, Any] | None = None) -> Path:
    """Return the folder of a hub repository with config and weights, or one file, cached or downloaded.

    ``options`` of the client: cache_dir, token, local_files_only, force_download.

    Raises:
        CheckpointError: there is no such repository, revision or file, it cannot be reached and is not in the cache, or
            it holds no weights.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    given: dict[str, Any] = {"revision": name.revision, **(options or {})}
    try:
        if name.file is not None:
            return Path(hf_hub_download(name.repository, name.file, **given))
        listed = None if given.get("local_files_only") else _list_files(name, token=given.get("token"))
        if listed is None:
            cached = given | {"local_files_only": True}
            return Path(snapshot_download(name.repository, allow_patterns=list(_NEVER_IN_PART), **cached))
        return Path(snapshot_download(name.repository, allow_patterns=_choose(listed), **given))
    except Exception as error:  # the hub's client raises whatever the network leads it to
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{SCHEME}{name.repository}: {error}") from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{SCHEME}{name.repository}: not to be had from the hub: {reason}") from error


def _list_files(name: HubName, *, token: Any) -> list[str] | None:
    """Return the files of a repository, or None where the hub cannot be asked and its cache has to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    with contextlib.suppress(OfflineModeIsEnabled, OSError):
        try:
            found = HfApi().model_info(name.repository, revision=name.revision or "main", token=token)
            return [sibling.rfilename for sibling in found.siblings or []]
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code < 500:
                raise RuntimeError(str(error)) from error  # an answer: not there, or not for everybody
        except Exception as error:
            if "Connect" not in type(error).__name__ and "Timeout" not in type(error).__name__:
                raise
    return None


def _choose(listed: Iterable[str]) -> list[str]:
    """Of a repository's files the weights that are read, in one form, and what says how."""
    names = [name for name in listed if "/" not in name]
    small = [name for name in names if name in _SMALL_FILES]
    if _INDEX in names:
        return [*small, _INDEX, *(name for name in names if _SHARD.fullmatch(name))]
    whole = next((name for name in WHOLE_FILES if name in names), None)
    others = [name for name in names if Path(name).suffix in WEIGHTS_SUFFIXES]
    if whole is None and len(others) != 1:
        raise CheckpointError(
            f"expected one file of weights, found {', '.join(sorted(others)[:8]) or 'none'}; one is named by "
            f"{SCHEME}OWNER/NAME/FILE"
        )
    return [*small, whole or others[0]]


_SCHEME = re.compile(r"^([a-z0-9+]{2,})://(.*)$", re.IGNORECASE | re.DOTALL)  # one letter would be a Windows drive
_DETECTRON2_CATALOG = "https://dl.fbaipublicfiles.com/detectron2/"
_SWIN_RELEASE = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
_CONVNEXT = "https://dl.fbaipublicfiles.com/convnext/"
_DINAT = "https://shi-labs.com/projects/dinat/checkpoints/"
_FORMS = "a file, a folder of a run or of transformers, zoo://NAME, hf://OWNER/NAME, http(s)://… or detectron2://…"

# Files that published configs name without a folder: where weights come from that can be given in their place.
_PRETRAINED = {
    "R-101.pkl": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    **{
        f"{name}.pkl": f"{_SWIN_RELEASE}{name}.pth"
        for name in (
            "swin_tiny_patch4_window7_224",
            "swin_small_patch4_window7_224",
            "swin_base_patch4_window12_384",
            "swin_base_patch4_window12_384_22k",
            "swin_large_patch4_window12_384_22k",
            "swin_large_patch4_window12_384_22kto1k",
        )
    },
    **{
        f"{name}.pkl": f"{_CONVNEXT}{name}.pth"
        for name in ("convnext_large_22k_1k_384", "convnext_xlarge_22k_1k_384_ema")
    },
    "dinat_large_in22k_224.pkl": f"{_DINAT}imagenet22k/dinat_large_in22k_224.pth",
    "dinat_large_in22k_in1k_384_11x11.pkl": f"{_DINAT}imagenet1k/dinat_large_in22k_in1k_384_11x11.pth",
    # Models of OneFormer that others are trained from.
    **{
        file.partition("/")[2]: f"https://shi-labs.com/projects/oneformer/{file}"
        for file in (
            "coco/150_16_dinat_l_oneformer_coco_100ep.pth",
            "mapillary/250_16_convnext_l_oneformer_mapillary_300k.pth",
            "mapillary/250_16_convnext_xl_oneformer_mapillary_300k.pth",
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
    if path.name in _PRETRAINED:
        address = _PRETRAINED[path.name]
        return f"; pretrained weights, give MODEL.WEIGHTS {address} to download the same weights"
    return ""
