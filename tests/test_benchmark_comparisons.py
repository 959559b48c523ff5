"""Benchmarks refuse to time what computes something else than what it is compared with."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "shapes" / "panoptic-segmentation" / "maskformer2_R18_quickstart.yaml"
SMALL = ["MODEL.MASK_FORMER.DEC_LAYERS", "4", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"]
NAN = float("nan")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def refusal(load: Callable[[str], ModuleType]) -> type[Exception]:
    return load("comparison").DifferenceError


@pytest.mark.parametrize(("found", "expected"), [([NAN, 1], [1, 1]), ([1, 1], [NAN, 1]), ([1, 1], [float("inf"), 1])])
def test_differences_of_what_is_no_number_are_refused(
    load: Callable[[str], ModuleType], refusal: type[Exception], found: list[float], expected: list[float]
) -> None:
    comparison = load("comparison")
    for difference_of in (comparison.largest_difference, comparison.typical_difference):
        difference = difference_of(torch.tensor(found), torch.tensor(expected))
        with pytest.raises(refusal, match=r"outputs differ: x by nan \(at most 1e\+09\)"):
            comparison.require_at_most({"x": difference}, {"x": 1e9})


def test_differences_are_relative(load: Callable[[str], ModuleType], refusal: type[Exception]) -> None:
    comparison = load("comparison")
    found, expected = torch.tensor([3.0, -40.0]), torch.tensor([0.0, -44.0])
    assert comparison.largest_difference(found, expected) == pytest.approx(4 / 44)
    assert comparison.typical_difference(found, expected) == pytest.approx(5 / 44)
    with pytest.raises(refusal, match=r"expected an output of shape \(1, 2\), found \(2,\)"):
        comparison.largest_difference(found, expected[None])
    with pytest.raises(refusal):  # zeros say nothing
        comparison.require_at_most({"x": comparison.largest_difference(0 * found, 0 * expected)}, {"x": 1.0})


def test_model_pair_refuses_nan(load: Callable[[str], ModuleType], refusal: type[Exception]) -> None:
    shapes = {"pred_logits": (1, 3, 4), "pred_masks": (1, 3, 2, 2)}
    logits = {name: torch.randn(shape) for name, shape in shapes.items()}
    theirs = SimpleNamespace(class_queries_logits=logits["pred_logits"], masks_queries_logits=logits["pred_masks"])
    ours = SimpleNamespace(features=lambda images: images, sem_seg_head=lambda features: logits)
    pair = SimpleNamespace(ours=ours, theirs=lambda pixel_values: theirs)
    assert load("model_pair").compare_outputs(pair, torch.zeros(1)) == 0
    logits["pred_masks"] = torch.full((1, 3, 2, 2), NAN)
    with pytest.raises(refusal, match="masks by nan"):
        load("model_pair").compare_outputs(pair, torch.zeros(1))


@pytest.mark.parametrize("factor", [1.001, NAN])
@pytest.mark.parametrize(
    ("function", "error_of", "message"),
    [
        ("conv3x3", lambda module, inputs: module.inference_of(*inputs)[2][0], "conv3x3 by"),
        ("trained_conv3x3", lambda module, inputs: module.training_of(*inputs)[2][0], "gradient of the weight by"),
    ],
)
def test_convolution_is_refused_where_it_is_wrong(
    load: Callable[[str], ModuleType],
    refusal: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error_of: Callable[[ModuleType, Any], float],
    message: str,
    factor: float,
) -> None:
    convolution = load("convolution")
    inputs = convolution.make_inputs(64, 4, argparse.Namespace(batch=2, height=280, width=300))
    assert error_of(convolution, inputs) < 5e-6
    right = getattr(convolution, function)
    monkeypatch.setattr(convolution, function, lambda *given, **options: factor * right(*given, **options))
    with pytest.raises(refusal, match=message):
        error_of(convolution, inputs)


def attention_inputs(load: Callable[[str], ModuleType], dtype: str) -> tuple[Any, ...]:
    sizes = {"height": 64, "width": 96, "batch": 2, "heads": 2, "channels": 4, "points": 2}
    return load("ms_deform_attn").make_inputs(argparse.Namespace(**sizes, dtype=dtype, device="cpu"))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_right_attention_is_within_its_limits(load: Callable[[str], ModuleType], dtype: str) -> None:
    errors = load("ms_deform_attn").compare(attention_inputs(load, dtype))
    assert len(errors) == 5


class _WrongGradient(torch.autograd.Function):
    """The identity, whose gradient is a tenth too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.1 * grad


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", ["output", "value", "locations", "weights", "nan"])
def test_wrong_attention_is_refused(
    load: Callable[[str], ModuleType],
    refusal: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    dtype: str,
) -> None:
    benchmark = load("ms_deform_attn")
    right = benchmark.ms_deform_attn

    def attend(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
        given = {"value": value, "locations": locations, "weights": weights}
        if wrong in given:
            given[wrong] = _WrongGradient.apply(given[wrong])
        output = right(given["value"], shapes, given["locations"], given["weights"])
        return output * {"output": 1.1, "nan": NAN}.get(wrong, 1.0)

    monkeypatch.setattr(benchmark, "ms_deform_attn", attend)
    command = [
        "ms_deform_attn.py",
        "--height",
        "64",
        "--width",
        "64",
        "--dtype",
        dtype,
        "--no-record",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(refusal, match={"nan": "by nan"}.get(wrong, f"{wrong} by ")):
        benchmark.main()
    assert " x\n" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "operator",
    ["ms_deform_attn", "ms_deform_attn_backward", "ms_deform_attn_fused", "ms_deform_attn_fused_backward"],
)
def test_wrong_attention_on_a_gpu_is_refused(
    load: Callable[[str], ModuleType], refusal: type[Exception], monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    gpu = load("ms_deform_attn_gpu")
    right = getattr(torch.ops.mask2former, operator)

    def compute(*given: Any) -> Any:
        outputs = right(*given)
        return 1.1 * outputs if isinstance(outputs, Tensor) else tuple(1.1 * output for output in outputs)

    case = gpu.make_case(*attention_inputs(load, "bfloat16"))
    assert max(gpu.errors_of(case).values()) <= 1e-2
    monkeypatch.setattr(torch.ops.mask2former, operator, compute)
    with pytest.raises(refusal):
        gpu.measure_on_gpu(case, repeats=1)


def inference_arguments(inference: ModuleType, dtype: str, *further: str) -> argparse.Namespace:
    sizes = ["--size", "64", "64", "--output-size", "40", "48", "--detections", "4", "--runs", "1", "--device", "cpu"]
    return inference.parse_arguments(["--model", str(CONFIG), "--dtype", dtype, *sizes, *further, *SMALL])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_times_what_it_compared(load: Callable[[str], ModuleType], dtype: str) -> None:
    pytest.importorskip("transformers")
    inference = load("inference")
    with torch.inference_mode():
        results = inference.measure(inference_arguments(inference, dtype, "--batch", "2"))
    assert set(results["differences"]) == set(load("model_comparison").LIMITS[dtype])
    assert (results["differences"]["mask features"] > 1e-3) == (dtype == "bfloat16")  # of the precision that is timed
    for name, seconds in results["seconds"].items():
        assert results["images per second"][name] == 2 / seconds


def break_weights(monkeypatch: pytest.MonkeyPatch, inference: ModuleType) -> None:
    prepare = inference.prepare_for_inference

    def prepare_wrongly(model: Any) -> Any:
        prepare(model)
        with torch.no_grad():
            model.sem_seg_head.pixel_decoder.mask_features.weight.mul_(1.2)
        return model

    monkeypatch.setattr(inference, "prepare_for_inference", prepare_wrongly)


def break_decoder(monkeypatch: pytest.MonkeyPatch, inference: ModuleType) -> None:
    from mask2former.modeling.transformer_decoder import masked_decoder

    right = masked_decoder.attention_mask
    monkeypatch.setattr(masked_decoder, "attention_mask", lambda *given: ~right(*given))


def break_results(monkeypatch: pytest.MonkeyPatch, inference: ModuleType) -> None:
    from mask2former.modeling import POSTPROCESSING_REGISTRY

    infer = POSTPROCESSING_REGISTRY.get("infer_image")

    def infer_upside_down(*given: Any, **options: Any) -> dict[str, Any]:
        segment_ids, segments = infer(*given, **options)["panoptic_seg"]
        return {"panoptic_seg": (segment_ids.flip(0), segments)}

    monkeypatch.setitem(POSTPROCESSING_REGISTRY._obj_map, "infer_image", infer_upside_down)


def break_categories(monkeypatch: pytest.MonkeyPatch, inference: ModuleType) -> None:
    from mask2former.modeling import POSTPROCESSING_REGISTRY

    infer = POSTPROCESSING_REGISTRY.get("infer_image")

    def infer_next_category(*given: Any, **options: Any) -> dict[str, Any]:
        segment_ids, segments = infer(*given, **options)["panoptic_seg"]
        moved = [{**segment, "category_id": segment["category_id"] + 1} for segment in segments]
        return {"panoptic_seg": (segment_ids, moved)}

    monkeypatch.setitem(POSTPROCESSING_REGISTRY._obj_map, "infer_image", infer_next_category)


def break_segments(monkeypatch: pytest.MonkeyPatch, inference: ModuleType) -> None:
    from mask2former.modeling import POSTPROCESSING_REGISTRY

    nothing = torch.zeros(40, 48, dtype=torch.int32), []
    monkeypatch.setitem(
        POSTPROCESSING_REGISTRY._obj_map, "infer_image", lambda *given, **options: {"panoptic_seg": nothing}
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (break_weights, "mask features by"),
        (break_decoder, "outputs differ: classes by"),
        (break_results, "panoptic pixels, own logits by"),
        (break_categories, "panoptic pixels, their results by 1"),
        (break_segments, "nothing is compared"),
    ],
)
def test_inference_refuses_a_model_that_differs(
    load: Callable[[str], ModuleType],
    refusal: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[..., None],
    message: str,
    dtype: str,
) -> None:
    pytest.importorskip("transformers")
    inference = load("inference")
    break_it(monkeypatch, inference)
    monkeypatch.setattr(inference, "take_turns", lambda *given, **options: pytest.fail("times are taken"))
    with pytest.raises(refusal, match=message), torch.inference_mode():
        inference.measure(inference_arguments(inference, dtype))


@pytest.mark.parametrize(
    ("labels", "results", "name"),
    [
        ([], {}, "speed"),
        ([], {"dtype": "float32", "device": "cpu"}, "speed_float32"),
        (["R50"], {"dtype": "bfloat16", "device": "cuda:1"}, "speed_r50_bfloat16_cuda"),
        (["Swin-T", "batch4"], {"dtype": "float32", "device": "cuda"}, "speed_swin-t_batch4_float32_cuda"),
    ],
)
def test_results_of_one_kind_do_not_replace_another(
    load: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    labels: list[str],
    results: dict[str, Any],
    name: str,
) -> None:
    harness = load("harness")
    monkeypatch.setattr(harness, "RESULTS_DIR", tmp_path)
    harness.record("speed", results, labels=labels)
    (path,) = tmp_path.iterdir()
    line = json.loads(path.read_text())
    assert (path.stem, line["benchmark"], line["script"]) == (name, name, "benchmarks/speed.py")


def test_page_shows_each_device_and_precision(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    harness = load("harness")
    monkeypatch.setattr(harness, "RESULTS_DIR", tmp_path)
    for device in ("cpu", "cuda"):
        for dtype in ("float32", "bfloat16"):
            harness.record("some_operator", {"device": device, "dtype": dtype, "ms": 1.0})
    harness.record("quality", {"difference": {"PQ": 0.1}}, labels=["some_recipe"])
    make_benchmarks = importlib.import_module("tools.make_benchmarks")
    page = make_benchmarks.make_page(make_benchmarks.read_last_lines(tmp_path))
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    kinds = ["bfloat16", "bfloat16 cuda", "float32", "float32 cuda"]
    expected = ["Quality some recipe", *(f"Some operator {kind}" for kind in kinds), "Where and when"]
    assert titles == [f"## {title}" for title in expected]
    assert "| difference, PQ | 0.1 |" in page


def test_precision_evaluates_in_both(
    load: Callable[[str], ModuleType], draw_shapes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mask2former import build_model, get_cfg

    precision, harness = load("precision"), load("harness")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(draw_shapes()))
    monkeypatch.setattr(harness, "RESULTS_DIR", tmp_path)
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(SMALL)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    command = ["precision.py", "--limit", "100", str(CONFIG), str(tmp_path / "model.pth"), *SMALL]
    monkeypatch.setattr(sys, "argv", [*command, "INPUT.MIN_SIZE_TEST", "32", "DATALOADER.NUM_WORKERS", "0"])
    precision.main()
    (path,) = tmp_path.glob("*.jsonl")
    assert path.stem == "precision_maskformer2_r18_quickstart"
    line = json.loads(path.read_text())
    assert ROOT / "configs" / line["config"] == CONFIG
    assert set(line["results"]) == {"float32", "bfloat16", "difference", "limit of PQ"}


@pytest.mark.parametrize("quality", [60.0, NAN])
def test_precision_refuses_another_quality(
    load: Callable[[str], ModuleType], refusal: type[Exception], monkeypatch: pytest.MonkeyPatch, quality: float
) -> None:
    precision = load("precision")

    def evaluate(cfg: Any) -> dict[str, dict[str, float]]:
        pq = {"float32": 60.31, "bfloat16": quality}[cfg.MODEL.PRECISION]
        return {"panoptic_seg": {"PQ": pq, "PQ_th": 0.0, "PQ_st": 0.0}}

    monkeypatch.setattr(precision, "evaluate_only", evaluate)
    with pytest.raises(refusal, match="PQ by"):
        precision.measure(precision.parse_arguments([str(CONFIG), "model.pth"]))
