"""Download files from http addresses to a cache: resumed after interruption, checked, and never left incomplete.

Images are downloaded anew each time and not stored. Redirects are followed to http addresses only, never to a file.
"""

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
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from iopath.common.file_io import file_lock
from tqdm import tqdm

from mask2former.errors import InputError

_CACHE_VARIABLE = "MASK2FORMER_CACHE"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0  # before the second attempt, doubled before each later one
_USER_AGENT = "mask2former"
_SCHEMES = ("http://", "https://")
_URL_LETTERS = "%/:=&?~#+!$,;'@()*[]"  # as they are; a percent sign stands for a letter that is spelled already
_MAX_NAME_BYTES = 200  # of 255, and some are for .part, .validator and .lock
_MAX_SHOWN = 200  # letters of an address in a message
_PAGE_BYTES = 1 << 10
_PAGE_BEGINNINGS = (b"<html", b"<!doctype", b"<?xml", b"<head", b"<!--")
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_logger = logging.getLogger(__name__)

# What a file name says about its content: the zoo's ends in the first digits of its md5, torchvision's of its sha256.
_DIGESTS: tuple[tuple[re.Pattern[str], str, Callable[..., Any]], ...] = (
    (re.compile(r"_([0-9a-f]{6})\.pkl$"), "md5", hashlib.md5),
    (re.compile(r"-([0-9a-f]{8,64})\.pth$"), "sha256", hashlib.sha256),
)


class _WrongContentError(Exception):
    """The download is not what was asked for, and was removed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https addresses only, not to local files or other services."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_web_address(newurl):
            raise urllib.error.HTTPError(newurl, code, f"leads to {_shown(newurl)}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_web_address(name: str) -> bool:
    """Return whether a name is an http or https address."""
    return name.lower().startswith(_SCHEMES)


def name_in_address(address: str) -> str:
    """Return the last part of an address as a file name, without suffix.

    Raises:
        InputError: the address is malformed.
    """
    last = unquote(urlsplit(_checked(address, InputError)).path.rpartition("/")[2])
    return os.path.splitext(_safe_name(last))[0] or "image"


def cache_directory() -> Path:
    """Return the cache folder: $MASK2FORMER_CACHE, or mask2former below the user's cache folder."""
    if os.environ.get(_CACHE_VARIABLE):
        return Path(os.environ[_CACHE_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mask2former"


def cached_path(address: str, *, error: type[InputError] = InputError) -> Path:
    """Return the path in the cache for an http address, whether or not the file is there.

    Raises:
        InputError (or ``error``): the address names no file.
    """
    parts = urlsplit(_checked(address, error))
    segments = [segment for segment in parts.path.split("/") if segment not in ("", ".", "..")]
    if not segments:
        raise error(f"{_shown(address)}: expected an address that ends in a file name")
    if parts.query:  # the same path may be another file
        segments.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:12])
    host = parts.netloc.rpartition("@")[2]  # without a password
    return cache_directory().joinpath(*(_safe_name(unquote(segment)) for segment in (host, *segments)))


def download(address: str, *, error: type[InputError] = InputError, pause: float = _PAUSE_SECONDS) -> Path:
    """Return the file at an http(s) address, from the cache if it is there; one of several processes downloads it.

    Raises:
        InputError (or ``error``): the address cannot be reached or has no such file, the transfer fails repeatedly, or
            the content is an HTML page or has another digest than its name says.
    """
    path = cached_path(address, error=error)
    try:
        if path.is_file() and not _is_page(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(path)):
            if not path.is_file() or _is_page(path):  # another process may have been first
                _fetch(address, path, error=error, pause=pause)
    except OSError as cause:
        raise error(
            f"{_shown(address)}: cannot be written to the cache {path}: {cause.strerror or cause}; set "
            f"{_CACHE_VARIABLE} to a folder with room"
        ) from cause
    return path


def fetch_bytes(address: str, *, max_bytes: int, error: type[InputError] = InputError) -> bytes:
    """Return the content of an http(s) address, at most ``max_bytes``, without caching it.

    Raises:
        InputError (or ``error``): the address cannot be reached or has no such file, or the content is longer.
    """
    shown = _shown(address)
    try:
        with _open(_checked(address, error), {}) as response:
            content = response.read(max_bytes + 1)
            is_cut = len(content) <= max_bytes and bool(response.length)
    except urllib.error.HTTPError as cause:
        raise error(f"{shown}: the server answers {_answer(cause)}") from cause
    except (*_TRANSIENT, OSError) as cause:
        raise error(f"{shown}: cannot be reached ({_reason(cause)})") from cause
    if len(content) > max_bytes:
        raise error(f"{shown}: more than {max_bytes} bytes, which is the limit")
    if is_cut:
        raise error(f"{shown}: broke off after {len(content)} bytes")
    return content


