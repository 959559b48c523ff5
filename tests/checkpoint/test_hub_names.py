"""Names of the hub, against a server on this machine that speaks its protocol for files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save

from mask2former.checkpoint.addresses import HubName, parse_hub_name

# Prints what each address gives: its values, or why not.
_SCRIPT = """
import sys
from mask2former.checkpoint import load_state
from mask2former.inference.model_source import find_config
from mask2former.errors import CheckpointError
for address in sys.argv[1:]:
    try:
        address, _, key = address.partition("#")
        state = load_state(address)
        print("read", float(state.get("model", state)["a"].sum()), *([find_config(address).SEED] if key else []))
    except CheckpointError as error:
        print("refused", error)
"""


class _Hub:
    """Repositories by name: revisions by name, each with its files; `requests` is what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        for name, revisions in self.repositories.items():
            for revision, files in revisions.items():
                commit = hashlib.sha1(revision.encode()).hexdigest()
                for known in (revision, commit):
                    if path.startswith(f"/api/models/{name}/tree/{known}"):
                        listed = [
                            {"type": "file", "path": file, "size": len(c), "oid": "0"} for file, c in files.items()
                        ]
                        return self._send(request, json.dumps(listed).encode(), commit)
                    if path.startswith(f"/api/models/{name}/revision/{known}"):
                        info = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
                        return self._send(request, json.dumps(info).encode(), commit)
                    file = path.removeprefix(f"/{name}/resolve/{known}/")
                    if file in files:
                        return self._send(request, files[file], commit)
        known_name = any(f"/{name}/" in path for name in self.repositories)
        request.send_response(404 if known_name else 401)
        request.send_header("X-Error-Code", "RevisionNotFound" if known_name else "RepoNotFound")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return None

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, commit: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        request.send_header("X-Repo-Commit", commit)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def hub() -> Iterator[_Hub]:
    running = _Hub()
    yield running
    running.close()


def _weights(value: float) -> bytes:
    return save({"a": torch.full((2,), value)})


def _load(hub: _Hub, folder: Path, *addresses: str, **variables: str) -> list[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *addresses],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return [line for line in run.stdout.splitlines() if line.startswith(("read", "refused"))]


@pytest.mark.slow
def test_load_state_of_hub_names(hub: _Hub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode()
    hub.repositories = {
        "me/plain": {
            "main": {"config.json": b"{}", "model.safetensors": _weights(1), "pytorch_model.bin": b"never fetched"},
            "v2": {"config.json": b"{}", "model.safetensors": _weights(2)},
        },
        "me/sharded": {
            "main": {"model.safetensors.index.json": index, "model-00001-of-00001.safetensors": _weights(3)}
        },
        "me/run": {
            "main": {
                "config.yaml": b"SEED: 11",
                "model_final.safetensors": _weights(4),
                "README.md": b"",
                "x/y.pth": b"",
            }
        },
        "me/several": {"main": {"one.safetensors": _weights(5), "two.safetensors": _weights(6)}},
    }
    (tmp_path / "here").mkdir()
    lines = _load(
        *(
            hub,
            tmp_path,
            "hf://me/plain",
            "me/plain",
            "hf://me/plain@v2",
            "me/plain@v2",
            "me/sharded",
            "hf://me/run#config",
        ),
        *("hf://me/several", "hf://me/several/two.safetensors", "hf://me/plain@v3", "hf://me/absent", "me/absent"),
        *("here/absent", "hf://x", "me/file.pth"),
    )
    assert lines[:6] == [f"read {value}" for value in ("2.0", "2.0", "4.0", "4.0", "6.0", "8.0 11")]
    assert "found one.safetensors, two.safetensors" in lines[6]
    assert lines[7] == "read 12.0"
    assert all(line.startswith("refused hf://me/") and "not to be had from the hub" in line for line in lines[8:10])
    assert "me/absent: no such file or folder here; hf://me/absent: not to be had" in lines[10]
    assert all("no such checkpoint file" in line or "unknown kind" in line for line in (lines[11], lines[13]))
    assert "expected hf://OWNER/NAME" in lines[12]
    assert not any("pytorch_model.bin" in path or "here" in path or "file.pth" in path for path in hub.requests)

    asked = len(hub.requests)
    offline = _load(hub, tmp_path, "hf://me/plain", "me/plain@v2", "hf://me/absent", HF_HUB_OFFLINE="1")
    assert offline[:2] == ["read 2.0", "read 4.0"]
    assert offline[2].startswith("refused hf://me/absent: not to be had from the hub")
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("me/..", None),
        ("me/it@v1.0", HubName("me/it", revision="v1.0")),
        ("me/it@refs/pr/3", HubName("me/it", revision="refs/pr/3")),
        ("me/it/sub/a.pth@v1", HubName("me/it", "sub/a.pth", "v1")),
        ("it", None),
        ("../it", None),
        ("/me/it", None),
        ("me/it@", None),
        ("mé/it", None),
        ("", None),
    ],
)
def test_parse_hub_name(name: str, expected: HubName | None) -> None:
    assert parse_hub_name(name) == expected
