"""What is fuzzed: a public reader for each form of file, valid files to begin with, and what a sane result is.

``read`` gets the path of a mutated file. It returns, or raises one of ``mask2former.errors``; an assertion of its own
fails where nonsense was accepted.
"""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from mask2former.checkpoint import load_state
from mask2former.checkpoint.transformers_config import read_class_names as read_transformers_names
from mask2former.checkpoint.transformers_config import read_transformers_folder
from mask2former.config import get_cfg
from mask2former.data.own_data import read_class_names, read_labelme
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth, read_detections
from mask2former.evaluation.video import VideoGroundTruth, read_video_results
from mask2former.files.coco import read_instances
from mask2former.files.coco_panoptic import NUM_IDS, read_panoptic
from mask2former.files.images import read_image, read_image_size
from mask2former.files.json_files import read_json
from mask2former.files.maps import read_label_map, read_panoptic_ids
from mask2former.files.ytvis import read_videos
from mask2former.structures.segmentations import (
    check_segmentation,
    decode_segmentation,
    encode_segmentation,
    has_pixels,
    segmentation_to_bitmask,
)
from tests.agreement.annotation_scene import FORMS, OBJECTS, SIZES, content_of
from tests.faults.fuzz.mutation import (
    Mutator,
    change_bytes,
    change_headed_json,
    change_json,
    change_png,
    change_zip,
)
from tests.faults.test_panoptic_and_video_faults import ids_of, picture, videos, write_labelme, write_panoptic

MAX_SIDE = 2048  # of sizes that a file states: larger masks are no fault and take seconds


