"""The image processor of the integration: bit-equal to that of transformers, or exact as the published model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mask2former import Predictor, build_model
from mask2former.errors import ConfigError, InputError
from mask2former.structures import MetadataCatalog
from tests.integrations.tiny_transformers import NUM_CLASSES, integration, tiny_config, transformers

Mask2FormerForUniversalSegmentation = integration.Mask2FormerForUniversalSegmentation
Mask2FormerForUniversalSegmentationOutput = integration.Mask2FormerForUniversalSegmentationOutput
Mask2FormerImageProcessor = integration.Mask2FormerImageProcessor

SMALL = {"size": {"shortest_edge": 40, "longest_edge": 70}}
SIZES = [(30, 47), (61, 24), (30, 47)]


def _images(kind: str = "array") -> list[Any]:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    if kind == "pil":
        return [Image.fromarray(array) for array in arrays]
    return [torch.from_numpy(array).permute(2, 0, 1) for array in arrays] if kind == "tensor" else arrays


def _maps() -> list[np.ndarray]:
    """Instance ids 0..4 in blocks."""
    rng = np.random.default_rng(1)
    return [np.kron(rng.integers(0, 5, (4, 4)), np.ones((16, 16)))[:h, :w].astype(np.int64) for h, w in SIZES]


def _assert_identical(expected: Any, actual: Any) -> None:
    """The same types and bits all the way down; NaN nowhere."""
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(expected, actual, strict=True):
            _assert_identical(one, other)
    elif hasattr(expected, "items"):
        assert list(actual) == list(expected)
        for key in expected:
            _assert_identical(expected[key], actual[key])
    else:
        assert actual == expected


PREPROCESSING = [
    {},
    {"do_resize": False},
    {"size": {"height": 50, "width": 30}},
    {"size": {"max_height": 50, "max_width": 30}},
    {"size_divisor": 0},
    {"size_divisor": 16},
    {"pad_size": transformers.image_utils.SizeDict(height=128, width=160)},
    {"resample": 0},
    {"resample": 3},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5},
    {"do_normalize": False},
    {"do_normalize": False, "do_rescale": False},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    {"ignore_index": 0},
    {"ignore_index": 255, "do_reduce_labels": True},
    {"num_labels": 5},
]


@pytest.mark.parametrize("options", PREPROCESSING, ids=str)
@pytest.mark.parametrize("is_default", [True, False], ids=["constructed", "called"])
def test_preprocessing_is_bit_equal_to_theirs(options: dict[str, Any], is_default: bool) -> None:
    ids = {0: 3, 1: 1, 2: 2, 3: 2, 4: 1}
    defaults = {**SMALL, "ignore_index": 255, **options} if is_default else {**SMALL, "ignore_index": 255}
    results = [
        make(**defaults)(
            _images(), _maps(), instance_id_to_semantic_id=ids, return_tensors="pt", **({} if is_default else options)
        )
        for make in (transformers.Mask2FormerImageProcessor, _like_theirs)
    ]
    _assert_identical(dict(results[0]), dict(results[1]))


@pytest.mark.parametrize("kind", ["array", "pil", "tensor"])
@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_kinds_of_images_are_bit_equal_to_theirs(kind: str, return_tensors: str) -> None:
    results = [
        make(**SMALL)(_images(kind), return_tensors=return_tensors)
        for make in (transformers.Mask2FormerImageProcessor, _like_theirs)
    ]
    _assert_identical(dict(results[0]), dict(results[1]))


def test_ids_for_each_image_and_semantic_maps_are_bit_equal_to_theirs() -> None:
    ids = [{index: (index + shift) % 4 for index in range(5)} for shift in range(3)]
    for given in (ids, None):
        results = [
            make(**SMALL, ignore_index=255)(_images(), _maps(), instance_id_to_semantic_id=given, return_tensors="pt")
            for make in (transformers.Mask2FormerImageProcessor, _like_theirs)
        ]
        _assert_identical(dict(results[0]), dict(results[1]))


def _like_theirs(**options: Any) -> Mask2FormerImageProcessor:
    return Mask2FormerImageProcessor(parity="transformers", **options)


def _outputs(*, seed: int = 0, num_queries: int = 9) -> Mask2FormerForUniversalSegmentationOutput:
    """Blobs for masks, some of which agree, and classes that are mostly sure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, num_queries, 3, 4, generator=generator) * 4
    masks = torch.nn.functional.interpolate(coarse, size=(12, 16), mode="bilinear")
    classes = torch.randn(2, num_queries, NUM_CLASSES + 1, generator=generator) * 4
    return Mask2FormerForUniversalSegmentationOutput(class_queries_logits=classes, masks_queries_logits=masks)


