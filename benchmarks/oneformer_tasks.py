"""Times OneFormer in one task and in all three of one pass of the backbone, results included.

    python benchmarks/oneformer_tasks.py [--config ade20k/oneformer_R50_bs16_160k.yaml --size 640 640 --runs 3]

The model has random weights, which cost what trained ones do but for the number of segments.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.harness import core_seconds_of, record, take_turns
from mask2former.config import get_cfg
from mask2former.modeling import build_model, prepare_for_inference
from mask2former.structures.tasks import ALL_TASKS, TASKS

GOAL = 1.6  # times one task


@torch.inference_mode()
def measure(config: str, *, size: tuple[int, int], runs: int) -> dict[str, Any]:
    """Return seconds, and seconds of all cores, of each task and of all, and the ratio of all to the panoptic task."""
    cfg = get_cfg()
    cfg.merge_from_file(config)
    cfg.MODEL.DEVICE, cfg.MODEL.IS_TRAIN = "cpu", False
    torch.manual_seed(0)
    model = prepare_for_inference(build_model(cfg).eval())
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    sample = {"image": image, "height": size[0], "width": size[1]}
    functions = {task: partial(model, [{**sample, "task": task}]) for task in (*TASKS, ALL_TASKS)}
    found: dict[str, Any] = {"config": config, "size": list(size)}
    for name, clock in (("passed", {}), ("all_cores", {"clock": core_seconds_of})):
        found[name] = take_turns(functions, runs=runs, **clock)
        found[f"{name}_ratio"] = found[name][ALL_TASKS] / found[name][TASKS[0]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["ade20k/oneformer_R50_bs16_160k.yaml"])
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for name in options.config:
        found = measure(f"configs/oneformer/{name}", size=tuple(options.size), runs=options.runs)
        print(f"{name}, {options.size[0]} x {options.size[1]}")
        for task in (*TASKS, ALL_TASKS):
            print(f"  {task:10s} {found['passed'][task]:6.2f} s   of all cores {found['all_cores'][task]:6.2f} s")
        ratios = [found[f"{clock}_ratio"] for clock in ("passed", "all_cores")]
        print(f"  all three cost {ratios[0]:.2f} times the panoptic task (of all cores {ratios[1]:.2f}); goal {GOAL}")
        record("oneformer_tasks", found)


if __name__ == "__main__":
    main()
