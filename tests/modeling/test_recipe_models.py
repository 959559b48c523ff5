"""Every published recipe builds the published model: names, shapes and dtypes of the state dict, parameter counts.

The state dicts of thirteen models are known. The others have the backbone and the decoders of one of these and differ
in numbers of classes and queries alone, which is how what is expected of them is made.
"""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

import pytest
import torch

from mask2former import build_model
from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from tests.parity import CONFIG_DIR, REFERENCE_DIR, load_state_dict_reference

RECIPES: dict[str, dict[str, Any]] = json.loads((REFERENCE_DIR / "recipes.json").read_text())
DEFAULTS = {
    **json.loads((REFERENCE_DIR / "config_defaults.json").read_text()),
    **json.loads((REFERENCE_DIR / "config_defaults_video_extra.json").read_text()),
}
# State dict of which recipe, as published.
REFERENCES = {
    "ade20k/semantic-segmentation/maskformer2_R101_bs16_90k.yaml": "ade20k_semantic_r101_bs16_90k",
    "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml": "ade20k_semantic_r50",
    "cityscapes/panoptic-segmentation/maskformer2_R101_bs16_90k.yaml": "cityscapes_panoptic_r101",
    "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml": "coco_instance_r50",
    "coco/panoptic-segmentation/maskformer2_R101_bs16_50ep.yaml": "coco_panoptic_r101",
    "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml": "coco_panoptic_r50",
    "coco/panoptic-segmentation/swin/maskformer2_swin_base_384_bs16_50ep.yaml": "coco_panoptic_swin_base",
    "coco/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml": "coco_panoptic_swin_large",
    "coco/panoptic-segmentation/swin/maskformer2_swin_small_bs16_50ep.yaml": "coco_panoptic_swin_small",
    "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml": "coco_panoptic_swin_tiny",
    "mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k.yaml": "mapillary_semantic_r50",
    "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml": "ytvis2019_video_r50",
    "youtubevis_2021/swin/video_maskformer2_swin_tiny_bs16_8ep.yaml": "ytvis2021_video_swin_tiny",
}
BASES = sorted(recipe for recipe in RECIPES if recipe.split("/")[-1].startswith("Base-"))
LEAVES = sorted(set(RECIPES) - set(BASES))

DEPTH = "MODEL.RESNETS.DEPTH"
BLOCKS_OF_RESNET101_ALONE = r"backbone\.res4\.(6|7|8|9|1\d|2\d)\."
# Keys that change the layout of a model, with those of its backbone's family but for some.
WITHOUT_LAYOUT = ("DROP_PATH_RATE", "DROP_RATE", "USE_CHECKPOINT", "PRETRAIN_IMG_SIZE")
LAYOUT = (
    "MODEL.BACKBONE.NAME",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.SEM_SEG_HEAD.NAME",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM",
    "MODEL.SEM_SEG_HEAD.MASK_DIM",
    "MODEL.SEM_SEG_HEAD.NORM",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "MODEL.MASK_FORMER.HIDDEN_DIM",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD",
    "MODEL.MASK_FORMER.NHEADS",
    "MODEL.MASK_FORMER.DEC_LAYERS",
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE",
)


def published(recipe: str) -> dict[str, Any]:
    return {**DEFAULTS, **RECIPES[recipe]}


def layout(recipe: str, **changes: Any) -> tuple[str, ...]:
    """What a recipe says of the layout of its model, numbers of classes and queries left open."""
    values = {**published(recipe), **changes}
    family = "MODEL.SWIN." if values["MODEL.BACKBONE.NAME"] == "D2SwinTransformer" else "MODEL.RESNETS."
    keys = [*LAYOUT, *(key for key in sorted(DEFAULTS) if key.startswith(family))]
    # The decoder of video models has the layout of the one for images.
    decoder = values["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"].removeprefix("Video")
    return (decoder, *(f"{key} {values[key]}" for key in keys if not key.endswith(WITHOUT_LAYOUT)))


@functools.cache
def find_reference(recipe: str) -> str:
    """The recipe whose state dict is known and has the layout of this one: itself, if its own is known."""
    if recipe in REFERENCES:
        return recipe
    equal = [known for known in REFERENCES if layout(known) == layout(recipe)]
    # Of ResNet-50 with statistics of the batch only the deeper relative is known.
    deeper = [known for known in REFERENCES if layout(known) == layout(recipe, **{DEPTH: 101})]
    return [*equal, *deeper][0]


def derive_model(recipe: str, source: str) -> dict[str, Any]:
    """`state_dict` (name → [shape, dtype]), `num_parameters` and `num_trainable`, of what is known of `source`."""
    reference = load_state_dict_reference(REFERENCES[source])
    values = published(recipe)
    num_outputs, num_queries = (
        values["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] + 1,
        values["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"],
    )
    rows = {
        **dict.fromkeys(("class_embed.weight", "class_embed.bias", "empty_weight"), num_outputs),
        **dict.fromkeys(("query_feat.weight", "query_embed.weight"), num_queries),
    }
    is_shallower = values[DEPTH] < published(source)[DEPTH]
    frozen_norms = published(source)["MODEL.RESNETS.NORM"] == "FrozenBN"
    entries, growth = {}, 0
    for name, (shape, dtype) in reference["state_dict"].items():
        is_buffer = bool(re.search(r"empty_weight|running_|num_batches", name))
        is_buffer = is_buffer or (frozen_norms and name.startswith("backbone") and ".norm." in name)
        num_rows = next((count for suffix, count in rows.items() if name.endswith(suffix)), None)
        new_shape = shape if num_rows is None else [num_rows, *shape[1:]]
        if is_shallower and re.match(BLOCKS_OF_RESNET101_ALONE, name):
            growth -= 0 if is_buffer else math.prod(shape)
            continue
        entries[name] = [new_shape, dtype]
        growth += 0 if is_buffer else math.prod(new_shape) - math.prod(shape)
    return {
        "state_dict": entries,
        "num_parameters": reference["num_parameters"] + growth,
        "num_trainable": reference["num_trainable"] + growth,
    }


def known_pairs() -> list[tuple[str, str]]:
    """(recipe, source), both known, such that the first can be derived from the second."""
    pairs = [(a, b) for a in REFERENCES for b in REFERENCES if a != b and layout(a) == layout(b)]
    deeper = [(a, b) for a in REFERENCES for b in REFERENCES if layout(a) != layout(b) == layout(a, **{DEPTH: 101})]
    return [*pairs, *(pair for pair in deeper if published(pair[0])[DEPTH] == 50)]


@pytest.mark.parametrize("recipe", LEAVES)
def test_recipe_builds_published_model(recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG_DIR / recipe)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    expected = derive_model(recipe, find_reference(recipe))
    entries = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.state_dict().items()
    }
    assert entries == expected["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["num_parameters"]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == expected["num_trainable"]


@pytest.mark.parametrize(("recipe", "source"), known_pairs())
def test_derived_model_is_the_known_one(recipe: str, source: str) -> None:
    known, derived = load_state_dict_reference(REFERENCES[recipe]), derive_model(recipe, source)
    assert derived == {key: known[key] for key in derived}


@pytest.mark.parametrize("recipe", BASES)
def test_base_recipe_without_model_says_so(recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG_DIR / recipe)
    with pytest.raises(ConfigError, match=r"MODEL\.META_ARCHITECTURE: expected one of"):
        build_model(cfg)


def test_every_published_recipe_is_compared() -> None:
    assert len(BASES) == 12
    assert len(LEAVES) == 59
    assert set(REFERENCES) <= set(LEAVES)
    assert len(known_pairs()) >= 8
