"""Reading checkpoints: every published format, nothing executed, damage recognised."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mask2former.checkpoint import load_state
from mask2former.errors import CheckpointError


class _Malicious:
    """Creates a file when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_load_state_reads_zoo_pickle_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    weights = OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3),
        empty=np.zeros((0, 4)),
        transposed=np.arange(6.0).reshape(2, 3).T,
        scalar=np.float64(2.5),
        half=np.ones(3, np.float16),
    )
    state = {"model": weights, "__author__": "someone", "matching_heuristics": True, "raw": b"\x00\xff"}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(state, protocol=protocol))
    loaded = load_state(path)
    assert loaded["matching_heuristics"] is True
    assert loaded["raw"] == b"\x00\xff"
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded["model"][name], value)
        assert loaded["model"][name].dtype == value.dtype


@pytest.mark.parametrize(("ours", "theirs"), [(b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")])
def test_load_state_reads_pickles_of_both_numpy_generations(tmp_path: Path, ours: bytes, theirs: bytes) -> None:
    # Protocol 2 spells names as plain lines, so that they can be replaced without touching lengths.
    content = pickle.dumps({"model": {"a": np.ones((2, 2))}}, protocol=2).replace(ours, theirs)
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    np.testing.assert_array_equal(load_state(path)["model"]["a"], np.ones((2, 2)))


def test_load_state_reads_pickled_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.nn.Parameter(torch.ones(2)), "c": torch.arange(6).reshape(2, 3).T}
    path = tmp_path / "backbone.pkl"
    path.write_bytes(pickle.dumps({"model": tensors}))
    for name, tensor in load_state(path)["model"].items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_load_state_reads_torch_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({"model": {"a": torch.ones(3)}, "iteration": 7}, path)
    state = load_state(path)
    assert state["iteration"] == 7
    assert torch.equal(state["model"]["a"], torch.ones(3))


def test_load_state_reads_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    assert torch.equal(load_state(path)["model"]["a"], torch.ones(3))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pt"])
def test_load_state_refuses_malicious_pickle_without_running_it(tmp_path: Path, suffix: str) -> None:
    path, trace = tmp_path / f"model{suffix}", tmp_path / "executed"
    content = {"model": {"a": _Malicious(trace)}}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"model\.\w+: refused, nothing was run: .*posix\.system"):
        load_state(path)
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_load_state_refuses_malicious_plain_pickle_named_pth(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "executed"
    if legacy:
        torch.save({"a": _Malicious(trace)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"a": _Malicious(trace)}))
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        load_state(path)
    assert not trace.exists()


def test_load_state_refuses_eval_and_object_constructors(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    for module, name in [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("copyreg", "_reconstructor"),
    ]:
        path.write_bytes(b"c" + f"{module}\n{name}\n".encode() + b".")
        with pytest.raises(CheckpointError, match=f"{module}.{name}"):
            load_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95])
def test_load_state_recognises_truncated_file(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"model{suffix}"
    tensors = {"a": torch.randn(50, 50)}
    if suffix == ".pth":
        torch.save({"model": tensors}, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"a": tensors["a"].numpy()}}))
    else:
        save_file(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.\w+: (truncated|refused)"):
        load_state(path)


def test_load_state_recognises_changed_byte_in_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.randn(200, 200)}}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pth", "no such checkpoint file"),
        ("model.onnx", "unknown kind"),
        ("s3://bucket/R-50.pkl", "s3://"),
        ("zoo://R50", "no such model in the zoo.*coco/panoptic/r50"),
        ("R-101.pkl", r"no such checkpoint file.*https://.*resnet101"),
        ("model_final_3c8ec9.pkl", "zoo://coco/instance/r50"),
    ],
)
def test_load_state_explains_unusable_address(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_state(name if "://" in name else tmp_path / name)


def test_load_state_refuses_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match="found list"):
        load_state(path)


@pytest.mark.parametrize("value", [np.array([print], dtype=object), {"nested": [np.array([None, print])]}])
def test_load_state_refuses_arrays_of_objects_that_name_code(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(CheckpointError, match=r"builtins\.print"):
        load_state(path)


@pytest.mark.parametrize(
    "pickled",
    [
        # numpy.core.multiarray._reconstruct of another class than ndarray; scalars and buffers of Python objects
        b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nset\n(I0\ntC\x01btR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRC\x08\x01\x01\x01\x01\x01\x01\x01\x01tR.",
        b"cnumpy._core.numeric\n_frombuffer\n(C\x08\x01\x01\x01\x01\x01\x01\x01\x01cnumpy\ndtype\n(X\x01\x00\x00\x00OtR(I1\ntX\x01\x00\x00\x00CtR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
        b"X\x01\x00\x00\x00aQ.",
    ],
)
def test_load_state_refuses_admitted_constructors_with_other_arguments(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickled)
    with pytest.raises(
        CheckpointError, match=r"model\.pkl: (truncated or corrupt: ValueError|refused: refers to outside)"
    ):
        load_state(path)
