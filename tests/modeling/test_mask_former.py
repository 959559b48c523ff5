from __future__ import annotations

import copy
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.errors import ConfigError, DatasetError, InputError, NonFiniteError
from mask2former.modeling import META_ARCH_REGISTRY, POSTPROCESSING_REGISTRY, MaskFormer, build_model
from mask2former.modeling.meta_arch import assembly
from mask2former.modeling.meta_arch.assembly import usable_device
from mask2former.structures import BitMasks, Instances, MetadataCatalog
from tests.parity import NUM_CLASSES, fixture_config, load_fixture, register_metadata

REPOSITORY = Path(__file__).parents[2]


def tiny_config(*overrides: Any) -> Any:
    register_metadata()
    cfg = fixture_config(load_fixture("tiny_resnet_panoptic"))
    cfg.merge_from_list(["MODEL.MASK_FORMER.DEC_LAYERS", 4, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 32, *overrides])
    return cfg


@pytest.fixture
def model() -> MaskFormer:
    return build_model(tiny_config()).eval()


def random_image(height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def random_instances(count: int, height: int, width: int, **fields: Any) -> Instances:
    classes = torch.randint(NUM_CLASSES, (count,))
    return Instances((height, width), gt_classes=classes, gt_masks=torch.rand(count, height, width) > 0.5, **fields)


def training_sample(count: int, height: int, width: int) -> dict[str, Any]:
    return {"image": random_image(height, width), "instances": random_instances(count, height, width)}


def test_model_results_have_the_asked_size(model: MaskFormer) -> None:
    batch = [{"image": random_image(61, 93), "height": 33, "width": 47}, {"image": random_image(80, 50)}]
    first, second = model(batch)
    for result, size in ((first, (33, 47)), (second, (80, 50))):
        assert result["sem_seg"].shape == (NUM_CLASSES, *size)
        assert result["panoptic_seg"][0].shape == size
        assert result["instances"].pred_masks.shape[1:] == size
        assert not result["sem_seg"].requires_grad


def test_model_batch_infers_as_its_single_images_do(model: MaskFormer) -> None:
    batch = [{"image": random_image(64, 96)}, {"image": random_image(61, 90)}]  # both are padded to 64 x 96
    together = model(batch)
    for sample, result in zip(batch, together):
        (alone,) = model([sample])
        torch.testing.assert_close(result["sem_seg"], alone["sem_seg"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (0, 0), (15, 1)])
def test_model_losses_are_finite_and_reach_every_parameter(model: MaskFormer, counts: tuple[int, int]) -> None:
    model.train()
    losses = model([training_sample(counts[0], 61, 93), training_sample(counts[1], 40, 50)])
    assert list(losses)[:3] == ["loss_ce", "loss_mask", "loss_dice"]
    assert len(losses) == 12
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (5, 32)])
def test_model_trains_and_infers_on_one_smallest_image(model: MaskFormer, size: tuple[int, int]) -> None:
    losses = model.train()([training_sample(2, *size)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    (result,) = model.eval()([{"image": random_image(*size)}])
    assert result["sem_seg"].shape == (NUM_CLASSES, *size)


def test_model_losses_are_weighted(model: MaskFormer, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = {"loss_ce": torch.ones(()), "loss_mask": torch.ones(()), "loss_dice_2": torch.ones(())}
    monkeypatch.setattr(model.criterion, "forward", lambda *_: ones)
    losses = model.train()([training_sample(1, 64, 64)])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_ce": 2, "loss_mask": 5, "loss_dice_2": 5}


def test_model_without_deep_supervision_has_losses_of_one_layer() -> None:
    model = build_model(tiny_config("MODEL.MASK_FORMER.DEEP_SUPERVISION", False)).train()
    losses = model([training_sample(2, 64, 64)])
    assert list(losses) == ["loss_ce", "loss_mask", "loss_dice"]
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_model_takes_bitmasks_as_targets(model: MaskFormer) -> None:
    sample = training_sample(3, 64, 64)
    as_bitmasks = Instances((64, 64), gt_classes=sample["instances"].gt_classes)
    as_bitmasks.gt_masks = BitMasks(sample["instances"].gt_masks)
    model.train()
    torch.manual_seed(1)
    expected = model([sample])
    torch.manual_seed(1)
    found = model([{**sample, "instances": as_bitmasks}])
    assert all(torch.equal(found[name], loss) for name, loss in expected.items())


def test_model_trains_and_infers_under_bfloat16(model: MaskFormer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([training_sample(3, 64, 64)])
        (result,) = model.eval()([{"image": random_image(64, 64)}])
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert result["sem_seg"].dtype == torch.float32
    assert result["sem_seg"].isfinite().all()


def test_model_in_channels_last_gives_the_same_results() -> None:
    plain, channels_last = (
        build_model(tiny_config()).eval(),
        build_model(tiny_config("MODEL.CHANNELS_LAST", True)).eval(),
    )
    channels_last.load_state_dict(plain.state_dict())
    batch = [{"image": random_image(64, 96)}]
    torch.testing.assert_close(channels_last(batch)[0]["sem_seg"], plain(batch)[0]["sem_seg"], rtol=1e-3, atol=1e-3)


def clip(frames: int, height: int, width: int) -> list[Tensor]:
    return [random_image(height, width) for _ in range(frames)]


def test_model_infers_clips(model: MaskFormer) -> None:
    frames = clip(3, 61, 90)
    first, second = model([{"image": frames, "height": 40, "width": 60}, {"image": torch.stack(clip(3, 50, 64))}])
    assert sorted(first) == ["image_size", "pred_labels", "pred_masks", "pred_scores"]
    assert all(mask.shape == (3, 40, 60) and mask.dtype == torch.bool for mask in first["pred_masks"])
    assert second["image_size"] == (50, 64)
    assert len(second["pred_scores"]) == len(second["pred_masks"]) == 10


def test_model_clip_of_one_frame_is_an_image(model: MaskFormer) -> None:
    image = random_image(64, 96)
    with torch.no_grad():
        of_clip = model.sem_seg_head(model.features((image[None] - model.pixel_mean) / model.pixel_std, num_frames=1))
        of_image = model.sem_seg_head(model.features((image[None] - model.pixel_mean) / model.pixel_std))
    assert of_clip["pred_masks"].shape == (1, 12, 1, 16, 24)
    assert torch.equal(of_clip["pred_masks"].squeeze(2), of_image["pred_masks"])
    assert len(of_image["aux_outputs"]) == 3


def test_model_trains_on_clips(model: MaskFormer) -> None:
    ids = [torch.tensor([7, 8, -1]), torch.tensor([7, -1, -1])]
    classes = torch.tensor([1, 2, 3])
    instances = [
        Instances((61, 90), gt_classes=classes, gt_ids=frame_ids, gt_masks=torch.rand(3, 61, 90) > 0.5)
        for frame_ids in ids
    ]
    losses = model.train()([{"image": clip(2, 61, 90), "instances": instances}])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_clip_targets_leave_out_what_no_frame_shows() -> None:
    from mask2former.modeling.meta_arch.inputs import pad_targets

    ids = [torch.tensor([7, 8, -1]), torch.tensor([7, -1, -1])]
    instances = [
        Instances(
            (20, 30), gt_classes=torch.tensor([1, 2, 3]), gt_ids=i, gt_masks=torch.ones(3, 20, 30, dtype=torch.bool)
        )
        for i in ids
    ]
    batch = [{"image": clip(2, 20, 30), "instances": instances}]
    (target,) = pad_targets(batch, size=(32, 32), num_classes=5, device=torch.device("cpu"))
    assert target["labels"].tolist() == [1, 2]
    assert target["masks"].shape == (2, 2, 32, 32)
    assert target["masks"].sum().item() == 4 * 20 * 30
    assert not target["masks"][..., 20:, :].any()


@pytest.mark.parametrize("frames", [[], [1, 2], [0, 2]])
def test_model_refuses_mixed_batches(model: MaskFormer, frames: list[int]) -> None:
    batch = [{"image": clip(n, 32, 32) if n else random_image(32, 32)} for n in frames]
    with pytest.raises(InputError, match="images, or clips"):
        model(batch)


def test_model_refuses_images_of_other_channels(model: MaskFormer) -> None:
    with pytest.raises(InputError, match=r"a\.jpg: expected an image \(3, H, W\)"):
        model([{"image": torch.zeros(32, 32, 3), "file_name": "a.jpg"}])


def test_model_refuses_classes_out_of_range(model: MaskFormer) -> None:
    sample = {**training_sample(2, 64, 64), "file_name": "b.jpg"}
    sample["instances"].gt_classes = torch.tensor([0, NUM_CLASSES])
    with pytest.raises(DatasetError, match=r"b\.jpg: class ids must lie in 0\.\.8 .*found 0\.\.9"):
        model.train()([sample])


def test_model_refuses_training_without_targets_and_with_larger_masks(model: MaskFormer) -> None:
    model.train()
    with pytest.raises(DatasetError, match="needs 'instances'"):
        model([{"image": random_image(64, 64)}])
    with pytest.raises(DatasetError, match="exceed the padded image"):
        model([{"image": random_image(64, 64), "instances": random_instances(1, 80, 64)}])


def test_model_names_non_finite_values(model: MaskFormer) -> None:
    nn.init.constant_(model.sem_seg_head.predictor.class_embed.bias, float("nan"))
    with pytest.raises(NonFiniteError, match="class logits of prediction layer 0"):
        model.train()([training_sample(2, 64, 64)])


def test_model_takes_things_from_the_first_dataset_that_knows_and_keeps_them(model: MaskFormer) -> None:
    assert model.thing_ids == {0, 1, 2, 3, 4}
    MetadataCatalog.get("things_for_test").set(thing_dataset_id_to_contiguous_id={17: 2})
    names = ("DATASETS.TRAIN", ("unheard_of", "things_for_test"), "DATASETS.TEST", ())  # built-in ones may be known
    built = build_model(tiny_config(*names))
    MetadataCatalog.remove("things_for_test")
    assert built.thing_ids == copy.deepcopy(built).thing_ids == {2}
    later = build_model(tiny_config(*names))
    MetadataCatalog.get("things_for_test").set(thing_dataset_id_to_contiguous_id={17: 2})
    MetadataCatalog.remove("things_for_test")
    assert later.thing_ids is None


def test_things_of_built_in_data_sets_do_not_depend_on_what_was_built_before() -> None:
    code = (
        "import mask2former\n"
        "cfg = mask2former.get_cfg()\n"
        "cfg.merge_from_file('configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml')\n"
        "cfg.MODEL.DEVICE = 'cpu'\n"
        "cfg.DATASETS.TRAIN = ('coco_2017_train_panoptic',)\n"
        "print(len(mask2former.build_model(cfg).thing_ids))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "80"


def test_model_without_metadata_treats_all_as_things_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        model = build_model(tiny_config("DATASETS.TRAIN", ("unheard_of",), "DATASETS.TEST", ())).eval()
        results = [model([{"image": random_image(64, 64)}])[0] for _ in range(2)]
    assert all(segment["isthing"] for result in results for segment in result["panoptic_seg"][1])
    assert sum("every class is treated as a thing" in record.message for record in caplog.records) == 1


def test_model_names_are_registered_and_unknown_ones_refused() -> None:
    assert issubclass(META_ARCH_REGISTRY.get("VideoMaskFormer"), MaskFormer)
    with pytest.raises(ConfigError, match=r"MODEL\.META_ARCHITECTURE.*GeneralizedRCNN"):
        build_model(tiny_config("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"))
    with pytest.raises(ConfigError, match=r"MODEL\.SEM_SEG_HEAD\.PIXEL_DECODER_NAME"):
        build_model(tiny_config("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "Unknown"))


def test_postprocessing_of_the_config_makes_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_sizes(class_logits: Tensor, mask_logits: Tensor, **options: Any) -> dict[str, Any]:
        return {"queries": len(class_logits), "size": options["geometry"].output}

    monkeypatch.setattr(POSTPROCESSING_REGISTRY, "_obj_map", {"name_sizes": name_sizes})
    model = build_model(tiny_config("MODEL.MASK_FORMER.POSTPROCESSING", "name_sizes")).eval()
    queries = model.sem_seg_head.predictor.num_queries
    sample = {"image": random_image(40, 50), "height": 20, "width": 25}
    assert model([sample]) == [{"queries": queries, "size": (20, 25)}]


def test_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("cuda") == torch.device("cpu")
    assert "running on the CPU" in caplog.text
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["mps", "xpu", "hpu", "xla", "mtia:1"])
def test_device_of_a_kind_that_the_machine_lacks_falls_back_too(name: str, caplog: pytest.LogCaptureFixture) -> None:
    if assembly._can_allocate(name):
        pytest.skip(f"{name} is here")
    assert usable_device(name) == torch.device("cpu")
    assert f"MODEL.DEVICE is {name!r}" in caplog.text


def test_model_exports(model: MaskFormer) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self.model.sem_seg_head(self.model.features(images))
            return outputs["pred_logits"], outputs["pred_masks"]

    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(Logits().eval(), (image,)).module()
        for found, expected in zip(exported(image), Logits()(image)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
