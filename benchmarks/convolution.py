"""Times the 3x3 convolution on the CPU, by Winograd's filtering, beside torch's direct convolution.

    python benchmarks/convolution.py [--height 800 --width 1088 --batch 1 --threads 2 --runs 7] [--no-record]
    python benchmarks/convolution.py --training [--height 512 --width 512 --batch 2 …]

The maps are those of an R50 model: of the pixel decoder at stride 4 and of the backbone's stages. Errors are against
float64 and relative to the largest value. In inference the weight's transform is kept from call to call, as in a model;
in training the output and the gradients of map and weight are timed together, the error is that of the weight's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.comparison import largest_difference, require_at_most
from benchmarks.harness import print_ratio, record, take_turns
from mask2former.ops import (
    WinogradWeight,
    conv3x3,
    is_trained_winograd_faster,
    is_winograd_faster,
    kernel_status,
    trained_conv3x3,
)

MAPS = {"pixel decoder": (256, 4), "res2": (64, 4), "res3": (128, 8), "res4": (256, 16), "res5": (512, 32)}
SIZES = {
    "inference": {"height": 800, "width": 1088, "batch": 1},
    "training": {"height": 512, "width": 512, "batch": 2},
}
MAX_ERROR = 5e-6
Measured: TypeAlias = tuple[bool, dict[str, Callable[[], Any]], tuple[float, float]]
_PIECE = 64  # rows and columns of a map that are computed in float64


def make_inputs(channels: int, stride: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """A map as it leaves a ReLU, and weights that keep its magnitude."""
    x = torch.randn(args.batch, channels, args.height // stride, args.width // stride).relu()
    weight = torch.randn(channels, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
    return x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last)


def errors_of(x: Tensor, weight: Tensor, *, kept: WinogradWeight) -> tuple[float, float]:
    """Of ours as it is timed and of the direct convolution, in the last corner, where tiles are cut.

    Raises:
        DifferenceError: ours is above MAX_ERROR.
    """
    last = slice(-_PIECE, None)
    piece = x[:1, :, -_PIECE - 1 :, -_PIECE - 1 :]  # and the neighbours of its first row and column
    exact = F.conv2d(piece.double(), weight.double(), padding=1)[..., last, last]
    ours, theirs = (
        largest_difference(y[:1, :, last, last], exact)
        for y in (conv3x3(x, weight, kept=kept), F.conv2d(x, weight, padding=1))
    )
    require_at_most({"conv3x3": ours}, {"conv3x3": MAX_ERROR})
    return ours, theirs


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and errors of both ways for one of the maps."""
    channels, stride = MAPS[name]
    x, weight = make_inputs(channels, stride, args)
    is_fast, functions, (ours_error, theirs_error) = (training_of if args.training else inference_of)(x, weight)
    seconds = take_turns(functions, runs=args.runs)
    label = f"{name}, {channels} at {x.shape[-2]} x {x.shape[-1]}{'' if is_fast else ' (not used)'}"
    print_ratio(label, ours=1e3 * seconds["ours"], theirs=1e3 * seconds["direct"], unit="ms")
    print(f"  {'':44s} error {ours_error:.1e}   error {theirs_error:.1e}")
    timed = {f"{side}_seconds": value for side, value in seconds.items()}
    return {**timed, "ours_error": ours_error, "direct_error": theirs_error}


@torch.inference_mode()
def inference_of(x: Tensor, weight: Tensor) -> Measured:
    """Whether the fast way serves, what is timed, and both errors."""
    kept = WinogradWeight()
    functions = {"ours": lambda: conv3x3(x, weight, kept=kept), "direct": lambda: F.conv2d(x, weight, padding=1)}
    without_gradients = {name: torch.inference_mode()(function) for name, function in functions.items()}
    return is_winograd_faster(x, weight), without_gradients, errors_of(x, weight, kept=kept)


def training_of(x: Tensor, weight: Tensor) -> Measured:
    """The same of the output with its gradients.

    Raises:
        DifferenceError: a gradient of ours is further than MAX_ERROR from float64.
    """
    inputs, grad = (x.requires_grad_(), weight.requires_grad_()), torch.randn_like(x)

    def gradients_of(convolve: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(convolve(), inputs, grad)

    exact = torch.nn.grad.conv2d_weight(x.detach().double(), weight.shape, grad.double(), padding=1)
    functions = {
        "ours": gradients_of(lambda: trained_conv3x3(x, weight)),
        "direct": gradients_of(lambda: F.conv2d(x, weight, padding=1)),
    }
    (ours_x, ours), (theirs_x, theirs) = (functions[name]() for name in ("ours", "direct"))
    errors = largest_difference(ours, exact), largest_difference(theirs, exact)
    differences = {"gradient of the weight": errors[0], "gradients of the map": largest_difference(ours_x, theirs_x)}
    require_at_most(differences, dict.fromkeys(differences, MAX_ERROR))
    return is_trained_winograd_faster(x, weight), functions, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", action="store_true", help="with gradients, at the sizes of training")
    for option in ("height", "width", "batch"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-record", action="store_true", help="append nothing to benchmarks/results")
    args = parser.parse_args()
    kind = "training" if args.training else "inference"
    for option, default in SIZES[kind].items():
        if getattr(args, option) is None:
            setattr(args, option, default)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{kernel_status()}; batch {args.batch}, {args.threads} threads, medians of {args.runs}")
    results = {name: measure(name, args) for name in MAPS}
    if not args.no_record:
        sizes = {option: getattr(args, option) for option in SIZES[kind]}
        record("convolution", {**sizes, **results}, labels=["training"] if args.training else [])


if __name__ == "__main__":
    main()
