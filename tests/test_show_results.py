from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tools" / "show_results.py"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)


def test_show_results_prints_the_last_value_and_existing_files(tmp_path: Path) -> None:
    lines = [
        '{"iteration": 9, "panoptic_seg/PQ": 12.0}',
        '{"iteration": 19, "panoptic_seg/PQ": 61.25}',
        '{"total_loss": 3}',
    ]
    (tmp_path / "metrics.json").write_text("\n".join(lines) + "\n")
    done = run(tmp_path)
    assert done.returncode == 0
    assert "61.25" in done.stdout
    assert "12.00" not in done.stdout
    assert str(tmp_path / "metrics.json") in done.stdout
    assert "model_final.pth" not in done.stdout


def test_show_results_without_metrics_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'metrics.json'}: ")
    assert "Traceback" not in done.stderr
