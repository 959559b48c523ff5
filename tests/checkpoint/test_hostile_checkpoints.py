"""Checkpoints that attack: nothing runs, no memory is taken on trust, and each is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from mask2former.checkpoint import load_state, load_weights
from mask2former.checkpoint import restricted_pickle as reader
from mask2former.errors import CheckpointError

_SCALAR = b"cnumpy.core.multiarray\nscalar\n"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _dtype(code: str, state: bytes) -> bytes:
    return b"cnumpy\ndtype\n(" + _text(code) + b"\x89\x88tR(K\x03" + state + b"tb"


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _torch_bytes(content: Any, *, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


_PLAIN_STATE = _text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
_OBJECT = _dtype("O8", _PLAIN_STATE)
_FIELDS = _dtype("V8", _text("|") + b"N" + _text("a") + b"\x85}" + _text("a") + _OBJECT + b"K\x00\x86sK\x08K\x01K\x00")
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(b"\x80\x03}" + _SCALAR + _FIELDS + b"C\x08" + b"A" * 8 + b"\x86RK\x01s.", id="dtype with fields"),
        pytest.param(b"\x80\x03}" + _SCALAR + _OBJECT + b"C\x08" + b"A" * 8 + b"\x86RK\x01s.", id="objects"),
        pytest.param(b"\x80\x03}K\x01" + _ARRAY + b"s.", id="array without content"),
        pytest.param(b"\x80\x03}K\x01cnumpy\nndarray\ns.", id="class as a value"),
        pytest.param(b"\x80\x03}K\x01cnumpy\nndarray\n)\x81s.", id="object made without a constructor"),
        pytest.param(b"\x80\x03}K\x01(icollections\nOrderedDict\ns.", id="instance of the first protocol"),
        pytest.param(b"\x80\x02}K\x01\x82\x01s.", id="extension code"),
        pytest.param(b"\x80\x04}K\x01\x8e" + struct.pack("<Q", 1 << 40) + b"s.", id="bytes behind the end"),
        pytest.param(b"\x80\x04}K\x01\x8b" + struct.pack("<i", 1 << 30) + b"s.", id="integer behind the end"),
        pytest.param(b"\x80\x02}K\x01\x8b" + struct.pack("<i", 99) + b"\x01" * 99 + b"s.", id="integer of 792 bits"),
        pytest.param(b"\x80\x02}K\x01" + b"]" * 200 + b"a" * 199 + b"s.", id="200 lists deep"),
        pytest.param(b"\x80\x02}K\x01]q\x00h\x00as.", id="list in itself"),
        pytest.param(b"\x80\x02}(" + b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u.", id="key of 2^60 parts"),
        pytest.param(
            b"\x80\x02}K\x01]q\x00" + b"](" + b"h\x00" * 9 + b"eq\x00" * 1 + b"](h\x00h\x00h\x00eq\x00" * 30 + b"s.",
            id="list of 3^30 entries",
        ),
        pytest.param(b"\x80\x02}K\x01cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85Rs.", id="two gigabytes of zeros"),
    ],
)
def test_load_state_refuses_pickle(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^\S+a\.pkl: (refused|truncated or corrupt)[^\n]+$"):
        load_state(_write(tmp_path / "a.pkl", pickled))


@pytest.mark.parametrize("name", ["numpy.core.multiarray\nscalar", "collections\nOrderedDict", "numpy\nndarray"])
def test_load_state_lets_no_pickle_change_the_reader(tmp_path: Path, name: str) -> None:
    state = b"N}" + _text("__name__") + _text("evil") + b"s" + _text("__kwdefaults__") + b"Ns\x86b"
    before = reader._scalar.__name__, dict(reader._ADMITTED)
    with pytest.raises(CheckpointError, match="a state of its own"):
        load_state(_write(tmp_path / "a.pkl", b"\x80\x02}K\x01c" + name.encode() + b"\n" + state + b"s."))
    assert (reader._scalar.__name__, reader._ADMITTED) == before
    good = pickle.dumps({"model": {"w": np.zeros(3, np.float32)}, "n": np.float64(2)})
    assert load_state(_write(tmp_path / "good.pkl", good))["n"] == 2


def test_load_state_gives_an_array_that_the_pickle_names_twice(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    state = OrderedDict(a=array, b=array)
    loaded = load_state(_write(tmp_path / "a.pkl", pickle.dumps({"model": state, "pair": (array, {1, 2}, 1 + 2j)})))
    assert loaded["model"]["a"] is loaded["model"]["b"]
    assert loaded["pair"][0] is loaded["model"]["a"]
    np.testing.assert_array_equal(loaded["model"]["a"], array)
    assert loaded["pair"][1:] == ({1, 2}, 1 + 2j)


def test_load_weights_takes_arrays_of_the_other_byte_order_and_state_dicts_of_modules(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    arrays = {name: tensor.numpy().astype(">f4") for name, tensor in source.state_dict().items()}
    for content in (arrays, source.state_dict()):
        load_weights(target, _write(tmp_path / "a.pkl", pickle.dumps({"model": content})))
        assert torch.equal(target.weight, source.weight)
        nn.init.zeros_(target.weight)


def _repacked(
    content: dict[str, Any], change: Callable[[zipfile.ZipInfo, bytes], tuple[str, bytes]], **kind: Any
) -> bytes:
    """A torch archive whose records got other names or contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_torch_bytes(content))) as old, zipfile.ZipFile(buffer, "w", **kind) as new:
        for record in old.infolist():
            new.writestr(*change(record, old.read(record)))
    return buffer.getvalue()


