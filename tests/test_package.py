from __future__ import annotations

import subprocess
import sys

import pytest

import mask2former


def test_package_import_is_cheap() -> None:
    code = "import sys, mask2former; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", mask2former.__all__)
def test_package_exports_what_it_lists(name: str) -> None:
    assert getattr(mask2former, name) is not None
    assert name in dir(mask2former)


def test_package_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'no_such_name'"):
        mask2former.no_such_name  # noqa: B018
