"""Whatever a file holds, it becomes a config or one short error, soon."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.config import get_cfg
from mask2former.errors import ConfigError

MAX_SECONDS, MAX_MESSAGE, MAX_MEMORY_KIB = 2.0, 20_000, 256 << 10
LAUGHS = ", ".join(f"&{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(8))


def _read(path: Path) -> str:
    """The error's message, empty if the file is read."""
    try:
        get_cfg().merge_from_file(path)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"SEED: [&a [{', '.join(['lol'] * 9)}], {LAUGHS}]", "more than 20000 values"),
        ("SEED: &a [*a]", "an alias of what it stands in"),
        ("SEED: &a {b: *a}", "an alias of what it stands in"),
        ("SEED: " + "[" * 5000, "nested more than 32 deep"),
        ("a: " * 5000, "mapping values are not allowed"),
        ("- " * 5000, "nested more than 32 deep"),
        ("? " * 5000, "nested more than 32 deep"),
        ("SEED: [" + "1, " * 40_000 + "]", "more than 20000 values"),
        ("SEED: " + "9" * 20_000, "a value longer than any in a config"),
        ("SEED: 0x" + "f" * 5000, "must lie below"),
        ("SEED: " + "9" * 5000, "must lie below|not a readable config"),
        ("SEED: 1\nMODEL: {}\nSEED: 2", r"the key SEED stands twice \(line 3"),
        ("MODEL: {DEVICE: cpu, DEVICE: cuda}", "the key DEVICE stands twice"),
        ("SEED: *nobody", "undefined alias"),
        ("1: 2", "keys are text, found 1"),
        ("[a, b]: 2", "unhashable key"),
        ("SEED: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("SEED: !" + "x" * 100_000, "could not determine a constructor"),
        ("SEED: 1\n--- \nSEED: 2", "expected a single document"),
        ("SEED: \0", "special characters are not allowed"),
        ("_BASE_: 5", "_BASE_ must name a file"),
        ("_BASE_: [[a]]", "_BASE_ must name a file"),
        ("_BASE_: 'a\\0b'", "cannot read config file"),
        ("SEED: {a: {b: 1}}", "must be int"),
        ("MODEL:\n\tDEVICE: cpu", "cannot start any token"),
        (b"SEED: 1\n# caf\xe9", r"not a text file in UTF-8 \(line 2\)"),
        (b"\xff\xfeS\0E", "not a readable config file|not a text file|expected KEY"),
        (b"#" * (1 << 20), "bytes, a config at most 524,288"),
    ],
)
def test_hostile_file_is_one_short_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message) as caught:
        get_cfg().merge_from_file(path)
    assert "c.yaml" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_aliases_within_bounds_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("MODEL: &m {DEVICE: cpu}\nINPUT: {CROP: {SIZE: &s [3, 4]}, MIN_SIZE_TRAIN: *s}")
    cfg = get_cfg()
    cfg.merge_from_file(tmp_path / "c.yaml")
    assert cfg.INPUT.MIN_SIZE_TRAIN == [3, 4]
    cfg.INPUT.MIN_SIZE_TRAIN.append(5)
    assert cfg.INPUT.CROP.SIZE == [3, 4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_text_editors_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.yaml").write_text("# 配置\r\nOUTPUT_DIR: é\r\n", encoding=encoding)
    cfg = get_cfg()
    cfg.merge_from_file(tmp_path / "c.yaml")
    assert cfg.OUTPUT_DIR == "é"


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for name, reason in (
        ("", "it is a folder"),
        ("pipe", "no regular file"),
        ("link", "No such file"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null"),
    ):
        with pytest.raises(ConfigError, match=f"cannot read config file .*{reason}"):
            get_cfg().merge_from_file(str(tmp_path / name))
    with pytest.raises(ConfigError, match="no regular file"):
        get_cfg().merge_from_file("/dev/zero")


def test_circle_of_bases_is_named(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml")
    with pytest.raises(ConfigError, match=r"itself through _BASE_: b\.yaml → c\.yaml → b\.yaml"):
        get_cfg().merge_from_file(tmp_path / "a.yaml")


def test_bases_that_multiply_are_bounded(tmp_path: Path) -> None:
    for number in range(12):
        names = [f"{number + 1}.yaml"] * 4
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: {names}")
    (tmp_path / "12.yaml").write_text("SEED: 1")
    with pytest.raises(ConfigError, match="more than 32 files"):
        get_cfg().merge_from_file(tmp_path / "0.yaml")


@pytest.mark.parametrize("line", ["a: 1\n", "- a\n", "#\n", "[{", "a\n", "|\n x\n"])
def test_file_at_the_limit_is_judged_soon(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(line * (500_000 // len(line)))
    tracer = sys.gettrace()
    sys.settrace(None)  # measuring coverage takes five times as long as what it measures
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert len(_read(path)) < MAX_MESSAGE
        assert time.process_time() - start < MAX_SECONDS
    finally:
        sys.settrace(tracer)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MAX_MEMORY_KIB


WORDS = st.sampled_from(
    "SEED SOLVER MODEL: DEVICE INPUT: {MIN_SIZE_TRAIN: _BASE_: c.yaml & * &a *a ! !!python/tuple !!set !!omap !!binary "
    "!!python/object/apply:eval [ ] { } , : - ? | > ' \" % @ ` # --- ... << <<: ~ null 1 1e9 .inf .nan 0x 1:60 "
    "2001-01-01 (1,) 1/0 9**9 \\x00 \ufeff \x85".split()
)
YAML_LIKE = st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n", "\n  ", "\t", "", ": ", "\r\n"])), max_size=40).map(
    lambda pairs: "".join(word + gap for word, gap in pairs).encode()
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), YAML_LIKE, st.text(max_size=100).map(lambda t: t.encode("utf-8"))))
def test_any_bytes_are_a_config_or_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    start = time.process_time()
    assert len(_read(path)) < MAX_MESSAGE
    assert time.process_time() - start < MAX_SECONDS
