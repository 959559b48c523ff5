"""Times neighbourhood attention: the native kernel against a gather in PyTorch, side by side in one run.

    python benchmarks/neighbourhood_attention.py [--side 640 --batch 1 --threads 2 --runs 3 --training] [--no-record]

The maps, heads, kernel and dilations are those of DiNAT-L on ADE20K. Maps below kernel times dilation have padded keys,
as in the model. Where natten is installed its flex path is timed, too: without bias, which it does not know, and on
maps that need no padding, which it does not do. Besides seconds there are those of all cores together, which a busy
machine disturbs less; outputs and gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.comparison import largest_difference, require_at_most
from benchmarks.harness import core_seconds_of, print_ratio, record, take_turns
from mask2former.ops import kernel_status, neighbourhood_attention, neighbourhood_attention_reference

KERNEL_SIZE, CHANNELS = 11, 32
# Stride and heads of each level, and dilations that it has.
LEVELS = {"level 0": (4, 6, (1, 20)), "level 1": (8, 12, (1, 5)), "level 2": (16, 24, (3,)), "level 3": (32, 48, (1,))}
MAX_ERROR = 2e-5
MAX_NATTEN_SIDE = 80  # its flex path holds all pairs of pixels: minutes and gigabytes beyond


def make_inputs(stride: int, heads: int, dilation: int, *, args: argparse.Namespace) -> list[Tensor]:
    """Query, key, value and bias of a block."""
    side = args.side // stride
    padded = max(side, KERNEL_SIZE * dilation)
    maps = [torch.randn(args.batch, size, size, heads, CHANNELS) for size in (side, padded, padded)]
    return [*maps, torch.randn(heads, 2 * KERNEL_SIZE - 1, 2 * KERNEL_SIZE - 1)]


def attend(function: Callable[..., Tensor], inputs: list[Tensor], *, dilation: int, training: bool) -> list[Tensor]:
    """Output, and in training the gradients of all inputs."""
    leaves = [tensor.detach().requires_grad_(training) for tensor in inputs]
    output = function(*leaves, kernel_size=KERNEL_SIZE, dilation=dilation, scale=CHANNELS**-0.5)
    return [output.detach(), *(torch.autograd.grad(output, leaves, output.detach()) if training else ())]


def measure(name: str, dilation: int, *, args: argparse.Namespace) -> dict[str, float]:
    """Seconds, and core seconds, of both ways for one block."""
    stride, heads, _ = LEVELS[name]
    inputs = make_inputs(stride, heads, dilation, args=args)
    functions = {
        side: partial(attend, function, inputs, dilation=dilation, training=args.training)
        for side, function in (("ours", neighbourhood_attention), ("gather", neighbourhood_attention_reference))
    }
    pairs = zip(*(function() for function in functions.values()), strict=True)
    error = max(largest_difference(found, expected) for found, expected in pairs)
    require_at_most({"neighbourhood_attention": error}, {"neighbourhood_attention": MAX_ERROR})
    core_seconds: dict[str, list[float]] = {side: [] for side in functions}

    def keep_core_seconds(side: str) -> None:
        core_seconds[side].append(core_seconds_of(functions[side]))

    seconds = take_turns({side: partial(keep_core_seconds, side) for side in functions}, runs=args.runs)
    cores = {side: statistics.median(values[1:]) for side, values in core_seconds.items()}
    label = f"{name}, {args.side // stride} x {args.side // stride}, dilation {dilation}"
    print_ratio(label, ours=1e3 * seconds["ours"], theirs=1e3 * seconds["gather"], unit="ms")
    print_ratio("  all cores together", ours=1e3 * cores["ours"], theirs=1e3 * cores["gather"], unit="ms")
    timed = {f"{side}_seconds": value for side, value in seconds.items()}
    return {**timed, **{f"{side}_core_seconds": value for side, value in cores.items()}, "error": error}


def measure_natten(name: str, dilation: int, *, args: argparse.Namespace) -> dict[str, float]:
    """Core seconds of natten's flex path and of ours, without bias; nothing where natten cannot compute it."""
    stride, heads, _ = LEVELS[name]
    is_possible = KERNEL_SIZE * dilation <= args.side // stride <= MAX_NATTEN_SIDE
    if args.training or not is_possible or importlib.util.find_spec("natten") is None:
        return {}
    import natten

    *maps, bias = make_inputs(stride, heads, dilation, args=args)
    options: dict[str, Any] = {"kernel_size": KERNEL_SIZE, "dilation": dilation}
    functions = {
        "ours": partial(neighbourhood_attention, *maps, torch.zeros_like(bias), scale=CHANNELS**-0.5, **options),
        "natten": partial(natten.na2d, *maps, backend="flex-fna", **options),
    }
    ours, theirs = (function() for function in functions.values())
    require_at_most({"natten": largest_difference(ours, theirs)}, {"natten": MAX_ERROR})
    cores = take_turns(functions, runs=1, clock=core_seconds_of)
    print_ratio("  natten's flex path, all cores", ours=1e3 * cores["ours"], theirs=1e3 * cores["natten"], unit="ms")
    return {"natten_core_seconds": cores["natten"], "ours_without_bias_core_seconds": cores["ours"]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("side", 640), ("batch", 1), ("threads", torch.get_num_threads()), ("runs", 3)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--training", action="store_true", help="output and all gradients")
    parser.add_argument("--no-record", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(kernel_status())
    results: dict[str, Any] = {"side": args.side, "batch": args.batch}
    for name, (_, _, dilations) in LEVELS.items():
        for dilation in dilations:
            measured = measure(name, dilation, args=args)
            results[f"{name}, dilation {dilation}"] = measured | measure_natten(name, dilation, args=args)
    if not args.no_record:
        record("neighbourhood_attention", results, labels=["training"] if args.training else [])


if __name__ == "__main__":
    main()
