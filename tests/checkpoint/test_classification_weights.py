"""ImageNet weights of other libraries: after loading, our backbones compute the features of theirs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models import swin_transformer as torchvision_swin

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.conversion import read_converted, write_ours
from mask2former.errors import CheckpointError
from mask2former.files.atomic import save_atomic
from mask2former.modeling.backbone import D2SwinTransformer, ResNet

IMAGE = (1, 3, 64, 96)
SWIN = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 3)}
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class _Model(nn.Module):
    """As much of a model as loading looks at."""

    def __init__(self, backbone: nn.Module, mean: Any = RGB_MEAN, std: Any = RGB_STD) -> None:
        super().__init__()
        self.backbone = backbone.eval()
        self.sem_seg_head = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)


def _randomize(model: nn.Module) -> nn.Module:
    """Values that no initialisation has, so that a tensor that is not copied shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.rand(tensor.shape, generator=generator)
        if tensor.ndim == 1 and not name.endswith(("bias", "running_mean")):
            tensor.copy_(0.5 + noise)  # variances and scales
        else:
            tensor.copy_((noise - 0.5) * 2 * (3 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.ndim > 1 else noise - 0.5)
    return model.eval()


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def _resnet_features(model: Any, image: Tensor) -> list[Tensor]:
    x = model.maxpool(F.relu(model.bn1(model.conv1(image))))
    maps = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        maps.append(x)
    return maps


@torch.no_grad()
def _assert_same_features(backbone: nn.Module, expected: list[Tensor], image: Tensor) -> None:
    for actual, wanted in zip(backbone(image).values(), expected, strict=True):
        _assert_close(actual, wanted)


def _torchvision_resnet(depth: int) -> nn.Module:
    block, layers = {
        18: (torchvision_resnet.BasicBlock, [2, 2, 2, 2]),
        50: (torchvision_resnet.Bottleneck, [3, 4, 6, 3]),
    }[depth]
    options = {} if depth == 18 else {"width_per_group": 16}
    return torchvision_resnet.ResNet(block, layers, num_classes=3, **options)


def _our_resnet(depth: int, **options: Any) -> ResNet:
    if depth == 18:
        return ResNet(depth=18, res2_out_channels=64, **options)
    return ResNet(depth=depth, width_per_group=16, **options)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_torchvision_resnet_gives_same_features(tmp_path: Path, depth: int, norm: str) -> None:
    theirs = _randomize(_torchvision_resnet(depth))
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = _Model(_our_resnet(depth, norm=norm))
    report = load_weights(model, tmp_path / "resnet.pth")
    assert set(report.missing) == {"sem_seg_head.weight", "sem_seg_head.bias"}
    assert not report.unexpected
    assert not report.mismatched
    assert not report.notes
    image = torch.randn(IMAGE)
    _assert_same_features(model.backbone, _resnet_features(theirs, image), image)


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "basic"), ("resnet50c", "deeplab")])
def test_timm_resnet_gives_same_features(tmp_path: Path, name: str, stem: str) -> None:
    theirs: Any = _randomize(timm.create_model(name, num_classes=3))
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    depth = int(name[6:8])
    options = {"res2_out_channels": 64} if depth == 18 else {}
    model = _Model(ResNet(depth=depth, stem_type=stem, **options))
    report = load_weights(model, tmp_path / "resnet.pth")
    assert set(report.missing) == {"sem_seg_head.weight", "sem_seg_head.bias"}
    assert not report.unexpected
    image = torch.randn(1, 3, 33, 64)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, intermediates_only=True)[1:]
    _assert_same_features(model.backbone, expected, image)


@pytest.mark.parametrize("name", ["resnet26d", "seresnet50"])
def test_resnet_of_another_architecture_is_refused(tmp_path: Path, name: str) -> None:
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: ResNet.*another architecture"):
        read_converted(tmp_path / "other.pth")


