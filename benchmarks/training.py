"""Times a training step and its peak memory beside transformers' model: forward, matching, loss, backward, optimiser.

    python benchmarks/training.py [--model R50|Swin-T|CONFIG] [--batch 2] [--size 512] [--objects 12] [--dtype bfloat16]

Both models have the same weights and see the same images and masks; in one process they take turns. Memory is
measured in a process for each: the highest resident size during a step above that of the idle model.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.harness import now, print_ratio, record, take_turns
from benchmarks.model_pair import add_pair_options, build_pair, compare_outputs
from mask2former.engine.optimizer import build_optimizer
from mask2former.ops import kernel_status
from mask2former.structures import Instances

_LEARNING_RATE = 1e-6  # the steps shall not change what is measured


class OurStep:
    """A step as the trainer makes it; seconds of each part in `parts`."""

    def __init__(self, model: Any, cfg: Any, batch: list[dict[str, Any]], *, device: str, bfloat16: bool) -> None:
        self.model, self.batch, self.device, self.bfloat16 = model.train(), batch, device, bfloat16
        cfg.SOLVER.BASE_LR = _LEARNING_RATE
        self.optimizer = build_optimizer(cfg, model)
        self.parts: dict[str, list[float]] = {}
        criterion = model.criterion
        criterion.matcher = _Timed(criterion.matcher, self.parts.setdefault("matching", []))
        model.losses = _Timed(model.losses, self.parts.setdefault("matching and loss", []))

    def __call__(self) -> float:
        start = now()
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bfloat16):
            losses = self.model(self.batch)
        total = torch.stack(list(losses.values())).sum()
        forward = now()
        total.backward()
        backward = now()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        end = now()
        for name, seconds in (
            ("forward and loss", forward - start),
            ("backward", backward - forward),
            ("optimiser", end - backward),
        ):
            self.parts.setdefault(name, []).append(seconds)
        return total.item()

    def medians(self) -> dict[str, float]:
        """Median seconds of each part; matching is a part of the loss, the loss of the forward pass."""
        return {name: sorted(times[1:])[len(times[1:]) // 2] for name, times in self.parts.items()}


class TheirStep:
    """The same step with transformers' model and AdamW as it comes."""

    def __init__(self, model: nn.Module, images: Tensor, batch: list[dict[str, Any]]) -> None:
        self.model, self.images = model.train(), images
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # as ours: constant statistics
        self.labels = [sample["instances"].gt_classes.to(images.device) for sample in batch]
        self.masks = [sample["instances"].gt_masks.float().to(images.device) for sample in batch]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)

    def __call__(self) -> float:
        output = self.model(pixel_values=self.images, mask_labels=self.masks, class_labels=self.labels)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return output.loss.item()


class _Timed:
    """A callable that notes how long its calls take."""

    def __init__(self, function: Callable[..., Any], seconds: list[float]) -> None:
        self.function, self.seconds = function, seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = now()
        result = self.function(*args, **kwargs)
        self.seconds.append(now() - start)
        return result


def make_batch(*, batch: int, size: int, objects: int, num_classes: int) -> list[dict[str, Any]]:
    """Images of noise with elliptic objects."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    samples = []
    for _ in range(batch):
        centre, radius = torch.rand(objects, 2) * size, (0.05 + 0.2 * torch.rand(objects, 2)) * size
        y, x = ((grid - c[:, None, None]) / r[:, None, None] for grid, c, r in zip((rows, columns), centre.T, radius.T))
        instances = Instances(
            (size, size),
            gt_classes=torch.randint(num_classes, (objects,)),
            gt_masks=(y.square() + x.square()) < 1,
        )
        samples.append({"image": torch.randint(256, (3, size, size), dtype=torch.uint8), "instances": instances})
    return samples


def build_steps(
    args: argparse.Namespace, *, which: Sequence[str]
) -> tuple[dict[str, Callable[[], float]], float | None]:
    """The steps asked for, and the difference of the models' outputs where both are."""
    pair = build_pair(args.model, device=args.device, with_transformers="theirs" in which, opts=tuple(args.opts))
    num_classes = pair.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    batch = make_batch(batch=args.batch, size=args.size, objects=args.objects, num_classes=num_classes)
    images, _ = pair.ours.pad(batch)
    difference = compare_outputs(pair, images) if len(which) == 2 else None
    steps: dict[str, Callable[[], float]] = {}
    if "ours" in which:
        bfloat16 = args.dtype == "bfloat16"
        steps["ours"] = OurStep(pair.ours, pair.cfg, batch, device=args.device, bfloat16=bfloat16)
    if "theirs" in which:
        steps["theirs"] = TheirStep(pair.theirs, images, batch)
    return steps, difference


def step_memory(args: argparse.Namespace, which: str) -> float:
    """MiB that a step takes above the idle model, measured in this process, which should do nothing else."""
    steps, _ = build_steps(args, which=[which])
    step = steps[which]
    step()  # the optimiser's state belongs to the idle model
    gc.collect()
    if args.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - idle) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
    idle = _status_kib("VmRSS")
    step()
    return (_status_kib("VmHWM") - idle) / 1024


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def memory_of_both(which: Sequence[str]) -> dict[str, float]:
    """The same, each in a process of its own that gets this one's arguments."""
    memory = {}
    for name in which:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        memory[name] = json.loads(output.splitlines()[-1])
    return memory


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of both, of our parts, and the ratios."""
    which = ["ours"] if args.without_transformers else ["ours", "theirs"]
    memory = memory_of_both(which)
    steps, difference = build_steps(args, which=which)
    ours = steps["ours"]
    assert isinstance(ours, OurStep)
    if "theirs" in steps:
        losses = {name: step() for name, step in steps.items()}
        assert abs(losses["ours"] / losses["theirs"] - 1) < 0.05, f"losses differ beyond their random points: {losses}"
    seconds = take_turns(steps, runs=args.runs)
    results = {
        "model": args.model,
        "batch": args.batch,
        "size": args.size,
        "objects": args.objects,
        "dtype": args.dtype,
        "device": args.device,
        "largest difference": difference,
        "seconds": seconds,
        "our parts": ours.medians(),
        "step memory MiB": memory,
    }
    if "theirs" in seconds:
        results["ratio"] = seconds["theirs"] / seconds["ours"]
        results["memory ratio"] = memory["ours"] / memory["theirs"]
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_options(parser)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(step_memory(args, args.memory_of)))
        return
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; {kernel_status()}")
    started = time.perf_counter()
    results = measure(args)
    print(f"{args.model}, {args.batch} x {args.size}^2, {args.objects} objects each, ours in {args.dtype}:")
    for part, seconds in results["our parts"].items():
        print(f"  {part:18s} {seconds:8.3f} s")
    memory = results["step memory MiB"]
    if "ratio" in results:
        print_ratio("step", ours=results["seconds"]["ours"], theirs=results["seconds"]["theirs"])
        print_ratio("peak memory above the idle model", ours=memory["ours"], theirs=memory["theirs"], unit="MiB")
    else:
        print(f"  step {results['seconds']['ours']:.3f} s, peak memory above the idle model {memory['ours']:.0f} MiB")
    if not args.no_record:
        record("training", results, labels=[Path(args.model).stem])
    print(f"  measured in {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
