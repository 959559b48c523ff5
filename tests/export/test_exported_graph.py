"""The graph that is exported, run by torch as it is: padding, outputs, finished results, sampling by gathering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.errors import ConfigError
from mask2former.export.exporting import build_graph
from mask2former.export.finished import _sigmoid
from mask2former.export.lowering import gather_forward, lowered_operators
from mask2former.export.verification import Verification, count_differing
from mask2former.inference.exported import finished_results
from mask2former.modeling.backbone import swin
from mask2former.ops import ms_deform_attn_reference, neighbourhood_attention
from tests.parity import assert_close_to_peak, build_fixture_model, fixture_config, load_fixture

SIZES = [((64, 96), (64, 96)), ((70, 33), (70, 33)), ((47, 81), (100, 60))]
TASKS = [
    {"PANOPTIC_ON": True, "INSTANCE_ON": True, "SEMANTIC_ON": True},
    {"PANOPTIC_ON": False, "INSTANCE_ON": True, "SEMANTIC_ON": False},
    {"PANOPTIC_ON": False, "INSTANCE_ON": False, "SEMANTIC_ON": True},
]


def build(name: str, **test: Any) -> tuple[Any, Any]:
    """Return config and model of a fixture, with its thresholds low enough that there are segments."""
    fixture = load_fixture(name)
    cfg = fixture_config(fixture)
    model: Any = build_fixture_model(fixture, accelerated=False)
    options = model.inference
    names = {"PANOPTIC_ON": "panoptic", "INSTANCE_ON": "instance", "SEMANTIC_ON": "semantic"}
    changes: dict[str, Any] = {names[key]: value for key, value in test.items()}
    changes |= {"object_mask_threshold": 0.1, "overlap_threshold": 0.3, "semantic_labels": False}
    model.inference = replace(options, **changes)
    return cfg, model


@pytest.mark.parametrize("tasks", TASKS, ids=["all", "instance", "semantic"])
@torch.no_grad()
def test_finished_results_are_those_of_the_model(tasks: dict[str, bool]) -> None:
    cfg, model = build("tiny_resnet_panoptic", **tasks)
    graph = build_graph(cfg, model, outputs="finished")
    found = Verification()
    for size, output in SIZES:
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        ordered = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
        sample = {"image": ordered, "height": output[0], "width": output[1]}
        arrays = graph(image.permute(1, 2, 0)[None], torch.tensor(output))
        outputs = {name: value.numpy() for name, value in zip(graph.output_names, arrays, strict=True)}
        expected, results = model([sample])[0], finished_results(outputs, 0)
        if "sem_seg" in expected:
            scores, labels = expected.pop("sem_seg"), results["sem_seg"].long()
            assert (scores.gather(0, labels[None])[0] >= scores.amax(0) - 1e-4).all()
        found.add_results([expected], [results])
    assert found.detections_differing == 0
    assert found.detections or tasks is TASKS[2]


@torch.no_grad()
def test_finished_batch_is_its_images() -> None:
    cfg, model = build("tiny_resnet_panoptic", **TASKS[0])
    graph = build_graph(cfg, model, outputs="finished")
    images = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    together = graph(images)
    for place, image in enumerate(images):
        for name, alone, batch in zip(graph.output_names, graph(image[None]), together, strict=True):
            is_equal = torch.isclose(batch[place].float(), alone[0].float(), atol=1e-4, rtol=1e-4)
            assert is_equal.float().mean() > 0.999, name  # of equal pixels, rounding decides


@torch.no_grad()
def test_raw_outputs_of_a_pixel_model_are_its_logits() -> None:
    fixture = load_fixture("tiny_per_pixel")
    cfg, model = fixture_config(fixture), build_fixture_model(fixture, accelerated=False)
    images = torch.randint(0, 256, (2, 50, 70, 3), dtype=torch.uint8)
    graph = build_graph(cfg, model, outputs="raw")
    (maps,) = graph(images)
    assert graph.output_names == ("class_maps",)
    torch.testing.assert_close(maps, graph.model.predict(graph.prepare(images))[-1])
    finished = build_graph(cfg, model, outputs="finished")
    ordered = images.permute(0, 3, 1, 2).flip(1) if cfg.INPUT.FORMAT == "BGR" else images.permute(0, 3, 1, 2)
    samples = [{"image": image} for image in ordered]
    expected = [results["sem_seg"].argmax(0) for results in graph.model(samples)]
    assert (finished(images)[0] == torch.stack(expected)).float().mean() > 0.9999


def test_small_probabilities_stay_apart() -> None:
    logits = torch.tensor([-80.0, -50.0, -20.0, -18.0, 0.0, 9.0, 30.0])
    torch.testing.assert_close(_sigmoid(logits), logits.sigmoid(), rtol=2e-5, atol=0)


def test_build_graph_refuses_other_models() -> None:
    with pytest.raises(ConfigError, match="SemanticSegmentor to export, found Linear"):
        build_graph(fixture_config(load_fixture("tiny_per_pixel")), torch.nn.Linear(1, 1), outputs="raw")


def test_build_graph_refuses_models_of_clips() -> None:
    fixture = load_fixture("tiny_video")
    with pytest.raises(ConfigError, match="VideoMaskFormer takes clips; only models of images are exported"):
        build_graph(fixture_config(fixture), build_fixture_model(fixture, accelerated=False), outputs="raw")


@torch.no_grad()
def test_swin_windows_of_an_exported_graph_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build_fixture_model(load_fixture("tiny_swin_panoptic"), accelerated=False)
    images = torch.randn(2, 3, 96, 160)
    expected = model.backbone(images)
    monkeypatch.setattr(swin.torch.compiler, "is_exporting", lambda: True)
    for name, maps in model.backbone(images).items():
        torch.testing.assert_close(maps, expected[name], atol=1e-5, rtol=1e-4)


@given(
    batch=st.integers(1, 2),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_gathered_samples_are_those_of_the_reference(batch: int, shapes: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch, tokens, 2, 4, generator=generator)
    locations = torch.rand(batch, 3, 2, len(shapes), 2, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, 3, 2, len(shapes), 2, generator=generator)
    flat = [side for shape in shapes for side in shape]
    expected = ms_deform_attn_reference(value, shapes, locations, weights)
    torch.testing.assert_close(gather_forward(value, flat, locations, weights), expected, atol=1e-5, rtol=1e-4)


def _found(*rows: tuple[int, float, slice]) -> Any:
    from mask2former.export.verification import _Found

    masks = torch.zeros(len(rows), 40, 40, dtype=torch.bool)
    for mask, (_, _, columns) in zip(masks, rows, strict=True):
        mask[:, columns] = True
    return _Found([row[0] for row in rows], [row[1] for row in rows], masks)


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ([(1, 0.9, slice(0, 20)), (2, 0.5, slice(5, 9))], 0),
        ([(2, 0.501, slice(5, 9)), (1, 0.9, slice(0, 20))], 0),  # in another order
        ([(3, 0.9, slice(0, 20)), (2, 0.5, slice(5, 9))], 1),  # another class
        ([(1, 0.9, slice(0, 21)), (2, 0.5, slice(5, 9))], 1),  # another mask
        ([(1, 0.89, slice(0, 20)), (2, 0.5, slice(5, 9))], 1),  # another score
        ([(1, 0.9, slice(0, 20))], 1),  # one less
        ([], 2),
    ],
)
def test_count_differing_wants_class_mask_and_score(other: list[Any], differing: int) -> None:
    expected = _found((1, 0.9, slice(0, 20)), (2, 0.5, slice(5, 9)))
    assert count_differing(expected, _found(*other)) == differing


@torch.no_grad()
def test_graph_of_oneformer_takes_the_task_of_each_image() -> None:
    fixture = load_fixture("oneformer/tiny_oneformer_swin_seed1")
    model: Any = build_fixture_model(fixture, accelerated=False)
    graph = build_graph(fixture_config(fixture), model, outputs="raw")
    images = torch.randint(0, 256, (2, 40, 70, 3), dtype=torch.uint8)
    both = graph(images, task=torch.tensor([1, 2]))
    for index, name in enumerate(("instance", "semantic")):
        inputs, mask_features = model.encode_pixels(graph.prepare(images[index : index + 1]))
        prediction = model.decode_task(inputs, mask_features, model.task_ids([name]))[0][-1]
        assert_close_to_peak(both[0][index : index + 1], prediction.class_logits, tolerance=1e-5)
        assert_close_to_peak(both[1][index : index + 1], prediction.mask_logits().squeeze(2), tolerance=1e-5)


def test_neighbourhood_attention_is_lowered_with_the_sampling() -> None:
    query, bias = torch.randn(1, 6, 7, 2, 4), torch.randn(2, 5, 5)
    options = {"kernel_size": 3, "dilation": 1, "scale": 0.5}
    inputs = (query, query + 1, query - 1, bias)
    expected = neighbourhood_attention(*inputs, **options)
    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for sampling, is_own in (("operator", True), ("gather", False)):
        seen.clear()
        with lowered_operators(sampling), Names():
            actual = neighbourhood_attention(*inputs, **options)
        assert any("mask2former" in name for name in seen) is is_own
        assert_close_to_peak(actual, expected, tolerance=1e-5)
    with pytest.raises(ConfigError, match="--sampling"), lowered_operators("other"):
        pass