@torch.no_grad()
def _assert_same_swin_features(ours: Any, expected: list[Tensor], image: Tensor) -> None:
    """Theirs are maps before the norm that each of our features passes."""
    features = ours(image)
    for index, (name, actual) in enumerate(features.items()):
        norm = ours.get_submodule(f"norm{index}")
        wanted = norm(expected[index]).permute(0, 3, 1, 2)  # from (B, H, W, C)
        _assert_close(actual, wanted)
        assert name == f"res{index + 2}"


def _timm_swin(image_size: int = 64, window: int = 2) -> Any:
    name = "swin_tiny_patch4_window7_224"
    return _randomize(timm.create_model(name, img_size=image_size, window_size=window, num_classes=3, **SWIN))


def _timm_maps(theirs: Any, image: Tensor) -> list[Tensor]:
    x, maps = theirs.patch_embed(image), []
    for layer in theirs.layers:
        x = layer(x)
        maps.append(x)
    return maps


def test_timm_swin_gives_same_features(tmp_path: Path) -> None:
    theirs = _timm_swin()
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    model = _Model(D2SwinTransformer(window_size=2, **SWIN))
    report = load_weights(model, tmp_path / "swin.pth")
    assert {name for name in report.missing if "sem_seg" not in name} == _OUR_NORMS
    assert not report.unexpected
    assert not report.adapted
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _assert_same_swin_features(model.backbone, _timm_maps(theirs, image), image)


_OUR_NORMS = {f"backbone.norm{index}.{part}" for index in range(4) for part in ("weight", "bias")}


def test_torchvision_swin_gives_same_features(tmp_path: Path) -> None:
    theirs = torchvision_swin.SwinTransformer(
        [4, 4], SWIN["embed_dim"], list(SWIN["depths"]), list(SWIN["num_heads"]), [3, 3], num_classes=3
    )
    _randomize(theirs)
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    model = _Model(D2SwinTransformer(window_size=3, **SWIN))
    report = load_weights(model, tmp_path / "swin.pth")
    assert {name for name in report.missing if "sem_seg" not in name} == _OUR_NORMS
    assert not report.unexpected
    image, maps = torch.randn(1, 3, 192, 96), []
    x = image
    with torch.no_grad():
        for index, layer in enumerate(theirs.features):
            x = layer(x)
            if index % 2:
                maps.append(x)
        _assert_same_swin_features(model.backbone, maps, image)


def _original_swin() -> tuple[D2SwinTransformer, dict[str, Tensor]]:
    """Our backbone and its weights as the original repository saves a classifier."""
    ours = D2SwinTransformer(window_size=3, **SWIN)
    _randomize(ours)
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("norm")}
    state |= {"norm.weight": torch.ones(96), "norm.bias": torch.ones(96), "head.weight": torch.ones(3, 96)}
    state["layers.0.blocks.1.attn_mask"] = torch.ones(4, 9, 9)
    return ours, state


@pytest.mark.parametrize("flagged", [False, True])
def test_original_swin_is_loaded_from_pth_and_converted_pkl(tmp_path: Path, flagged: bool) -> None:
    source, state = _original_swin()
    path = tmp_path / ("swin.pkl" if flagged else "swin.pth")
    if flagged:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}))
    else:
        torch.save({"model": state}, path)
    model = _Model(D2SwinTransformer(window_size=3, **SWIN))
    report = load_weights(model, path)
    assert {name for name in report.missing if "sem_seg" not in name} == _OUR_NORMS
    assert not report.unexpected
    for name, tensor in model.backbone.state_dict().items():
        if not name.startswith("norm"):
            assert torch.equal(tensor, source.state_dict()[name]), name


def test_swin_tables_of_another_window_are_interpolated(tmp_path: Path) -> None:
    _, state = _original_swin()
    torch.save({"model": state}, tmp_path / "swin.pth")
    model = _Model(D2SwinTransformer(window_size=5, **SWIN))
    report = load_weights(model, tmp_path / "swin.pth")
    assert set(report.adapted.values()) == {((25, heads), (81, heads)) for heads in SWIN["num_heads"]}
    assert not report.mismatched
    assert "5 resized" in report.format()
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    small, large = state[name].view(5, 5), model.backbone.state_dict()[name].view(9, 9)
    assert torch.allclose(large[4, 4], small[2, 2], atol=1e-6)  # the offset (0, 0) stays the centre


