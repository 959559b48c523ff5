"""The criterion of OneFormer: that of Mask2Former, and a loss that contrasts the queries of images with their texts.

Letters: B images of a process, M images of all processes, Q queries, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.distributed import gather_with_gradient, get_rank
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.interfaces import Matcher
from mask2former.modeling.registry import CRITERION_REGISTRY

_LARGEST_SCALE = 100.0  # of similarities, as in CLIP


@CRITERION_REGISTRY.register()
class ContrastiveSetCriterion(SetCriterion):
    """Adds ``contrastive_loss``, whose temperature is learned."""

    def __init__(self, num_classes: int, *, contrastive_weight: float, temperature: float, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.loss_weights["loss_contrastive"] = contrastive_weight
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @classmethod
    def from_config(cls, cfg: Any, matcher: Matcher) -> dict[str, Any]:
        """Return the arguments of the set criterion, and MODEL.ONE_FORMER's of the contrastive loss."""
        options = cfg.MODEL.ONE_FORMER
        return {
            **super().from_config(cfg, matcher),
            "contrastive_weight": options.CONTRASTIVE_WEIGHT,
            "temperature": options.CONTRASTIVE_TEMPERATURE,
        }

    def contrastive_loss(self, queries: Tensor, texts: Tensor) -> Tensor:
        """Return the loss of initial queries and text queries, both (B, Q, C), of equally many images a process.

        Each image is to be told from all others by its texts, and the reverse. Of one image it is 0.
        """
        with torch.autocast(queries.device.type, enabled=False):
            images, words = (F.normalize(x.float().flatten(1), dim=-1) for x in (queries, texts))  # (B, QC)
            scale = self.logit_scale.float().exp().clamp(max=_LARGEST_SCALE)
            own = torch.arange(len(images), device=images.device) + get_rank() * len(images)
            # Parity: two images with the same texts are told apart all the same.
            of_images = scale * images @ gather_with_gradient(words).T  # (B, M)
            of_words = scale * words @ gather_with_gradient(images).T
            return F.cross_entropy(of_images, own) + F.cross_entropy(of_words, own)
