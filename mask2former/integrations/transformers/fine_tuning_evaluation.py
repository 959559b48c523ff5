"""The ``Trainer`` of transformers with COCO's average precision, matched image by image: no logits are collected."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object

from mask2former.errors import InputError
from mask2former.evaluation.average_precision import AveragePrecision, PrecisionTally
from mask2former.evaluation.coco_matching import match_image
from mask2former.integrations.transformers.fine_tuning_data import INDEX, SIZE, TRUTH
from mask2former.integrations.transformers.image_processing import infer_instances
from mask2former.structures import bitmasks_to_rles

_MAX_REASON = 300  # letters
_METRICS = {"map": "AP", "map_50": "AP50", "map_75": "AP75"}
_METRICS |= {"map_small": "APs", "map_medium": "APm", "map_large": "APl"}


class FineTuningTrainer(transformers.Trainer):
    """Evaluates by the published protocol: the 100 best pairs of query and class of an image, at the file's size.

    Metrics, in 0..1: map (mean over IoU 0.5..0.95), map_50, map_75, map_small, map_medium, map_large, and
    map_CLASS for each class; those for which the split has no instance are left out.
    """

    _tally = PrecisionTally()

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository for --push_to_hub, before anything is trained.

        Raises:
            InputError: the hub cannot be reached, or refuses.
        """
        with _hub_failures("nothing was trained yet"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload model and card.

        Raises:
            InputError: the hub cannot be reached, or refuses.
        """
        with _hub_failures(f"the model is in {self.args.output_dir}"):
            return super().push_to_hub(*args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, None, None]:
        """Return the loss; instances are matched on the way."""
        indices, sizes, truths = (inputs.pop(name) for name in (INDEX, SIZE, TRUTH))
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        found = infer_instances(outputs, target_sizes=sizes, pixel_mask=inputs["pixel_mask"])
        for index, instances, truth in zip(indices, found, truths, strict=True):
            self._tally.add_image(index, match_image(truth, _encode(instances), iou_type="segm"))
        return loss.detach().mean(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Their loop, with the metrics added to those it returns."""
        self._tally = PrecisionTally()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        total = PrecisionTally()
        for tally in gather_object([self._tally]):
            total += tally
        names = {int(label): name for label, name in self.model.config.id2label.items()}
        metrics = summarize(total.average_precision(names), names)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


@contextlib.contextmanager
def _hub_failures(state: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the hub's client raises whatever the network leads it to
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        raise InputError(f"--push_to_hub: {reason}; {state}") from error


def summarize(precision: AveragePrecision, names: Mapping[int, str]) -> dict[str, float]:
    """Return metrics in 0..1 by name; without those that could not be measured, but for map itself."""
    values = {name: precision.summary[key] / 100 for name, key in _METRICS.items()}
    values |= {f"map_{names[label]}": value / 100 for label, value in precision.by_category.items()}
    measured = {name: round(value, 4) for name, value in values.items() if not math.isnan(value)}
    return {"map": 0.0} | measured


def _encode(instances: Any) -> list[dict[str, Any]]:
    rles = bitmasks_to_rles(instances.pred_masks) if len(instances) else []
    pairs = zip(instances.pred_classes.tolist(), instances.scores.double().tolist(), rles, strict=True)
    return [{"category_id": label, "score": score, "segmentation": rle} for label, score, rle in pairs]