def _longer_storage(record: zipfile.ZipInfo, content: bytes) -> tuple[str, bytes]:
    """The pickle says that the storage has 2^20 elements more than the record."""
    return record.filename, content.replace(
        b"K\x05t", b"J\x05\x00\x10\x00t"
    ) if "data.pkl" in record.filename else content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, c: (r.filename.replace("data.pkl", "../data.pkl"), c), "leads out"),
        (lambda r, c: ("/" + r.filename, c), "leads out"),
        (lambda r, c: (r.filename.replace("data/0", "data\\0"), c), "leads out"),
        (lambda r, c: ("a/data.pkl", c), "records of the name"),
        (lambda r, c: (r.filename.replace("data.pkl", "other.pkl"), c), "not of torch"),
        (lambda r, c: (r.filename, c[:8] if "data/0" in r.filename else c), "has 20 bytes; found 8"),
        (lambda r, c: (r.filename.replace("data/0", "data/1"), c), "has 20 bytes; found None"),
        (_longer_storage, "has 4194324 bytes; found 20"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_load_state_refuses_archive(tmp_path: Path, change: Any, message: str) -> None:
    content = _repacked({"model": {"a": torch.ones(5)}}, change)
    with pytest.raises(CheckpointError, match=message):
        load_state(_write(tmp_path / "a.pth", content))


def test_load_state_refuses_what_unpacks_to_far_more(tmp_path: Path) -> None:
    content = {"model": {"a": torch.zeros(1 << 24)}}
    packed = _repacked(content, lambda record, data: (record.filename, data), compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 1 << 18
    with pytest.raises(CheckpointError, match=r"bytes that unpack to 671\d+"):
        load_state(_write(tmp_path / "a.pth", packed))


def test_load_state_refuses_tensors_that_repeat_one_value_without_end(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    for is_zip in (True, False):
        with pytest.raises(CheckpointError, match="tensors would take 4398046511104 bytes"):
            load_state(_write(tmp_path / "a.pth", _torch_bytes({"a": huge}, is_zip=is_zip)))


@pytest.mark.parametrize("extra", [1 << 50, 5])
def test_load_state_refuses_older_file_with_storages_longer_than_it(tmp_path: Path, extra: int) -> None:
    content = _torch_bytes({"model": {"a": torch.ones(5)}}, is_zip=False)
    claimed = content.replace(b"K\x05N", b"\x8a\x08" + struct.pack("<q", 5 + extra) + b"N")
    assert len(claimed) > len(content)
    with pytest.raises(CheckpointError, match=rf"storages of {4 * (5 + extra)} bytes, and"):
        load_state(_write(tmp_path / "a.pth", claimed))


def test_load_state_refuses_older_file_that_leaves_storages_out(tmp_path: Path) -> None:
    # They would be uninitialised memory.
    content = _torch_bytes({"model": {"a": torch.ones(5)}}, is_zip=False)
    storages = content.rindex(b"]q\x00")
    with pytest.raises(CheckpointError, match="list of storages is not that of the tensors"):
        load_state(_write(tmp_path / "a.pth", content[:storages] + b"\x80\x02]q\x00."))


_TENSORS = {"a": torch.ones(2, 3), "b": torch.arange(4)}


def _with_header(header: bytes, *, length: int | None = None, data: bytes = bytes(56)) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    "content",
    [
        _with_header(b"{}", length=1 << 62, data=b""),
        _with_header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
        _with_header(
            b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"b":{"dtype":"F32","shape":[8],"data_offsets":[20,56]}}'
        ),
        _with_header(b'{"a":{"dtype":"F32","shape":[15],"data_offsets":[0,60]}}'),
        _with_header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,56]}}'),
        _with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,56]}}'),
        _with_header(b'{"a":{"dtype":"F9","shape":[14],"data_offsets":[0,56]}}'),
        _with_header(b"[1]"),
        _with_header(b"null"),
    ],
    ids=["length", "nesting", "overlap", "end", "product", "negative", "dtype", "list", "null"],
)
def test_load_state_refuses_safetensors_header(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^\S+a\.safetensors: truncated or corrupt: [^\n]{1,300}$"):
        load_state(_write(tmp_path / "a.safetensors", content))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("null", "must hold a JSON object"),
        ("{}", "weight_map"),
        ('{"weight_map": null}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {"a": "../one.safetensors"}}', "same folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "same folder"),
        ('{"weight_map": {"a": "one.safetensors", "c": "one.safetensors"}}', "1 tensors are in none.*'c'"),
        ('{"weight_map": {"a": "two.safetensors"}}', r"two\.safetensors: file not found"),
        ('{"weight_map":' * 100_000, "not a valid JSON file: nested too deeply"),
    ],
)
def test_load_state_refuses_index(tmp_path: Path, index: str, message: str) -> None:
    _write(tmp_path / "one.safetensors", save(_TENSORS))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        load_state(tmp_path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_load_state_names_what_is_no_file(tmp_path: Path, suffix: str) -> None:
    pipe, link, locked = (tmp_path / f"{name}{suffix}" for name in ("pipe", "link", "locked"))
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / f"nothing{suffix}")
    locked.symlink_to("/dev/null")
    (folder := tmp_path / f"folder{suffix}").mkdir()
    for path, message in (
        (pipe, "found a named pipe"),
        (link, r"a link to \S+nothing\S+, which is not there"),
        (locked, "found a device"),
        (folder, "a folder without weights"),
        (tmp_path / f"{'x' * 300}{suffix}", "no such checkpoint file"),
        (tmp_path / f"a\0b{suffix}", "no such checkpoint file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_state(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_load_state_names_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.pth", _torch_bytes({}))
    path.chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        load_state(path)


def test_load_weights_names_values_that_are_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).state_dict()
    state["0.weight"][0, 1], state["1.bias"][0] = float("nan"), float("inf")
    torch.save(state, tmp_path / "a.pth")
    report = load_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), tmp_path / "a.pth")
    assert report.nonfinite == ("0.weight", "1.bias")
    assert "2 with values that are NaN or infinite: 0.weight, 1.bias" in caplog.text


