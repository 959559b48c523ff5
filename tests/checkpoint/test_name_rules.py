"""Rules that pair names of two families, both ways."""

from __future__ import annotations

import pytest
import torch

from mask2former.checkpoint.families import rename_older_layout
from mask2former.checkpoint.name_rules import Rule, Template, rename_from_ours, rename_to_ours

RULES = (
    Rule("layer{i}.{j}.bn{k}.{p}", "res{i+1}.{j}.conv{k}.norm.{p}"),
    Rule("down.{i}.weight", "up_{3-i}.weight"),
    Rule(("q.{i}.{p}", "k.{i}.{p}", "v.{i}.{p}"), "qkv.{i}.{p}"),
)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("layer1.12.bn3.running_var", "res2.12.conv3.norm.running_var"),
        ("down.0.weight", "up_3.weight"),
        ("down.3.weight", "up_0.weight"),
    ],
)
def test_rules_rename_both_ways(theirs: str, ours: str) -> None:
    tensor = torch.randn(3)
    assert list(rename_to_ours({theirs: tensor}, RULES).tensors) == [ours]
    assert list(rename_from_ours({ours: tensor}, RULES).tensors) == [theirs]


@pytest.mark.parametrize("name", ["up_4.weight", "layer1.0.bn1.a.b", "prefix.down.0.weight", "res0.1.conv1.norm.bias"])
def test_rules_leave_other_names_alone(name: str) -> None:
    for rename in (rename_to_ours, rename_from_ours):
        renamed = rename({name: torch.ones(1)}, RULES)
        assert renamed.unknown == [name]
        assert list(renamed.tensors) == [name]


def test_rules_stack_parts_in_any_order_and_take_them_apart() -> None:
    parts = {f"{part}.0.weight": torch.randn(2, 3) for part in "vqk"}
    stacked = rename_to_ours(parts, RULES).tensors
    assert torch.equal(stacked["qkv.0.weight"], torch.cat([parts[f"{part}.0.weight"] for part in "qkv"]))
    back = rename_from_ours(stacked, RULES).tensors
    assert back.keys() == parts.keys()
    assert all(torch.equal(back[name], parts[name]) for name in parts)


def test_rules_report_incomplete_stack_and_dropped_names() -> None:
    renamed = rename_to_ours({"q.0.bias": torch.ones(1), "fc.weight": torch.ones(1)}, RULES, drop=["^fc"])
    assert renamed.unknown == ["q.0.bias"]
    assert renamed.dropped == ["fc.weight"]
    assert not renamed.tensors


def test_rename_without_tensors_is_empty() -> None:
    assert rename_to_ours({}, RULES).tensors == {}
    assert rename_from_ours({}, ()).tensors == {}


def test_template_fills_what_it_matched() -> None:
    template = Template("a.{i+2}.{p}")
    values = template.match("a.5.bias")
    assert values == {"i": 3, "p": "bias"}
    assert template.fill(values) == "a.5.bias"


def test_older_layout_gets_its_pixel_decoder_and_query_features() -> None:
    older = [
        "backbone.res2.0.conv1.weight",
        "sem_seg_head.adapter_1.weight",
        "sem_seg_head.transformer.level_embed",
        "sem_seg_head.pixel_decoder.mask_features.weight",
        "sem_seg_head.predictor.static_query.weight",
        "criterion.empty_weight",
    ]
    assert list(rename_older_layout({name: torch.ones(1) for name in older}).tensors) == [
        "backbone.res2.0.conv1.weight",
        "sem_seg_head.pixel_decoder.adapter_1.weight",
        "sem_seg_head.pixel_decoder.transformer.level_embed",
        "sem_seg_head.pixel_decoder.mask_features.weight",
        "sem_seg_head.predictor.query_feat.weight",
        "criterion.empty_weight",
    ]
