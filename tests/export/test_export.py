"""Files that are exported: each agrees with its model at other sizes and batches, and is a model in its place."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.export import ExportOptions, export_model
from mask2former.export.verification import Limits
from mask2former.inference.model_source import find_config
from mask2former.inference.predictor import Predictor
from mask2former.modeling import build_model
from mask2former.runtime import load, read_info
from tests.parity import fill_model, fixture_config, load_fixture, register_metadata

# Tracing takes its time module by module; what the modules do is the same in few.
SHALLOW = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.RES5_MULTI_GRID", [1, 1, 1]),
    *("MODEL.SWIN.DEPTHS", [2, 2, 1, 1], "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
    *("MODEL.MASK_FORMER.DEC_LAYERS", 3, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128),
]
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".pt2"}


def build(name: str = "tiny_resnet_panoptic") -> tuple[Any, Any]:
    register_metadata()
    fixture = load_fixture(name)
    cfg = fixture_config(fixture)
    cfg.merge_from_list(SHALLOW)
    model = build_model(cfg, accelerated=False).eval()
    fill_model(model, fixture.seed)
    return cfg, model


def samples() -> list[dict[str, Any]]:
    """Sides that the padding does not change, small ones, and results of another size."""
    sizes = [((64, 96), (64, 96)), ((97, 131), (50, 70)), ((40, 33), (40, 33))]
    return [
        {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8), "height": height, "width": width}
        for size, (height, width) in sizes
    ]


def export(folder: Path, options: ExportOptions, name: str = "tiny_resnet_panoptic", **rest: Any) -> tuple[Path, Any]:
    cfg, model = build(name)
    path = folder / f"model{SUFFIX[options.format]}"
    return path, export_model(cfg, model, path, options=options, samples=samples(), **rest)


def test_program_agrees_and_is_a_model(tmp_path: Path) -> None:
    path, found = export(tmp_path, ExportOptions("torch-export"))
    assert found.images == 3
    assert found.largest_error <= 1e-5
    assert (found.mask_signs_differing, found.detections_differing, found.pixels_differing) == (0, 0, 0)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    info = read_info(path)
    assert info.verification["mask_logit_error"] == found.mask_logit_error
    assert info.is_thing == [True] * 5 + [False] * 4
    assert info.tasks == ["panoptic", "instance", "semantic"]

    cfg = find_config(str(path))
    assert cfg.MODEL.MASK_FORMER.DEC_LAYERS == 3
    images = [torch.randint(0, 256, (3, side, 80), dtype=torch.uint8) for side in (60, 60, 90)]
    predictor = Predictor(cfg, path)
    for image, results in zip(images, predictor(images), strict=True):
        alone = predictor(image)
        assert torch.equal(results["panoptic_seg"][0], alone["panoptic_seg"][0])
        assert results["panoptic_seg"][0].shape == image.shape[1:]
        assert len(results["instances"]) == len(alone["instances"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("outputs", ["raw", "finished"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_file_of_another_runtime_agrees(tmp_path: Path, format: str, outputs: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
    path, found = export(tmp_path, ExportOptions(format, outputs))
    assert found.largest_error <= 1e-4
    assert found.detections_differing == 0
    assert found.detections > 0
    assert read_info(path).outputs == outputs
    results = Predictor(find_config(str(path)), path, task="panoptic")(samples()[1]["image"])
    assert results["panoptic_seg"][0].shape == (97, 131)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "sampling"),
    [("tiny_swin_panoptic", None), ("tiny_resnet_panoptic", "gather"), ("tiny_maskformer_v1", None)],
)
def test_onnx_of_other_models_agrees(tmp_path: Path, name: str, sampling: str | None) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    _, found = export(tmp_path, ExportOptions("onnx", sampling=sampling), name)
    assert found.largest_error <= 1e-4
    assert found.detections_differing == 0


def build_oneformer(backbone: str) -> tuple[Any, Any]:
    register_metadata()
    fixture = load_fixture(f"oneformer/tiny_oneformer_{backbone}_seed1")
    cfg = fixture_config(fixture)
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128])
    model = build_model(cfg, accelerated=False).eval()
    fill_model(model, fixture.seed)
    return cfg, model


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_oneformer_takes_its_task_as_an_input(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    cfg, model = build_oneformer("swin")
    path = tmp_path / "model.onnx"
    found = export_model(cfg, model, path, options=ExportOptions("onnx"), samples=samples())
    assert found is not None
    assert found.largest_error <= 1e-4
    assert found.detections_differing == 0
    image = samples()[1]["image"]
    whole = Predictor(find_config(str(path)), path, task=["panoptic", "instance", "semantic"])(image)
    told = load(path)(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    assert torch.equal(whole["panoptic_seg"][0].int(), torch.from_numpy(told.panoptic_ids))
    assert len(whole["instances"]) == len(told.instances.scores)
    for task, field in (("panoptic", "panoptic_seg"), ("instance", "instances"), ("semantic", "sem_seg")):
        alone = Predictor(find_config(str(path)), path, task=task)(image)
        assert field in alone


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_dinat_is_exported_by_gathering_at_one_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    cfg, model = build_oneformer("dinat")
    images = [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)} for _ in range(3)]
    options = ExportOptions("onnx", size=(96, 128))
    found = export_model(cfg, model, tmp_path / "model.onnx", options=options, samples=images)
    assert found is not None
    assert found.largest_error <= 1e-4
    with pytest.raises(ConfigError, match="--size: needed"):
        export_model(cfg, model, tmp_path / "any.onnx", options=ExportOptions("onnx"), samples=images)


def test_what_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mask2former.export import exporting

    cfg, model = build()
    monkeypatch.setattr(exporting, "trace", lambda graph, *_, **__: graph)
    kind = replace(exporting.FORMATS["torch-export"], write=lambda _, path, __: path.write_bytes(b""))
    monkeypatch.setattr(exporting, "FORMATS", {"torch-export": kind})
    monkeypatch.setattr(exporting, "ExportedModel", _Wrong)
    with pytest.raises(InputError, match=r"does not agree with its model: a relative error of logits of .*not written"):
        export_model(cfg, model, tmp_path / "a.pt2", options=ExportOptions("torch-export"), samples=samples()[:1])
    assert list(tmp_path.iterdir()) == []


class _Wrong:
    """A file whose logits are a thousandth too large."""

    def __init__(self, cfg: Any, info: Any) -> None:
        self.model = build()[1]
        self.graph = None

    def images_of(self, batch: Any) -> Any:
        return batch[0]["image"].permute(1, 2, 0)[None].flip(-1).contiguous().numpy()

    def outputs(self, batch: Any, *, task: str | None = None) -> Any:
        from mask2former.export.exporting import build_graph

        graph = build_graph(build()[0], self.model, outputs="raw")
        with torch.no_grad():
            values = graph(torch.from_numpy(self.images_of(batch)))
        return {name: 1.001 * value.numpy() for name, value in zip(graph.output_names, values, strict=True)}

    def __call__(self, batch: Any) -> Any:
        return self.model(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tensorrt"}, "--format: expected one of onnx, openvino, torch-export, aoti, found 'tensorrt'"),
        ({"outputs": "all"}, "--outputs: expected one of raw, finished, found 'all'"),
        ({"size": (0, 5)}, "--size: expected at least 1 pixel"),
        ({"input_type": "int8"}, "--input: expected one of uint8, float32"),
    ],
)
def test_options_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**change)


def test_output_ends_as_its_format(tmp_path: Path) -> None:
    cfg, model = build()
    with pytest.raises(ConfigError, match=r"a file of onnx ends in \.onnx"):
        export_model(cfg, model, tmp_path / "a.pt2", options=ExportOptions(), samples=None)


def test_limits_may_be_given() -> None:
    from mask2former.export.verification import Verification

    found = Verification(mask_logit_error=0.5, detections=3, detections_differing=2)
    found.check(Limits(1.0, None), name="file")
    with pytest.raises(
        InputError, match=r"5\.00e-01, expected at most 0\.1; 2 differing detections, expected at most 1"
    ):
        found.check(Limits(0.1, 1), name="file")


def test_exported_file_without_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/models/model.json", "{}")
    with pytest.raises(CheckpointError, match="was not written by mask2former export"):
        find_config(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/extra/mask2former.json", json.dumps({"version": "1", "tasks": []}))
    with pytest.raises(CheckpointError, match="version: found str; format: found nothing"):
        find_config(str(path))
