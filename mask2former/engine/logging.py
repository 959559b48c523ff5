"""Log lines: to the terminal (above a progress bar, where there is one) and to ``log.txt``."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from mask2former import distributed
from mask2former.engine import nonfinite
from mask2former.errors import ConfigError

_ROOT = "mask2former"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SHORT_FORMAT = "[%(asctime)s] %(message)s"
_TIME = "%m-%d %H:%M:%S"


class _TerminalHandler(logging.Handler):
    """Writes to stdout without breaking a progress bar on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # nobody looks any more; the file has the line
            pass
        except Exception:
            self.handleError(record)


class _FileHandler(logging.Handler):
    """Appends lines to a file; where the disk takes no more it says so once, and the run goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._is_failing = path, False
        self._file = io.FileIO(path, "a")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                print(f"warning: {self._path}: cannot be written: {error.strerror}", file=sys.stderr)
            self._is_failing = True
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()


def setup_logging(output_dir: str | Path | None = None, *, verbose: bool = False) -> None:
    """Send the package's log to the terminal, and to ``log.txt`` in the folder given; other processes only warn.

    May be called again: earlier handlers of this function are replaced.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    root = logging.getLogger(_ROOT)
    for handler in [h for h in root.handlers if getattr(h, "_is_ours", False)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = True
    terminal = _TerminalHandler()
    terminal.setFormatter(logging.Formatter(_FORMAT if verbose else _SHORT_FORMAT, _TIME))
    if not distributed.is_main():
        # Which images of this process were not finite is known here alone; all else the main process says.
        terminal.setLevel(logging.WARNING)
        terminal.addFilter(lambda record: record.name == nonfinite.__name__ or record.levelno >= logging.ERROR)
    _add(root, terminal)
    if output_dir is not None and distributed.is_main():
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            file = _FileHandler(Path(output_dir) / "log.txt")
        except OSError as error:
            raise ConfigError(f"OUTPUT_DIR {output_dir}: cannot be written to: {error.strerror}") from error
        file.setFormatter(logging.Formatter(_FORMAT, _TIME))
        _add(root, file)


def _add(root: logging.Logger, handler: logging.Handler) -> None:
    handler._is_ours = True  # type: ignore[attr-defined]
    root.addHandler(handler)
