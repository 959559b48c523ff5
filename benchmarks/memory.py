"""Peak memory of inference with results of all three tasks at a large output, the whole process counted.

    python benchmarks/memory.py [--model R50|Swin-T|CONFIG] [--size H W] [--output-size H W]

Each case is a process of its own that loads the libraries, builds the model, prepares it as the predictor does and
infers one image twice; its peak is that of the resident set over its whole life, as the kernel counts it (VmHWM).
`scores` is the published contract, in which `sem_seg` holds the scores of all classes; `labels` has
TEST.SEMANTIC_LABELS on, as the prediction command.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.harness import record
from benchmarks.model_pair import build_pair, make_detections
from mask2former import prepare_for_inference

CASES = {"labels": "True", "scores": "False"}
_GIGABYTE = 1e9


def infer(args: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes of this process, before and after inference, and what was found."""
    tasks = [f"MODEL.MASK_FORMER.TEST.{task}_ON" for task in ("SEMANTIC", "PANOPTIC", "INSTANCE")]
    opts = [value for task in tasks for value in (task, "True")] + ["TEST.SEMANTIC_LABELS", CASES[args.case]]
    model = build_pair(args.model, with_transformers=False, opts=tuple(opts)).ours
    image = torch.randint(256, (3, *args.size), dtype=torch.uint8)
    sample = {"image": image, "height": args.output_size[0], "width": args.output_size[1]}
    with torch.inference_mode():
        make_detections(model, model.pad([sample])[0], num_detections=args.detections)
        prepare_for_inference(model)
        before = peak_bytes()
        for _ in range(2):  # memory that the first image leaves to the second is part of what is needed
            results = model([sample])[0]
            shapes = {
                "sem_seg": list(results["sem_seg"].shape),
                "segments": len(results["panoptic_seg"][1]),
                "instances": list(results["instances"].pred_masks.shape),
            }
            del results
    return {"before inference": before, "peak": peak_bytes(), **shapes}


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What `infer` says of each case, run in a process of its own."""
    results = {}
    for case in args.cases:
        command = [sys.executable, __file__, "--case", case, "--model", args.model]
        command += ["--detections", str(args.detections), "--size", *map(str, args.size)]
        command += ["--output-size", *map(str, args.output_size)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[case] = json.loads(output.splitlines()[-1])
    return results


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="R50", help="R50, Swin-T or a config file")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1067], metavar=("H", "W"))
    parser.add_argument("--output-size", type=int, nargs=2, default=[3000, 4000], metavar=("H", "W"))
    parser.add_argument("--detections", type=int, default=12, help="panoptic segments; instances are always 100")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # of the processes that are measured
    parser.add_argument("--no-record", action="store_true", help="print only, keep no line in benchmarks/results")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_arguments()
    if args.case:
        print(json.dumps(infer(args)))
        return
    results = measure(args)
    print(f"{args.model} {args.size} -> {args.output_size}, all three tasks; largest resident set of the whole process")
    for case, found in results.items():
        before, peak = (found[key] / _GIGABYTE for key in ("before inference", "peak"))
        print(f"  {case:7s} {peak:6.2f} GB, {before:.2f} GB before inference; sem_seg {found['sem_seg']}", end="")
        print(f", {found['segments']} segments, instances {found['instances']}")
    if not args.no_record:
        sizes = {"model": args.model, "size": args.size, "output_size": args.output_size}
        record("memory", {**sizes, "peak bytes of the process": results})


if __name__ == "__main__":
    main()
