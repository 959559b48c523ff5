"""Reference values of the published model: loading the fixtures, the rule that fills the weights, and the model itself.

A fixture holds inputs and outputs but no weights. Every weight is a function of its state-dict name and shape
(`fill`), so a model with the same names and shapes has the same weights.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

REFERENCE_DIR = Path(__file__).parent / "data" / "reference"
CONFIG_DIR = Path(__file__).parents[1] / "configs"
TRAIN_DATASET = "golden_train"
NUM_THINGS = 5
NUM_CLASSES = 9

_KEPT = ("empty_weight", "relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std")
_GAINS = {
    "class_embed.weight": 6.0,
    "query_feat.weight": 6.0,
    "query_embed.weight": 6.0,
    "mask_embed.layers.2.weight": 12.0,
}
# Standard deviations, whatever the shape; then (mean, standard deviation). First match counts, before any other rule.
_DEVIATIONS = {"token_embedding.weight": 0.5, "positional_embedding": 0.5, "prompt_ctx.weight": 1.0, ".rpb": 0.8}
_AFFINE = {"criterion.logit_scale": (2.0, 0.2), ".gamma": (0.4, 0.2)}


@dataclass(frozen=True)
class Fixture:
    """The arrays of one reference file, unpacked on access."""

    name: str
    arrays: dict[str, np.ndarray]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def array(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def json(self, key: str) -> Any:
        return json.loads(str(self.arrays[key]))

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.arrays if key.startswith(prefix))

    def masks(self, key: str, width: int) -> torch.Tensor:
        """A bit-packed boolean array, unpacked to `width` along its last axis."""
        return torch.from_numpy(np.unpackbits(self.arrays[key], axis=-1, count=width).astype(bool))

    @property
    def seed(self) -> int:
        return int(self.arrays["seed"])

    def state_dict_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in self.json("state_dict_shapes_json").items()}

    def targets(self, index: int) -> dict[str, torch.Tensor]:
        """Labels (N,) and padded masks (N, [T,] H, W) of one training sample."""
        shape = self.array(f"targets/masks_shape_{index}")
        masks = self.masks(f"targets/masks_{index}", int(shape[-1])).reshape(tuple(shape))
        return {"labels": self.tensor(f"targets/labels_{index}"), "masks": masks}


def load_fixture(name: str) -> Fixture:
    """Read `tests/data/reference/<name>.npz`."""
    with np.load(REFERENCE_DIR / f"{name}.npz") as archive:
        return Fixture(name, {key: archive[key] for key in archive.files})


def load_state_dict_reference(recipe: str) -> dict[str, Any]:
    """Names, shapes, dtypes and parameter counts of a full-size published model."""
    return json.loads((REFERENCE_DIR / "state_dict" / f"{recipe}.json").read_text())


def fill(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray | None:
    """The float32 value of a state-dict entry; None where the model keeps its own."""
    if name.endswith(_KEPT):
        return None
    values = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape)
    deviation = next((value for suffix, value in _DEVIATIONS.items() if name.endswith(suffix)), None)
    affine = next((value for suffix, value in _AFFINE.items() if name.endswith(suffix)), None)
    if deviation is not None:
        values = values * deviation
    elif affine is not None:
        values = affine[0] + affine[1] * values
    elif name.endswith("running_var"):
        values = np.abs(values) * 0.3 + 0.6
    elif name.endswith("running_mean"):
        values = values * 0.1
    elif name.endswith("sampling_offsets.bias"):
        values = values * 2.0
    elif len(shape) > 1:
        gain = next((gain for suffix, gain in _GAINS.items() if name.endswith(suffix)), 1.2)
        values = values * gain / np.sqrt(int(np.prod(shape[1:])))
    elif name.endswith("weight"):
        values = 1 + 0.2 * values
    else:
        values = 0.2 * values
    return np.asarray(values, np.float32)


@torch.no_grad()
def fill_model(model: nn.Module, seed: int) -> None:
    """Overwrite every state-dict entry of `model` with its value by the rule."""
    for name, tensor in model.state_dict().items():
        values = fill(name, tuple(tensor.shape), seed)
        if values is not None:
            tensor.copy_(torch.from_numpy(values))


def register_metadata() -> None:
    """Declare the data set that the fixtures' configs name: 9 classes, of which 0 to 4 are things."""
    from mask2former.structures.metadata import MetadataCatalog

    MetadataCatalog.get(TRAIN_DATASET).set(
        thing_dataset_id_to_contiguous_id={index: index for index in range(NUM_THINGS)},
        stuff_dataset_id_to_contiguous_id={index: index for index in range(NUM_CLASSES)},
    )


def fixture_config(fixture: Fixture) -> Any:
    """The config of a fixture: its base recipe with its overrides, on the CPU."""
    from mask2former.config import add_maskformer2_video_config, get_cfg

    description = fixture.json("config_json")
    cfg = get_cfg()
    if description["base_config"].startswith("youtubevis"):
        add_maskformer2_video_config(cfg)
    family = "oneformer" if "oneformer" in fixture.name else ""
    cfg.merge_from_file(str(CONFIG_DIR / family / description["base_config"]))
    cfg.merge_from_list(description["overrides"])
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def build_fixture_model(fixture: Fixture, *, accelerated: bool = True) -> nn.Module:
    """The fixture's model in evaluation mode, with the weights the rule gives; of plain layers unless `accelerated`."""
    from mask2former.modeling import build_model

    register_metadata()
    model = build_model(fixture_config(fixture), accelerated=accelerated).eval()
    fill_model(model, fixture.seed)
    return model


def assert_close_to_peak(actual: torch.Tensor, expected: torch.Tensor, *, tolerance: float = 1e-4) -> None:
    """Largest absolute difference at most `tolerance` times the largest magnitude of `expected`."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().max().item()
    peak = expected.double().abs().max().item()
    assert difference <= tolerance * peak, f"difference {difference:.3g} of peak {peak:.3g}"
