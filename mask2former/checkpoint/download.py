"""Downloads into a cache: resumed where they were cut off, checked, and complete or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iopath.common.file_io import file_lock
from tqdm import tqdm

from mask2former.errors import CheckpointError

_CACHE_VARIABLE = "MASK2FORMER_CACHE"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0  # before the second attempt, doubled before each later one
_USER_AGENT = "mask2former"
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_logger = logging.getLogger(__name__)

# What a file name says about its content: the zoo's ends in the first digits of its md5, torchvision's of its sha256.
_DIGESTS: tuple[tuple[re.Pattern[str], str, Callable[..., Any]], ...] = (
    (re.compile(r"_([0-9a-f]{6})\.pkl$"), "md5", hashlib.md5),
    (re.compile(r"-([0-9a-f]{8,64})\.pth$"), "sha256", hashlib.sha256),
)


class _WrongDigestError(CheckpointError):
    """What came is not what its name says."""


def cache_directory() -> Path:
    """Where downloads lie: $MASK2FORMER_CACHE, or mask2former below the user's cache folder."""
    if os.environ.get(_CACHE_VARIABLE):
        return Path(os.environ[_CACHE_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mask2former"


def cached_path(address: str) -> Path:
    """The file in the cache that an http address is kept in, whether it is there or not.

    Raises:
        CheckpointError: the address names no file.
    """
    parts = urlsplit(address)
    segments = [segment for segment in parts.path.split("/") if segment not in ("", ".", "..")]
    if not parts.netloc or not segments:
        raise CheckpointError(f"{address}: expected an address that ends in a file name")
    if parts.query:  # the same path may be another file
        segments.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:12])
    safe = [re.sub(r"[^\w.+-]", "_", segment) for segment in (parts.netloc, *segments)]
    return cache_directory().joinpath(*safe)


def download(address: str, *, pause: float = _PAUSE_SECONDS) -> Path:
    """The file at an http(s) address, from the cache if it is there; one of several processes fetches it.

    Raises:
        CheckpointError: the address cannot be reached or holds no such file, the transfer breaks off for good, or the
            content is not the one whose digest is in the file's name.
    """
    path = cached_path(address)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(path)):
            if not path.is_file():  # another process may have been first
                _fetch(address, path, pause=pause)
    except OSError as error:
        raise CheckpointError(
            f"{address}: cannot be written to the cache {path}: {error.strerror or error}; set {_CACHE_VARIABLE} to a "
            "folder with room"
        ) from error
    return path


def _fetch(address: str, path: Path, *, pause: float) -> None:
    partial = path.with_name(path.name + ".part")
    resumed = partial.is_file()
    try:
        _fetch_once(address, path, partial, pause=pause)
    except _WrongDigestError:
        if not resumed:
            raise
        # The first half may stem from another version of the file: once more from the beginning.
        _fetch_once(address, path, partial, pause=pause)


def _fetch_once(address: str, path: Path, partial: Path, *, pause: float) -> None:
    _logger.info("downloading %s to %s", address, path)
    problem: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _transfer(address, partial, name=path.name)
            problem = None
            break
        except urllib.error.HTTPError as error:
            if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise CheckpointError(f"{address}: the server answers {error.code} {error.reason}") from error
            problem = error
        except _TRANSIENT as error:
            problem = error
            if isinstance(error, urllib.error.URLError) and not attempt:
                break  # nobody there: no use in asking again
    if problem is not None:
        raise CheckpointError(_describe_failure(address, path, partial, problem)) from problem
    _check_digest(address, partial, name=path.name)
    os.replace(partial, path)
    _validator_path(partial).unlink(missing_ok=True)


def _describe_failure(address: str, path: Path, partial: Path, problem: Exception) -> str:
    reason = getattr(problem, "reason", None) or problem
    size = partial.stat().st_size if partial.is_file() else 0
    advice = f"download it elsewhere and put it at {path}, or give the path of a local file"
    if size:
        return f"{address}: broke off after {size} bytes ({reason}); the next run goes on from there. Or {advice}"
    return f"{address}: cannot be reached ({reason}). If this machine is offline, {advice}"


def _transfer(address: str, partial: Path, *, name: str) -> None:
    """One request: appends to what is there if the server still has the same file, else begins anew."""
    have = partial.stat().st_size if partial.is_file() else 0
    validator = _read_validator(partial)
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        partial.unlink()  # as the file or longer: nothing to append
        _transfer(address, partial, name=name)
        return
    with response:
        start = _range_start(response, have)
        _write_validator(partial, response.headers.get("ETag") or response.headers.get("Last-Modified"))
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with partial.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            _copy(response, file, start=start, total=total, name=name)


def _range_start(response: Any, have: int) -> int:
    """Where in the file the answer's first byte belongs; 0 when the server sends the whole."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) > have:
        raise http.client.HTTPException("the server sent another part of the file than was asked for")
    return int(found[1])


def _copy(response: Any, file: Any, *, start: int, total: int | None, name: str) -> None:
    # disable=None shows the bar on a terminal alone: a log file would get a line for every step.
    with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        done = start
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
    file.flush()
    os.fsync(file.fileno())
    if total is not None and done < total:
        raise http.client.HTTPException(f"{done} of {total} bytes")


def _check_digest(address: str, partial: Path, *, name: str) -> None:
    for pattern, kind, digest in _DIGESTS:
        expected = pattern.search(name)
        if expected is None:
            continue
        with partial.open("rb") as file:
            found = _digest(file, digest)
        if not found.startswith(expected[1]):
            size = partial.stat().st_size
            partial.unlink()
            _validator_path(partial).unlink(missing_ok=True)
            raise _WrongDigestError(
                f"{address}: the {kind} of the {size} bytes that came begins with {found[: len(expected[1])]}, "
                f"expected {expected[1]} by the file's name; what came was removed"
            )


def _digest(file: Any, digest: Callable[..., Any]) -> str:
    state = digest()
    while chunk := file.read(_CHUNK_BYTES):
        state.update(chunk)
    return state.hexdigest()


def _validator_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".validator")


def _read_validator(partial: Path) -> str | None:
    with contextlib.suppress(OSError):
        return _validator_path(partial).read_text(encoding="ascii") or None
    return None


def _write_validator(partial: Path, validator: str | None) -> None:
    """Keeps what identifies the version of the file, so that halves of two versions are never joined."""
    # Weak validators are not allowed in If-Range.
    text = validator if validator and not validator.startswith("W/") else ""
    _validator_path(partial).write_text(text, encoding="ascii", errors="ignore")
