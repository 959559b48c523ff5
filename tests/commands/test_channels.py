"""Images of one, four and twelve channels, from NumPy, TIFF and PNG files: trained, predicted and drawn."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import Predictor, get_cfg, pipeline
from mask2former.checkpoint.loading import inflate_colours, load_weights
from mask2former.commands.cli import main
from mask2former.config import CfgNode
from mask2former.data.catalog import DatasetCatalog
from mask2former.data.mapper import DatasetMapper
from mask2former.data.own_data import ClassChoice, open_own_data
from mask2former.data.presets import build_train_augmentations, preset_of
from mask2former.engine.channels import measure_channels, settle_channels
from mask2former.errors import ConfigError, DatasetError
from mask2former.files.channels import channels_to_rgb, count_channels, read_channels
from mask2former.files.images import read_image_size
from mask2former.modeling import build_model
from tests.commands.test_train_own_data import TINY, saved_config
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import tool_trees

train_module = importlib.import_module("mask2former.engine.train")  # the package has a function of this name
SIZE = (trees.HEIGHT, trees.WIDTH)
SWIN = "MODEL.SWIN.EMBED_DIM 24 MODEL.SWIN.DEPTHS [1,1,1,1] MODEL.SWIN.NUM_HEADS [1,2,2,2]".split()
SMALL = [*TINY[: TINY.index("SOLVER.IMS_PER_BATCH")], "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0"]
SMALL += ["INPUT.IMAGE_SIZE", "32", "INPUT.MIN_SIZE_TRAIN", "[32]", "INPUT.CROP.ENABLED", "False"]


def pixels_of(num_channels: int, seed: int) -> np.ndarray:
    """(H, W, C) float32, as radiances may be: each channel in its own range, far from 0..255."""
    rng = np.random.default_rng(seed)
    return (1000 * np.arange(1, num_channels + 1) + rng.normal(0, 40, (*SIZE, num_channels))).astype(np.float32)


def write_tiff(path: Path, pixels: np.ndarray, **options: Any) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra [channels]")
    tifffile.imwrite(path, pixels, **options)


def write_data(root: Path, num_channels: int, suffix: str) -> Path:
    """A tree of images and masks whose images are arrays."""
    trees.write_png_tree(root)
    for seed, image in enumerate(sorted(root.rglob("images/*.jpg"))):
        image.unlink()
        pixels, file = pixels_of(num_channels, seed), image.with_suffix(suffix)
        if suffix == ".npy":
            np.save(file, pixels[..., 0] if num_channels == 1 else pixels)
        elif suffix == ".npz":
            np.savez_compressed(file, image=pixels.transpose(2, 0, 1), other=np.zeros(3))
        else:
            write_tiff(file, pixels.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    return root


@pytest.mark.parametrize(
    ("num_channels", "suffix", "model"),
    [(1, ".npy", "r18"), (4, ".npz", "swin-t"), (12, ".tif", "r18"), (12, ".npy", "swin-t")],
)
def test_channels_are_trained_predicted_and_drawn_without_being_told(
    num_channels: int, suffix: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output, pictures = write_data(tmp_path / "data", num_channels, suffix), tmp_path / "mine", tmp_path / "drawn"
    options = ["--output", str(output), "--batch", "2", "--model", model, *SMALL]
    options += [] if model == "r18" else [*SWIN, "MODEL.WEIGHTS", ""]
    assert main(["train", "--data", str(data), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.index(f"INPUT.CHANNELS {num_channels}, measured on 2 images") < printed.index(
        "training: 1 iterations"
    )
    cfg = saved_config(output)
    assert num_channels == cfg.INPUT.CHANNELS
    np.testing.assert_allclose(cfg.MODEL.PIXEL_MEAN, 1000 * np.arange(1, num_channels + 1), atol=8)
    np.testing.assert_allclose(cfg.MODEL.PIXEL_STD, 40, atol=4)
    image = next((data / "valid/images").iterdir())
    if suffix == ".tif":
        words = ["visualize-data", "--config-file", str(output / "config.yaml"), "--output-dir", str(tmp_path / "seen")]
        for source in ("annotation", "dataloader"):
            assert main([*words, "--source", source, "-n", "1"]) == 0
        assert len(list((tmp_path / "seen").iterdir())) == 2
    shutil.rmtree(data / "train")
    assert main(["predict", str(image), "--weights", str(output), "--output", str(pictures)]) == 0
    (picture,) = pictures.iterdir()
    with Image.open(picture) as opened:
        assert np.asarray(opened).std() > 10
    segment = pipeline("semantic", weights=output, device="cpu")
    assert segment(str(image))["masks"].shape[1:] == SIZE
    array = read_channels(image, num_channels)
    results = [segment.predictor(i)["sem_seg"] for i in (str(image), array, torch.from_numpy(array.transpose(2, 0, 1)))]
    assert all(torch.equal(result, results[0]) for result in results)


def test_statistics_are_measured_for_registered_data_and_kept_where_known(tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.npy" for seed in range(3)]
    for seed, file in enumerate(files):
        np.save(file, pixels_of(4, seed) + 1e6)  # far from 0, where sums of squares lose their digits
    stacked = np.concatenate([np.load(file).reshape(-1, 4) for file in files]).astype(np.float64)
    mean, std = measure_channels(files, 4)
    np.testing.assert_allclose(mean, stacked.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, stacked.std(0), rtol=1e-4)
    cfg = get_cfg()
    assert settle_channels(cfg, files, is_known=False).INPUT.CHANNELS == 0
    assert settle_channels(cfg, files, is_known=False, detect=True).MODEL.PIXEL_MEAN == mean
    assert settle_channels(cfg, files, is_known=True, detect=True) is cfg
    cfg.INPUT.CHANNELS = 5
    with pytest.raises(DatasetError, match=r"0.npy: has 4 channels, INPUT.CHANNELS is 5"):
        settle_channels(cfg, files, is_known=False)
    np.save(files[0], np.ones((*SIZE, 2), np.uint16))
    assert measure_channels(files[:1], 2) == ([1.0, 1.0], [1.0, 1.0])


def test_training_on_registered_data_measures_what_the_config_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, found = write_data(tmp_path / "data", 4, ".npy"), list[CfgNode]()
    records = [{"file_name": str(file), "annotations": []} for file in sorted(data.glob("train/images/*"))]
    DatasetCatalog.register("of_channels", lambda: records)
    monkeypatch.setattr(train_module, "fit", lambda cfg, **_: found.append(cfg))
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", ["of_channels"], "INPUT.CHANNELS", 4, "OUTPUT_DIR", str(tmp_path / "out")])
    cfg.merge_from_list(["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "MODEL.META_ARCHITECTURE", "MaskFormer"])
    try:
        train_module.train(cfg)
    finally:
        DatasetCatalog.remove("of_channels")
    np.testing.assert_allclose(found[0].MODEL.PIXEL_MEAN, [1000, 2000, 3000, 4000], atol=8)


def channel_cfg(num_channels: int) -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.CHANNELS, cfg.INPUT.COLOR_AUG_SSD, cfg.MODEL.META_ARCHITECTURE = num_channels, True, "MaskFormer"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1000.0 * i for i in range(1, num_channels + 1)], [40.0] * num_channels
    return cfg


@pytest.mark.parametrize("mapper", ["coco_instance_lsj", "mask_former_semantic"])
def test_augmentations_keep_numbers_and_fill_with_the_mean(mapper: str) -> None:
    cfg = channel_cfg(12)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TRAIN = mapper, 64, [40]
    cfg.INPUT.SIZE_DIVISIBILITY, cfg.INPUT.AUGMENTATIONS = 64, ["rotation", "brightness", "contrast", "saturation"]
    augmentations = build_train_augmentations(cfg, preset_of(cfg), ignore_label=255)
    assert "ColorAugSSD" not in repr(augmentations)
    image = np.broadcast_to(np.array(cfg.MODEL.PIXEL_MEAN, np.float32), (*SIZE, 12))
    for seed in range(4):
        transform = augmentations.sample(np.random.default_rng(seed), SIZE, np.zeros(SIZE, np.uint8), image=image)
        moved = transform.apply_image(image)
        assert moved.shape[2] == 12
        np.testing.assert_allclose(moved, np.broadcast_to(image[0, 0], moved.shape), rtol=1e-6)


def test_mapper_gives_numbers_as_stored(tmp_path: Path) -> None:
    cfg = channel_cfg(4)
    cfg.INPUT.MIN_SIZE_TEST = 0
    np.save(tmp_path / "a.npy", pixels_of(4, 0))
    record = {"file_name": str(tmp_path / "a.npy"), "height": SIZE[0], "width": SIZE[1]}
    image = DatasetMapper.from_config(cfg, is_train=False)(record)["image"]
    np.testing.assert_array_equal(image.numpy(), pixels_of(4, 0).transpose(2, 0, 1))


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4, 12])
def test_first_convolution_answers_equal_channels_as_equal_colours(num_channels: int) -> None:
    weight, grey = torch.randn(8, 3, 7, 7), torch.randn(1, 1, 16, 16)
    inflated = inflate_colours(weight, num_channels)
    assert inflated.shape == (8, num_channels, 7, 7)
    expected = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    actual = torch.nn.functional.conv2d(grey.expand(-1, num_channels, -1, -1), inflated)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", "D2SwinTransformer"])
def test_weights_of_colours_start_a_model_of_channels(backbone: str, tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file("configs/shapes/semantic-segmentation/maskformer2_R18_quickstart.yaml")
    cfg.merge_from_list([*SMALL[: SMALL.index("SOLVER.MAX_ITER")], *SWIN, "MODEL.BACKBONE.NAME", backbone])
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "rgb.pth")
    cfg.INPUT.CHANNELS, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = 5, [0.0] * 5, [1.0] * 5
    report = load_weights(build_model(cfg), tmp_path / "rgb.pth")
    assert report.is_complete
    ((name, (theirs, ours)),) = report.adapted.items()
    assert name in ("backbone.stem.conv1.weight", "backbone.patch_embed.proj.weight")
    assert (theirs[1], ours[1]) == (3, 5)


@pytest.mark.parametrize("kind", ["contiguous", "planar", "pages", "compressed", "float", "big-endian"])
def test_tiff_of_every_layout_is_read_as_stored(kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (*SIZE, 5)).astype(np.float32 if kind == "float" else np.uint16)
    file, first = tmp_path / "a.tif", pixels.transpose(2, 0, 1)
    if kind == "pages":
        write_tiff(file, first, photometric="minisblack")
    elif kind == "planar":
        write_tiff(file, first, photometric="minisblack", planarconfig="separate")
    else:
        options = {"compression": "zlib"} if kind == "compressed" else {}
        options |= {"byteorder": ">"} if kind == "big-endian" else {}
        write_tiff(file, pixels, photometric="minisblack", planarconfig="contig", **options)
    assert read_image_size(file) == SIZE
    assert count_channels(file) == 5
    np.testing.assert_array_equal(read_channels(file, 5), pixels)


def test_pictures_of_bytes_stay_pictures(tmp_path: Path) -> None:
    """And a PNG of four channels, or of sixteen bits, can be channels, too."""
    trees.write_image(tmp_path / "a.png")
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(tmp_path / "deep.tif")
    assert [count_channels(tmp_path / name) for name in ("a.png", "deep.tif")] == [0, 0]
    rgba = np.random.default_rng(0).integers(0, 256, (*SIZE, 4)).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_channels(tmp_path / "rgba.png", 4), rgba)
    assert read_channels(tmp_path / "deep.png", 1).max() == 40000


def test_shown_channels_are_chosen_and_stretched() -> None:
    image = pixels_of(5, 0)
    picture = channels_to_rgb(image, [4, 0, 2])
    assert picture.shape == (*SIZE, 3)
    assert (picture.min(), picture.max()) == (0, 255)
    np.testing.assert_array_equal(channels_to_rgb(image, [1])[..., 0], channels_to_rgb(image, [1, 1, 1])[..., 2])
    for shown in ([5], [0, 1], [-1, 0, 1]):
        with pytest.raises(ConfigError, match=r"INPUT.SHOWN_CHANNELS: expected one or three of 0..4"):
            channels_to_rgb(image, shown)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an array of NumPy"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (9,), }", "cannot be read"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
        (np.zeros((4, 5), complex), "expected numbers"),
        (np.zeros((4, 5, 6, 7), np.uint8), "expected an array"),
        (np.zeros((0, 5), np.uint8), "expected 1"),
        (np.full((4, 5), np.nan), "NaN or infinite"),
    ],
)
def test_wrong_array_is_named(content: bytes | np.ndarray, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(DatasetError, match=rf"a\.npy: .*{message}"):
        read_channels(file, 1)


def test_damaged_array_is_left_out_on_demand(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 4, ".npy")
    np.save(data / "train/images/0.npy", np.full((*SIZE, 4), np.nan))
    opened = open_own_data(data, ClassChoice(skip_bad=True))
    assert len(opened.left_out) == 1
    assert "NaN" in opened.left_out[0]


def test_clips_of_arrays_have_channels(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file("configs/shapes/semantic-segmentation/maskformer2_R18_quickstart.yaml")
    cfg.merge_from_list(SMALL[: SMALL.index("SOLVER.MAX_ITER")])
    cfg.INPUT.CHANNELS, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = 4, [0.0] * 4, [1.0] * 4
    frames = list(Predictor(cfg, device="cpu").video([pixels_of(4, seed) for seed in range(2)]))
    assert [frame.shape for frame, _ in frames] == [(*SIZE, 4)] * 2


def test_yolo_labels_of_arrays_train(tmp_path: Path) -> None:
    data = tool_trees.yolo_ultralytics(tmp_path / "data")
    for seed, image in enumerate(sorted(data.rglob("*.jpg"))):
        image.unlink()
        np.save(image.with_suffix(".npy"), pixels_of(4, seed))
    options = ["--output", str(tmp_path / "mine"), "--batch", "2", "--model", "r18", *SMALL]
    assert main(["train", "--data", str(data), *options]) == 0
    assert saved_config(tmp_path / "mine").INPUT.CHANNELS == 4