@dataclass(frozen=True)
class Target:
    """A form of file."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    mutate: Mutator
    file_name: str  # below the target's folder


def _json(*contents: Any) -> list[bytes]:
    return [json.dumps(content).encode() for content in contents]


def _coco(path: Path) -> None:
    instances = read_instances(path)
    assert instances.annotations.keys() == instances.images.keys()
    for image_id, found in instances.annotations.items():
        image = instances.images[image_id]
        size = image["height"], image["width"]
        for annotation in found:
            assert annotation["iscrowd"] in (0, 1)
            assert not instances.categories or annotation["category_id"] in instances.categories
            if annotation.get("segmentation") is not None and max(size) <= MAX_SIDE:
                assert decode_segmentation(annotation["segmentation"], size).shape == size
    instances.drop_empty()


def _segmentation(path: Path) -> None:
    """A list of height, width and a segmentation; codes also as bytes."""
    content = read_json(path)
    is_entry = isinstance(content, list) and len(content) == 3
    if not is_entry or not all(type(side) is int and 0 < side <= MAX_SIDE for side in content[:2]):
        return
    size, segmentation = (content[0], content[1]), content[2]
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str) and segmentation.get("bytes"):
        segmentation["counts"] = segmentation["counts"].encode("latin1", "replace")
    checked = check_segmentation(segmentation, size, "fuzz")
    mask = decode_segmentation(checked, size)
    assert mask.shape == size
    assert mask.dtype == bool
    assert has_pixels(checked, size) == mask.any()
    assert (segmentation_to_bitmask(encode_segmentation(checked, size), *size) == mask).all()


def _segmentation_seeds() -> list[bytes]:
    entries = [[*SIZES[OBJECTS[0][0]], FORMS[form](OBJECTS[0])] for form in FORMS]
    codes = [{**entry[2], "bytes": True} for entry in entries if isinstance(entry[2], dict)]
    return _json(*entries, *([*SIZES[OBJECTS[0][0]], code] for code in codes))


def _panoptic_json(path: Path) -> None:
    panoptic = read_panoptic(path)
    for annotation in panoptic.annotations.values():
        ids = [segment["id"] for segment in annotation["segments_info"]]
        assert len(set(ids)) == len(ids)
        assert all(0 < segment_id < NUM_IDS for segment_id in ids)


def _panoptic_seeds() -> list[bytes]:
    return [write_panoptic(_scratch() / "panoptic").read_bytes()]


def _panoptic_png(path: Path) -> None:
    ids = read_panoptic_ids(path)
    assert ids.ndim == 2
    assert ids.dtype == np.int32
    assert ids.size == 0 or (0 <= ids.min() and ids.max() < NUM_IDS)


def _pictures(*, ending: str = "png", modes: tuple[str, ...]) -> list[bytes]:
    image = Image.fromarray((np.arange(24 * 31 * 3) % 251).astype(np.uint8).reshape(24, 31, 3))
    return [_encoded(image.convert(mode), ending) for mode in modes]


def _encoded(image: Image.Image, ending: str) -> bytes:
    target = io.BytesIO()
    image.save(target, ending)
    return target.getvalue()


def _panoptic_pngs() -> list[bytes]:
    from mask2former.structures import id_to_rgb

    return [_encoded(Image.fromarray(id_to_rgb(ids_of(0))), "png"), *_pictures(modes=("RGB", "RGBA"))]


def _label_map(path: Path) -> None:
    labels = read_label_map(path)
    assert labels.ndim == 2
    assert labels.dtype in (np.uint8, np.int32)


def _label_maps() -> list[bytes]:
    wide = Image.fromarray((np.arange(24 * 31) * 70).astype(np.uint16).reshape(24, 31))
    return [*_pictures(modes=("L", "P", "1")), _encoded(wide, "png"), _encoded(wide, "tiff")]


def _image(path: Path) -> None:
    size = read_image_size(path)
    pixels = read_image(path)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8


def _images() -> list[bytes]:
    return [
        *_pictures(modes=("RGB", "RGBA", "P", "L", "LA")),
        *_pictures(ending="jpeg", modes=("RGB", "L", "CMYK")),
        *(_pictures(ending=ending, modes=("RGB",))[0] for ending in ("bmp", "tiff", "webp")),
        _label_maps()[-1],
    ]


def _labelme(path: Path) -> None:
    _labelme_photo(path.parent)
    dataset = read_labelme(path.parent, num_workers=1)
    ids = {entry.id for entry in dataset.classes}
    for image in dataset.parts["train"]:
        for segment in image.segments:
            assert segment.class_id in ids
            assert segmentation_to_bitmask(segment.mask, image.height, image.width).any()


@cache
def _labelme_photo(folder: Path) -> None:
    Image.fromarray(np.zeros((13, 17, 3), np.uint8)).save(folder / "0.png")


def _labelme_seeds() -> list[bytes]:
    shapes = [
        {"label": "x", "points": [[1, 1], [9, 1], [9, 9]], "group_id": None},
        {"label": "x", "points": [[1, 1], [5, 5]], "shape_type": "rectangle", "group_id": 1},
        {"label": "y", "points": [[6, 6], [9, 9]], "shape_type": "circle", "group_id": 1},
        {"label": "m", "points": [[1, 1], [5, 5]], "shape_type": "mask", "mask": picture(5, 5)},
    ]
    return [(write_labelme(_scratch() / "labelme", *shapes) / "0.json").read_bytes()]


def _videos(path: Path) -> None:
    found = read_videos(path)
    for track in found.tracks or ():
        assert len(track["segmentations"]) == found.videos[track["video_id"]].length


def _config(path: Path) -> None:
    cfg = _defaults().clone()
    cfg.merge_from_file(str(path))
    assert len(cfg.dump()) < 1 << 22


@cache
def _defaults() -> Any:
    return get_cfg()


def _configs() -> list[bytes]:
    names = ("shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml", "coco/Base-COCO-PanopticSegmentation.yaml")
    below = Path(__file__).parents[3] / "configs"
    found = [below / name for name in names if (below / name).is_file()] or sorted(below.rglob("*.yaml"))[:2]
    laughs = b"INPUT: {CROP: &a {ENABLED: true}, MIN_SIZE_TEST: &b 64, MAX_SIZE_TEST: *b}\n"
    laughs += b"DATASETS: {TRAIN: !!python/tuple [a, b]}\n"
    sizes = b'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 21)]"]\n'
    return [*(path.read_bytes() for path in found), laughs, sizes, b"_BASE_: []\nSOLVER: {BASE_LR: 1e-4}\n"]


def _checkpoint(path: Path) -> None:
    state = load_state(path)
    assert isinstance(state, dict)
    for name, value in state.get("model", state).items() if isinstance(state.get("model", state), dict) else ():
        assert not isinstance(value, np.ndarray | torch.Tensor) or value.dtype != object, name
        if isinstance(value, torch.Tensor):
            value.float().sum()  # reads every element
        elif isinstance(value, np.ndarray):
            value.sum()


def _tensors() -> dict[str, torch.Tensor]:
    return OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(3, dtype=torch.int64), c=torch.zeros(()))


def _pickles() -> list[bytes]:
    arrays = {name: tensor.numpy() for name, tensor in _tensors().items()}
    content = {"model": OrderedDict(arrays), "n": np.float64(2), "more": ({1, 2}, [None, 1j], b"x", "y"), "i": 2**70}
    content["halves"] = np.asfortranarray(np.ones((2, 3), np.float16))
    return [*(pickle.dumps(content, protocol) for protocol in range(6)), pickle.dumps({"model": _tensors()}, 2)]


def _torch_files(*, is_zip: bool) -> list[bytes]:
    files = []
    for content in ({"model": _tensors(), "iteration": 3}, _tensors()):
        target = io.BytesIO()
        torch.save(content, target, _use_new_zipfile_serialization=is_zip)
        files.append(target.getvalue())
    return files


def _class_names(path: Path) -> None:
    names = read_class_names(path)
    assert len({name for _, name in names.entries}) == len(names.entries) > 0
    assert all(name.strip() for _, name in names.entries)


def _detections(path: Path) -> None:
    truth = _truth()
    for found in read_detections(path, truth, ("bbox", "segm")):
        assert found["segmentation"]["size"] == list(truth.image_sizes[found["image_id"]])
        assert np.isfinite(found["score"])
        assert np.isfinite(found["bbox"]).all()


@cache
def _truth() -> CocoGroundTruth:
    path = _scratch() / "truth.json"
    path.write_text(json.dumps(content_of()))
    return CocoGroundTruth(path, ("bbox", "segm"))


def _video_results(path: Path) -> None:
    for found in read_video_results(path, _video_truth()):
        assert np.isfinite(found["score"])


@cache
def _video_truth() -> VideoGroundTruth:
    path = _scratch() / "videos.json"
    path.write_text(json.dumps(videos()))
    return VideoGroundTruth(path)


def _transformers(path: Path) -> None:
    assert isinstance(read_transformers_folder(path.parent), dict)
    assert all(isinstance(name, str) for name in read_transformers_names(path.parent))


def _transformers_configs() -> list[bytes]:
    swin = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    resnet = {"model_type": "resnet", "depths": [3, 4, 6, 3], "layer_type": "bottleneck"}
    common = {"num_queries": 100, "hidden_dim": 256, "id2label": {"0": "cat", "1": "dog"}, "decoder_layers": 10}
    return _json(*({"model_type": "mask2former", "backbone_config": b, **common} for b in (swin, resnet)))


@cache
def _scratch() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _scored(content: dict[str, Any]) -> list[Any]:
    return [{**annotation, "score": 0.5} for annotation in content["annotations"]]


TARGETS = {
    "coco": Target(lambda: _json(*(content_of(form) for form in FORMS)), _coco, change_json, "fuzz.json"),
    "segmentation": Target(_segmentation_seeds, _segmentation, change_json, "fuzz.json"),
    "panoptic_json": Target(_panoptic_seeds, _panoptic_json, change_json, "fuzz.json"),
    "panoptic_png": Target(_panoptic_pngs, _panoptic_png, change_png, "fuzz.png"),
    "label_map": Target(_label_maps, _label_map, change_png, "fuzz.png"),
    "image": Target(_images, _image, change_png, "fuzz.png"),
    "labelme": Target(_labelme_seeds, _labelme, change_json, "0.json"),
    "ytvis": Target(lambda: _json(videos()), _videos, change_json, "fuzz.json"),
    "config": Target(_configs, _config, change_bytes, "fuzz.yaml"),
    "pkl": Target(_pickles, _checkpoint, change_bytes, "fuzz.pkl"),
    "pth": Target(lambda: _torch_files(is_zip=True), _checkpoint, change_zip, "fuzz.pth"),
    "pth_old": Target(lambda: _torch_files(is_zip=False), _checkpoint, change_bytes, "fuzz.pth"),
    "safetensors": Target(lambda: [save(_tensors())], _checkpoint, change_headed_json, "fuzz.safetensors"),
    "class_names": Target(lambda: [b"cat\ndog\n", b"1: cat\n3: dog\n"], _class_names, change_bytes, "fuzz.txt"),
    "results": Target(lambda: _json(_scored(content_of())), _detections, change_json, "fuzz.json"),
    "video_results": Target(lambda: _json(_scored(videos())), _video_results, change_json, "fuzz.json"),
    "transformers": Target(_transformers_configs, _transformers, change_json, "config.json"),
}
