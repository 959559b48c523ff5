"""Downloads from a server on this machine: cached, resumed, checked, and errors that say what to do."""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mask2former.checkpoint import addresses, load_state, load_weights
from mask2former.checkpoint.addresses import resolve_address
from mask2former.errors import CheckpointError, InputError
from mask2former.files.addresses import cached_path, download, fetch_bytes
from mask2former.files.atomic import save_atomic
from mask2former.files.images import to_rgb_array
from mask2former.files.inputs import find_files

CONTENT = bytes(range(256)) * 40


class _Server:
    """Serves one content at every path; `cut_after` breaks the next answers off after so many bytes."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag = '"first"'
        self.cut_after: list[int] = []
        self.knows_ranges = True
        self.statuses: list[int] = []
        self.ranges: list[str | None] = []
        self.redirects: list[str] = []
        self.headers: dict[str, str] = {}  # in the place of the true ones
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        if self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects.pop(0))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        if wanted and self.knows_ranges and request.headers.get("If-Range", self.etag) == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[start:]
        for name, value in {"Content-Length": str(len(body)), "ETag": self.etag, **self.headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    running = _Server()
    yield running
    running.close()


def _files(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()} - {f"{path.name}.lock"}


def test_download_keeps_file_in_cache(server: _Server, tmp_path: Path) -> None:
    first = download(f"{server.address}/a/weights.pth")
    assert first.read_bytes() == CONTENT
    assert first.is_relative_to(tmp_path / "cache")
    assert download(f"{server.address}/a/weights.pth") == first
    assert len(server.ranges) == 1
    assert _files(first) == {"weights.pth"}


def test_download_accepts_empty_file(server: _Server) -> None:
    server.content = b""
    assert download(f"{server.address}/empty.pth").read_bytes() == b""


@pytest.mark.parametrize("cuts", [[1], [4000, 0, 500]])
def test_download_goes_on_where_it_was_cut_off(server: _Server, cuts: list[int]) -> None:
    server.cut_after = list(cuts)
    path = download(f"{server.address}/weights.pth", pause=0.0)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None] + [f"bytes={sum(cuts[: i + 1])}-" for i in range(len(cuts))]


def test_download_of_next_run_goes_on_where_the_last_was_cut_off(server: _Server) -> None:
    server.cut_after = [1000, 100, 100, 100, 100]
    address = f"{server.address}/weights.pth"
    with pytest.raises(InputError, match=r"broke off after 1400 bytes.*goes on from there"):
        download(address, pause=0.0)
    assert not cached_path(address).exists()
    assert download(address).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1400-"
    assert _files(cached_path(address)) == {"weights.pth"}


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_download_never_joins_halves_of_two_versions(server: _Server, knows_ranges: bool) -> None:
    server.cut_after = [1000, 0, 0, 0, 0]
    address = f"{server.address}/weights.pth"
    with pytest.raises(InputError, match="broke off"):
        download(address, pause=0.0)
    server.content, server.etag, server.knows_ranges = CONTENT[::-1], '"second"', knows_ranges
    assert download(address).read_bytes() == CONTENT[::-1]


def test_download_discards_partial_file_longer_than_the_file(server: _Server) -> None:
    path = cached_path(f"{server.address}/weights.pth")
    path.parent.mkdir(parents=True)
    path.with_name("weights.pth.part").write_bytes(CONTENT + b"more")
    assert download(f"{server.address}/weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "name",
    [f"model_final_{hashlib.md5(CONTENT).hexdigest()[:6]}.pkl", f"r-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"],
)
def test_download_checks_digest_in_name(server: _Server, name: str) -> None:
    assert download(f"{server.address}/{name}").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["model_final_000000.pkl", "resnet-00000000.pth"])
def test_download_refuses_content_of_another_digest(server: _Server, name: str) -> None:
    address = f"{server.address}/{name}"
    with pytest.raises(InputError, match=rf"{name}: the (md5|sha256) of the {len(CONTENT)} bytes .* expected 00000"):
        download(address)
    assert not any(entry.startswith(name) for entry in _files(cached_path(address)))


def test_download_begins_anew_when_a_resumed_file_has_another_digest(server: _Server) -> None:
    address = f"{server.address}/model_final_{hashlib.md5(CONTENT).hexdigest()[:6]}.pkl"
    path = cached_path(address)
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.part").write_bytes(b"x" * 100)
    assert download(address).read_bytes() == CONTENT
    assert server.ranges == ["bytes=100-", None]


def test_download_tries_again_when_the_server_is_busy(server: _Server) -> None:
    server.statuses = [503, 500]
    assert download(f"{server.address}/weights.pth", pause=0.0).read_bytes() == CONTENT


def test_download_says_that_the_server_has_no_such_file(server: _Server) -> None:
    server.statuses = [404]
    with pytest.raises(InputError, match=r"weights\.pth: the server answers 404"):
        download(f"{server.address}/weights.pth")
    assert len(server.ranges) == 1


def test_download_offline_says_where_to_put_the_file(server: _Server) -> None:
    address = f"{server.address}/weights.pth"
    server.close()
    with pytest.raises(InputError, match=r"cannot be reached.*offline.*put it at .*weights\.pth"):
        download(address)


def test_download_by_several_threads_fetches_once(server: _Server) -> None:
    address, paths = f"{server.address}/weights.pth", []
    threads = [threading.Thread(target=lambda: paths.append(download(address))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(server.ranges) == 1


def test_download_follows_redirects_to_http_alone(server: _Server) -> None:
    server.redirects = ["/elsewhere/a.bin?signed=1", f"{server.address}/b.bin"]
    assert download(f"{server.address}/weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:text/plain,a", "gopher://a/b"])
def test_addresses_lead_to_no_file_and_no_other_service(server: _Server, target: str) -> None:
    for fetch in (download, lambda address: fetch_bytes(address, max_bytes=100)):
        server.redirects = [target]
        with pytest.raises(InputError, match=r"the server answers 302 .*not (followed|allowed)"):
            fetch(f"{server.address}/weights.pth")


def test_download_gives_up_on_redirects_in_a_ring(server: _Server) -> None:
    server.redirects = ["/weights.pth"] * 20
    with pytest.raises(InputError, match=r"the server answers 302 [^\n]+$"):
        download(f"{server.address}/weights.pth")


@pytest.mark.parametrize(
    "page", [b"<html>log in</html>", b"\xef\xbb\xbf\n <!DOCTYPE html>", b"<?xml version='1.0'?><Error/>"]
)
def test_page_of_html_leaves_the_cache(server: _Server, page: bytes) -> None:
    address, server.content = f"{server.address}/weights.pth", page
    with pytest.raises(InputError, match="a page of html came in the place of a file; what came was removed"):
        download(address)
    assert _files(cached_path(address)) == set()
    cached_path(address).write_bytes(page)  # as a version that kept it did
    server.content = CONTENT
    assert download(address).read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["10241", "99999999999999999999"])
def test_download_resumes_and_refuses_less_than_was_announced(server: _Server, length: str) -> None:
    server.headers = {"Content-Length": length}
    with pytest.raises(InputError, match=r"weights\.pth: broke off after 10240 bytes"):
        download(f"{server.address}/weights.pth", pause=0.0)
    server.headers = {}
    assert download(f"{server.address}/weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["-1", "many", ""])
def test_download_reads_to_the_end_where_the_length_is_nonsense(server: _Server, length: str) -> None:
    server.headers = {"Content-Length": length}
    assert download(f"{server.address}/weights.pth").read_bytes() == CONTENT


def test_download_refuses_an_encoding_that_it_did_not_ask_for(server: _Server) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(InputError, match="the encoding gzip"):
        download(f"{server.address}/weights.pth", pause=0.0)


def test_load_state_removes_what_cannot_be_read_from_the_cache(server: _Server, tmp_path: Path) -> None:
    address = f"{server.address}/weights.pth"
    _, _ = _serve_model(server, tmp_path, ".pth")
    whole, server.content = server.content, server.content[:-100]  # cut, and the length says nothing of it
    with pytest.raises(CheckpointError, match=r"truncated.*; removed from the cache"):
        load_state(address)
    server.content = whole
    assert set(load_state(address)) == {"model"}


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://host",
        "http:///a.pth",
        "http://host:port/a.pth",
        "http://host:99999/a.pth",
        "http://[::1/a.pth",
        "http://ho st/a.pth",
        "http://host\x00/a.pth",
        f"http://{'ü' * 80}/a.pth",
        "http://a..b/\n",
        f"http://127.0.0.1:1/{'a' * 100_000}.pth",
        "http://me:secret@127.0.0.1:1/a.pth",
        "http://../../../a.pth",
        "HTTP://127.0.0.1:1/a b/ü%zz.pth?x= y#z",
    ],
)
def test_odd_address_is_one_line_and_leaves_nothing_outside(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    for fetch in (download, lambda address: fetch_bytes(address, max_bytes=100)):
        with pytest.raises(InputError, match=r"^[^\n]{10,900}$") as raised:
            fetch(address)
        assert "secret" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_fetch_bytes_keeps_nothing_and_takes_no_more_than_asked(server: _Server, tmp_path: Path) -> None:
    address = f"{server.address}/photo.jpg"
    assert fetch_bytes(address, max_bytes=len(CONTENT)) == CONTENT
    with pytest.raises(InputError, match="more than 10239 bytes"):
        fetch_bytes(address, max_bytes=len(CONTENT) - 1)
    server.cut_after = [17]
    with pytest.raises(InputError, match="broke off after 17 bytes"):
        fetch_bytes(address, max_bytes=len(CONTENT))
    server.statuses = [404]
    with pytest.raises(InputError, match="the server answers 404"):
        fetch_bytes(address, max_bytes=len(CONTENT))
    assert not (tmp_path / "cache").exists()


def test_image_at_an_address_is_read_and_found(server: _Server, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    server.content = buffer.getvalue()
    address = f"{server.address}/a/../my%20cat.png?size=5"
    np.testing.assert_array_equal(to_rgb_array(address), pixels)
    found = find_files([address, address, f"{server.address}/b/my_cat.png"], (".png",), kind="image")
    assert [(file.source, file.name) for file in found] == [
        (address, "my_cat"),
        (f"{server.address}/b/my_cat.png", "my_cat_2"),
    ]
    for content, message in ((b"<html>", "not an image"), (server.content[:-30], "truncated or corrupt")):
        server.content = content
        with pytest.raises(InputError, match=rf"my%20cat\.png\?size=5: .*{message}"):
            to_rgb_array(address)
    server.redirects = ["file:///etc/hostname"]
    with pytest.raises(InputError, match=r"not (followed|allowed)"):
        to_rgb_array(address)
    with pytest.raises(InputError, match="images alone"):
        find_files([f"{server.address}/a.mp4"], (".mp4",), kind="video")


def test_cached_path_stays_in_cache_and_tells_queries_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path))
    assert cached_path("https://host/../../etc/a%2Fb.pth").is_relative_to(tmp_path / "host")
    one, other = (cached_path(f"https://host/a.pth?v={v}") for v in (1, 2))
    assert one != other
    assert one.name == "a.pth"
    with pytest.raises(InputError, match="file name"):
        cached_path("https://host/")


def _serve_model(server: _Server, tmp_path: Path, suffix: str) -> tuple[nn.Module, str]:
    model = nn.Linear(3, 2)
    path = tmp_path / f"served{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {k: np.array(v) for k, v in model.state_dict().items()}}))
    else:
        save_atomic({"model": model.state_dict()}, path)
    server.content = path.read_bytes()
    return model, f"model_final_{hashlib.md5(server.content).hexdigest()[:6]}{suffix}"


def test_load_weights_from_http_address(server: _Server, tmp_path: Path) -> None:
    source, name = _serve_model(server, tmp_path, ".pth")
    target = nn.Linear(3, 2)
    assert load_weights(target, f"{server.address}/{name}").is_complete
    assert torch.equal(target.weight, source.weight)


def test_resolve_address_of_detectron2_catalog(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_DETECTRON2_CATALOG", f"{server.address}/detectron2/")
    path = resolve_address("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
    assert path.parts[-4:] == ("detectron2", "ImageNetPretrained", "torchvision", "R-50.pkl")
    assert path.read_bytes() == CONTENT


def test_load_weights_of_zoo_name(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, name = _serve_model(server, tmp_path, ".pkl")
    fetched = []

    def redirected(address: str, **_: object) -> Path:
        fetched.append(address)
        return download(f"{server.address}/{name}")

    monkeypatch.setattr(addresses, "download", redirected)
    target = nn.Linear(3, 2)
    load_weights(target, "zoo://coco/panoptic/r50")
    assert torch.equal(target.weight, source.weight)
    assert fetched[0].endswith("/coco/panoptic/maskformer2_R50_bs16_50ep/model_final_94dc52.pkl")