TARGETS = [(45, 61), (30, 33)]
SEMANTIC = [{}, {"target_sizes": TARGETS}, {"return_segmentation_scores": True}]
INSTANCE = [
    {},
    {"threshold": 0.1},
    {"threshold": 0.1, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.2},
    {"threshold": 0.1, "target_sizes": TARGETS},
    {"threshold": 0.1, "target_sizes": TARGETS, "return_coco_annotation": True},
    {"threshold": 0.1, "target_sizes": TARGETS, "return_binary_maps": True},
    {"threshold": 1.1, "return_binary_maps": True},
]
PANOPTIC = [
    {},
    {"threshold": 0.1},
    {"mask_threshold": 0.2, "overlap_mask_area_threshold": 0.1},
    {"label_ids_to_fuse": {0, 1, 2, 3}, "overlap_mask_area_threshold": 0.1, "threshold": 0.1},
    {"target_sizes": TARGETS, "overlap_mask_area_threshold": 0.1},
    {"target_sizes": TARGETS, "threshold": 1.1},
]
CASES = [
    (task, options)
    for task, all_options in zip(("semantic", "instance", "panoptic"), (SEMANTIC, INSTANCE, PANOPTIC))
    for options in all_options
]


def _post_process(processor: Any, task: str, outputs: Any, **options: Any) -> list[Any]:
    return getattr(processor, f"post_process_{task}_segmentation")(outputs, **options)


