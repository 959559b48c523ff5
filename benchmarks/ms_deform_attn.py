"""Times multi-scale deformable attention: the native kernels against the PyTorch reference, side by side in one run.

    python benchmarks/ms_deform_attn.py [--height 800 --width 1088 --batch 1 --dtype float32 --threads 2 --device cpu]

On a GPU (`--device cuda`) also against a straightforward port and against the bandwidth bound: ms_deform_attn_gpu.py.
Outputs and gradients are compared before anything is timed.

Sampling points lie around each query's own place, spread as a freshly initialised model spreads them; uniformly random
ones would miss every cache and mislead. `beside torch` puts a matrix product before each call, so that torch's own
threads are awake and would spin against any other runtime's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.comparison import largest_difference, require_at_most
from benchmarks.harness import record
from benchmarks.ms_deform_attn_errors import LIMITS, errors_of_gradients
from mask2former.ops import kernel_status, ms_deform_attn, ms_deform_attn_reference

STRIDES = (8, 16, 32)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_inputs(args: argparse.Namespace) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """As in an encoder layer: every token of every level is a query."""
    shapes = [(args.height // stride, args.width // stride) for stride in STRIDES]
    dtype = DTYPES[args.dtype]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in shapes
    ]
    own_place = torch.cat(centres)[None, :, None, None, None]  # (1, Q, 1, 1, 1, 2)
    num_queries, num_levels = own_place.shape[1], len(shapes)
    angle = torch.arange(args.heads) * (2 * torch.pi / args.heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)  # (M, 2)
    steps = torch.arange(1, args.points + 1)[:, None] * direction[:, None, None]  # (M, 1, P, 2): p pixels away
    sizes = torch.tensor([(w, h) for h, w in shapes])[:, None]  # (L, 1, 2)
    locations = own_place + (steps + 0.3 * torch.randn(1, num_queries, args.heads, num_levels, args.points, 2)) / sizes
    locations = locations.expand(args.batch, -1, -1, -1, -1, -1).to(exact)
    weights = torch.rand(args.batch, num_queries, args.heads, num_levels * args.points).softmax(-1)
    value = torch.randn(args.batch, num_queries, args.heads, args.channels)
    inputs = (value.to(dtype), locations, weights.unflatten(-1, (num_levels, args.points)).to(exact))
    value, locations, weights = (tensor.to(args.device).contiguous() for tensor in inputs)
    return value, shapes, locations, weights


def median_ms(call: Callable[[], object], args: argparse.Namespace) -> float:
    """Median time of a call, and the device's work with it."""
    times = []
    for _ in range(args.repeats + 1):
        synchronize(args.device)
        start = time.perf_counter()
        call()
        synchronize(args.device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(function: Callable[..., Tensor], inputs: tuple, args: argparse.Namespace) -> dict[str, float]:
    value, shapes, locations, weights = inputs
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    with torch.no_grad():
        grad = torch.randn_like(function(value, shapes, locations, weights))
        forward = median_ms(lambda: function(value, shapes, locations, weights), args)
    both = median_ms(
        lambda: torch.autograd.grad(function(leaves[0], shapes, *leaves[1:]), leaves, grad),
        args,
    )
    return {"forward": forward, "forward + backward": both}


def compare(inputs: tuple) -> dict[str, float]:
    """Largest differences of the kernels' output and gradients from the reference's, in at least float32.

    Raises:
        DifferenceError: one is above LIMITS.
    """
    value, shapes, locations, weights = inputs
    exact = value.to(torch.promote_types(value.dtype, torch.float32))
    found, expected = (
        _run_both_passes(function, of, shapes, locations, weights)
        for function, of in ((ms_deform_attn, value), (ms_deform_attn_reference, exact))
    )
    with torch.no_grad():  # as the forward pass is timed
        inferred = ms_deform_attn(*inputs)
    errors = {"output": largest_difference(inferred, expected[0])}
    errors["output with gradients"] = largest_difference(found[0], expected[0])
    errors |= errors_of_gradients(found[1:], expected[1:], locations=locations, shapes=shapes)
    require_at_most(errors, dict.fromkeys(errors, LIMITS[value.dtype]))
    return errors


def _run_both_passes(
    function: Callable[..., Tensor], value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> list[Tensor]:
    """Output, and gradients of value, locations and weights for one gradient whatever the function."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    output = function(leaves[0], shapes, *leaves[1:])
    generator = torch.Generator(value.device).manual_seed(0)
    # One that bfloat16 holds exactly: as it is rounded, so would the results be.
    grad = torch.randn(output.shape, generator=generator, device=value.device).bfloat16().to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def measure_beside_torch(inputs: tuple, args: argparse.Namespace) -> float:
    """Time that one call adds to a matrix product before it."""
    value, shapes, locations, weights = inputs
    tokens = value.flatten(2)
    layer = torch.nn.Linear(tokens.shape[-1], tokens.shape[-1], device=args.device, dtype=value.dtype)

    def product_and_attention() -> Tensor:
        return ms_deform_attn(layer(tokens).view_as(value), shapes, locations, weights)

    with torch.no_grad():
        product = median_ms(lambda: layer(tokens), args)
        return median_ms(product_and_attention, args) - product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("height", 800), ("width", 1088), ("batch", 1), ("heads", 8), ("channels", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-record", action="store_true", help="print only, keep no line in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    inputs = make_inputs(args)
    print(kernel_status())
    print(f"{inputs[0].shape[1]} queries, batch {args.batch}, {args.dtype}, {args.threads} threads, median ms:")
    sizes = {name: getattr(args, name) for name in ("device", "dtype", "height", "width", "batch", "heads", "channels")}
    results = sizes | (measure_gpu(inputs, args) if args.device.startswith("cuda") else measure_cpu(inputs, args))
    if not args.no_record:
        record("ms_deform_attn", results)


def measure_cpu(inputs: tuple, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds beside the reference."""
    results: dict[str, Any] = {"differences": compare(inputs)}
    native, reference = measure(ms_deform_attn, inputs, args), measure(ms_deform_attn_reference, inputs, args)
    print(f"  differs by at most {max(results['differences'].values()):.1e} of the largest value")
    for name, ms in native.items():
        print(f"  {name:20} native {ms:9.2f}   reference {reference[name]:9.2f}   {reference[name] / ms:6.1f} x")
        results[name] = {"ms": ms, "reference, ms": reference[name], "ratio": reference[name] / ms}
    results["beside torch, ms"] = measure_beside_torch(inputs, args)
    print(f"  {'beside torch':20} native {results['beside torch, ms']:9.2f}")
    return results


def measure_gpu(inputs: tuple, args: argparse.Namespace) -> dict[str, Any]:
    """What `measure_on_gpu` finds."""
    from benchmarks.ms_deform_attn_gpu import make_case, measure_on_gpu, print_results

    with torch.cuda.device(args.device):
        results = measure_on_gpu(make_case(*inputs), repeats=max(args.repeats, 20))
    print_results(results)
    return results


if __name__ == "__main__":
    main()
