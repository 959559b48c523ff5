"""Our model and that of transformers with the same architecture and weights, for benchmarks that compare them.

Weights are random but for the classifier, which is made sure of itself, so that an image has a realistic number of
detections: random ones would detect nothing, and post-processing would be timed on nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import largest_difference, require_at_most
from mask2former import build_model, get_cfg
from mask2former.checkpoint.conversion import write_transformers

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = {
    "R50": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "Swin-T": "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
}
# In float32 the order of summation may put a mask logit next to zero on either side of the attention threshold.
TOLERANCE = 2e-3
_LEAST_SCORE = 0.8  # OBJECT_MASK_THRESHOLD of the recipes
_SURENESS = 40.0  # how far the classes of random queries are drawn apart
_MOST_DOUBLINGS = 20  # makes a query sure whose two best logits are 2e-6 apart; float32 tells nothing nearer


@dataclass
class ModelPair:
    """`ours` takes the framework's list of dictionaries, `theirs` what transformers' does; None where not wanted."""

    cfg: Any
    ours: Any
    theirs: Any


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmarks that put both models side by side are told alike."""
    parser.add_argument("--model", default="R50", help="R50, Swin-T or a config file")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="ours; theirs is float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--no-record", action="store_true", help="print only, keep no line in benchmarks/results")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="further config values")


def build_pair(
    recipe: str, *, device: str = "cpu", with_transformers: bool = True, opts: tuple[str, ...] = ()
) -> ModelPair:
    """Both models in evaluation mode; `recipe` is a name of RECIPES or a config file."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / RECIPES[recipe] if recipe in RECIPES else recipe))
    # Masks of random queries overlap: with the recipe's threshold no segment would be left.
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0, *opts])
    torch.manual_seed(0)
    ours: Any = build_model(cfg).eval()
    randomize_statistics(ours)
    return ModelPair(cfg, ours, convert_to_transformers(ours, cfg).to(device) if with_transformers else None)


def randomize_statistics(model: nn.Module) -> None:
    """Gives frozen batch norms, whose random start is the identity, something to do without changing magnitudes."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)


def convert_to_transformers(ours: nn.Module, cfg: Any) -> nn.Module:
    """Transformers' model with the weights of ours."""
    from transformers import Mask2FormerForUniversalSegmentation

    with tempfile.TemporaryDirectory() as folder:
        write_transformers(ours.state_dict(), folder, cfg=cfg)
        return Mask2FormerForUniversalSegmentation.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def make_detections(model: Any, images: Tensor, *, num_detections: int) -> None:
    """Changes the classifier so that about `num_detections` queries are sure of a class on normalised `images`.

    Images are (1, 3, H, W). To be done in float32, before conversion and before the model is prepared for inference.

    Raises:
        RuntimeError: the best classes of too many queries tie.
    """
    predictor = model.sem_seg_head.predictor
    classifier = predictor.class_embed
    classifier.weight.mul_(_SURENESS)
    classifier.weight[-1] = 0
    logits = model.sem_seg_head.predict(model.features(images))[-1].class_logits[0]  # (Q, K + 1)
    best = logits[:, :-1].amax(1).sort(descending=True).values
    classifier.bias[-1] += (best[num_detections - 1] + best[num_detections]) / 2 - logits[0, -1]
    logits[:, -1] = (best[num_detections - 1] + best[num_detections]) / 2
    for _ in range(_MOST_DOUBLINGS):
        if _count_sure(logits) >= num_detections / 2:  # the best class must also leave the second far behind
            return
        logits *= 2
        classifier.weight.mul_(2)
        classifier.bias.mul_(2)
    raise RuntimeError(
        f"expected {num_detections / 2:g} queries that are sure of a class, found {_count_sure(logits)}: the best "
        "classes of the others tie, as they may in half precision"
    )


def _count_sure(logits: Tensor) -> int:
    """How many queries, of class logits (Q, K + 1), a panoptic result would take."""
    scores, labels = logits.softmax(-1).max(-1)
    return int(((scores > _LEAST_SCORE) & (labels < logits.shape[-1] - 1)).sum())


@torch.no_grad()
def compare_outputs(pair: ModelPair, images: Tensor) -> float:
    """Largest difference of the logits of both models, relative to the largest; DifferenceError above TOLERANCE."""
    # A GPU's shortened float32 convolutions would differ between memory layouts by more than the models do.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        ours = pair.ours.sem_seg_head(pair.ours.features(images))
        theirs = pair.theirs(pixel_values=images)
    differences = {
        "classes": largest_difference(ours["pred_logits"], theirs.class_queries_logits),
        "masks": largest_difference(ours["pred_masks"], theirs.masks_queries_logits),
    }
    require_at_most(differences, dict.fromkeys(differences, TOLERANCE))
    return max(differences.values())
