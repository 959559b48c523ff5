"""Times the 3x3 convolution of inference on the CPU, by Winograd's filtering, beside torch's direct convolution.

    python benchmarks/convolution.py [--height 800 --width 1088 --batch 1 --threads 2 --runs 7] [--no-record]

The maps are those of an R50 model: of the pixel decoder at stride 4 and of the backbone's stages. Both errors are
against float64 and relative to the largest output. The weight's transform is kept from call to call, as in a model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.comparison import largest_difference, require_at_most
from benchmarks.harness import print_ratio, record, take_turns
from mask2former.ops import WinogradWeight, conv3x3, is_winograd_faster, kernel_status

MAPS = {"pixel decoder": (256, 4), "res2": (64, 4), "res3": (128, 8), "res4": (256, 16), "res5": (512, 32)}
MAX_ERROR = 5e-6
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
    kept = WinogradWeight()
    ours_error, theirs_error = errors_of(x, weight, kept=kept)
    functions = {"ours": lambda: conv3x3(x, weight, kept=kept), "direct": lambda: F.conv2d(x, weight, padding=1)}
    seconds = take_turns(functions, runs=args.runs)
    way = "" if is_winograd_faster(x, weight) else " (direct too)"
    label = f"{name}, {channels} at {x.shape[-2]} x {x.shape[-1]}{way}"
    print_ratio(label, ours=1e3 * seconds["ours"], theirs=1e3 * seconds["direct"], unit="ms")
    print(f"  {'':44s} error {ours_error:.1e}   error {theirs_error:.1e}")
    return {**seconds, "ours_error": ours_error, "direct_error": theirs_error}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("height", 800), ("width", 1088), ("batch", 1), ("runs", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-record", action="store_true", help="append nothing to benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{kernel_status()}; batch {args.batch}, {args.threads} threads, medians of {args.runs}")
    results = {name: measure(name, args) for name in MAPS}
    if not args.no_record:
        record("convolution", {"height": args.height, "width": args.width, "batch": args.batch, **results})


if __name__ == "__main__":
    main()