def _caffe2_state(ours: ResNet) -> dict[str, np.ndarray]:
    """Weights of our backbone by the names of the original ResNets, without statistics."""
    state = {"pred_w": np.ones((3, 2048)), "pred_b": np.ones(3), "conv1_b": np.ones(64)}
    parts = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    for name, tensor in ours.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        *place, last = name.split(".")
        if name == "stem.conv1.weight":
            state["conv1_w"] = array
        elif last in ("running_mean", "running_var"):
            continue
        elif place[0] == "stem":
            state[f"res_conv1_bn_{last[0].replace('w', 's')}"] = array
        else:
            theirs = f"{place[0]}_{place[1]}_{parts[place[2]]}"
            suffix = "w" if "norm" not in place else f"bn_{last[0].replace('w', 's')}"
            state[f"{theirs}_{suffix}"] = array
    return state


def test_caffe2_resnet_is_loaded_with_constant_statistics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _our_resnet(50, stride_in_1x1=True)
    _randomize(source)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(_caffe2_state(source)))
    model = _Model(_our_resnet(50, stride_in_1x1=True))
    report = load_weights(model, path)
    assert set(report.missing) == {"sem_seg_head.weight", "sem_seg_head.bias"}
    assert not report.unexpected
    norm = model.backbone.stem.conv1.norm
    scale, shift = norm.scale_and_shift()
    assert torch.equal(norm.weight, source.stem.conv1.norm.weight)
    assert torch.allclose(scale, norm.weight)
    assert torch.equal(shift, norm.bias)
    # BGR weights in a model that is fed RGB, with the stride elsewhere than by default
    assert "these weights expect BGR images" in caplog.text
    assert "STRIDE_IN_1X1 True" in caplog.text


@pytest.mark.parametrize("flagged", [False, True])
def test_detectron2_resnet_is_loaded(tmp_path: Path, flagged: bool) -> None:
    source = _our_resnet(50)
    _randomize(source)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    arrays["stem.fc.weight"] = np.ones((3, 2048))
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True} if flagged else arrays))
    model = _Model(_our_resnet(50))
    report = load_weights(model, path)
    assert set(report.missing) == {"sem_seg_head.weight", "sem_seg_head.bias"}
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def test_weights_for_rgb_in_a_model_of_bgr_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(_torchvision_resnet(18).state_dict(), tmp_path / "resnet.pth")
    report = load_weights(_Model(_our_resnet(18), RGB_MEAN[::-1], RGB_STD[::-1]), tmp_path / "resnet.pth")
    assert "INPUT.FORMAT RGB MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in report.notes[0]
    assert report.notes[0] in caplog.text


def test_swapped_channels_take_bgr_images(tmp_path: Path) -> None:
    theirs = _randomize(_torchvision_resnet(18))
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    converted = read_converted(tmp_path / "resnet.pth", swap_channels=True)
    save_atomic({"model": converted.tensors}, tmp_path / "bgr.pth")
    model = _Model(_our_resnet(18))
    load_weights(model, tmp_path / "bgr.pth")
    image = torch.randn(IMAGE)
    features = _resnet_features(theirs, image)
    with torch.no_grad():
        _assert_close(model.backbone(image.flip(1))["res5"], features[-1])


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_converted_backbone_is_read_again(tmp_path: Path, suffix: str) -> None:
    torch.save(_randomize(_torchvision_resnet(18)).state_dict(), tmp_path / "resnet.pth")
    converted = read_converted(tmp_path / "resnet.pth")
    write_ours(converted.tensors, tmp_path / f"ours{suffix}")
    again = read_converted(tmp_path / f"ours{suffix}")
    assert again.tensors.keys() == converted.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in converted.tensors.items())
