"""Full-size models through every layout: published pickle, folder of transformers, ours, and from each to each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former import build_model, get_cfg
from mask2former.checkpoint import load_weights
from mask2former.checkpoint.conversion import read_converted, write_ours, write_transformers
from mask2former.commands.convert import TOLERANCE, Outputs, load_model, run_model

CONFIGS = Path(__file__).parents[2] / "configs" / "coco" / "panoptic-segmentation"
R50 = "maskformer2_R50_bs16_50ep.yaml"
SWIN_T = "swin/maskformer2_swin_tiny_bs16_50ep.yaml"
SWIN_L = pytest.param("swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml", marks=pytest.mark.slow)
# Each layout to each other one, in one round.
ROUND = ["published.pkl", "ours.pth", "theirs", "published.pkl", "theirs", "ours.pth", "published.pkl"]


def full_config(name: str) -> Any:
    cfg = get_cfg()
    cfg.merge_from_file(CONFIGS / name)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def random_model(cfg: Any, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(cfg).eval()


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What every layout has to hold: not what follows from the sizes of the model."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("relative_position_index")}


@pytest.mark.parametrize("name", [R50, SWIN_T, SWIN_L])
def test_every_layout_gives_the_same_bits_there_and_back(tmp_path: Path, name: str) -> None:
    cfg = full_config(name)
    model = random_model(cfg)
    weights, image = stored(model.state_dict()), noise(64, 64)
    expected = run_model(model, image).logits
    tensors: Mapping[str, Tensor] = weights
    for step, layout in enumerate(ROUND):
        place = tmp_path / str(step) / layout
        place.parent.mkdir()
        if layout == "theirs":
            write_transformers(tensors, place, cfg=cfg)
        else:
            write_ours(tensors, place)
        tensors = stored(read_converted(place).tensors)  # read from one layout, written to the next
        assert tensors.keys() == weights.keys(), place
        for entry, tensor in weights.items():
            assert torch.equal(tensors[entry], tensor), (place, entry)
        if step < 3:  # the files of later steps hold the same bits
            loaded = random_model(cfg, seed=1)
            report = load_weights(loaded, place)
            assert report.is_complete
            assert not report.unexpected
            for kind, logits in run_model(loaded, image).logits.items():
                assert torch.equal(logits, expected[kind]), (place, kind)
        for file in [place] if place.is_file() else place.iterdir():
            file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds"), [(R50, [0, 7]), (SWIN_T, [0, 1]), (SWIN_L.values[0], [14])])
def test_models_of_both_families_differ_by_flipped_attention_bits_alone(
    tmp_path: Path, name: str, seeds: list[int]
) -> None:
    """In float32 the logits agree as the attention masks do; which bits flip is up to the processor."""
    pytest.importorskip("transformers")
    cfg = full_config(name)
    ours = random_model(cfg)
    write_transformers(ours.state_dict(), tmp_path / "theirs", cfg=cfg)
    theirs = load_model(cfg, tmp_path / "theirs")
    for seed in seeds:
        image = noise(192, 256, seed=seed)
        expected, actual = run_model(theirs, image), run_model(ours, image)
        assert len(expected.attended) == len(actual.attended) == cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1
        flipped, difference = expected.count_flipped(actual), expected.difference(actual)
        forced = expected.difference(run_model(ours, image, attended=expected.attended))
        print(f"{name} {seed}: {flipped} of {expected.count_bits()} bits, {difference:.1e}, same bits {forced:.1e}")
        assert forced <= TOLERANCE / 10
        assert flipped < 1e-3 * expected.count_bits()
        if not flipped:
            assert difference == forced


def test_outputs_count_bits_and_differences() -> None:
    first = Outputs({"a": torch.tensor([1.0, -4.0])}, [torch.tensor([[[True, False]]]), torch.ones(1, 1, 3).bool()])
    second = Outputs({"a": torch.tensor([1.0, -3.0])}, [torch.tensor([[[True, True]]]), torch.zeros(1, 1, 3).bool()])
    assert (first.count_bits(), first.count_flipped(second), first.count_flipped(first)) == (5, 4, 0)
    assert first.difference(second) == 0.25
    two, broken = (Outputs({"a": torch.ones(2), "b": torch.tensor([1.0, end])}) for end in (1.0, math.nan))
    assert math.isnan(two.difference(broken))
    assert two.difference(two) == 0


def test_run_gives_decoder_layers_the_bits_asked_for(tmp_path: Path) -> None:
    """The same attention, forced on ours and on transformers' model, gives the same logits."""
    pytest.importorskip("transformers")
    cfg = full_config(R50)
    cfg.merge_from_list(
        "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.SEM_SEG_HEAD.CONVS_DIM 32 "
        "MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 "
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 4 "
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 6".split()
    )
    ours = random_model(cfg)
    write_transformers(ours.state_dict(), tmp_path / "theirs", cfg=cfg)
    theirs = load_model(cfg, tmp_path / "theirs")
    image = noise(64, 96)
    own = run_model(ours, image)
    attended = [mask ^ (torch.rand(mask.shape) < 0.3) for mask in own.attended]
    attended = [mask | ~mask.any(-1, keepdim=True) for mask in attended]
    forced = [run_model(model, image, attended=attended) for model in (ours, theirs)]
    assert forced[0].difference(forced[1]) <= 1e-5
    assert own.difference(forced[0]) > 1e-3
    assert run_model(ours, image).difference(own) == 0
