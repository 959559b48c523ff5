"""Weights by the name of a repository of the hub, through its client: its cache, its offline mode, its revisions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.checkpoint.folders import WEIGHTS_SUFFIXES, WHOLE_FILES
from mask2former.errors import CheckpointError

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
