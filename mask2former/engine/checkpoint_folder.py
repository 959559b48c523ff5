"""The checkpoints of one run: an ordered list, the newest readable one, and pruning."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from mask2former.checkpoint import load_state
from mask2former.checkpoint.addresses import BEST, FINAL, LAST
from mask2former.errors import CheckpointError
from mask2former.files.atomic import save_atomic, write_text_atomic
from mask2former.files.inputs import open_file
from mask2former.files.json_files import read_json_if_whole

_INDEX = "checkpoints.json"  # names of this run's checkpoints, oldest first
_PERIODIC = re.compile(r"^model_(\d+)\.pth$")

logger = logging.getLogger(__name__)


class CheckpointFolder:
    """Checkpoints in an output folder.

    ``max_to_keep``: number of periodic ones to keep, 0 keeps all. ``description``: what each of them holds beside its
    state, so that it can be used alone (``checkpoint.describe``).
    """

    def __init__(self, directory: str | Path, *, max_to_keep: int = 0) -> None:
        self.directory = Path(directory)
        self._max_to_keep = max_to_keep
        self.description: dict[str, str] = {}

    def begin_run(self) -> None:
        """Forget checkpoints of an earlier run, so that none of them is resumed; the files stay."""
        if self._candidates():
            logger.warning(
                "%s holds checkpoints of an earlier run, which this one overwrites where the names are the same "
                "(--resume would have continued it)",
                self.directory,
            )
        write_text_atomic("[]\n", self.directory / _INDEX)
        (self.directory / LAST).unlink(missing_ok=True)

    def save_periodic(self, state: dict[str, Any], iteration: int) -> Path:
        """Write ``model_<iteration>.pth`` and remove those beyond ``max_to_keep``."""
        return self._save(state, f"model_{iteration:07d}.pth")

    def save_final(self, state: dict[str, Any]) -> Path:
        """Write ``model_final.pth``."""
        return self._save(state, FINAL)

    def save_best(self, state: dict[str, Any]) -> Path:
        """Write ``model_best.pth``, which is never resumed."""
        save_atomic({**state, **self.description}, self.directory / BEST)
        return self.directory / BEST

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest readable checkpoint and its content; None if there is none.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        candidates = self._candidates()
        for path in candidates:
            try:
                open_file(path, error=CheckpointError).close()  # a folder of this name is none of ours
                state = load_state(path)
            except CheckpointError as error:
                logger.warning("%s; passed over for the checkpoint before it", error)
                continue
            if type(state.get("iteration")) is not int or state["iteration"] < 0:
                logger.warning("%s holds weights only, nothing to resume; passed over", path)
                continue
            return path, state
        if candidates:
            raise CheckpointError(
                f"{self.directory}: none of {len(candidates)} checkpoints can be resumed: "
                f"{', '.join(path.name for path in candidates)}; start anew without --resume, or in another OUTPUT_DIR"
            )
        return None

    def _save(self, state: dict[str, Any], name: str) -> Path:
        path = self.directory / name
        save_atomic({**state, **self.description}, path)
        names = [*(known for known in self._index() or [] if known != name), name]
        periodic = [known for known in names if _PERIODIC.match(known)]
        outdated = periodic[: -self._max_to_keep] if self._max_to_keep > 0 else []
        names = [known for known in names if known not in outdated]
        # Names before files: at no moment does the index lead to a file that is not there.
        write_text_atomic(json.dumps(names) + "\n", self.directory / _INDEX)
        write_text_atomic(name, self.directory / LAST)
        for known in outdated:
            (self.directory / known).unlink(missing_ok=True)
        logger.info("checkpoint written: %s", path)
        return path

    def _index(self) -> list[str] | None:
        names = read_json_if_whole(self.directory / _INDEX)
        if isinstance(names, list) and all(isinstance(name, str) and Path(name).name == name for name in names):
            return names
        if os.path.lexists(self.directory / _INDEX):
            logger.warning("%s: not a list of checkpoints; the names of the files are taken", self.directory / _INDEX)
        return None

    def _candidates(self) -> list[Path]:
        """Return the checkpoints that could be resumed, newest first; without an index, by their file names."""
        names = self._index()
        if names is None:
            periodic = [p.name for p in self.directory.glob("model_*.pth") if _PERIODIC.match(p.name)]
            names = sorted(periodic, key=lambda name: int(name[len("model_") : -len(".pth")]))
            names += [FINAL] if (self.directory / FINAL).exists() else []
        newest_first = names[::-1]
        try:
            last = Path((self.directory / LAST).read_text(encoding="utf-8").strip()).name
        except (OSError, ValueError):
            last = ""
        if last:
            newest_first = [last, *(name for name in newest_first if name != last)]
        return [self.directory / name for name in newest_first]
