"""Pictures as they are written, and whether a file is a whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former.files.maps import read_label_map
from mask2former.files.pictures import is_intact, write_picture


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_write_picture_reads_back_equal(suffix: str, dtype: type, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 9), endpoint=True).astype(dtype)
    write_picture(labels, tmp_path / f"a{suffix}")
    assert np.array_equal(read_label_map(tmp_path / f"a{suffix}"), labels)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_is_intact_tells_whole_pictures_from_others(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    assert not is_intact(path, (7, 9))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9)).astype(np.uint16 if suffix == ".tif" else np.uint8)
    write_picture(pixels, path)
    assert is_intact(path, (7, 9))
    assert not is_intact(path, (9, 7))
    content = path.read_bytes()
    for damaged in (content[:-20], content[:10], b""):
        path.write_bytes(damaged)
        assert not is_intact(path, (7, 9))
