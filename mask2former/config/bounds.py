"""Between which numbers the values of keys lie, so that a model or a run of them can be built at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_LARGEST = 1 << 20  # of sizes and numbers of things; beyond it a value is a slip, and building it takes all memory
_DEEPEST = 1000  # layers
_SIZE, _DEPTH, _SHARE = (1, _LARGEST), (0, _DEEPEST), (0, 1)
_POSITIVE = (1e-6, _LARGEST)
_NUMBER = (0, _LARGEST)  # 0 is refused with the faults of the model

_BELOW: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "MODEL.SEM_SEG_HEAD": {
        **dict.fromkeys(("CONVS_DIM", "MASK_DIM", "COMMON_STRIDE", "ASPP_CHANNELS"), _SIZE),
        **dict.fromkeys(("ASPP_DILATIONS", "PROJECT_CHANNELS"), _SIZE),
        "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": _SIZE,
        "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": _SIZE,
        "TRANSFORMER_ENC_LAYERS": _DEPTH,
        "NUM_CLASSES": _NUMBER,
        "ASPP_DROPOUT": _SHARE,
    },
    "MODEL.MASK_FORMER": {
        **dict.fromkeys(("DIM_FEEDFORWARD", "HIDDEN_DIM", "NHEADS"), _SIZE),
        **dict.fromkeys(("NUM_OBJECT_QUERIES", "TRAIN_NUM_POINTS"), _NUMBER),
        **dict.fromkeys(("DEC_LAYERS", "ENC_LAYERS"), _DEPTH),
        **dict.fromkeys(("DROPOUT", "IMPORTANCE_SAMPLE_RATIO"), _SHARE),
        "OVERSAMPLE_RATIO": (1, _DEEPEST),
    },
    "MODEL.SWIN": {
        **dict.fromkeys(("EMBED_DIM", "DEPTHS", "NUM_HEADS", "PATCH_SIZE", "WINDOW_SIZE", "PRETRAIN_IMG_SIZE"), _SIZE),
        **dict.fromkeys(("ATTN_DROP_RATE", "DROP_PATH_RATE", "DROP_RATE"), _SHARE),
        "MLP_RATIO": _POSITIVE,
    },
    "MODEL.RESNETS": dict.fromkeys(
        ("NUM_GROUPS", "RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "RES5_MULTI_GRID"), _SIZE
    ),
    "SOLVER": {"IMS_PER_BATCH": _NUMBER, "REFERENCE_WORLD_SIZE": _NUMBER, "BETAS": (0, math.nextafter(1, 0))},
    "INPUT": {"IMAGE_SIZE": _SIZE, **dict.fromkeys(("MIN_SCALE", "MAX_SCALE"), (0, _DEEPEST))},
    "MODEL.TIMM": {"PYRAMID_CHANNELS": _SIZE, "DROP_PATH_RATE": _SHARE},
}
BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {f"{node}.{name}": bounds for node, inner in _BELOW.items() for name, bounds in inner.items()}
)


def check_bounds(key: str, value: Any) -> None:
    """Check a number, or each of a list of numbers.

    Raises:
        ValueError: one of them lies outside the bounds of the key.
    """
    low, high = BOUNDS.get(key, (-math.inf, math.inf))
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise ValueError(f"must lie in {low:g}..{high:g}, found {number:g}")
