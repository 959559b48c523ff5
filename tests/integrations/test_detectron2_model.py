"""The models inside detectron2: the same losses and results as ours, its structures, backbones of both projects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is installed from its repository)")

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, SEM_SEG_HEADS_REGISTRY, Backbone, build_model
from detectron2.modeling import SemanticSegmentor as DetectronSemanticSegmentor
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from mask2former import structures as ours
from mask2former.integrations.detectron2 import instances_from_detectron2, instances_to_detectron2
from tests.integrations.tiny_detectron2 import fixture_models, randomise, tiny_shapes_cfg
from tests.parity import NUM_CLASSES, assert_close_to_peak

MODELS = ["tiny_resnet_panoptic", "tiny_swin_panoptic", "tiny_semantic_only", "tiny_maskformer_v1_encoder"]
PER_PIXEL = ["tiny_per_pixel", "tiny_per_pixel_plus"]
ALL_TASKS = [
    *("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True),
    *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", True, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64),
]


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def targets(count: int, height: int, width: int) -> ours.Instances:
    masks = torch.rand(count, height, width) > 0.5
    return ours.Instances((height, width), gt_classes=torch.randint(NUM_CLASSES, (count,)), gt_masks=masks)


def training_batch(*counts: int) -> list[dict[str, Any]]:
    sizes = [(61, 93), (40, 50), (64, 64)]
    return [{"image": image(*size), "instances": targets(n, *size)} for n, size in zip(counts, sizes)]


def in_detectron2(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**sample, "instances": instances_to_detectron2(sample["instances"])} for sample in batch]


def seeded_losses(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return model.train()(batch)


def assert_equal_losses(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (0, 0)])
def test_losses_equal_ours(name: str, counts: tuple[int, ...]) -> None:
    mine, theirs = fixture_models(name, *ALL_TASKS)
    batch = training_batch(*counts)
    expected, found = seeded_losses(mine, batch), seeded_losses(theirs, in_detectron2(batch))
    assert_equal_losses(found, expected)
    sum(found.values()).backward()
    assert [name for name, p in theirs.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
def test_results_equal_ours(name: str) -> None:
    mine, theirs = fixture_models(name, *ALL_TASKS)
    batch = [{"image": image(61, 93), "height": 33, "width": 47}, {"image": image(80, 50)}]
    for expected, found, size in zip(mine(batch), theirs(batch), [(33, 47), (80, 50)]):
        assert_close_to_peak(found["sem_seg"], expected["sem_seg"])
        (ids, segments), (expected_ids, expected_segments) = found["panoptic_seg"], expected["panoptic_seg"]
        assert float((ids != expected_ids).float().mean()) <= 1e-3
        assert [s["category_id"] for s in segments] == [s["category_id"] for s in expected_segments]
        instances = found["instances"]
        assert [type(instances), type(instances.pred_boxes)] == [Instances, Boxes]
        assert [instances.image_size, instances.pred_masks.shape[1:]] == [size, size]
        torch.testing.assert_close(instances.scores, expected["instances"].scores, rtol=1e-3, atol=1e-5)
        assert instances.pred_classes.tolist() == expected["instances"].pred_classes.tolist()


def test_clip_losses_and_results_equal_ours() -> None:
    mine, theirs = fixture_models("tiny_video")
    clip = {"image": [image(48, 64) for _ in range(2)], "height": 48, "width": 64}
    frames = [targets(2, 48, 64) for _ in range(2)]
    for frame in frames:
        frame.gt_classes = frame.gt_classes % 3
        frame.gt_ids = torch.tensor([4, 7])
    expected = seeded_losses(mine, [{**clip, "instances": frames}])
    found = seeded_losses(theirs, [{**clip, "instances": [instances_to_detectron2(frame) for frame in frames]}])
    assert_equal_losses(found, expected)
    (expected_result,), (result,) = mine.eval()([clip]), theirs.eval()([clip])
    assert result.keys() == expected_result.keys()
    torch.testing.assert_close(torch.tensor(result["pred_scores"]), torch.tensor(expected_result["pred_scores"]))


@pytest.mark.parametrize("name", PER_PIXEL)
def test_per_pixel_heads_train_and_infer_in_detectron2s_segmentor(name: str) -> None:
    mine, theirs = fixture_models(name)
    assert type(theirs) is DetectronSemanticSegmentor
    labels = torch.randint(NUM_CLASSES, (2, 64, 96))
    labels[:, :9] = 255
    batch = [{"image": image(64, 96), "sem_seg": sem_seg} for sem_seg in labels]
    assert_equal_losses(seeded_losses(theirs, batch), seeded_losses(mine, batch))
    sample = {"image": image(61, 93), "height": 33, "width": 47}
    (expected,), (found,) = mine.eval()([sample]), theirs.eval()([sample])
    assert_close_to_peak(found["sem_seg"], expected["sem_seg"])


def test_weights_have_the_same_names() -> None:
    mine, theirs = fixture_models("tiny_swin_panoptic")
    assert list(mine.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("kind", [BitMasks, PolygonMasks, torch.Tensor])
def test_model_takes_every_kind_of_target_masks(kind: type) -> None:
    mine, theirs = fixture_models("tiny_resnet_panoptic")
    polygons = [[np.array([4.0, 4.0, 40.0, 4.0, 40.0, 30.0])], [np.array([10.0, 20.0, 60.0, 20.0, 30.0, 60.0])]]
    masks = torch.from_numpy(np.stack([ours.polygons_to_bitmask(p, 64, 64) for p in polygons]))
    given = {BitMasks: BitMasks(masks), PolygonMasks: PolygonMasks(polygons), torch.Tensor: masks}[kind]
    classes, picture = torch.tensor([1, 4]), image(64, 64)
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 30], [10, 20, 60, 60]]))
    sample = {"image": picture, "instances": Instances((64, 64), gt_classes=classes, gt_masks=given, gt_boxes=boxes)}
    expected = {"image": picture, "instances": ours.Instances((64, 64), gt_classes=classes, gt_masks=masks)}
    assert_equal_losses(seeded_losses(theirs, [sample]), seeded_losses(mine, [expected]))


def test_model_trains_on_label_maps() -> None:
    _, theirs = fixture_models("tiny_semantic_only")
    labels = torch.full((64, 64), 255)
    labels[10:30], labels[40:] = 2, 7
    masks = torch.stack([labels == 2, labels == 7])
    picture = image(64, 64)
    instances = Instances((64, 64), gt_classes=torch.tensor([2, 7]), gt_masks=masks)
    expected = seeded_losses(theirs, [{"image": picture, "instances": instances}])
    assert_equal_losses(seeded_losses(theirs, [{"image": picture, "sem_seg": labels}]), expected)


def test_images_come_as_detectron2s_list() -> None:
    _, theirs = fixture_models("tiny_resnet_panoptic")
    images = theirs.preprocess_image([{"image": image(61, 93)}, {"image": image(70, 33)}])
    assert type(images) is ImageList
    assert images.tensor.shape == (2, 3, 96, 96)
    assert images.image_sizes == [(61, 93), (70, 33)]
    assert images[1].shape == (3, 70, 33)
    assert not images.tensor[0, :, 61:].any()


def test_instances_survive_the_way_there_and_back() -> None:
    fields: dict[str, Any] = {
        "gt_classes": torch.tensor([1, 2]),
        "gt_masks": ours.BitMasks(torch.rand(2, 9, 7) > 0.5),
        "gt_boxes": ours.Boxes([[0, 1, 2, 3], [1, 1, 5, 6]]),
        "names": ["a", "b"],
    }
    there = instances_to_detectron2(ours.Instances((9, 7), **fields))
    assert [type(there.gt_masks), type(there.gt_boxes)] == [BitMasks, Boxes]
    back = instances_from_detectron2(there)
    assert (back.image_size, back.names) == ((9, 7), ["a", "b"])
    assert torch.equal(back.gt_masks.tensor, fields["gt_masks"].tensor)
    assert torch.equal(back.gt_boxes.tensor, fields["gt_boxes"].tensor)
    assert instances_to_detectron2(there) is there
    assert instances_from_detectron2(back) is back


def test_no_instance_survives_too() -> None:
    there = instances_to_detectron2(ours.Instances((9, 7), gt_classes=torch.zeros(0), gt_masks=torch.zeros(0, 9, 7)))
    assert there.gt_masks.tensor.shape == (0, 9, 7)
    assert len(instances_from_detectron2(Instances((5, 5), gt_masks=PolygonMasks([])))) == 0


@BACKBONE_REGISTRY.register()
class UsersBackbone(Backbone):
    """What somebody may have in a project of detectron2."""

    def __init__(self, cfg: Any, input_shape: ShapeSpec) -> None:
        super().__init__()
        steps = [nn.Conv2d(input_shape.channels, 8, 4, stride=4), *(nn.Conv2d(8, 8, 2, stride=2) for _ in range(3))]
        self.steps = nn.ModuleList(steps)
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_channels = dict.fromkeys(self._out_features, 8)
        self._out_feature_strides = dict(zip(self._out_features, [4, 8, 16, 32]))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        for name, step in zip(self._out_features, self.steps):
            maps[name] = x = step(x)
        return maps


@BACKBONE_REGISTRY.register()
def build_tiny_vit_pyramid(cfg: Any, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    vit = ViT(img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_feature="last_feat")
    return SimpleFeaturePyramid(vit, "last_feat", 16, (4.0, 2.0, 1.0, 0.5), norm="LN", square_pad=128)


@pytest.mark.parametrize(
    ("backbone", "features", "padded"),
    [
        ("UsersBackbone", ["res2", "res3", "res4", "res5"], (64, 96)),
        ("build_tiny_vit_pyramid", ["p2", "p3", "p4", "p5"], (128, 128)),
        ("build_resnet_fpn_backbone", ["p2", "p3", "p4", "p5"], (64, 96)),
        ("build_resnet_deeplab_backbone", ["res2", "res3", "res4", "res5"], (64, 96)),
    ],
)
def test_backbones_of_detectron2_work_under_our_head(
    backbone: str, features: list[str], padded: tuple[int, int]
) -> None:
    head = "MODEL.SEM_SEG_HEAD."
    cfg = tiny_shapes_cfg(
        *("MODEL.BACKBONE.NAME", backbone, f"{head}IN_FEATURES", features),
        *(f"{head}DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", features[1:]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    )
    model = build_model(cfg)
    assert model.preprocess_image([{"image": image(61, 93)}]).tensor.shape[-2:] == padded
    batch = training_batch(2)
    batch[0]["instances"].gt_classes %= 3
    losses = model.train()(in_detectron2(batch))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    (result,) = model.eval()([{"image": image(61, 93), "height": 40, "width": 50}])
    assert result["panoptic_seg"][0].shape == (40, 50)


def test_backbone_of_ours_alone_is_found_too() -> None:
    from mask2former.modeling import BACKBONE_REGISTRY as OUR_BACKBONES
    from mask2former.modeling.backbone import build_resnet_backbone

    OUR_BACKBONES._do_register("build_somebodys_resnet", build_resnet_backbone)
    try:
        model = build_model(tiny_shapes_cfg("MODEL.BACKBONE.NAME", "build_somebodys_resnet"))
    finally:
        del OUR_BACKBONES._obj_map["build_somebodys_resnet"]
    assert type(model.backbone).__module__.startswith("mask2former")


SWIN = ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]]
SWIN += ["MODEL.SWIN.NUM_HEADS", [1, 1, 2, 2], "MODEL.SWIN.WINDOW_SIZE", 4]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet10t"]


@pytest.mark.parametrize("backbone", [SWIN, TIMM], ids=["swin", "timm"])
def test_our_backbones_work_under_heads_of_detectron2(backbone: list[Any]) -> None:
    cfg = tiny_shapes_cfg(
        *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"], *backbone),
    )
    model = build_model(cfg)
    assert isinstance(model.backbone, Backbone)
    sem_seg = torch.randint(3, (64, 64))
    (loss,) = model.train()([{"image": image(64, 64), "sem_seg": sem_seg}]).values()
    loss.backward()
    assert loss.isfinite()
    (result,) = model.eval()([{"image": image(61, 93)}])
    assert result["sem_seg"].shape[1:] == (61, 93)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    bottom_up = BACKBONE_REGISTRY.get("D2SwinTransformer")(cfg, input_shape)
    return FPN(bottom_up=bottom_up, in_features=["res2", "res3", "res4", "res5"], out_channels=16)


def test_our_swin_detects_boxes_with_detectron2s_retinanet() -> None:
    cfg = tiny_shapes_cfg(
        *(*SWIN, "MODEL.BACKBONE.NAME", "build_swin_fpn_backbone", "MODEL.META_ARCHITECTURE", "RetinaNet"),
        *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]]),
    )
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 30], [10, 20, 60, 60]]))
    instances = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([0, 2]))
    with EventStorage():
        losses = build_model(cfg).train()([{"image": image(64, 64), "instances": instances}])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@SEM_SEG_HEADS_REGISTRY.register()
class UsersPixelDecoder(nn.Module):
    """A pixel decoder of somebody's project, with the published interface."""

    def __init__(self, cfg: Any, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self.names = ["res5", "res4", "res3"]
        self.projections = nn.ModuleList(nn.Conv2d(input_shape[name].channels, 32, 1) for name in self.names)
        self.mask_features = nn.Conv2d(input_shape["res2"].channels, 32, 1)

    def forward_features(self, features: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None, list[torch.Tensor]]:
        maps = [projection(features[name]) for name, projection in zip(self.names, self.projections)]
        return self.mask_features(features["res2"]), None, maps


def test_pixel_decoder_of_a_detectron2_project_works_in_our_head() -> None:
    model = build_model(tiny_shapes_cfg("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "UsersPixelDecoder"))
    (result,) = randomise(model).eval()([{"image": image(61, 93)}])
    assert type(model.sem_seg_head.pixel_decoder) is UsersPixelDecoder
    assert result["panoptic_seg"][0].shape == (61, 93)


def test_components_are_made_from_arguments_too() -> None:
    from mask2former.integrations.detectron2 import D2SwinTransformer, MaskFormerHead

    swin = D2SwinTransformer(embed_dim=8, depths=[1, 1], num_heads=[1, 1], out_features=["res2", "res3"])
    assert swin.output_shape()["res3"].channels == 16
    assert MaskFormerHead(3, pixel_decoder=nn.Identity(), predictor=nn.Identity()).num_classes == 3