@pytest.mark.parametrize(("task", "options"), CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_post_processing_is_bit_equal_to_theirs(task: str, options: dict[str, Any], seed: int) -> None:
    expected, actual = (
        _post_process(processor, task, _outputs(seed=seed), **options)
        for processor in (transformers.Mask2FormerImageProcessor(), _like_theirs())
    )
    _assert_identical(expected, actual)


@pytest.mark.parametrize(("task", "options"), CASES, ids=str)
def test_exact_results_have_the_same_fields(task: str, options: dict[str, Any]) -> None:
    expected = _post_process(transformers.Mask2FormerImageProcessor(), task, _outputs(), **options)
    actual = _post_process(Mask2FormerImageProcessor(), task, _outputs(), **options)
    for theirs, ours, target in zip(expected, actual, options.get("target_sizes", [(48, 64)] * 2), strict=True):
        if task == "semantic":
            maps = ours.segmentation if options.get("return_segmentation_scores") else ours
            assert maps.shape == target
            continue
        assert ours.keys() == theirs.keys()
        for segment in ours["segments_info"]:
            assert list(segment) == ["id", "label_id", "was_fused", "score"]
        segmentation = ours["segmentation"]
        size = segmentation.shape[-2:] if isinstance(segmentation, Tensor) else target
        assert size == target


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@torch.no_grad()
def test_exact_results_are_those_of_the_predictor(task: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(tiny_config(encoder_feedforward_dim=1024)).eval()
    model.class_predictor.weight.mul_(20)
    array = _images()[0]
    cfg = integration.Mask2FormerConfig.to_cfg(model.config)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 40, 70
    cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST = "", ("exact_results",)
    MetadataCatalog.get("exact_results").set(thing_dataset_id_to_contiguous_id={index: index for index in range(4)})
    own = {
        name.removeprefix("model."): tensor for name, tensor in model.state_dict().items() if "class_pred" not in name
    }
    own |= {f"sem_seg_head.predictor.class_embed.{n}": t for n, t in model.class_predictor.state_dict().items()}
    assert not build_model(cfg).load_state_dict(own, strict=False).missing_keys
    torch.save(own, tmp_path / "weights.pth")
    threshold = 0.2 if task != "semantic" else None
    predictor = Predictor(cfg, tmp_path / "weights.pth", task=task, score_threshold=threshold)
    MetadataCatalog.remove("exact_results")

    processor = Mask2FormerImageProcessor(**SMALL)
    inputs = processor([array, np.zeros((60, 60, 3), np.uint8)], return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (64, 64)
    inputs = {name: tensor[:1] for name, tensor in processor([array], return_tensors="pt").items()}
    options = {"target_sizes": [array.shape[:2]]}
    if task == "panoptic":
        options |= {"threshold": 0.2, "overlap_mask_area_threshold": 0.0, "label_ids_to_fuse": {4, 5, 6}}
    if task == "instance":
        options |= {"threshold": 0.2, "return_binary_maps": True}
    result = _post_process(processor, task, model(**inputs), **options)[0]
    expected = predictor(array)
    if task == "semantic":
        assert torch.equal(result, expected["sem_seg"].argmax(0))
    elif task == "panoptic":
        ids, segments = expected["panoptic_seg"]
        assert torch.equal(result["segmentation"], ids)
        assert [segment["label_id"] for segment in result["segments_info"]] == [s["category_id"] for s in segments]
        assert segments
    else:
        instances = expected["instances"]
        instances = instances[instances.pred_masks.flatten(1).any(1)]
        assert torch.equal(result["segmentation"].bool(), instances.pred_masks)
        assert len(instances)


def test_exact_preprocessing_keeps_shapes_and_pads() -> None:
    inputs = Mask2FormerImageProcessor(**SMALL, ignore_index=255)(_images(), _maps(), return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, 96, 64)
    heights, widths = inputs["pixel_mask"].amax(2).sum(1), inputs["pixel_mask"].amax(1).sum(1)
    assert list(zip(heights.tolist(), widths.tolist())) == [(40, 63), (70, 28), (40, 63)]
    outside = inputs["pixel_mask"][:, None] == 0
    assert not (inputs["pixel_values"] * outside).any()
    for masks, mask in zip(inputs["mask_labels"], inputs["pixel_mask"]):
        assert masks.shape[1:] == (96, 64)
        assert torch.equal(masks.sum(0), mask.float())  # each pixel in one mask, padding in none


def test_exact_results_ignore_padding() -> None:
    outputs = _outputs()
    mask = torch.zeros(2, 48, 64)
    mask[:, :32, :40] = 1
    for task in ("panoptic", "instance", "semantic"):
        processor = Mask2FormerImageProcessor()
        by_mask = _post_process(processor, task, outputs, pixel_mask=mask)
        sizes = {"image_sizes": torch.tensor([[32, 40]] * 2), "padded_sizes": torch.tensor([[48, 64]] * 2)}
        by_field = _post_process(processor, task, Mask2FormerForUniversalSegmentationOutput(**outputs, **sizes))
        _assert_identical(by_mask, by_field)
        whole = _post_process(processor, task, outputs)
        for cropped, full in zip(by_mask, whole):
            maps = [result if task == "semantic" else result["segmentation"] for result in (cropped, full)]
            assert maps[0].shape == (32, 40)
            if task == "semantic":
                assert torch.equal(maps[0], maps[1][:32, :40])


def test_exact_instances_are_drawn_best_on_top_and_kept_whole() -> None:
    outputs = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=torch.tensor([[[4.0, 0, 0], [0, 8.0, 0]]]),
        masks_queries_logits=torch.stack([torch.full((4, 4), 9.0), torch.full((4, 4), 9.0)])[None],
    )
    outputs.masks_queries_logits[0, 0, :2] = -9
    processor = Mask2FormerImageProcessor()
    drawn = processor.post_process_instance_segmentation(outputs)[0]
    assert [segment["label_id"] for segment in drawn["segments_info"]] == [1, 0]
    assert drawn["segmentation"].unique().tolist() == [0]
    runs = processor.post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]["segmentation"]
    assert runs[0] == [1, 256]
    assert runs[1][1] == pytest.approx(128, abs=16)
    assert sum(runs[1][1::2]) >= 112


def test_exact_masks_follow_their_threshold() -> None:
    areas = [
        int(
            Mask2FormerImageProcessor()
            .post_process_instance_segmentation(
                _outputs(), threshold=0.0, mask_threshold=threshold, return_binary_maps=True
            )[0]["segmentation"]
            .sum()
        )
        for threshold in (0.0, 0.2, 0.5, 0.9, 1.0)
    ]
    assert areas[0] > areas[1] > areas[2] > areas[3] > areas[4] == 0


def test_nothing_found_is_empty_maps() -> None:
    outputs, processor = _outputs(), Mask2FormerImageProcessor()
    panoptic = processor.post_process_panoptic_segmentation(outputs, threshold=1.0)[0]
    assert panoptic["segments_info"] == []
    assert not panoptic["segmentation"].any()
    instance = processor.post_process_instance_segmentation(outputs, threshold=1.0)[0]
    assert (instance["segmentation"] == -1).all()
    masks = processor.post_process_instance_segmentation(outputs, threshold=1.0, return_binary_maps=True)[0]
    assert masks["segmentation"].shape == (0, 48, 64)


def test_reduce_labels_is_the_older_name() -> None:
    processor = Mask2FormerImageProcessor(**SMALL, ignore_index=255, reduce_labels=True)
    assert processor.do_reduce_labels
    classes = Mask2FormerImageProcessor(**SMALL, ignore_index=255)(_images(), _maps(), reduce_labels=True)[
        "class_labels"
    ]
    assert all(labels.max() <= 3 for labels in classes)
    assert torch.equal(classes[0], processor(_images(), _maps())["class_labels"][0])


def test_processor_survives_saving_and_transformers_reads_it(tmp_path: Any) -> None:
    _like_theirs(**SMALL).save_pretrained(tmp_path)
    again = Mask2FormerImageProcessor.from_pretrained(tmp_path)
    assert again.parity == "transformers"
    assert Mask2FormerImageProcessor.from_pretrained(tmp_path, parity="published").parity == "published"
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(theirs) is transformers.Mask2FormerImageProcessor
    _assert_identical(dict(theirs(_images(), return_tensors="pt")), dict(again(_images(), return_tensors="pt")))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="parity: expected one of published, transformers, found 'exact'"):
        Mask2FormerImageProcessor(parity="exact")
    processor = Mask2FormerImageProcessor()
    with pytest.raises(InputError, match="target_sizes: expected one for each of 2 images, found 1"):
        processor.post_process_panoptic_segmentation(_outputs(), target_sizes=[(3, 4)])
    with pytest.raises(InputError, match=r"mask_threshold: expected a probability, 0\.\.1, found 1\.5"):
        processor.post_process_panoptic_segmentation(_outputs(), mask_threshold=1.5)
    with pytest.raises(InputError, match="at most one"):
        processor.post_process_instance_segmentation(_outputs(), return_coco_annotation=True, return_binary_maps=True)