_SEEDS = {
    ".pkl": [
        pickle.dumps({"model": {"a": np.ones((2, 3), np.float32)}, "n": np.float64(2), "s": {1}}, protocol=p)
        for p in (0, 2, 4, 5)
    ],
    ".pth": [_torch_bytes({"model": _TENSORS, "iteration": 3})],
    ".pt": [_torch_bytes({"model": _TENSORS, "iteration": 3}, is_zip=False)],
    ".safetensors": [save(_TENSORS)],
}


@st.composite
def _damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A checkpoint some of whose bytes are others, are missing, or were put in."""
    suffix = draw(st.sampled_from(sorted(_SEEDS)))
    content = bytearray(draw(st.sampled_from(_SEEDS[suffix])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        content[start : start + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return suffix, bytes(content)


def _refusal(path: Path) -> str:
    """Why a file is refused; nothing if it is read."""
    try:
        load_state(path)
    except CheckpointError as error:
        return str(error)
    return ""


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_damaged())
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_load_state_reads_or_refuses_damaged_bytes(tmp_path: Path, damaged: tuple[str, bytes]) -> None:
    message = _refusal(_write(tmp_path / f"a{damaged[0]}", damaged[1]))
    assert len(message.splitlines()) <= 1
    assert len(message) < 1000


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.integers(0, 6), st.binary(max_size=6))
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_load_state_reads_or_refuses_archive_with_another_pickle(
    tmp_path: Path, start: int, length: int, inserted: bytes
) -> None:
    # With right checksums, which damage alone does not have.
    def change(record: zipfile.ZipInfo, content: bytes) -> tuple[str, bytes]:
        is_pickle = record.filename.endswith("data.pkl")
        return record.filename, content[:start] + inserted + content[start + length :] if is_pickle else content

    message = _refusal(_write(tmp_path / "a.pth", _repacked({"model": _TENSORS, "iteration": 3}, change)))
    assert len(message.splitlines()) <= 1
    assert len(message) < 1000
