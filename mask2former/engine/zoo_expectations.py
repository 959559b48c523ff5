"""The published metrics of a zoo model as results that an evaluation is expected to give."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mask2former.checkpoint.addresses import find_zoo_model
from mask2former.config import CfgNode
from mask2former.errors import ConfigError

logger = logging.getLogger(__name__)

# Published name → where results hold it; cityscapesscripts calls the mean over classes IoU.
_PLACES = {
    "PQ": (("panoptic_seg", "PQ"),),
    "AP": (("segm", "AP"),),
    "AP50": (("segm", "AP50"),),
    "Boundary AP": (("boundary", "AP"),),
    "mIoU": (("sem_seg", "mIoU"), ("sem_seg", "IoU")),
}
_AUGMENTED = " (ms+flip)"  # with test-time augmentation


def expect_zoo_metrics(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> CfgNode:
    """``cfg`` with the metrics of TEST.EXPECTED_ZOO, those that were evaluated, added to TEST.EXPECTED_RESULTS.

    Raises:
        CheckpointError: the zoo has no such model.
        ConfigError: none of its metrics was evaluated.
    """
    if not cfg.TEST.EXPECTED_ZOO:
        return cfg
    model = find_zoo_model(cfg.TEST.EXPECTED_ZOO)
    expected, missing = [], []
    for name, value in model.metrics.items():
        is_augmented = name.endswith(_AUGMENTED)
        if is_augmented and not cfg.TEST.AUG.ENABLED:
            continue
        places = _PLACES.get(name.removesuffix(_AUGMENTED), ())
        if is_augmented:
            places = tuple((f"{task}_TTA", metric) for task, metric in places)
        found = next((place for place in places if place[1] in results.get(place[0], {})), None)
        if found is None:
            missing.append(name)
        else:
            expected.append([*found, float(value), float(cfg.TEST.EXPECTED_ZOO_TOLERANCE)])
    if not expected:
        raise ConfigError(
            f"TEST.EXPECTED_ZOO: {model.name} is published with {list(model.metrics)}, of which nothing was evaluated; "
            f"there are results for {sorted(results)}"
        )
    if missing:
        logger.warning("%s: published %s were not evaluated, and so not verified", model.name, ", ".join(missing))
    extended = cfg.clone()
    extended.defrost()
    extended.TEST.EXPECTED_RESULTS = [*cfg.TEST.EXPECTED_RESULTS, *expected]
    return extended
