"""A model whose weights are bfloat16, without autocast, on a CPU: inference and training end to end."""

from __future__ import annotations

import pytest
import torch

from mask2former import build_model
from mask2former.config import get_cfg
from mask2former.modeling import prepare_for_inference
from mask2former.structures import Instances

_TINY = """MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 64 MODEL.SEM_SEG_HEAD.MASK_DIM 64 MODEL.WEIGHTS ''
 MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 64 MODEL.MASK_FORMER.NHEADS 2
 MODEL.MASK_FORMER.DIM_FEEDFORWARD 64 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8
 MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64""".split()
_SIZE = (96, 128)


@pytest.mark.parametrize(
    "config",
    [
        "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
        "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml",
        "ade20k/semantic-segmentation/maskformer_encoder_R50_bs16_160k.yaml",
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_bfloat16_model_predicts_and_learns(config: str, dtype: torch.dtype) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(f"configs/{config}")
    cfg.merge_from_list(_TINY)
    torch.manual_seed(0)
    model = build_model(cfg).bfloat16()
    image = torch.randint(0, 255, (3, *_SIZE)).to(dtype)
    target = Instances(_SIZE)
    target.gt_classes, target.gt_masks = torch.tensor([1, 2]), torch.rand(2, *_SIZE) > 0.5
    is_video = "video" in config
    if is_video:
        target.gt_ids = torch.tensor([0, 1])
    losses = model.train()(
        [{"image": [image] * 2, "instances": [target] * 2} if is_video else {"image": image, "instances": target}]
    )
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    inputs = [{"image": [image] * 2 if is_video else image, "height": _SIZE[0], "width": _SIZE[1]}]
    model.eval()
    with torch.inference_mode():
        assert len(model(inputs)) > 0
        prepare_for_inference(model)
        assert len(model(inputs)) > 0
