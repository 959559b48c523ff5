"""``python -m mask2former.evaluation TASK …``: forwards to ``mask2former evaluate TASK …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the metrics of saved predictions; returns the exit code."""
    from mask2former.commands.cli import main as run_command

    given = list(sys.argv[1:] if arguments is None else arguments)
    # As it always was, --verbose may come before the task.
    return run_command(["evaluate", *sorted(given, key=lambda argument: argument == "--verbose")])


if __name__ == "__main__":
    sys.exit(main())
