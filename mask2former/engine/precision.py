"""Mixed precision: which type autocast uses, and the loss scaling that float16 needs."""

from __future__ import annotations

import contextlib

import torch

from mask2former.config import CfgNode
from mask2former.errors import ConfigError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Autocast to ``dtype`` on a kind of device (None: no autocast), with loss scaling where it is float16."""

    def __init__(self, device_type: str, *, dtype: torch.dtype | None) -> None:
        self.device_type = device_type
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device_type, enabled=dtype is torch.float16)

    @classmethod
    def from_config(cls, cfg: CfgNode, device_type: str) -> Precision:
        """Return the precision of ``cfg.SOLVER.AMP``; by default bfloat16 where the hardware has it.

        Without such hardware a CUDA device takes float16 and a CPU computes in float32.

        Raises:
            ConfigError: an unknown type.
        """
        name = cfg.SOLVER.AMP.DTYPE
        if name and name not in _DTYPES:
            raise ConfigError(f"SOLVER.AMP.DTYPE must be bfloat16, float16 or empty, found {name!r}")
        if not cfg.SOLVER.AMP.ENABLED:
            return cls(device_type, dtype=None)
        return cls(device_type, dtype=_DTYPES[name] if name else _choose_dtype(device_type))

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of the forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def describe(self) -> str:
        """Return a description for the log, such as ``bfloat16 (mixed)``."""
        if self.dtype is None:
            return "float32"
        scaled = ", loss scaling" if self.scaler.is_enabled() else ""
        return f"{str(self.dtype).removeprefix('torch.')} (mixed{scaled})"


def _choose_dtype(device_type: str) -> torch.dtype | None:
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without native instructions bfloat16 on a CPU is slower than float32.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if device_type == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes):
        return torch.bfloat16
    return None
