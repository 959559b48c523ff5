"""Run an exported file in ONNX Runtime or OpenVINO: arrays by name in, arrays by name out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mask2former.errors import CheckpointError, ConfigError
from mask2former.runtime.exported_info import ExportedInfo

Arrays = Mapping[str, np.ndarray]


class Session(Protocol):
    """A loaded file."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return all outputs by name."""


class OnnxSession:
    """A file in ONNX Runtime."""

    def __init__(
        self, info: ExportedInfo, *, providers: Sequence[str] | None = None, num_threads: int | None = None
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise _missing("onnxruntime", info) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # what it logs below is about its own optimisations
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        wanted = ["CPUExecutionProvider"] if providers is None else list(providers)
        unknown = sorted(set(wanted) - set(onnxruntime.get_available_providers()))
        if unknown:
            there = ", ".join(onnxruntime.get_available_providers())
            raise ConfigError(f"providers: this onnxruntime has {there}; found {', '.join(unknown)}")
        try:
            self._session = onnxruntime.InferenceSession(str(info.path), options, providers=wanted)
        except Exception as error:  # its own types, for files that are damaged or use what it has not
            raise CheckpointError(f"{info.path}: ONNX Runtime cannot load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return all outputs by name."""
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))


class OpenVinoSession:
    """A file in OpenVINO; ``device`` is one of its own, such as CPU or GPU."""

    def __init__(self, info: ExportedInfo, *, device: str = "CPU", num_threads: int | None = None) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise _missing("openvino", info) from error
        # On some processors it would compute in bfloat16 by itself.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[info.precision]}
        if num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = num_threads
        try:
            core = openvino.Core()
            self._model = core.compile_model(core.read_model(info.path), device, options)
        except RuntimeError as error:
            raise CheckpointError(f"{info.path}: OpenVINO cannot load it: {error}") from error

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return all outputs by name."""
        results = self._model(dict(inputs))
        return {output.any_name: np.array(value) for output, value in results.items()}


_OPENVINO_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def _missing(package: str, info: ExportedInfo) -> ConfigError:
    return ConfigError(f"{info.path}: {package} is not installed: pip install {package}")


def open_session(info: ExportedInfo, *, num_threads: int | None = None, **options: Any) -> Session:
    """Return a session that runs the file; ``options`` are those of its kind.

    Raises:
        ConfigError: the library that runs it is not installed, or an option is wrong.
        CheckpointError: the file cannot be loaded, or needs torch.
    """
    sessions: dict[str, type[Any]] = {"onnx": OnnxSession, "openvino": OpenVinoSession}
    if info.format not in sessions:
        raise CheckpointError(
            f"{info.path}: a file of {info.format} needs torch: mask2former.Predictor runs it; without torch, export "
            "it as onnx or openvino"
        )
    return sessions[info.format](info, num_threads=num_threads, **options)
