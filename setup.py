"""Two steps of the build that setuptools knows no way to do: the native libraries, and the config files.

The libraries have plain C interfaces, no Python or torch headers. The published config files lie at the top of the
repository, where people look for them, and are installed inside the package, where a program finds them.

Everything else about the project is in pyproject.toml; how the libraries are compiled, and which environment variables
choose the compilers, is in mask2former/ops/build.py.
"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

OPS = Path("mask2former/ops")
CONFIGS = Path("configs")


def load_build_module() -> ModuleType:
    """mask2former.ops.build by its path: importing the package would import torch, which a build does not need."""
    spec = importlib.util.spec_from_file_location("mask2former_ops_build", OPS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildStep(Command):
    """A step that writes into the built package."""

    user_options = []  # noqa: RUF012  (setuptools' interface)

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))


class BuildNative(BuildStep):
    """Compiles what the machine has compilers for; without one the installation still succeeds and works."""

    description = "compile the native kernels"

    def run(self) -> None:
        module = load_build_module()
        for stale in () if self.editable_mode else self._built_dir().glob("*.so"):
            stale.unlink()  # copied from the source folder as package data, maybe built for another machine
        try:
            module.build_available(OPS / "lib" if self.editable_mode else self._built_dir())
        except module.BuildError as error:
            raise SystemExit(f"error: {error}") from error

    def get_source_files(self) -> list[str]:
        return sorted(str(path) for path in (OPS / "csrc").rglob("*") if path.is_file())

    def get_outputs(self) -> list[str]:
        return sorted(str(path) for path in self._built_dir().glob("*.so"))

    def get_output_mapping(self) -> dict[str, str]:
        if not self.editable_mode:
            return {}
        return {str(self._built_dir() / path.name): str(path) for path in sorted((OPS / "lib").glob("*.so"))}

    def _built_dir(self) -> Path:
        return Path(self.build_lib) / OPS / "lib"


class BuildConfigs(BuildStep):
    """Copies the config files into the package; an editable installation finds those of the repository."""

    description = "copy the config files into the package"

    def run(self) -> None:
        if self.editable_mode:
            return
        shutil.rmtree(self._built_dir(), ignore_errors=True)
        for source in self.get_source_files():
            target = self._built_dir() / Path(source).relative_to(CONFIGS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        return sorted(str(path) for path in CONFIGS.rglob("*.yaml"))

    def get_outputs(self) -> list[str]:
        return [str(self._built_dir() / Path(source).relative_to(CONFIGS)) for source in self.get_source_files()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def _built_dir(self) -> Path:
        return Path(self.build_lib) / "mask2former" / CONFIGS


class BuildWithNative(build):
    """The ordinary build, then the config files and the native libraries."""

    sub_commands = [*build.sub_commands, ("build_configs", None), ("build_native", None)]  # noqa: RUF012


class PlatformWheel(bdist_wheel):
    """A wheel of this platform for every Python 3: the libraries know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class NativeDistribution(Distribution):
    """Holds compiled code, so the wheel is not pure and installs beside other platform files."""

    def has_ext_modules(self) -> bool:
        return True


if __name__ == "__main__":
    setup(
        distclass=NativeDistribution,
        cmdclass={
            "build": BuildWithNative,
            "build_configs": BuildConfigs,
            "build_native": BuildNative,
            "bdist_wheel": PlatformWheel,
        },
    )