_ARGUMENTS: dict[str, list[Any]] = {
    "do_resize": [True, False],
    "size": [
        {"shortest_edge": 32, "longest_edge": 64},
        {"height": 48, "width": 40},
        {"max_height": 40, "max_width": 60},
    ],
    "size_divisor": [0, 16, 32],
    "resample": [0, 2, 3],
    "do_rescale": [True, False],
    "rescale_factor": [1 / 255, 1 / 127.5],
    "do_normalize": [True, False],
    "image_mean": [[0.5, 0.4, 0.3]],
    "image_std": [[0.2, 0.3, 0.1]],
    "ignore_index": [255, 0],
    "do_reduce_labels": [True, False],
    "pad_size": [{"height": 96, "width": 128}],
}


def test_any_combination_of_arguments_is_bit_equal_to_theirs() -> None:
    chooser, rng = random.Random(0), np.random.default_rng(0)
    sizes = [(37, 53), (50, 41)]
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    maps = [rng.integers(0, 4, size).astype(np.uint8) for size in sizes]
    num_equal = 0
    for _ in range(80):
        given = {k: chooser.choice(values) for k, values in _ARGUMENTS.items() if chooser.random() < 0.6}
        built = {k: value for k, value in given.items() if chooser.random() < 0.4}  # the rest when called
        called = {k: value for k, value in given.items() if k not in built}
        labels = chooser.choice(
            [{}, {"segmentation_maps": maps, "instance_id_to_semantic_id": {i: i for i in range(256)}}]
        )
        try:
            expected = transformers.Mask2FormerImageProcessor(**built)(pictures, **labels, **called)
        except Exception as error:  # contradictions that theirs refuses, by errors of several libraries
            with pytest.raises(type(error)):
                integration.Mask2FormerImageProcessor(parity="transformers", **built)(pictures, **labels, **called)
            continue
        found = integration.Mask2FormerImageProcessor(parity="transformers", **built)(pictures, **labels, **called)
        assert found.keys() == expected.keys(), given
        for name in expected:
            assert len(found[name]) == len(expected[name])
            for own, their in zip(found[name], expected[name], strict=True):
                assert np.array_equal(np.asarray(own), np.asarray(their)), (name, given)
        num_equal += 1
    assert num_equal >= 30
