"""Times inference end to end, image to panoptic, semantic and instance results, beside the model of transformers.

    python benchmarks/inference.py [--config-file F] [--height 800 --width 1088] [--dtype float32] [--runs 5]

Both models have random weights and the architecture of the COCO panoptic R50 recipe, and take turns in one process, so
that a busy machine slows both alike. Transformers is timed without its post-processing. `--detections` says how many
queries look like a confident detection: random weights alone would detect nothing.
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
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former import build_model, get_cfg
from mask2former.modeling.meta_arch.inputs import pad_images
from mask2former.modeling.postprocess import MaskGeometry
from mask2former.ops import kernel_status

RECIPE = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
NUM_CLASSES = 133
STAGES = ("input", "backbone", "pixel decoder", "decoder", "results")


class StagedModel:
    """Our model, its stages timed one by one."""

    def __init__(self, args: argparse.Namespace) -> None:
        cfg = get_cfg()
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.CHANNELS_LAST", args.channels_last, *args.opts])
        self.model: Any = build_model(cfg).eval()
        self.sample = {
            "image": torch.randint(256, (3, args.height, args.width), dtype=torch.uint8),
            "height": args.output_height,
            "width": args.output_width,
        }
        self.geometry = MaskGeometry((0, 0), (args.height, args.width), (args.output_height, args.output_width))
        self.num_detections = args.detections
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def run(self) -> list[dict[str, Any]]:
        """What `model([sample])` does, with the clock read in between."""
        model, head = self.model, self.model.sem_seg_head
        clock = [now()]
        images, _ = pad_images(
            [self.sample],
            mean=model.pixel_mean,
            std=model.pixel_std,
            size_divisibility=model.size_divisibility,
        )
        clock.append(now())
        features = model.features(images.tensor)
        clock.append(now())
        mask_features, _, maps = head.pixel_decoder.forward_features(features)
        clock.append(now())
        final = head.predictor(maps, mask_features)[-1]
        final = final._replace(class_logits=self._as_if_trained(final.class_logits))
        clock.append(now())
        padded = (images.tensor.shape[-2], images.tensor.shape[-1])
        geometry = MaskGeometry(padded, self.geometry.image, self.geometry.output)
        results = model.results(final, [geometry], as_clips=False)
        clock.append(now())
        for stage, start, end in zip(STAGES, clock, clock[1:]):
            self.seconds[stage].append(end - start)
        return results

    def _as_if_trained(self, class_logits: Tensor) -> Tensor:
        """Class logits by which `num_detections` queries are sure of a class and the others of there being none."""
        surest = torch.zeros_like(class_logits)
        surest[:, : self.num_detections, : self.num_detections] = 12 * torch.eye(self.num_detections)
        surest[:, self.num_detections :, -1] = 12
        return surest


def build_transformers_model(args: argparse.Namespace) -> Callable[[], Any]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=NUM_CLASSES, use_pretrained_backbone=False)
    model: nn.Module = Mask2FormerForUniversalSegmentation(config).eval().to(args.device)
    images = torch.randn(1, 3, args.height, args.width, device=args.device)
    return lambda: model(pixel_values=images)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(function: Callable[[], Any]) -> float:
    start = now()
    function()
    return now() - start


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default_config = Path(__file__).parents[1] / "configs" / RECIPE
    parser.add_argument("--config-file", default=str(default_config), metavar="FILE")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--output-height", type=int, default=480)
    parser.add_argument("--output-width", type=int, default=640)
    parser.add_argument("--detections", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="ours; theirs is float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="further config values")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ours = StagedModel(args)
    theirs = None if args.without_transformers else build_transformers_model(args)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, ours in {args.dtype}; {kernel_status()}")
    our_seconds, their_seconds = [], []
    for _ in range(args.runs + 1):  # the first warms up
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            our_seconds.append(seconds_of(ours.run))
        if theirs is not None:
            their_seconds.append(seconds_of(theirs))
    for stage, values in ours.seconds.items():
        print(f"  {stage:14s} {statistics.median(values[1:]):7.3f} s")
    our_median = statistics.median(our_seconds[1:])
    print(f"ours, end to end              {our_median:7.3f} s")
    if theirs is not None:
        their_median = statistics.median(their_seconds[1:])
        print(f"transformers, forward alone   {their_median:7.3f} s   ours takes {our_median / their_median:.2f} of it")


if __name__ == "__main__":
    main()
