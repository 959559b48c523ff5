"""What makes the models known to detectron2, and what does not import it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is installed from its repository)")

from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config, modeling
from mask2former.config import CfgNode
from mask2former.errors import ConfigError
from mask2former.integrations import detectron2 as integration
from tests.integrations.tiny_detectron2 import SHAPES_CONFIG, detectron2_cfg, tiny_shapes_cfg

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("Base"))
AS_IN_THE_WORLD = f"""
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from mask2former import add_maskformer2_config
import sys
assert "mask2former.integrations.detectron2" not in sys.modules
cfg = get_cfg()
add_deeplab_config(cfg)
add_maskformer2_config(cfg)
cfg.merge_from_file({str(SHAPES_CONFIG)!r})
cfg.MODEL.DEVICE = "cpu"
from detectron2.modeling import build_model
model = build_model(cfg)
assert type(model).__name__ == "MaskFormer"
"""


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lines_of_detectron2_projects_build_a_model() -> None:
    _run(AS_IN_THE_WORLD)


def test_our_own_imports_leave_detectron2_alone() -> None:
    _run(
        "import mask2former, mask2former.cli, mask2former.engine, mask2former.data, mask2former.evaluation\n"
        "from mask2former import Predictor, add_maskformer2_config, build_model, get_cfg\n"
        "add_maskformer2_config(get_cfg())\n"
        "import sys\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'detectron2']"
    )


def test_importing_the_integration_registers() -> None:
    _run(
        "import mask2former.integrations.detectron2\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "assert 'MaskFormer' in META_ARCH_REGISTRY"
    )


def test_config_derived_from_detectron2s_registers() -> None:
    _run(
        "from detectron2.config import CfgNode, get_cfg\n"
        "class Mine(CfgNode): pass\n"
        "from mask2former import add_maskformer2_config\n"
        "cfg = Mine(get_cfg())\n"
        "add_maskformer2_config(cfg)\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "assert 'MaskFormer' in META_ARCH_REGISTRY"
    )


def test_registries_hold_the_published_names() -> None:
    assert {"MaskFormer", "VideoMaskFormer"} <= dict(META_ARCH_REGISTRY).keys()
    assert {"D2SwinTransformer", "build_timm_backbone"} <= dict(BACKBONE_REGISTRY).keys()
    heads = {"MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"}
    pixel_decoders = {"MSDeformAttnPixelDecoder", "BasePixelDecoder", "TransformerEncoderPixelDecoder"}
    assert heads | pixel_decoders <= dict(SEM_SEG_HEADS_REGISTRY).keys()
    decoders = {"MultiScaleMaskedTransformerDecoder", "StandardTransformerDecoder"}
    assert decoders <= dict(integration.TRANSFORMER_DECODER_REGISTRY).keys()


def test_registered_classes_are_ours() -> None:
    for name in ("MaskFormer", "MaskFormerHead", "MSDeformAttnPixelDecoder", "PerPixelBaselinePlusHead"):
        assert issubclass(getattr(integration, name), getattr(modeling, name))
    assert issubclass(modeling.backbone.D2SwinTransformer, Backbone)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_files_mean_the_same_in_detectron2(path: Path) -> None:
    from mask2former.config import get_cfg as our_cfg

    theirs, ours = detectron2_cfg(path), our_cfg()
    ours.merge_from_file(path)

    def differing(mine: CfgNode, other: CfgNode, prefix: str = "") -> list[str]:
        found = []
        for key, value in mine.items():
            if key not in other:
                found.append(prefix + key)
            elif isinstance(value, dict):
                found += differing(value, other[key], f"{prefix}{key}.")
            elif _plain(value) != _plain(other[key]):
                found.append(prefix + key)
        return found

    assert differing(ours, theirs) == []


def _plain(value: object) -> object:
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def test_added_keys_leave_those_of_detectron2() -> None:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    before = cfg.clone()
    add_maskformer2_config(cfg)
    assert cfg.SOLVER.BASE_LR == before.SOLVER.BASE_LR
    assert type(cfg.MODEL.MASK_FORMER.TEST) is type(before)
    assert before.MODEL.SEM_SEG_HEAD.items() <= cfg.MODEL.SEM_SEG_HEAD.items()


def test_unknown_part_is_named() -> None:
    from detectron2.modeling import build_model

    for key in ("BACKBONE.NAME", "SEM_SEG_HEAD.NAME", "SEM_SEG_HEAD.PIXEL_DECODER_NAME"):
        with pytest.raises(ConfigError, match=f"MODEL.{key}.*NoSuchPart"):
            build_model(tiny_shapes_cfg(f"MODEL.{key}", "NoSuchPart"))
