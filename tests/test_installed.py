"""The package as a wheel installs it, in a folder that is no clone: configs by name, the zoo, and the commands."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from mask2former import build_model, get_cfg

ROOT = Path(__file__).parents[1]
CONFIG = "shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build puts into a wheel, but for the native libraries."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("site")
    steps = ["egg_info", "-e", str(tmp_path_factory.mktemp("egg")), "build_py", "-d", str(folder), "build_configs"]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *steps], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a checkpoint on a web server of this machine."""
    folder = tmp_path_factory.mktemp("web")
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    cfg.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(cfg).state_dict()}, folder / "published.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/published.pth"
        running.shutdown()


def test_zoo_names_and_configs_work_in_any_folder(installed: Path, server: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (90, 120, 150)).save(tmp_path / "photo.jpg")
    code = f"""
import dataclasses
from mask2former.checkpoint import addresses
import mask2former
from mask2former.commands.cli import main
assert mask2former.__file__.startswith({str(installed)!r})
name = "coco/panoptic/r50"
published = addresses.zoo_models()
published[name] = dataclasses.replace(published[name], config={CONFIG!r}, checkpoint_url={server!r})
result = mask2former.pipeline("panoptic", weights="zoo://" + name, device="cpu")("photo.jpg")
assert result["masks"].shape[1:] == (30, 40)
options = ["--task", "semantic", "--output", "seen.png", "--device", "cpu"]
assert main(["predict", "--weights", name, "photo.jpg", *options]) == 0
assert main(["analyze", "--config-file", {CONFIG!r}, "--tasks", "parameter", "--max-depth", "0"]) == 0
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "MASK2FORMER_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "seen.png").size[0] >= 40