def _checked(address: str, error: type[InputError]) -> str:
    """Return the address with non-ASCII characters encoded."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port  # raises where it is no number
        spelled = host.encode("idna").decode() if host else ""
        netloc = parts.netloc if not host or host.isascii() else parts.netloc.replace(host, spelled)
    except ValueError as cause:  # of which UnicodeError is one
        raise error(f"{_shown(address)}: not a usable address: {_reason(cause)}") from cause
    if not is_web_address(address) or not host or port == 0 or any(ord(letter) <= ord(" ") for letter in netloc):
        raise error(f"{_shown(address)}: not a usable address: expected http(s)://HOST/FILE")
    return urlunsplit((parts.scheme, netloc, quote(parts.path, _URL_LETTERS), quote(parts.query, _URL_LETTERS), ""))


def _safe_name(segment: str) -> str:
    """Return a safe file name for any segment; different long segments get different names."""
    name = re.sub(r"[^\w.+-]", "_", segment)
    name = "_" * len(name) if name in (".", "..") else name
    if len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    stem, suffix = os.path.splitext(name)
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{stem[: _MAX_NAME_BYTES // 8]}-{digest}{suffix if len(suffix) < _MAX_NAME_BYTES // 8 else ''}"


def _shown(address: str) -> str:
    """Return an address for messages: on one line, shortened, without a password."""
    text = re.sub(r"(?<=://)[^/@]*@", "…@", address)
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:_MAX_SHOWN])
    return plain + "…" if len(text) > _MAX_SHOWN else plain


def _reason(problem: BaseException) -> str:
    return " ".join(str(getattr(problem, "reason", None) or problem or type(problem).__name__).split())[:_MAX_SHOWN]


def _answer(problem: urllib.error.HTTPError) -> str:
    return f"{problem.code} {_reason(problem)}"


def _is_page(path: Path) -> bool:
    """Return whether a file is an HTML page, as portals and servers with a login return instead of a file."""
    with path.open("rb") as file:
        return file.read(_PAGE_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE_BEGINNINGS)


def _open(address: str, headers: dict[str, str]) -> Any:
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _Redirects),
        *(urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler),
    ):
        opener.add_handler(handler())
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
    response = opener.open(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_SECONDS)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        response.close()
        raise http.client.HTTPException(f"the server sends it in the encoding {_shown(encoding)}")
    return response


def _fetch(address: str, path: Path, *, error: type[InputError], pause: float) -> None:
    partial = path.with_name(path.name + ".part")
    resumed = partial.is_file()
    try:
        try:
            _fetch_once(address, path, partial, error=error, pause=pause)
        except _WrongContentError:
            if not resumed:
                raise
            # The first half may stem from another version of the file: once more from the beginning.
            _fetch_once(address, path, partial, error=error, pause=pause)
    except _WrongContentError as cause:
        raise error(f"{_shown(address)}: {cause}; what came was removed") from cause


def _fetch_once(address: str, path: Path, partial: Path, *, error: type[InputError], pause: float) -> None:
    _logger.info("downloading %s to %s", _shown(address), path)
    request = _checked(address, error)
    problem: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _transfer(request, partial, name=path.name)
            problem = None
            break
        except urllib.error.HTTPError as cause:
            if cause.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise error(f"{_shown(address)}: the server answers {_answer(cause)}") from cause
            problem = cause
        except _TRANSIENT as cause:
            problem = cause
            if isinstance(cause, urllib.error.URLError) and not attempt:
                break  # nobody there: no use in asking again
    if problem is not None:
        raise error(_describe_failure(address, path, partial, problem)) from problem
    _check_content(partial, name=path.name)
    os.replace(partial, path)
    _validator_path(partial).unlink(missing_ok=True)


def _describe_failure(address: str, path: Path, partial: Path, problem: Exception) -> str:
    shown, reason = _shown(address), _reason(problem)
    size = partial.stat().st_size if partial.is_file() else 0
    advice = f"download it elsewhere and put it at {path}, or give the path of a local file"
    if size:
        return f"{shown}: broke off after {size} bytes ({reason}); the next run goes on from there. Or {advice}"
    return f"{shown}: cannot be reached ({reason}). If this machine is offline, {advice}"


def _transfer(address: str, partial: Path, *, name: str) -> None:
    """Send one request: append to the partial file if the server still has the same version, else start again."""
    have = partial.stat().st_size if partial.is_file() else 0
    validator = _read_validator(partial)
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = _open(address, headers)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        partial.unlink()  # as the file or longer: nothing to append
        _transfer(address, partial, name=name)
        return
    with response:
        start = _range_start(response, have)
        _write_validator(partial, response.headers.get("ETag") or response.headers.get("Last-Modified"))
        total = None if response.length is None else start + response.length
        with partial.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            _copy(response, file, start=start, total=total, name=name)


def _range_start(response: Any, have: int) -> int:
    """Return the position in the file of the answer's first byte; 0 if the server sends the whole file."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
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


def _check_content(partial: Path, *, name: str) -> None:
    """Remove an HTML page or a file with a wrong digest, and raise _WrongContentError."""
    problem = "a page of html came in the place of a file" if _is_page(partial) else _find_digest_problem(partial, name)
    if problem:
        partial.unlink()
        _validator_path(partial).unlink(missing_ok=True)
        raise _WrongContentError(problem)


def _find_digest_problem(partial: Path, name: str) -> str | None:
    for pattern, kind, digest in _DIGESTS:
        expected = pattern.search(name)
        if expected is None:
            continue
        with partial.open("rb") as file:
            found = _digest(file, digest)
        if not found.startswith(expected[1]):
            return (
                f"the {kind} of the {partial.stat().st_size} bytes that came begins with {found[: len(expected[1])]}, "
                f"expected {expected[1]} by the file's name"
            )
    return None


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
    """Store what identifies the version of the file, so that parts of two versions are never joined."""
    # Weak validators are not allowed in If-Range.
    text = validator if validator and not validator.startswith("W/") else ""
    _validator_path(partial).write_text(text, encoding="ascii", errors="ignore")
