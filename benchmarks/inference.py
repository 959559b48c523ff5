"""Times inference end to end, image to results of all three tasks, beside transformers' forward and panoptic results.

    python benchmarks/inference.py [--model R50|Swin-T|CONFIG] [--size H W] [--output-size H W] [--dtype bfloat16]
    python benchmarks/inference.py --batch 4      several images in a call of both models
    python benchmarks/inference.py --scaling      ours alone, at once, twice and four times the pixels of both sizes

Both models have the same weights and take turns in one process. Ours is prepared as the predictor prepares it; theirs
is always float32 as it comes. What is timed is compared first: logits and panoptic maps (model_comparison.py).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.harness import now, print_ratio, record, take_turns
from benchmarks.model_comparison import compare_models
from benchmarks.model_pair import ModelPair, add_pair_options, build_pair, convert_to_transformers, make_detections
from mask2former import prepare_for_inference
from mask2former.ops import kernel_status

SCALES = (1, 2, 4)
STAGES = {"backbone": "features", "decoders": "predict", "results": "results"}


class StageClock:
    """Adds up the seconds that a model spends in each stage."""

    def __init__(self, model: Any) -> None:
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for stage, owner in zip(STAGES, (model, model.sem_seg_head, model)):
            setattr(owner, STAGES[stage], self._timed(stage, getattr(owner, STAGES[stage])))

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = function(*args, **kwargs)
            self.seconds[stage].append(now() - start)
            return result

        return call

    def medians(self) -> dict[str, float]:
        """Median seconds of each stage, but for the first call."""
        return {stage: sorted(times[1:])[len(times[1:]) // 2] for stage, times in self.seconds.items()}


def run_theirs(pair: ModelPair, images: torch.Tensor, output_size: tuple[int, int]) -> Any:
    """Transformers' forward pass and panoptic post-processing, with the thresholds of ours."""
    from transformers import Mask2FormerImageProcessor

    outputs = pair.theirs(pixel_values=images)
    test = pair.cfg.MODEL.MASK_FORMER.TEST
    stuff = set(range(pair.theirs.config.num_labels)) - (pair.ours.thing_ids or set())
    return Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs,
        threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_mask_area_threshold=test.OVERLAP_THRESHOLD,
        label_ids_to_fuse=stuff,
        target_sizes=[output_size] * len(images),
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Differences and seconds a call of both, seconds of our stages, images a second and the ratio.

    Raises:
        DifferenceError: ours, prepared and in its precision, does not find what theirs does; nothing is timed then.
    """
    pair = build_ours(args)
    samples = [make_sample(args.size, args.output_size) for _ in range(args.batch)]
    images, _ = pair.ours.pad(samples)
    make_detections(pair.ours, images[:1], num_detections=args.detections)
    functions: dict[str, Callable[[], Any]] = {"ours": partial(pair.ours, samples)}
    if not args.without_transformers:  # weights are taken before preparation renames them
        pair.theirs = convert_to_transformers(pair.ours, pair.cfg).to(args.device)
        functions["theirs"] = partial(run_theirs, pair, images, tuple(args.output_size))
    prepare_for_inference(pair.ours)
    segments = [len(result["panoptic_seg"][1]) for result in pair.ours(samples)]
    differences = None
    if "theirs" in functions:
        differences = compare_models(pair, samples, run_theirs=functions["theirs"], dtype=args.dtype)
    clock = StageClock(pair.ours)
    seconds = take_turns(functions, runs=args.runs)
    return {
        "model": args.model,
        "size": args.size,
        "output_size": args.output_size,
        "batch": args.batch,
        "dtype": args.dtype,
        "device": args.device,
        "segments": sum(segments),
        "differences": differences,
        "seconds": seconds,
        "images per second": {name: args.batch / value for name, value in seconds.items()},
        "our stages": clock.medians(),
        "ratio": seconds["theirs"] / seconds["ours"] if "theirs" in seconds else None,
    }


def make_sample(size: Sequence[int], output_size: Sequence[int]) -> dict[str, Any]:
    """An image of noise, as the model takes it."""
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    return {"image": image, "height": output_size[0], "width": output_size[1]}


def measure_scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of our model by how many times the pixels of input and output there are, and their ratios to once."""
    ours = build_ours(args).ours
    functions: dict[str, Callable[[], Any]] = {}
    for times in SCALES:
        height, width = (round(side * times**0.5 / 32) * 32 for side in args.size)
        sample = make_sample((height, width), [round(side * times**0.5) for side in args.output_size])
        if times == 1:
            make_detections(ours, ours.pad([sample])[0], num_detections=args.detections)
            prepare_for_inference(ours)
        functions[str(times)] = partial(ours, [sample])
    seconds = take_turns(functions, runs=args.runs)
    ratios = {times: value / seconds["1"] for times, value in seconds.items()}
    sizes = {"model": args.model, "size": args.size, "output_size": args.output_size, "dtype": args.dtype}
    return {**sizes, "device": args.device, "seconds by pixels": seconds, "ratios": ratios}


def build_ours(args: argparse.Namespace) -> ModelPair:
    """Our model alone, which infers in the type that was asked for."""
    opts = ("MODEL.PRECISION", args.dtype, *args.opts)
    return build_pair(args.model, device=args.device, with_transformers=False, opts=opts)


def _labels(args: argparse.Namespace) -> list[str]:
    return [Path(args.model).stem, *([f"batch{args.batch}"] if args.batch > 1 else [])]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_options(parser)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1088], metavar=("H", "W"))
    parser.add_argument("--output-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="images in a call of each model")
    parser.add_argument("--detections", type=int, default=12)
    parser.add_argument("--scaling", action="store_true", help="seconds of ours at 1, 2 and 4 times the pixels")
    args = parser.parse_args(arguments)
    if args.batch < 1 or (args.scaling and args.batch > 1):
        parser.error("--batch: expected at least 1, and 1 with --scaling")
    return args


def print_results(results: dict[str, Any]) -> None:
    """Sizes, how far both models are apart, and the seconds of a call."""
    seconds = results["seconds"]
    print(
        f"{results['model']} {results['batch']} x {results['size']} -> {results['output_size']}, "
        f"ours in {results['dtype']}, {results['segments']} segments, seconds a call:"
    )
    for name, difference in (results["differences"] or {}).items():
        print(f"  differs in {name:28s} {difference:.1e}")
    for stage, of_stage in results["our stages"].items():
        print(f"  {stage:12s} {of_stage:8.3f} s")
    speed = results["images per second"]
    if results["ratio"] is None:
        print(f"  end to end   {seconds['ours']:8.3f} s, {speed['ours']:.3f} images/s")
    else:
        print_ratio("end to end", ours=seconds["ours"], theirs=seconds["theirs"])
        print(f"  {'':44s} ours {speed['ours']:9.4g} images/s   theirs {speed['theirs']:9.4g} images/s")


@torch.inference_mode()
def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; {kernel_status()}")
    started = time.perf_counter()
    if args.scaling:
        print(f"{args.model}, {args.size} -> {args.output_size} and multiples, {args.dtype}:")
        scaling = measure_scaling(args)
        for times, seconds in scaling["seconds by pixels"].items():
            print(f"  {times} times the pixels {seconds:8.3f} s, {scaling['ratios'][times]:.2f} times the cost")
        if not args.no_record:
            record("inference", scaling, labels=["scaling", *_labels(args)])
        return
    results = measure(args)
    print_results(results)
    if not args.no_record:
        record("inference", results, labels=_labels(args))
    print(f"  measured in {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
