"""Exported files without torch: the pixels, sizes and results are the package's own; what a file says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.postprocess import InferenceOptions, infer_image
from mask2former.runtime import model as runtime_model
from mask2former.runtime import read_info
from mask2former.runtime.exported_info import ExportedInfo, onnx_property
from mask2former.runtime.resizing import resize_image
from mask2former.runtime.results import Options, Sizes, results_of_queries

_CLASSES, _QUERIES, _THINGS = 4, 7, (True, True, False, False)
_CONTENT: dict[str, Any] = {
    "version": 1,
    "format": "onnx",
    "outputs": "raw",
    "tasks": ["panoptic", "instance", "semantic"],
    "classes": list("abcd"),
    "is_thing": list(_THINGS),
    "colors": [[0, 0, 0]] * _CLASSES,
    "image": {
        "channels": 3,
        "dtype": "uint8",
        "size": None,
        "size_divisibility": 32,
        "map_stride": 4,
        "takes_output_size": False,
        "takes_clips": False,
        "shortest_edge": 64,
        "longest_edge": 128,
    },
    "thresholds": {
        "object_mask": 0.2,
        "overlap": 0.3,
        "score": 0.0,
        "detections_per_image": 9,
        "resize_before_inference": False,
    },
    "precision": "float32",
    "sampling": "grid_sample",
    "versions": {},
    "verification": None,
    "model": {},
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_import_takes_no_torch_and_little_memory() -> None:
    code = (
        "import os, sys; from mask2former import runtime; "
        "print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20, "
        "*({name.partition('.')[0] for name in sys.modules} & {'torch', 'cv2', 'PIL', 'scipy', 'fvcore', 'yaml'}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown[1:] == []
    assert float(shown[0]) < 150  # MB


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_resized_pixels_are_those_of_pillow(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR))
    # From version 13 on Pillow resizes some images that lose height along the columns first, which rounds otherwise.
    tolerance = 0 if target[0] >= size[0] else 1
    np.testing.assert_allclose(resize_image(image, target).astype(int), expected.astype(int), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "tasks",
    [("panoptic", "instance", "semantic"), ("instance",), ("semantic",), ("panoptic",), ("instance", "semantic")],
)
@pytest.mark.parametrize("output", [(45, 60), (90, 33)])
def test_results_are_those_of_the_package(tasks: tuple[str, ...], output: tuple[int, int]) -> None:
    class_logits = 3 * torch.randn(_QUERIES, _CLASSES + 1)
    mask_logits = 4 * torch.nn.functional.interpolate(torch.randn(1, _QUERIES, 4, 4), size=(16, 16))[0]
    sizes = Sizes((64, 64), (45, 60), output)
    thresholds = _CONTENT["thresholds"]
    options = InferenceOptions(
        **{task: task in tasks for task in ("semantic", "panoptic", "instance")},
        object_mask_threshold=thresholds["object_mask"],
        overlap_threshold=thresholds["overlap"],
        detections_per_image=thresholds["detections_per_image"],
    )
    expected = infer_image(
        class_logits,
        mask_logits,
        geometry=MaskGeometry(sizes.padded, sizes.image, sizes.output),
        options=options,
        thing_ids={label for label, is_thing in enumerate(_THINGS) if is_thing},
    )
    ours = Options(tasks, thresholds, _CONTENT["classes"], _THINGS)
    found = results_of_queries(class_logits.numpy(), mask_logits.numpy(), sizes=sizes, options=ours)
    if "panoptic" in tasks:
        ids, segments = expected["panoptic_seg"]
        assert [(s.id, s.class_id, s.is_thing) for s in found.segments] == [
            (s["id"], s["category_id"], s["isthing"]) for s in segments
        ]
        assert (found.panoptic_ids == ids.numpy()).mean() > 0.999
    if "instance" in tasks:
        theirs, instances = expected["instances"], found.instances
        assert instances is not None
        assert instances.class_ids.tolist() == theirs.pred_classes.tolist()
        np.testing.assert_allclose(instances.scores, theirs.scores.numpy(), atol=1e-5)
        assert (instances.masks == theirs.pred_masks.numpy()).mean() > 0.999
    if "semantic" in tasks:
        assert (found.semantic_labels == expected["sem_seg"].argmax(0).numpy()).mean() > 0.999


class _Session:
    """Answers with random logits of the right shapes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.inputs: Any = None

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        self.inputs = inputs
        height, width = (-(-side // 32) * 8 for side in inputs["images"].shape[1:3])
        rng = np.random.default_rng(0)
        return {
            "class_logits": rng.normal(size=(1, _QUERIES, _CLASSES + 1)).astype(np.float32),
            "mask_logits": rng.normal(size=(1, _QUERIES, height, width)).astype(np.float32),
        }


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(runtime_model, "open_session", lambda *_, **__: _Session())
    return runtime_model.Model(ExportedInfo(Path("a.onnx"), _CONTENT))


def test_model_resizes_and_gives_results_at_the_size_of_the_image(model: Any) -> None:
    result = model(np.zeros((30, 50, 3), np.uint8))
    assert model._session.inputs["images"].shape == (1, 64, 107, 3)
    assert result.panoptic_ids.shape == result.semantic_labels.shape == result.instances.masks.shape[1:] == (30, 50)
    assert len(model(np.zeros((30, 50, 3), np.uint8), score_threshold=1.0).instances.scores) == 0
    assert model(np.zeros((30, 50, 3), np.uint8), tasks=["semantic"]).instances is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((30, 50), np.uint8), r"expected an array \(H, W, 3\) of uint8, found \(30, 50\) of uint8"),
        (np.zeros((30, 50, 3)), "found .* of float64"),
        ("photo.jpg", "found str"),
    ],
)
def test_model_refuses_other_images(model: Any, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(image)


def test_model_refuses_tasks_that_there_are_not(model: Any) -> None:
    with pytest.raises(ConfigError, match="does panoptic, instance, semantic; found depth"):
        model(np.zeros((30, 50, 3), np.uint8), tasks=["depth"])


def test_metadata_of_onnx_are_found_behind_anything(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = b"\x3a\x80\x01" + bytes(128)  # field 7, the graph
    path.write_bytes(
        b"\x08\x0a" + graph + onnx_property(json.dumps({"version": 0})) + onnx_property(json.dumps(_CONTENT))
    )
    assert read_info(path).classes == list("abcd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no 'mask2former' metadata"),
        (b"\x3a\x80\x01" + bytes(128), "holds no 'mask2former' metadata"),
        (b"\xff" * 20, "is not an ONNX model, or is cut off"),
        (onnx_property("{"), "metadata are damaged"),
        (onnx_property("[]"), "expected an object, found list"),
        (
            onnx_property(json.dumps({**_CONTENT, "classes": 3, "image": None})),
            "classes: found int; image: found NoneType",
        ),
        (onnx_property(json.dumps({**_CONTENT, "version": 99})), "expected metadata of version 1 or before, found 99"),
    ],
)
def test_damaged_metadata_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_info(path)


def test_file_that_needs_torch_says_so(tmp_path: Path) -> None:
    info = ExportedInfo(tmp_path / "a.pt2", {**_CONTENT, "format": "aoti"})
    with pytest.raises(CheckpointError, match="a file of aoti needs torch"):
        runtime_model.Model(info)
